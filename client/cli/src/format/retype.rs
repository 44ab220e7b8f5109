//! Results in the types that a format holds: unfit types are replaced in the schema, and batches converted to it.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, new_empty_array};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UnionFields};

use super::convert::convert;
use super::writer::WriteError;

/// The type that replaces an unfit type. `None`: the type stays, and its children are looked at.
pub(super) type Rule = fn(&DataType) -> Option<DataType>;

/// The schema in which a result is written.
pub(super) struct Retyped {
    schema: SchemaRef,
    changed: Vec<String>,
}

impl Retyped {
    /// For batches of `schema`.
    ///
    /// # Errors
    /// [`WriteError::Column`] for a column that cannot be converted.
    pub(super) fn new(schema: &SchemaRef, rule: Rule) -> Result<Self, WriteError> {
        let mut changed = Vec::new();
        let mut fields = Vec::with_capacity(schema.fields().len());
        for from in schema.fields() {
            let to = field(from, rule);
            if to.data_type() != from.data_type() {
                // Tried on an empty array, so that a missing conversion is known before anything is written.
                let tried = convert(&new_empty_array(from.data_type()), to.data_type());
                tried.map_err(|error| WriteError::column(from, error))?;
                changed.push(from.name().clone());
            }
            fields.push(to);
        }
        let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
        Ok(Retyped { schema, changed })
    }

    /// The schema of the written batches.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Names of the changed columns.
    pub(super) fn changed(&self) -> &[String] {
        &self.changed
    }

    /// The batch in its new schema.
    ///
    /// # Errors
    /// [`WriteError::Column`] for a value that the new type cannot hold.
    pub(super) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, WriteError> {
        if self.changed.is_empty() {
            return Ok(batch.clone());
        }
        let mut columns = Vec::with_capacity(batch.num_columns());
        for ((column, from), to) in batch.columns().iter().zip(batch.schema().fields()).zip(self.schema.fields()) {
            columns.push(convert(column, to.data_type()).map_err(|error| WriteError::column(from, error))?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}

/// Dictionaries and runs replaced by their values.
pub(super) fn values(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Dictionary(_, values) => Some(values.as_ref().clone()),
        DataType::RunEndEncoded(_, values) => Some(values.data_type().clone()),
        _ => None,
    }
}

/// Dictionaries replaced by their values.
pub(super) fn dictionaries(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Dictionary(..) => values(data_type),
        _ => None,
    }
}

/// Returns true if `what` is true for a type or for one within it.
pub(super) fn has(data_type: &DataType, what: fn(&DataType) -> bool) -> bool {
    what(data_type) || children(data_type).iter().any(|child| has(child, what))
}

fn children(data_type: &DataType) -> Vec<&DataType> {
    use DataType::*;
    match data_type {
        Dictionary(_, values) => vec![values],
        List(child) | LargeList(child) | ListView(child) | LargeListView(child) => vec![child.data_type()],
        FixedSizeList(child, _) | Map(child, _) | RunEndEncoded(_, child) => vec![child.data_type()],
        Struct(fields) => fields.iter().map(|child| child.data_type()).collect(),
        Union(fields, _) => fields.iter().map(|(_, child)| child.data_type()).collect(),
        _ => Vec::new(),
    }
}

fn field(from: &FieldRef, rule: Rule) -> FieldRef {
    let to = data_type(from.data_type(), rule);
    if to == *from.data_type() {
        return Arc::clone(from);
    }
    // The flag says nothing about nulls among the values of a dictionary.
    let nullable = from.is_nullable() || values(from.data_type()).is_some();
    Arc::new(Field::clone(from).with_data_type(to).with_nullable(nullable))
}

fn data_type(from: &DataType, rule: Rule) -> DataType {
    use DataType::*;
    let child = |from: &FieldRef| field(from, rule);
    if let Some(to) = rule(from) {
        return data_type(&to, rule);
    }
    match from {
        Dictionary(keys, values) => Dictionary(keys.clone(), Box::new(data_type(values, rule))),
        List(item) => List(child(item)),
        LargeList(item) => LargeList(child(item)),
        ListView(item) => ListView(child(item)),
        LargeListView(item) => LargeListView(child(item)),
        FixedSizeList(item, len) => FixedSizeList(child(item), *len),
        Struct(fields) => Struct(fields.iter().map(child).collect()),
        Map(entries, sorted) => Map(map_entries(entries, rule), *sorted),
        Union(fields, mode) => {
            Union(fields.iter().map(|(id, field)| (id, child(field))).collect::<UnionFields>(), *mode)
        }
        RunEndEncoded(ends, values) => RunEndEncoded(Arc::clone(ends), child(values)),
        other => other.clone(),
    }
}

/// The keys of a map are never null.
fn map_entries(entries: &FieldRef, rule: Rule) -> FieldRef {
    let DataType::Struct(fields) = entries.data_type() else { return Arc::clone(entries) };
    let fields = fields.iter().enumerate().map(|(i, from)| match i {
        0 => Arc::new(Field::clone(&field(from, rule)).with_nullable(from.is_nullable())),
        _ => field(from, rule),
    });
    Arc::new(Field::clone(entries).with_data_type(DataType::Struct(fields.collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_replaced_at_every_depth() {
        let coded = || DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
        let ends = Arc::new(Field::new("run_ends", DataType::Int32, false));
        let runs = DataType::RunEndEncoded(ends, Arc::new(Field::new("values", coded(), true)));
        assert_eq!(data_type(&runs, values), DataType::Utf8);
        let pair = vec![Field::new("key", coded(), false), Field::new("value", coded(), false)];
        let entries = Arc::new(Field::new("entries", DataType::Struct(pair.into()), false));
        let DataType::Map(entries, false) = data_type(&DataType::Map(entries, false), values) else { panic!() };
        let DataType::Struct(pair) = entries.data_type() else { panic!() };
        assert_eq!((pair[0].data_type(), pair[0].is_nullable()), (&DataType::Utf8, false));
        assert_eq!((pair[1].data_type(), pair[1].is_nullable()), (&DataType::Utf8, true));
        assert!(has(&runs, |t| *t == DataType::Utf8) && !has(&runs, |t| *t == DataType::Binary));
    }
}
