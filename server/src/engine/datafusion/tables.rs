//! Tables: from the files of a directory to rows that DataFusion can scan.
//!
//! A query sees each of its tables as it was when the query was planned. The files are looked at again if their state
//! has changed, so that new and replaced files are served without a restart; a file that changes while a query reads it
//! ends the query in an error.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{SchemaProvider, TableProvider};
use datafusion::datasource::file_format::FileFormat;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::TableType;
use futures::{FutureExt, StreamExt, stream};

use super::error;
use super::files::{self, FileColumns, Inspected, Widening};
pub(super) use super::opened::Opened;
use super::opened::{object_meta, parquet_format};
use super::parquet_dictionaries::check_dictionaries;
use super::scan::FilesTable;
use crate::catalog::{self, CatalogError, DataFile, Format, Policy, TableSpec};
use crate::config::TableConfig;

/// Looks at the files of a table. Files that `before` has in the same state are not looked at again.
pub(super) async fn open(
    state: &SessionState,
    spec: TableSpec,
    mut skipped: Vec<CatalogError>,
    before: Option<&Opened>,
) -> Result<Opened, CatalogError> {
    let spec = Arc::new(spec);
    let looked: Vec<_> = stream::iter(spec.files.clone())
        .map(|file| {
            let known = before
                .and_then(|before| before.files.iter().find(|known| known.file == file))
                .filter(|_| before.is_some_and(|before| before.spec.config == spec.config))
                .map(Arc::clone);
            let spec = Arc::clone(&spec);
            async move {
                match known {
                    Some(known) => Ok(known),
                    None => look(state, &spec, file).await.map(Arc::new),
                }
            }
        })
        .buffered(LOOKED_AT_ONCE)
        .collect()
        .await;
    let mut good = Vec::new();
    for (file, found) in spec.files.iter().zip(looked) {
        match found {
            Ok(found) => good.push(found),
            // A file that was served is missed; one that never was may be half written.
            Err(e) if spec.policy == Policy::Data && !was_served(before, file) => skipped.push(e),
            Err(e) => return Err(e),
        }
    }
    if good.is_empty() {
        return Err(skipped.pop().unwrap_or_else(|| CatalogError::EmptyDirectory {
            table: Some(spec.name.clone()),
            path: spec.path.clone(),
        }));
    }
    let file_schema = merged(&spec, &good)?;
    let partition_fields = partition_fields(&spec, &file_schema)?;
    Ok(Opened { spec, file_schema, partition_fields, files: good, skipped, statistics: Mutex::default() })
}

/// Number of files of a table that are looked at at the same time.
const LOOKED_AT_ONCE: usize = 8;

fn was_served(before: Option<&Opened>, file: &DataFile) -> bool {
    before.is_some_and(|before| before.files.iter().any(|known| known.file.path == file.path))
}

fn corrupt(spec: &TableSpec, file: &DataFile, reason: String) -> CatalogError {
    let (table, path) = (spec.name.clone(), file.path.clone());
    CatalogError::Corrupt { table, path, format: spec.format.as_str(), reason }
}

async fn look(state: &SessionState, spec: &Arc<TableSpec>, file: DataFile) -> Result<Inspected, CatalogError> {
    let found = if spec.format == Format::Parquet {
        parquet_schema(state, &file).await.and_then(|schema| {
            check_dictionaries(&schema)?;
            Ok(Inspected::whole(file.clone(), schema))
        })
    } else {
        let (spec, file) = (Arc::clone(spec), file.clone());
        let looked = tokio::task::spawn_blocking(move || files::inspect(&spec, &file)).await;
        looked.unwrap_or_else(|e| Err(e.to_string()))
    };
    let found = found.map_err(|reason| corrupt(spec, &file, reason))?;
    files::check_names(&found.schema).map_err(|reason| corrupt(spec, &file, reason))?;
    Ok(found)
}

async fn parquet_schema(state: &SessionState, file: &DataFile) -> Result<SchemaRef, String> {
    let store = state.runtime_env().object_store(super::store::url()).map_err(|e| e.strip_backtrace())?;
    let meta = object_meta(file).map_err(|e| e.to_string())?;
    let format = parquet_format(true);
    let metas = [meta];
    // Decoders of file formats are known to panic on unexpected input.
    let read = AssertUnwindSafe(format.infer_schema(state, &store, &metas)).catch_unwind().await;
    match read {
        Ok(schema) => schema.map_err(|e| error::short(&e)),
        Err(panic) => Err(format!("its metadata contradicts itself ({})", error::of_panic(&*panic))),
    }
}

/// The columns of all files of a table.
fn merged(spec: &TableSpec, files: &[Arc<Inspected>]) -> Result<SchemaRef, CatalogError> {
    let columns: Vec<FileColumns> = files
        .iter()
        .map(|file| FileColumns { path: file.file.path.clone(), schema: Arc::clone(&file.schema) })
        .collect();
    let schema = files::merge(&columns, &Widening { int_to_float: true }).map_err(|mismatch| {
        let (table, path) = (spec.name.clone(), spec.path.clone());
        CatalogError::SchemaMismatch { table, path, reason: mismatch.to_string() }
    })?;
    let is_text = matches!(spec.format, Format::Csv | Format::Json);
    // A column of text without any value may have any type. NULL as a type could hold none of the later values.
    let typed = |field: &FieldRef| match field.data_type() {
        DataType::Null if is_text => Arc::new(Field::clone(field).with_data_type(DataType::Utf8).with_nullable(true)),
        DataType::Utf8 if is_text => Arc::new(Field::clone(field).with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    let fields: Vec<FieldRef> = schema.fields().iter().map(typed).collect();
    if fields.is_empty() && spec.partition_columns.is_empty() {
        return Err(CatalogError::NoColumns { table: spec.name.clone(), path: spec.path.clone() });
    }
    Ok(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

/// The columns of the directories' names: text, unless the configuration has another type for them.
fn partition_fields(spec: &TableSpec, file_schema: &Schema) -> Result<Vec<FieldRef>, CatalogError> {
    let field = |name: &String| {
        if file_schema.column_with_name(name).is_some() {
            let (table, path) = (spec.name.clone(), spec.path.clone());
            let reason = format!("`{name}` is a column of both the files and the directories' names");
            return Err(CatalogError::SchemaMismatch { table, path, reason });
        }
        let data_type = spec.config.types.get(name).map_or(DataType::Utf8, |column| column.data_type().clone());
        Ok(Arc::new(Field::new(name, data_type, true)))
    };
    spec.partition_columns.iter().map(field).collect()
}

/// A table's name in the configuration.
#[derive(Clone, Debug)]
struct Configured {
    config: TableConfig,
    policy: Policy,
}

/// The tables of the engine, opened again when their files change.
pub(super) struct Tables {
    state: std::sync::OnceLock<SessionState>,
    /// Data directories, in which tables appear.
    data: Vec<PathBuf>,
    tables: RwLock<BTreeMap<String, (Configured, Arc<Opened>)>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("names", &self.table_names()).finish_non_exhaustive()
    }
}

impl Tables {
    pub(super) fn new(data: Vec<PathBuf>) -> Self {
        Tables { state: std::sync::OnceLock::new(), data, tables: RwLock::default() }
    }

    /// Sets the session with which Parquet files are opened. Only the first call has an effect.
    pub(super) fn set_state(&self, state: SessionState) {
        let _first = self.state.set(state);
    }

    pub(super) fn insert(&self, opened: Opened) {
        let configured = Configured { config: opened.spec.config.clone(), policy: opened.spec.policy };
        self.write().insert(opened.spec.name.clone(), (configured, Arc::new(opened)));
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, (Configured, Arc<Opened>)>> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, (Configured, Arc<Opened>)>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as it is now.
    async fn current(&self, name: &str) -> Result<Option<Arc<Opened>>, CatalogError> {
        let known = self.read().get(name).cloned();
        let configured = match &known {
            Some((configured, _)) => configured.clone(),
            None => match self.appeared(name).await {
                Some(configured) => configured,
                None => return Ok(None),
            },
        };
        let before = known.map(|(_, opened)| opened);
        let (spec, skipped) = {
            let (name, Configured { config, policy }) = (name.to_owned(), configured);
            let found = tokio::task::spawn_blocking(move || catalog::resolve_table(&name, &config, policy)).await;
            found.unwrap_or_else(|e| Err(CatalogError::of_io(None, std::path::Path::new(""), e.into())))?
        };
        if let Some(before) = &before
            && is_same(before, &spec)
        {
            return Ok(Some(Arc::clone(before)));
        }
        let Some(state) = self.state.get() else { return Ok(before) };
        let opened = open(state, spec, skipped, before.as_deref()).await?;
        warn_of(&opened.skipped, before.as_deref());
        self.insert(opened);
        Ok(self.read().get(name).map(|(_, opened)| Arc::clone(opened)))
    }

    /// The table of this name in a data directory, if it has appeared there since the start.
    async fn appeared(&self, name: &str) -> Option<Configured> {
        let (data, name) = (self.data.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            data.iter().find_map(|directory| {
                let tables = catalog::tables_of(directory, Policy::Data, &mut Vec::new()).ok()?;
                tables.into_iter().find(|(table, _)| table.to_lowercase() == name).map(|(_, path)| path)
            })
        });
        let path = found.await.ok().flatten()?;
        Some(Configured { config: TableConfig::at(path), policy: Policy::Data })
    }
}

/// Whether the files are still those that were looked at, or known to be unreadable.
fn is_same(before: &Opened, spec: &TableSpec) -> bool {
    before.spec.files == spec.files && before.spec.partition_columns == spec.partition_columns
}

/// Logs what is skipped, unless it was skipped before.
pub(super) fn warn_of(skipped: &[CatalogError], before: Option<&Opened>) {
    let known: Vec<String> = before.iter().flat_map(|before| &before.skipped).map(ToString::to_string).collect();
    for error in skipped {
        let reason = error.to_string();
        if !known.contains(&reason) {
            tracing::warn!(%reason, "skipped");
        }
    }
}

#[async_trait]
impl SchemaProvider for Tables {
    fn table_names(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let opened = self.current(name).await.map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(opened.map(|opened| Arc::new(FilesTable::new(opened)) as Arc<dyn TableProvider>))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.read().contains_key(name)
    }
}
