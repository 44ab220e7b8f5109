//! Options of queries: set at the database for all, at a connection for its statements, or at one statement.

use std::time::Duration;

use adbc_core::error::Result;
use thallus_client::{Access, LendFrom, MAX_PARTITIONS, QueryOptions};
use thallus_fabric::units::{exact_duration, parse_duration};

use crate::error::invalid_argument;
use crate::option::PREFIX;

/// How batches travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// By size: lent or inline.
    #[default]
    Auto,
    /// All over TCP.
    Inline,
    /// All read one-sidedly.
    Lent,
    /// In place in the server's memory.
    Mapped,
}

impl Delivery {
    const ALL: [(&str, Delivery); 4] = [
        ("auto", Delivery::Auto),
        ("inline", Delivery::Inline),
        ("lent", Delivery::Lent),
        ("mapped", Delivery::Mapped),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, delivery)| *delivery == self).map_or("auto", |(name, _)| name)
    }
}

/// Options of queries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) delivery: Delivery,
    batch_rows: Option<u32>,
    deadline: Option<Duration>,
    partitions: Option<u32>,
    unordered: bool,
}

/// Names of the options, with the prefix.
pub(crate) const NAMES: [&str; 5] = [
    "adbc.thallus.delivery",
    "adbc.thallus.batch_rows",
    "adbc.thallus.deadline",
    "adbc.thallus.partitions",
    "adbc.thallus.unordered",
];

impl Settings {
    /// Sets an option. Returns `false` if it is none of these.
    ///
    /// # Errors
    /// The value does not fit.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<bool> {
        let bad = |expected: &str| invalid_argument(format!("bad value {value:?} for option {name}: {expected}"));
        match name.strip_prefix(PREFIX) {
            Some("delivery") => {
                let found = Delivery::ALL.into_iter().find(|(known, _)| *known == value);
                self.delivery = found.ok_or_else(|| bad("known: auto, inline, lent, mapped"))?.1;
            }
            Some("batch_rows") => {
                let rows = value.parse().ok().filter(|rows| *rows > 0);
                self.batch_rows = Some(rows.ok_or_else(|| bad("expected a number of rows, at least 1"))?);
            }
            Some("deadline") => {
                let limit = parse_duration(value).map_err(|e| bad(&e.to_string()))?;
                self.deadline = Some(limit).filter(|limit| !limit.is_zero());
            }
            Some("partitions") => {
                let count = value.parse().ok().filter(|count| (1..=MAX_PARTITIONS).contains(count));
                self.partitions = Some(count.ok_or_else(|| bad(&format!("expected 1 to {MAX_PARTITIONS}")))?);
            }
            Some("unordered") => {
                self.unordered = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(bad("known: true, false")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The value of an option, if it is one of these and has one.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        Some(match name.strip_prefix(PREFIX)? {
            "delivery" => self.delivery.name().to_owned(),
            "batch_rows" => self.batch_rows?.to_string(),
            "deadline" => exact_duration(self.deadline?),
            "partitions" => self.partitions?.to_string(),
            "unordered" => self.unordered.to_string(),
            _ => return None,
        })
    }

    /// These settings, for a query.
    pub(crate) fn query(&self) -> QueryOptions {
        let options = QueryOptions::new()
            .with_batch_rows(self.batch_rows)
            .with_deadline(self.deadline)
            .with_partitions(self.partitions)
            .with_unordered(self.unordered);
        match self.delivery {
            Delivery::Auto => options,
            Delivery::Inline => options.with_lend_from(LendFrom::Never),
            Delivery::Lent => options.with_lend_from(LendFrom::Bytes(0)),
            Delivery::Mapped => options.with_access(Access::Map),
        }
    }

    /// The longest duration of an upload.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Size from which batches of an upload are lent.
    pub(crate) fn lend_from(&self) -> Option<LendFrom> {
        self.query().lend_from
    }
}

#[cfg(test)]
mod tests {
    use adbc_core::error::Status;

    use super::*;

    #[test]
    fn options_are_set_and_read_back() {
        let mut settings = Settings::default();
        for (name, value) in NAMES.into_iter().zip(["mapped", "1000", "5s", "4", "true"]) {
            assert_eq!(settings.set(name, value), Ok(true));
            assert_eq!(settings.get(name).as_deref(), Some(value));
        }
        let expected = QueryOptions::new()
            .with_access(Access::Map)
            .with_batch_rows(Some(1000))
            .with_deadline(Some(Duration::from_secs(5)))
            .with_partitions(Some(4))
            .with_unordered(true);
        assert_eq!(settings.query(), expected);
        assert_eq!(settings.set("adbc.thallus.window", "1MiB"), Ok(false));
        assert_eq!(settings.get("adbc.thallus.window"), None);
    }

    #[test]
    fn deliveries_select_how_batches_travel() {
        let query = |delivery| {
            let mut settings = Settings::default();
            settings.set("adbc.thallus.delivery", delivery).unwrap();
            settings.query()
        };
        assert_eq!(query("auto"), QueryOptions::new());
        assert_eq!(query("inline"), QueryOptions::new().with_lend_from(LendFrom::Never));
        assert_eq!(query("lent"), QueryOptions::new().with_lend_from(LendFrom::Bytes(0)));
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        for (name, value) in NAMES.into_iter().zip(["rdma", "0", "5", "0", "yes"]) {
            let error = Settings::default().set(name, value).unwrap_err();
            assert_eq!(error.status, Status::InvalidArguments, "{name}");
            assert!(error.message.starts_with(&format!("bad value {value:?} for option {name}: ")), "{error}");
        }
    }
}
