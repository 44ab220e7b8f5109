//! Stores rows: in a new table, in the place of a table, or after the rows of a table.

use std::sync::Arc;

use arrow_schema::SchemaRef;

use super::super::tables::Tables;
use super::commit::Draft;
use super::error::{already_exists, is_view};
use super::holds::format_of;
use super::name::Name;
use super::names;
use super::snapshot::{Object, Snapshot, StoredTable};
use super::stored_file::StoredFile;
use crate::engine::{EngineError, IngestMode};

/// The treatment of a table that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum IfExists {
    /// It is an error.
    Refuse,
    /// The table stays as it is.
    Keep,
    /// The table is replaced.
    Replace,
    /// The rows are added.
    Append,
}

/// How rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Mode {
    pub(super) if_exists: IfExists,
    /// Whether a table that does not exist is created.
    pub(super) creates: bool,
}

impl From<IngestMode> for Mode {
    fn from(mode: IngestMode) -> Self {
        let (if_exists, creates) = match mode {
            IngestMode::Create => (IfExists::Refuse, true),
            IngestMode::Replace => (IfExists::Replace, true),
            IngestMode::CreateAppend => (IfExists::Append, true),
            IngestMode::Append => (IfExists::Append, false),
        };
        Mode { if_exists, creates }
    }
}

/// The outcome of [`store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Done,
    /// The table exists, and was kept.
    Kept,
    /// The table has other columns than the rows were written for.
    Misfit,
}

/// Refuses rows that could not be stored now. Returns the columns that they must have, if there is a table already.
pub(super) async fn prepare(
    snapshot: &Snapshot,
    tables: &Tables,
    name: &Name,
    mode: Mode,
) -> Result<Option<SchemaRef>, EngineError> {
    match (names::find(snapshot, tables, name).await, mode.if_exists) {
        (Some((name, _)), IfExists::Refuse) => Err(exists(&name)),
        (Some((_, Object::Table(table))), IfExists::Append) => Ok(Some(Arc::clone(&table.schema))),
        (Some((name, Object::View(_))), IfExists::Append | IfExists::Replace) => Err(is_view(&name)),
        (Some(_), _) => Ok(None),
        (None, _) => match names::of_operator(tables, name).await {
            Some(table) if mode.if_exists == IfExists::Refuse => {
                Err(already_exists("a table of the operator's files", &table))
            }
            Some(_) if mode.if_exists == IfExists::Keep => Ok(None),
            Some(table) => Err(super::error::of_operator(&table)),
            None if !mode.creates => Err(names::unknown_table(snapshot, tables, name)),
            None => names::check_place(snapshot, name).map(|()| None),
        },
    }
}

/// Stores rows with these columns. `None`: there are no rows.
pub(super) fn store(
    draft: &mut Draft,
    name: &Name,
    schema: &SchemaRef,
    file: Option<Arc<StoredFile>>,
    mode: Mode,
) -> Result<Stored, EngineError> {
    let files: Vec<_> = file.into_iter().collect();
    let new = |files| StoredTable::new(Arc::clone(schema), format_of(schema), files);
    let found = draft.now().find(name).map(|(name, object)| (name, object.clone()));
    match (found, mode.if_exists) {
        (None, IfExists::Append) if !mode.creates => return Ok(Stored::Misfit),
        (None, _) => {
            names::check_place(draft.now(), name)?;
            draft.put_table(name, new(files));
        }
        (Some((name, _)), IfExists::Refuse) => return Err(exists(&name)),
        (Some(_), IfExists::Keep) => return Ok(Stored::Kept),
        (Some((name, Object::View(_))), _) => return Err(is_view(&name)),
        (Some((name, Object::Table(_))), IfExists::Replace) => draft.put_table(&name, new(files)),
        (Some((name, Object::Table(table))), IfExists::Append) => {
            if table.schema != *schema {
                return Ok(Stored::Misfit);
            }
            if !files.is_empty() {
                draft.put_table(&name, table.with_more(&files));
            }
        }
    }
    Ok(Stored::Done)
}

pub(super) fn exists(name: &Name) -> EngineError {
    already_exists("a table or view", &name.to_string())
}
