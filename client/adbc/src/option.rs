//! Values of options, and the answers for options that are unknown.

use adbc_core::error::{Error, Result};
use adbc_core::options::OptionValue;

use crate::error::{invalid_argument, not_found, not_implemented};

/// Begin of the names of this driver's own options.
pub(crate) const PREFIX: &str = "adbc.thallus.";

/// The value as text; a number as it is written.
///
/// # Errors
/// The value is bytes.
pub(crate) fn text(name: &str, value: OptionValue) -> Result<String> {
    match value {
        OptionValue::String(text) => Ok(text),
        OptionValue::Int(number) => Ok(number.to_string()),
        OptionValue::Double(number) => Ok(number.to_string()),
        _ => Err(invalid_argument(format!("option {name} takes text, not bytes"))),
    }
}

/// `true` or `false`.
///
/// # Errors
/// The value is neither.
pub(crate) fn flag(name: &str, value: &OptionValue) -> Result<bool> {
    bool::try_from(value)
        .map_err(|_| invalid_argument(format!("option {name} is \"true\" or \"false\", not {value:?}")))
}

/// The answer to setting an option that the driver does not know.
pub(crate) fn unknown(name: &str, known: &[&str]) -> Error {
    not_implemented(format!("unknown option {name:?} (known here: {})", known.join(", ")))
}

/// The answer to getting an option that has no value.
pub(crate) fn without_value(name: &str) -> Error {
    not_found(format!("option {name:?} is unknown or has no value"))
}

/// Implements the four getters of [`adbc_core::Optionable`] by one function, `fn value(&self, name: &str) ->
/// Result<Option<String>>`.
macro_rules! getters {
    ($option:ty) => {
        fn get_option_string(&self, key: $option) -> adbc_core::error::Result<String> {
            let name: &str = key.as_ref();
            self.value(name)?.ok_or_else(|| $crate::option::without_value(name))
        }

        fn get_option_bytes(&self, key: $option) -> adbc_core::error::Result<Vec<u8>> {
            self.get_option_string(key).map(String::into_bytes)
        }

        fn get_option_int(&self, key: $option) -> adbc_core::error::Result<i64> {
            let name = key.as_ref().to_owned();
            $crate::option::parse(&name, &self.get_option_string(key)?, "an integer")
        }

        fn get_option_double(&self, key: $option) -> adbc_core::error::Result<f64> {
            let name = key.as_ref().to_owned();
            $crate::option::parse(&name, &self.get_option_string(key)?, "a number")
        }
    };
}
pub(crate) use getters;

/// A value that is asked for as another type.
///
/// # Errors
/// It is not of that type.
pub(crate) fn parse<T: std::str::FromStr>(name: &str, value: &str, kind: &str) -> Result<T> {
    value.parse().map_err(|_| not_found(format!("option {name} has the value {value:?}, which is not {kind}")))
}

#[cfg(test)]
mod tests {
    use adbc_core::error::Status;

    use super::*;

    #[test]
    fn values_are_text_or_numbers() {
        assert_eq!(text("a", "b".into()).unwrap(), "b");
        assert_eq!(text("a", 8_i64.into()).unwrap(), "8");
        assert_eq!(text("a", 0.5.into()).unwrap(), "0.5");
        assert_eq!(text("a", b"b".into()).unwrap_err().status, Status::InvalidArguments);
        assert!(flag("a", &true.into()).unwrap() && !flag("a", &"false".into()).unwrap());
        assert_eq!(flag("a", &"yes".into()).unwrap_err().status, Status::InvalidArguments);
    }

    #[test]
    fn unknown_options_have_the_status_that_the_specification_requires() {
        assert_eq!(unknown("a", &["b"]).status, Status::NotImplemented);
        assert_eq!(without_value("a").status, Status::NotFound);
        assert_eq!(parse::<i64>("a", "b", "an integer").unwrap_err().status, Status::NotFound);
        assert_eq!(parse::<i64>("a", "-8", "an integer").unwrap(), -8);
    }
}
