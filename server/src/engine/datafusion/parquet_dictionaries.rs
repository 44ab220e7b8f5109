//! Types of Parquet files that its reader does not read right.

use arrow_schema::{DataType, Schema};

/// Refuses dictionaries of values for which the reader of Parquet (arrow-rs 59.3) has no decoder: it takes values of a
/// fixed size for texts with lengths, and returns keys beyond the end of the dictionary, or it panics.
pub(super) fn check_dictionaries(schema: &Schema) -> Result<(), String> {
    for field in schema.flattened_fields() {
        if let DataType::Dictionary(_, value) = field.data_type()
            && matches!(**value, DataType::Boolean | DataType::Float16 | DataType::FixedSizeBinary(_))
        {
            return Err(format!(
                "the column or part `{}` is a dictionary of {value}, which is not read from Parquet; write it as plain \
                 values",
                field.name()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_schema::Field;

    use super::*;

    fn check(value: DataType) -> Result<(), String> {
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(value));
        let list = DataType::List(Arc::new(Field::new("item", dictionary, true)));
        check_dictionaries(&Schema::new(vec![Field::new("a", list, true)]))
    }

    #[test]
    fn dictionaries_without_a_decoder() {
        assert!(check(DataType::FixedSizeBinary(16)).is_err_and(|reason| reason.contains("`item`")));
        assert!(check(DataType::Boolean).is_err());
        assert!(check(DataType::Float16).is_err());
        assert!(check(DataType::Utf8).is_ok());
        assert!(check(DataType::Int64).is_ok());
    }
}
