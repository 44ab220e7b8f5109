//! Facts about the server and this driver.

use std::collections::HashSet;
use std::sync::Arc;

use adbc_core::constants::ADBC_VERSION_1_1_0;
use adbc_core::error::Result;
use adbc_core::options::InfoCode;
use adbc_core::schemas::GET_INFO_SCHEMA;
use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, UInt32Array, UnionArray, new_empty_array,
};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::DataType;

use super::bug;
use crate::error::from_arrow;

enum Value {
    Text(Option<String>),
    Flag(bool),
    Number(i64),
}

/// The facts that are asked for, or all; codes that the driver does not know are left out.
pub(crate) fn batch(vendor: &str, version: &str, codes: Option<&HashSet<InfoCode>>) -> Result<RecordBatch> {
    let text = |text: &str| Value::Text(Some(text.to_owned()));
    let arrow = format!("v{}", arrow::ARROW_VERSION);
    let facts = [
        (InfoCode::VendorName, text(vendor)),
        (InfoCode::VendorVersion, text(version)),
        // Batches reach this process as this driver's Arrow arrays, in whatever way the server makes them.
        (InfoCode::VendorArrowVersion, text(&arrow)),
        (InfoCode::VendorSql, Value::Flag(true)),
        (InfoCode::VendorSubstrait, Value::Flag(false)),
        (InfoCode::VendorSubstraitMinVersion, Value::Text(None)),
        (InfoCode::VendorSubstraitMaxVersion, Value::Text(None)),
        (InfoCode::DriverName, text("ADBC Thallus Driver")),
        (InfoCode::DriverVersion, text(env!("CARGO_PKG_VERSION"))),
        (InfoCode::DriverArrowVersion, text(&arrow)),
        (InfoCode::DriverAdbcVersion, Value::Number(i64::from(ADBC_VERSION_1_1_0))),
    ];
    let asked = |(code, _): &(InfoCode, Value)| codes.is_none_or(|codes| codes.contains(code));
    values(facts.into_iter().filter(asked))
}

fn values(facts: impl Iterator<Item = (InfoCode, Value)>) -> Result<RecordBatch> {
    let (mut names, mut kinds, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    let (mut texts, mut flags, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for (code, value) in facts {
        names.push(u32::from(&code));
        let (kind, place) = match value {
            Value::Text(text) => {
                texts.push(text);
                (0, texts.len())
            }
            Value::Flag(flag) => {
                flags.push(flag);
                (1, flags.len())
            }
            Value::Number(number) => {
                numbers.push(number);
                (2, numbers.len())
            }
        };
        kinds.push(kind);
        // There are eleven facts.
        offsets.push(i32::try_from(place - 1).unwrap_or(i32::MAX));
    }
    let kind = GET_INFO_SCHEMA.field(1).data_type();
    let DataType::Union(fields, _) = kind else { return Err(bug("a union")) };
    let mut children: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(texts)),
        Arc::new(BooleanArray::from(flags)),
        Arc::new(Int64Array::from(numbers)),
    ];
    children.extend(fields.iter().skip(children.len()).map(|(_, field)| new_empty_array(field.data_type())));
    let (kinds, offsets) = (ScalarBuffer::from(kinds), Some(ScalarBuffer::from(offsets)));
    let union = UnionArray::try_new(fields.clone(), kinds, offsets, children).map_err(from_arrow)?;
    super::batch(&GET_INFO_SCHEMA, vec![Arc::new(UInt32Array::from(names)), Arc::new(union)])
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int64Type, UInt32Type};

    use super::*;

    #[test]
    fn all_facts_are_told_in_the_schema_of_adbc() {
        let batch = batch("DataFusion", "55.2.0", None).unwrap();
        assert_eq!(batch.schema(), *GET_INFO_SCHEMA);
        let codes = batch.column(0).as_primitive::<UInt32Type>().values().to_vec();
        assert_eq!(codes, [0, 1, 2, 3, 4, 5, 6, 100, 101, 102, 103]);
        let values = batch.column(1).as_union();
        let text = |row: usize| values.value(row).as_string::<i32>().value(0).to_owned();
        assert_eq!((text(0).as_str(), text(1).as_str()), ("DataFusion", "55.2.0"));
        assert!(text(9).starts_with("v59."), "{}", text(9));
        assert!(values.value(3).as_boolean().value(0) && !values.value(4).as_boolean().value(0));
        assert!(values.value(5).is_null(0) && values.value(6).is_null(0));
        assert_eq!(values.value(10).as_primitive::<Int64Type>().value(0), 1_001_000);
    }

    #[test]
    fn only_known_codes_that_are_asked_for_are_told() {
        let asked = HashSet::from([InfoCode::DriverName, InfoCode::Other(4711)]);
        let batch = batch("x", "1", Some(&asked)).unwrap();
        assert_eq!(batch.column(0).as_primitive::<UInt32Type>().values().to_vec(), [100]);
        let none = super::batch("x", "1", Some(&HashSet::new())).unwrap();
        assert_eq!((none.num_rows(), none.schema()), (0, GET_INFO_SCHEMA.clone()));
    }
}
