//! Makes a change: writes its rows to a new file, and commits.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_schema::SchemaRef;
use futures::{Stream, StreamExt};
use tokio::runtime::Handle;

use super::super::error::of_join;
use super::super::names::SCHEMA;
use super::commit::Draft;
use super::create::{Stored, exists, store};
use super::error::{already_exists, invalid, unsupported};
use super::fit::with_columns;
use super::name::Name;
use super::rows::RowsIn;
use super::snapshot::{Object, StoredTable, StoredView};
use super::statements::Change;
use super::stored_file::StoredFile;
use super::{Database, names, views};
use crate::engine::EngineError;

/// The outcome of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Applied {
    /// Done; the number of changed rows.
    Done(u64),
    /// Another change of the same table came first. Nothing was changed.
    Conflict,
}

impl Change {
    /// Makes the change. `rows` are those of its plan; `check` tells after the last of them whether they may be stored.
    pub(in super::super) async fn apply(
        self,
        database: Arc<Database>,
        handle: &Handle,
        rows: impl Stream<Item = Result<RecordBatch, EngineError>> + Send + Unpin,
        check: impl FnOnce() -> Result<(), EngineError>,
    ) -> Result<Applied, EngineError> {
        let written = match &self {
            Change::Store { name, schema, .. } => Some(write(&database, handle, name, schema, rows, |_| Ok(0)).await?),
            Change::Delete { name, base } => Some(write(&database, handle, name, &base.schema, rows, |_| Ok(0)).await?),
            Change::Update { name, base } => Some(write(&database, handle, name, &base.schema, rows, flagged).await?),
            _ => None,
        };
        check()?;
        let commit = move || self.commit(&database, written.unwrap_or_default());
        handle.spawn_blocking(commit).await.unwrap_or_else(|e| Err(of_join(e)))
    }

    fn commit(self, database: &Database, written: Written) -> Result<Applied, EngineError> {
        let Written { file, rows, flagged } = written;
        let file = file.map(Arc::new);
        database.commit(|draft| match self {
            Change::Store { name, schema, mode } => Ok(match store(draft, &name, &schema, file, mode)? {
                Stored::Done => Applied::Done(rows),
                Stored::Kept => Applied::Done(0),
                Stored::Misfit => Applied::Conflict,
            }),
            Change::Delete { name, base } => match base.rows().saturating_sub(rows) {
                0 => Ok(Applied::Done(0)),
                removed => Ok(replace(draft, &name, &base, file, removed)),
            },
            Change::Update { .. } if flagged == 0 => Ok(Applied::Done(0)),
            Change::Update { name, base } => Ok(replace(draft, &name, &base, file, flagged)),
            Change::Truncate { name, base } => Ok(replace(draft, &name, &base, None, base.rows())),
            Change::Drop { name, is_view } => Ok(drop_object(draft, &name, is_view)),
            Change::CreateView { name, view, replaces } => create_view(draft, &name, view, replaces),
            Change::CreateSchema { name, if_not_exists } => create_schema(draft, &name, if_not_exists),
            Change::DropSchema { name, if_exists, cascade } => drop_schema(draft, &name, if_exists, cascade),
            Change::Nothing => Ok(Applied::Done(0)),
        })
    }
}

/// Rows in a file, which no catalog names yet.
#[derive(Default)]
struct Written {
    file: Option<StoredFile>,
    rows: u64,
    /// Rows that are to be counted, of those of an `UPDATE`.
    flagged: u64,
}

/// Writes rows with the first columns of each batch. `count` gets each batch.
async fn write(
    database: &Database,
    handle: &Handle,
    name: &Name,
    schema: &SchemaRef,
    mut rows: impl Stream<Item = Result<RecordBatch, EngineError>> + Send + Unpin,
    count: fn(&RecordBatch) -> Result<u64, EngineError>,
) -> Result<Written, EngineError> {
    let mut file = RowsIn::new(handle.clone(), Arc::clone(&database.disk), name.clone(), Arc::clone(schema));
    let mut written = Written::default();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        written.rows += batch.num_rows() as u64;
        written.flagged += count(&batch)?;
        let columns = batch.columns().iter().take(schema.fields().len()).cloned().collect();
        file.push(with_columns(schema, columns, batch.num_rows(), name)?).await?;
    }
    written.file = file.finish().await?;
    Ok(written)
}

/// The rows of a batch whose last column is true.
fn flagged(batch: &RecordBatch) -> Result<u64, EngineError> {
    let flags = batch.columns().last().and_then(|flags| flags.as_boolean_opt());
    let missing = || EngineError::Internal { message: "the rows of an UPDATE have no flag".to_owned() };
    Ok(flags.ok_or_else(missing)?.true_count() as u64)
}

/// Puts a file in the place of the files that a change has read. Rows that were added meanwhile stay.
fn replace(draft: &mut Draft, name: &Name, base: &StoredTable, file: Option<Arc<StoredFile>>, rows: u64) -> Applied {
    let Some((name, Object::Table(now))) = draft.now().find(name) else { return Applied::Conflict };
    let has = |files: &[Arc<StoredFile>], file: &Arc<StoredFile>| files.iter().any(|known| Arc::ptr_eq(known, file));
    if now.schema != base.schema || !base.files.iter().all(|file| has(&now.files, file)) {
        return Applied::Conflict;
    }
    let added = now.files.iter().filter(|file| !has(&base.files, file)).cloned();
    let files = file.into_iter().chain(added).collect();
    let table = StoredTable::new(Arc::clone(&base.schema), base.format, files);
    draft.put_table(&name, table);
    Applied::Done(rows)
}

fn drop_object(draft: &mut Draft, name: &Name, is_view: bool) -> Applied {
    match draft.now().find(name) {
        Some((name, object)) if matches!(object, Object::View(_)) == is_view => {
            draft.remove(&name);
            Applied::Done(0)
        }
        _ => Applied::Conflict,
    }
}

fn create_view(draft: &mut Draft, name: &Name, view: Arc<StoredView>, replaces: bool) -> Result<Applied, EngineError> {
    match draft.now().find(name).map(|(name, object)| (name, matches!(object, Object::View(_)))) {
        Some((_, true)) if replaces => {}
        Some((name, _)) => return Err(exists(&name)),
        None => names::check_place(draft.now(), name)?,
    }
    draft.put(name, Object::View(Arc::clone(&view)));
    views::check(draft.now(), name, &view)?;
    Ok(Applied::Done(0))
}

fn create_schema(draft: &mut Draft, name: &str, if_not_exists: bool) -> Result<Applied, EngineError> {
    names::check_new("schema", name)?;
    let known = draft.now().schemas.keys().find(|known| known.eq_ignore_ascii_case(name));
    if known.is_some() || names::is_reserved_schema(name) {
        return match if_not_exists {
            true => Ok(Applied::Done(0)),
            false => Err(already_exists("a schema", known.map_or(name, |known| known))),
        };
    }
    draft.add_schema(name);
    Ok(Applied::Done(0))
}

fn drop_schema(draft: &mut Draft, name: &str, if_exists: bool, cascade: bool) -> Result<Applied, EngineError> {
    let (known, objects) = match draft.now().schema(name) {
        Some((known, objects)) => (known.to_owned(), objects.len()),
        None if if_exists && !names::is_reserved_schema(name) => return Ok(Applied::Done(0)),
        None => return Err(names::no_schema(name)),
    };
    if known == SCHEMA {
        return Err(unsupported(format!("DROP SCHEMA {SCHEMA}; it has the operator's tables, too")));
    }
    if objects > 0 && !cascade {
        let message =
            format!("the schema '{known}' has {objects} tables and views; DROP SCHEMA ... CASCADE removes them");
        return Err(invalid(message));
    }
    draft.remove_schema(&known);
    Ok(Applied::Done(0))
}
