//! The batches of a file as batches of its table.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, ListArray, MapArray, RecordBatch, RecordBatchOptions, StructArray};
use arrow_schema::{DataType, FieldRef, Fields, SchemaRef};

use super::cast;
use super::error::ReadError;
use super::list_shape::list_of;
use super::lists::{Rows, masked};
use super::schema::check_names;
use super::widen::{self, Widening, is_plain, joined};

/// Makes batches of a table of those of one of its files. Columns and fields are found by name; one that the file
/// lacks is NULL, one that the table lacks is left out.
#[derive(Debug)]
pub(super) struct Adapter {
    file: SchemaRef,
    table: SchemaRef,
    columns: Vec<Source>,
}

/// Where a column of the table, or a field of a struct, comes from.
#[derive(Debug)]
enum Source {
    /// NULL: the file lacks it.
    Missing,
    At {
        index: usize,
        change: Change,
    },
}

/// How a file's values become those of the table.
#[derive(Debug)]
enum Change {
    Keep,
    /// The type stays, but the parts of a struct that is NULL become NULL too: `s['x']` would return them.
    Masked(Box<Change>),
    /// The file knows nothing but NULL.
    FromNull,
    Leaf,
    /// A dictionary becomes plain values.
    Flatten(Box<Change>),
    Dictionary(Box<Change>),
    Struct(Vec<Source>),
    List(Box<Change>),
    Map(Box<(Change, Change)>),
}

/// A value or type that cannot be read, and where it stands within its batch or column.
struct Failure {
    path: String,
    reason: String,
}

impl Failure {
    fn within(mut self, name: &str) -> Self {
        self.path = joined(name, &self.path);
        self
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Failure { path: String::new(), reason }
    }
}

impl From<Failure> for ReadError {
    fn from(Failure { path, reason }: Failure) -> Self {
        ReadError::invalid(format!("column `{path}`: {reason}"))
    }
}

impl Adapter {
    /// `file` is the schema of the batches. `table` may be a part of the table's schema. An error says that the file
    /// is not of this table: that a column is of a type whose values the table's type may not hold, for example.
    pub(super) fn new(file: &SchemaRef, table: &SchemaRef) -> Result<Adapter, ReadError> {
        check_names(file).map_err(ReadError::invalid)?;
        let columns = sources(file.fields(), table.fields())?;
        Ok(Adapter { file: Arc::clone(file), table: Arc::clone(table), columns })
    }

    /// A batch of the file as one of exactly the table's schema. Columns that are right already are not copied.
    pub(super) fn adapt(&self, batch: &RecordBatch) -> Result<RecordBatch, ReadError> {
        self.check_schema(batch)?;
        let rows = batch.num_rows();
        // Missing columns of one type share their memory: there may be thousands.
        let mut missing: HashMap<&DataType, ArrayRef> = HashMap::new();
        let mut columns = Vec::with_capacity(self.columns.len());
        for (source, field) in self.columns.iter().zip(self.table.fields()) {
            let column = match (source, missing.get(field.data_type())) {
                (Source::Missing, Some(nulls)) => Ok(Arc::clone(nulls)),
                (Source::Missing, None) => cast::nulls(field.data_type(), rows).map_err(Failure::from),
                (Source::At { index, change }, _) => convert(batch.column(*index), change, field.data_type()),
            };
            let column = column.map_err(|failure| failure.within(field.name()))?;
            if matches!(source, Source::Missing) {
                missing.insert(field.data_type(), Arc::clone(&column));
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let adapted = RecordBatch::try_new_with_options(Arc::clone(&self.table), columns, &options);
        adapted.map_err(|error| ReadError::invalid(error.to_string()))
    }

    /// Columns were found by their place in the file's schema.
    fn check_schema(&self, batch: &RecordBatch) -> Result<(), ReadError> {
        let (found, expected) = (batch.schema_ref(), &self.file);
        if Arc::ptr_eq(found, expected) {
            return Ok(());
        }
        let is_same = |(found, expected): (&FieldRef, &FieldRef)| {
            found.name() == expected.name() && found.data_type() == expected.data_type()
        };
        let (found, expected) = (found.fields(), expected.fields());
        if found.len() != expected.len() || !found.iter().zip(expected.iter()).all(is_same) {
            return Err(ReadError::invalid("a batch has other columns than its file's schema"));
        }
        Ok(())
    }
}

/// As [`Adapter`], of one column.
#[derive(Debug)]
pub(in super::super) struct ColumnAdapter {
    change: Change,
    field: FieldRef,
}

impl ColumnAdapter {
    /// From a file's type to a field of its table. An error says that the table's type may not hold the values.
    pub(in super::super) fn new(from: &DataType, field: &FieldRef) -> Result<ColumnAdapter, String> {
        let change = change(from, field.data_type()).map_err(|failure| column_error(failure, field))?;
        Ok(ColumnAdapter { change, field: Arc::clone(field) })
    }

    /// The column of the table.
    pub(in super::super) fn field(&self) -> &FieldRef {
        &self.field
    }

    /// A column of the file as one of the table.
    pub(in super::super) fn adapt(&self, column: &ArrayRef) -> Result<ArrayRef, String> {
        convert(column, &self.change, self.field.data_type()).map_err(|failure| column_error(failure, &self.field))
    }
}

fn column_error(failure: Failure, field: &FieldRef) -> String {
    ReadError::from(failure.within(field.name())).to_string()
}

fn sources(from: &Fields, to: &Fields) -> Result<Vec<Source>, Failure> {
    let places: HashMap<&str, (usize, &FieldRef)> =
        from.iter().enumerate().map(|(index, field)| (field.name().as_str(), (index, field))).collect();
    let source = |field: &FieldRef| match places.get(field.name().as_str()) {
        Some((index, own)) => {
            let change = change(own.data_type(), field.data_type()).map_err(|failure| failure.within(field.name()))?;
            Ok(Source::At { index: *index, change })
        }
        None if field.is_nullable() => Ok(Source::Missing),
        None => Err(Failure::from("it is missing, and may not be NULL".to_owned()).within(field.name())),
    };
    to.iter().map(source).collect()
}

/// The change from a file's type to the table's. An error if a value could be lost.
fn change(from: &DataType, to: &DataType) -> Result<Change, Failure> {
    if from != to {
        return changed(from, to);
    }
    if has_struct(from) { Ok(Change::Masked(Box::new(changed(from, to)?))) } else { Ok(Change::Keep) }
}

/// Returns whether values of the type have structs as parts. Those of dictionaries, unions and run ends do not count:
/// they are kept as they are.
fn has_struct(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(_) => true,
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) => pair.iter().any(|field| has_struct(field.data_type())),
            _ => false,
        },
        other => list_of(other).is_some_and(|(_, item)| has_struct(item.data_type())),
    }
}

/// Returns whether a struct within the array is NULL. Its parts may be values.
fn has_null_struct(array: &dyn Array) -> bool {
    match array.data_type() {
        DataType::Struct(_) => {
            let mut columns = array.as_struct().columns().iter();
            array.null_count() > 0 || columns.any(|column| has_null_struct(column.as_ref()))
        }
        DataType::Map(..) => has_null_struct(array.as_map().entries()),
        DataType::List(_) => has_null_struct(array.as_list::<i32>().values().as_ref()),
        DataType::LargeList(_) => has_null_struct(array.as_list::<i64>().values().as_ref()),
        DataType::ListView(_) => has_null_struct(array.as_list_view::<i32>().values().as_ref()),
        DataType::LargeListView(_) => has_null_struct(array.as_list_view::<i64>().values().as_ref()),
        DataType::FixedSizeList(..) => has_null_struct(array.as_fixed_size_list().values().as_ref()),
        _ => false,
    }
}

fn changed(from: &DataType, to: &DataType) -> Result<Change, Failure> {
    if let (Some((shape, item)), Some((to_shape, to_item))) = (list_of(from), list_of(to))
        && shape.widened(to_shape) == to_shape
    {
        let items = change(item.data_type(), to_item.data_type()).map_err(|failure| failure.within(to_item.name()))?;
        return Ok(Change::List(Box::new(items)));
    }
    match (from, to) {
        (DataType::Null, _) => Ok(Change::FromNull),
        (DataType::Struct(from), DataType::Struct(to)) => Ok(Change::Struct(sources(from, to)?)),
        (DataType::Map(from, is_sorted), DataType::Map(to, to_be_sorted)) if *is_sorted || !to_be_sorted => {
            let ([key, value], [to_key, to_value]) = (pair(from)?, pair(to)?);
            let key = change(key.data_type(), to_key.data_type()).map_err(|failure| failure.within(to_key.name()))?;
            let value = change(value.data_type(), to_value.data_type());
            let value = value.map_err(|failure| failure.within(to_value.name()))?;
            Ok(Change::Map(Box::new((key, value))))
        }
        (DataType::Dictionary(key, value), DataType::Dictionary(to_key, to_value))
            if widens_keys(key, to_key) && !matches!(**value, DataType::Dictionary(..)) =>
        {
            Ok(Change::Dictionary(Box::new(change(value, to_value)?)))
        }
        (DataType::Dictionary(_, value), to) if is_plain(value) && !matches!(to, DataType::Dictionary(..)) => {
            Ok(Change::Flatten(Box::new(change(value, to)?)))
        }
        _ if widen::leaf(from, to, &Widening { int_to_float: true }).as_ref() == Some(to) => Ok(Change::Leaf),
        _ => Err(Failure::from(format!("it is {from}, which {to} does not hold"))),
    }
}

/// Whether dictionary keys become wider ones, or stay.
fn widens_keys(from: &DataType, to: &DataType) -> bool {
    let widened = widen::leaf(from, to, &Widening { int_to_float: false });
    // The keys of a dictionary are not negative, and never need the highest bit of UInt64.
    widened.as_ref() == Some(to) || (*from == DataType::UInt64 && *to == DataType::Int64)
}

/// Key and value of a map's entries.
fn pair(entries: &FieldRef) -> Result<&[FieldRef; 2], Failure> {
    let pair = match entries.data_type() {
        DataType::Struct(fields) => <&[FieldRef; 2]>::try_from(&fields[..]).ok(),
        _ => None,
    };
    pair.ok_or_else(|| Failure::from("the entries of a map are no pairs".to_owned()))
}

fn convert(array: &ArrayRef, change: &Change, to: &DataType) -> Result<ArrayRef, Failure> {
    match (change, to) {
        (Change::Keep, _) => Ok(Arc::clone(array)),
        (Change::Masked(_), _) if !has_null_struct(array.as_ref()) => Ok(Arc::clone(array)),
        (Change::Masked(change), _) => convert(array, change, to),
        (Change::FromNull, _) => Ok(cast::nulls(to, array.len())?),
        (Change::Leaf, _) => Ok(cast::widened(array.as_ref(), to)?),
        // NULLs among the values stay NULL: `arrow_cast` makes "" of them on its shortcut from dictionaries to views.
        (Change::Flatten(values), _) => {
            let dictionary = array.as_any_dictionary();
            let values = convert(dictionary.values(), values, to)?;
            Ok(cast::flattened(dictionary, &values)?)
        }
        (Change::Dictionary(values), DataType::Dictionary(_, value_type)) => {
            let dictionary = array.as_any_dictionary();
            let values = convert(dictionary.values(), values, value_type)?;
            Ok(cast::widened(dictionary.with_values(values).as_ref(), to)?)
        }
        (Change::Struct(sources), DataType::Struct(fields)) => convert_struct(array.as_struct(), sources, fields),
        (Change::Map(pair), DataType::Map(entries, is_sorted)) => {
            convert_map(array.as_map(), pair, entries, *is_sorted)
        }
        (Change::List(change), _) => {
            let rows = Rows::of(array.as_ref())?;
            let Some((_, item)) = list_of(to) else { return Err(Failure::from(format!("{to} is no list"))) };
            let items = convert(rows.items(), change, item.data_type());
            let items = items.map_err(|failure| failure.within(item.name()))?;
            Ok(rows.with_items(items, to)?)
        }
        _ => Err(Failure::from(format!("{} cannot become {to}", array.data_type()))),
    }
}

fn convert_struct(array: &StructArray, sources: &[Source], fields: &Fields) -> Result<ArrayRef, Failure> {
    let mut columns = Vec::with_capacity(fields.len());
    for (source, field) in sources.iter().zip(fields) {
        let column = match source {
            Source::Missing => cast::nulls(field.data_type(), array.len()).map_err(Failure::from),
            Source::At { index, change } => masked(array.column(*index), array.nulls())
                .map_err(Failure::from)
                .and_then(|column| convert(&column, change, field.data_type())),
        };
        columns.push(column.map_err(|failure| failure.within(field.name()))?);
    }
    let nulls = array.nulls().cloned();
    let array = StructArray::try_new_with_length(fields.clone(), columns, nulls, array.len());
    Ok(Arc::new(array.map_err(|error| error.to_string())?))
}

fn convert_map(
    map: &MapArray,
    changes: &(Change, Change),
    entries: &FieldRef,
    is_sorted: bool,
) -> Result<ArrayRef, Failure> {
    let [key, value] = pair(entries)?;
    let rows = Rows::of(&ListArray::from(map.clone()))?;
    let pairs = rows.items().as_struct();
    let [keys, values] = pairs.columns() else {
        return Err(Failure::from("the entries of a map are no pairs".to_owned()));
    };
    let keys = convert(keys, &changes.0, key.data_type()).map_err(|failure| failure.within(key.name()))?;
    let values = convert(values, &changes.1, value.data_type()).map_err(|failure| failure.within(value.name()))?;
    let fields = Fields::from(&[Arc::clone(key), Arc::clone(value)][..]);
    let pairs = StructArray::try_new(fields, vec![keys, values], pairs.nulls().cloned());
    let pairs = pairs.map_err(|error| error.to_string())?;
    Ok(rows.with_pairs(pairs, entries, is_sorted)?)
}

#[cfg(test)]
mod tests;
