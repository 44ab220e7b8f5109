//! The columns of a table: those of its files, merged by name.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};

use super::ipc_schema::children;
use super::list_shape::list_of;
use super::widen::{self, Widening, joined};

/// Most bytes of the names of a file's columns, nested ones included. More does not fit into the schema of a result;
/// and planning copies names so often that a name of 100 MiB takes minutes, in which it cannot be cancelled.
const MAX_NAMES: usize = 4 << 20;

/// Refuses a schema in which one name stands for two columns, or for two fields of a struct: a query could not say
/// which of them it means. Names are compared exactly.
pub(in super::super) fn check_names(schema: &Schema) -> Result<(), String> {
    let bytes = bytes_of_names(schema.fields());
    if bytes > MAX_NAMES {
        return Err(format!("the names of its columns take {bytes} bytes; the limit is {MAX_NAMES} bytes"));
    }
    check_fields(schema.fields(), "")
}

fn bytes_of_names(fields: &Fields) -> usize {
    let mut bytes = 0_usize;
    let mut open: Vec<&FieldRef> = fields.iter().collect();
    while let Some(field) = open.pop() {
        bytes = bytes.saturating_add(field.name().len());
        open.extend(children(field.data_type()));
    }
    bytes
}

fn check_fields(fields: &Fields, parent: &str) -> Result<(), String> {
    let mut names = HashSet::with_capacity(fields.len());
    for field in fields {
        let path = below(parent, field.name());
        if !names.insert(field.name().as_str()) {
            return Err(format!("two columns are named `{path}`"));
        }
        check_type(field.data_type(), &path)?;
    }
    Ok(())
}

fn check_type(data_type: &DataType, path: &str) -> Result<(), String> {
    if let Some((_, item)) = list_of(data_type) {
        return check_type(item.data_type(), path);
    }
    match data_type {
        DataType::Struct(fields) => check_fields(fields, path),
        // Key and value are told apart by their position.
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) => {
                pair.iter().try_for_each(|field| check_type(field.data_type(), &below(path, field.name())))
            }
            _ => Ok(()),
        },
        DataType::Union(fields, _) => {
            fields.iter().try_for_each(|(_, field)| check_type(field.data_type(), &below(path, field.name())))
        }
        DataType::Dictionary(_, value) => check_type(value, path),
        DataType::RunEndEncoded(_, values) => check_type(values.data_type(), path),
        _ => Ok(()),
    }
}

/// `name`, or `parent.name`.
fn below(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

/// The columns of one file.
pub(in super::super) struct FileColumns {
    pub(in super::super) path: PathBuf,
    pub(in super::super) schema: SchemaRef,
}

/// Two files whose types of one column cannot be merged.
#[derive(Debug)]
pub(in super::super) struct Mismatch {
    /// Name of the column. Dots lead to the part of it that differs.
    pub(super) column: String,
    pub(super) first: (PathBuf, DataType),
    pub(super) second: (PathBuf, DataType),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { column, first: (path, data_type), second: (other_path, other_type) } = self;
        let (path, other_path) = (path.display(), other_path.display());
        write!(f, "column `{column}` is {data_type} in {path} and {other_type} in {other_path}")
    }
}

impl std::error::Error for Mismatch {}

/// A column of the table, as far as the files have been seen.
struct Column {
    field: FieldRef,
    /// Files that have it.
    files: usize,
}

/// The schema of the table of `files`: columns by name, in the order of first appearance, each of a type that holds
/// the values of all files. The names in each file have been checked.
pub(in super::super) fn merge(files: &[FileColumns], widening: &Widening) -> Result<SchemaRef, Mismatch> {
    let Some((first, rest)) = files.split_first() else { return Ok(Arc::new(Schema::empty())) };
    if rest.iter().all(|file| file.schema == first.schema) {
        return Ok(Arc::clone(&first.schema));
    }
    let mut columns: Vec<Column> = Vec::with_capacity(first.schema.fields().len());
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (number, file) in files.iter().enumerate() {
        for field in file.schema.fields() {
            let place = *places.entry(field.name()).or_insert(columns.len());
            let Some(column) = columns.get_mut(place) else {
                columns.push(Column { field: Arc::clone(field), files: 1 });
                continue;
            };
            column.files += 1;
            if column.field != *field {
                let merged = widen::field(&column.field, field, widening);
                column.field = Arc::new(merged.map_err(|conflict| mismatch(files, number, field, widening, conflict))?);
            }
        }
    }
    let fields: Vec<Field> = columns
        .into_iter()
        .map(|Column { field, files: having }| {
            let is_missing = having < files.len();
            let field = Arc::unwrap_or_clone(field);
            if is_missing { field.with_nullable(true) } else { field }
        })
        .collect();
    Ok(Arc::new(Schema::new_with_metadata(fields, common_metadata(first, rest))))
}

/// The error for a column of the file `number`. `conflict` is the one with the type that the files before have in
/// common; a user is helped by the file of them that the conflict is with.
fn mismatch(
    files: &[FileColumns],
    number: usize,
    field: &Field,
    widening: &Widening,
    conflict: widen::Conflict,
) -> Mismatch {
    let known = |file: &FileColumns| file.schema.field_with_name(field.name()).ok().cloned();
    let having = files.iter().take(number).filter_map(|file| Some((file, known(file)?)));
    let opponent = having.clone().find_map(|(file, known)| Some((file, widen::field(&known, field, widening).err()?)));
    let first_having = having.map(|(file, _)| file).next();
    let second_path = files.get(number).map(|file| file.path.clone()).unwrap_or_default();
    let (first, conflict) = match opponent {
        Some((file, conflict)) => (Some(file), conflict),
        None => (first_having, conflict),
    };
    Mismatch {
        column: joined(field.name(), &conflict.path),
        first: (first.map(|file| file.path.clone()).unwrap_or_default(), conflict.first),
        second: (second_path, conflict.second),
    }
}

/// The metadata in which all files agree.
fn common_metadata(first: &FileColumns, rest: &[FileColumns]) -> HashMap<String, String> {
    let mut common = first.schema.metadata().clone();
    common.retain(|key, value| rest.iter().all(|file| file.schema.metadata().get(key) == Some(value)));
    common
}

#[cfg(test)]
mod tests;
