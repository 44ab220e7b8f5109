//! The schema of an Arrow file, which is not believed before it is checked.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_ipc::Endianness;
use arrow_schema::{
    DECIMAL32_MAX_PRECISION, DECIMAL64_MAX_PRECISION, DECIMAL128_MAX_PRECISION, DECIMAL256_MAX_PRECISION, DataType,
    Field, FieldRef, Schema, SchemaRef,
};

use super::error::ReadError;
use super::ipc_limits::{IPC_LIMITS, IpcLimits};

/// Most types within each other. The verifier of the flat buffers allows about 60.
const MAX_DEPTH: usize = 64;
/// Most columns of a file, nested ones included.
const MAX_FIELDS: usize = 1 << 18;
/// Most bytes of a schema's names and metadata. Their bytes in the file may be shared, those in memory are not.
const MAX_TEXT: usize = 64 << 20;

/// The schema of a file, checked before and after it is converted.
pub(super) fn schema_of(schema: Option<arrow_ipc::Schema<'_>>, limits: &IpcLimits) -> Result<SchemaRef, ReadError> {
    let schema = schema.ok_or_else(|| ReadError::invalid("the file has no schema"))?;
    // `fb_to_schema` does not look at it: the numbers would be read from the wrong end.
    if schema.endianness() != Endianness::Little {
        return Err(ReadError::invalid(
            "the file has big-endian data, which is not read; write it again on a little-endian machine",
        ));
    }
    schema_size(schema)?;
    let schema = arrow_ipc::convert::fb_to_schema(schema);
    types(&schema, limits)?;
    Ok(Arc::new(schema))
}

/// The schema of a message of Arrow IPC without its frame, checked as that of a file.
pub(in super::super) fn schema_of_message(bytes: &[u8]) -> Result<SchemaRef, String> {
    let message = super::ipc_source::parse(bytes).map_err(|e| e.to_string())?;
    schema_of(message.header_as_schema(), &IPC_LIMITS).map_err(|e| e.to_string())
}

/// Checks the size of a schema before it is converted.
fn schema_size(schema: arrow_ipc::Schema<'_>) -> Result<(), ReadError> {
    let mut size = SchemaSize::default();
    for pair in schema.custom_metadata().into_iter().flatten() {
        size.add_text(pair.key())?;
        size.add_text(pair.value())?;
    }
    schema.fields().into_iter().flatten().try_for_each(|field| size.add_field(field, 1))
}

#[derive(Default)]
struct SchemaSize {
    fields: usize,
    text: usize,
}

impl SchemaSize {
    fn add_field(&mut self, field: arrow_ipc::Field<'_>, depth: usize) -> Result<(), ReadError> {
        self.fields += 1;
        if self.fields > MAX_FIELDS {
            return Err(ReadError::invalid(format!("the schema has more than {MAX_FIELDS} columns")));
        }
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        self.add_text(field.name())?;
        self.add_text(field.type_as_timestamp().and_then(|timestamp| timestamp.timezone()))?;
        for pair in field.custom_metadata().into_iter().flatten() {
            self.add_text(pair.key())?;
            self.add_text(pair.value())?;
        }
        field.children().into_iter().flatten().try_for_each(|child| self.add_field(child, depth + 1))
    }

    fn add_text(&mut self, text: Option<&str>) -> Result<(), ReadError> {
        self.text = self.text.saturating_add(text.map_or(0, str::len));
        if self.text > MAX_TEXT {
            return Err(ReadError::invalid(format!("the schema's names and metadata take more than {MAX_TEXT} bytes")));
        }
        Ok(())
    }
}

fn too_deep() -> ReadError {
    ReadError::invalid(format!("a type is nested more than {MAX_DEPTH} deep"))
}

/// Checks the types of a schema: widths, precisions, and that a dictionary has one type.
fn types(schema: &Schema, limits: &IpcLimits) -> Result<(), ReadError> {
    for field in schema.fields() {
        least_bytes(field.data_type(), 1, limits).map_err(|error| match error {
            ReadError::Invalid { reason, .. } => ReadError::invalid(format!("column \"{}\": {reason}", field.name())),
            other @ ReadError::Io(_) => other,
        })?;
    }
    dictionaries(schema.fields()).map(|_| ())
}

/// The least bytes that one value of the type takes, of those that its type alone tells.
fn least_bytes(data_type: &DataType, depth: usize, limits: &IpcLimits) -> Result<u64, ReadError> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    let mut of_children = 0_u64;
    for child in children(data_type) {
        of_children = of_children.saturating_add(least_bytes(child.data_type(), depth + 1, limits)?);
    }
    shape(data_type)?;
    let bytes = match data_type {
        DataType::FixedSizeBinary(width) => unsigned(i64::from(*width), "width")?,
        DataType::FixedSizeList(_, size) => unsigned(i64::from(*size), "size")?.saturating_mul(of_children.max(1)),
        DataType::Struct(_) => of_children,
        DataType::Decimal32(precision, _) => decimal(*precision, DECIMAL32_MAX_PRECISION, 4)?,
        DataType::Decimal64(precision, _) => decimal(*precision, DECIMAL64_MAX_PRECISION, 8)?,
        DataType::Decimal128(precision, _) => decimal(*precision, DECIMAL128_MAX_PRECISION, 16)?,
        DataType::Decimal256(precision, _) => decimal(*precision, DECIMAL256_MAX_PRECISION, 32)?,
        DataType::Dictionary(_, values) => {
            least_bytes(values, depth + 1, limits)?;
            1
        }
        other => other.primitive_width().unwrap_or(0) as u64,
    };
    if bytes > limits.max_batch_bytes {
        return Err(ReadError::invalid(format!(
            "one value of its type takes {bytes} bytes, more than the limit of {} bytes",
            limits.max_batch_bytes
        )));
    }
    Ok(bytes)
}

/// Checks what a type says of the types within: code that uses it takes this for granted, and panics.
fn shape(data_type: &DataType) -> Result<(), ReadError> {
    match data_type {
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(parts) if parts.len() == 2 => Ok(()),
            other => {
                Err(ReadError::invalid(format!("a map has entries of type {other}, and not of a key and a value")))
            }
        },
        DataType::RunEndEncoded(ends, _) => match ends.data_type() {
            DataType::Int16 | DataType::Int32 | DataType::Int64 => Ok(()),
            other => Err(ReadError::invalid(format!("run ends have the type {other}, which is none of theirs"))),
        },
        _ => Ok(()),
    }
}

fn decimal(precision: u8, max: u8, width: u64) -> Result<u64, ReadError> {
    if (1..=max).contains(&precision) {
        Ok(width)
    } else {
        Err(ReadError::invalid(format!("a decimal of {width} bytes cannot have {precision} digits")))
    }
}

/// `value`, which has to be at least 0.
pub(super) fn unsigned(value: i64, what: &str) -> Result<u64, ReadError> {
    u64::try_from(value).map_err(|_| ReadError::invalid(format!("its {what} is {value}")))
}

/// The types within a type. The values of a dictionary are not: they are in a batch of their own.
pub(super) fn children(data_type: &DataType) -> Vec<&FieldRef> {
    match data_type {
        DataType::Struct(fields) => fields.iter().collect(),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| field).collect(),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => vec![field],
        DataType::RunEndEncoded(ends, values) => vec![ends, values],
        _ => Vec::new(),
    }
}

/// Ids and types of the dictionaries that the fields use.
pub(super) fn dictionaries<'a>(
    fields: impl IntoIterator<Item = &'a FieldRef>,
) -> Result<HashMap<i64, DataType>, ReadError> {
    let mut found = HashMap::new();
    let mut open: Vec<&Field> = Vec::new();
    for field in fields {
        open.push(field);
    }
    while let Some(field) = open.pop() {
        let mut data_type = field.data_type();
        if let DataType::Dictionary(_, values) = data_type {
            // Nothing else tells which dictionary is the field's; `arrow_ipc` uses it too.
            #[allow(deprecated)]
            let id = field.dict_id().unwrap_or_default();
            data_type = values;
            let first = found.entry(id).or_insert_with(|| data_type.clone());
            if *first != *data_type {
                return Err(ReadError::invalid(format!(
                    "dictionary {id} has two types, {first} and {data_type}, the latter in \"{}\"",
                    field.name()
                )));
            }
        }
        for child in children(data_type) {
            open.push(child);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_and_runs_have_the_types_that_their_users_expect() {
        let limits = IpcLimits { max_batch_bytes: 1 << 20, max_rows: 1000 };
        let of = |data_type| types(&Schema::new(vec![Field::new("a", data_type, true)]), &limits);
        let field = |data_type| Arc::new(Field::new("x", data_type, false));
        let entries = |count: usize| DataType::Struct((0..count).map(|_| field(DataType::Int32)).collect());
        let map = |entries| DataType::Map(field(entries), false);
        assert!(of(map(entries(2))).is_ok());
        for bad in [map(entries(1)), map(entries(3)), map(DataType::Int16)] {
            assert!(of(bad).is_err());
        }
        let runs = |ends| DataType::RunEndEncoded(field(ends), field(DataType::Utf8));
        assert!(of(runs(DataType::Int16)).is_ok());
        assert!(of(runs(DataType::UInt16)).is_err());
    }
}
