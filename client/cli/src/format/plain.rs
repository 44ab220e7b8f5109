//! Dictionaries replaced by their values, for formats that cannot hold them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, new_empty_array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;

/// Replaces the dictionaries that a format does not accept.
pub(super) struct Plain {
    schema: SchemaRef,
    resolved: Vec<String>,
    stuck: Option<Arc<Field>>,
}

impl Plain {
    /// For batches of `schema`. `unfit` decides, by the type of a dictionary's values, whether the dictionary is
    /// replaced.
    pub(super) fn new(schema: &SchemaRef, unfit: fn(&DataType) -> bool) -> Self {
        let (mut resolved, mut stuck) = (Vec::new(), None);
        let fields: Fields = schema
            .fields()
            .iter()
            .map(|field| {
                let data_type = without(field.data_type(), unfit);
                if data_type == *field.data_type() {
                    return Arc::clone(field);
                }
                // Tried on an empty array, because arrow's own check accepts casts that then fail.
                if plain(&new_empty_array(field.data_type()), &data_type).is_err() {
                    stuck = Some(Arc::clone(field));
                    return Arc::clone(field);
                }
                resolved.push(field.name().clone());
                Arc::new(field.as_ref().clone().with_data_type(data_type))
            })
            .collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
        Plain { schema, resolved, stuck }
    }

    /// The schema of the written batches.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Names of the changed columns.
    pub(super) fn resolved(&self) -> &[String] {
        &self.resolved
    }

    /// A column that has to be changed, but cannot be.
    pub(super) fn stuck(&self) -> Option<&Field> {
        self.stuck.as_deref()
    }

    /// The batch in its new schema.
    pub(super) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        if self.resolved.is_empty() {
            return Ok(batch.clone());
        }
        let columns = batch.columns().iter().zip(self.schema.fields());
        let columns = columns.map(|(column, field)| plain(column, field.data_type())).collect::<Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }
}

/// The same type without unfit dictionaries, also in its children.
fn without(data_type: &DataType, unfit: fn(&DataType) -> bool) -> DataType {
    let child = |field: &Arc<Field>| {
        let data_type = without(field.data_type(), unfit);
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    };
    match data_type {
        DataType::Dictionary(_, values) if unfit(values) => without(values, unfit),
        DataType::List(field) => DataType::List(child(field)),
        DataType::LargeList(field) => DataType::LargeList(child(field)),
        DataType::ListView(field) => DataType::ListView(child(field)),
        DataType::LargeListView(field) => DataType::LargeListView(child(field)),
        DataType::FixedSizeList(field, len) => DataType::FixedSizeList(child(field), *len),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(child).collect()),
        DataType::Map(field, sorted) => DataType::Map(child(field), *sorted),
        DataType::RunEndEncoded(ends, values) => DataType::RunEndEncoded(Arc::clone(ends), child(values)),
        other => other.clone(),
    }
}

fn plain(array: &ArrayRef, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == data_type {
        return Ok(Arc::clone(array));
    }
    if let Some(dictionary) = array.as_any_dictionary_opt() {
        // `take` supports values of every type, unlike cast.
        return plain(&take(dictionary.values(), dictionary.keys(), None)?, data_type);
    }
    cast(array, data_type)
}

/// Returns whether a type, or one of its children, is one that a format cannot hold at all.
pub(super) fn has(data_type: &DataType, what: fn(&DataType) -> bool) -> bool {
    what(data_type)
        || match data_type {
            DataType::Dictionary(_, values) => has(values, what),
            DataType::List(field)
            | DataType::LargeList(field)
            | DataType::ListView(field)
            | DataType::LargeListView(field)
            | DataType::FixedSizeList(field, _)
            | DataType::Map(field, _)
            | DataType::RunEndEncoded(_, field) => has(field.data_type(), what),
            DataType::Struct(fields) => fields.iter().any(|field| has(field.data_type(), what)),
            DataType::Union(fields, _) => fields.iter().any(|(_, field)| has(field.data_type(), what)),
            _ => false,
        }
}
