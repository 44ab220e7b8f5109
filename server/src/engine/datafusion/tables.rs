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
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::TableType;
use futures::{FutureExt, StreamExt, stream};

use super::files::{self, FileColumns, Inspected, Widening};
use super::names;
pub(super) use super::opened::Opened;
use super::opened::{object_meta, parquet_format};
use super::scan::FilesTable;
use super::{error, parquet_counts};
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
    Ok(Opened {
        spec,
        file_schema,
        partition_fields,
        files: good,
        skipped,
        statistics: Mutex::default(),
        chunks: Arc::default(),
        _kept: Vec::new(),
    })
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

pub(super) async fn look(
    state: &SessionState,
    spec: &Arc<TableSpec>,
    file: DataFile,
) -> Result<Inspected, CatalogError> {
    let found = if spec.format == Format::Parquet {
        parquet_schema(state, &file).await.and_then(|schema| {
            files::check_dictionaries(&schema)?;
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
    let path = file.path.clone();
    let checked = tokio::task::spawn_blocking(move || files::check_parquet_footer(&path)).await;
    checked.map_err(|e| e.to_string())??;
    let store = state.runtime_env().object_store(super::store::url()).map_err(|e| e.strip_backtrace())?;
    let meta = object_meta(file).map_err(|e| e.to_string())?;
    let format = parquet_format(true);
    let metas = [meta];
    let cache = state.runtime_env().cache_manager.get_file_metadata_cache();
    let read = async {
        let schema = format.infer_schema(state, &store, &metas).await?;
        // From the cache, which the step before has filled.
        let metadata = DFParquetMetadata::new(&*store, &metas[0]).with_file_metadata_cache(Some(cache));
        Ok::<_, DataFusionError>((schema, metadata.fetch_metadata().await?))
    };
    // Decoders of file formats are known to panic on unexpected input.
    match AssertUnwindSafe(read).catch_unwind().await {
        Ok(read) => {
            let (schema, metadata) = read.map_err(|e| error::short(&e))?;
            parquet_counts::check(&metadata).map(|()| schema)
        }
        Err(panic) => Err(format!("its metadata contradicts itself{}", error::about_data(&*panic))),
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
    let schema = files::with_known_zones(schema);
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

/// The table that a name means.
struct Meant {
    name: String,
    config: TableConfig,
    policy: Policy,
}

impl Meant {
    fn of(opened: &Opened) -> Self {
        let spec = &opened.spec;
        Meant { name: spec.name.clone(), config: spec.config.clone(), policy: spec.policy }
    }
}

/// The tables of the engine, opened again when their files change.
pub(super) struct Tables {
    state: std::sync::OnceLock<SessionState>,
    /// Data directories, in which tables appear.
    data: Vec<PathBuf>,
    tables: RwLock<BTreeMap<String, Arc<Opened>>>,
    /// The files and tables that were skipped at the start.
    skipped: std::sync::OnceLock<Vec<CatalogError>>,
}

impl std::fmt::Debug for Tables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tables").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Tables {
    pub(super) fn new(data: Vec<PathBuf>) -> Self {
        Tables {
            state: std::sync::OnceLock::new(),
            data,
            tables: RwLock::default(),
            skipped: std::sync::OnceLock::new(),
        }
    }

    /// Sets the session with which Parquet files are opened. Only the first call has an effect.
    pub(super) fn set_state(&self, state: SessionState) {
        let _first = self.state.set(state);
    }

    /// Sets the files and tables that were skipped at the start. Only the first call has an effect.
    pub(super) fn set_skipped(&self, skipped: Vec<CatalogError>) {
        let _first = self.skipped.set(skipped);
    }

    /// All tables as they were last opened, by name.
    pub(super) fn all(&self) -> Vec<Arc<Opened>> {
        self.read().values().cloned().collect()
    }

    /// A description of each error for which a file or a table is not served.
    pub(super) fn skipped<T>(&self, describe: impl Fn(&CatalogError) -> T) -> Vec<T> {
        let served = self.all();
        // A table that was skipped at the start may be served by now.
        let is_served = |error: &CatalogError| {
            let table = error.parts().0;
            table.is_some_and(|table| served.iter().any(|opened| opened.spec.name == table))
        };
        let at_start = self.skipped.get().into_iter().flatten().filter(|error| !is_served(error));
        at_start.chain(served.iter().flat_map(|opened| &opened.skipped)).map(describe).collect()
    }

    pub(super) fn insert(&self, opened: Opened) {
        self.write().insert(opened.spec.name.clone(), Arc::new(opened));
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Arc<Opened>>> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Opened>>> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table as it is now.
    async fn current(&self, name: &str) -> Result<Option<Arc<Opened>>, CatalogError> {
        let Some(Meant { name, config, policy }) = self.meant(name).await else { return Ok(None) };
        let before = self.read().get(&name).cloned();
        let table = name.clone();
        let found = tokio::task::spawn_blocking(move || catalog::resolve_table(&table, &config, policy)).await;
        let (spec, skipped) =
            found.unwrap_or_else(|e| Err(CatalogError::of_io(None, std::path::Path::new(""), e.into())))?;
        if let Some(before) = &before
            && is_same(before, &spec)
        {
            return Ok(Some(Arc::clone(before)));
        }
        let Some(state) = self.state.get() else { return Ok(before) };
        let opened = open(state, spec, skipped, before.as_deref()).await?;
        warn_of(&opened.skipped, before.as_deref());
        self.insert(opened);
        Ok(self.read().get(&name).cloned())
    }

    /// Whether these tables are still as they were opened.
    pub(super) async fn are_current(&self, tables: &[Arc<Opened>]) -> bool {
        for opened in tables {
            match self.current(&opened.spec.name).await {
                Ok(Some(current)) if Arc::ptr_eq(&current, opened) => {}
                _ => return false,
            }
        }
        true
    }

    /// The table that a name means: the one of exactly this name, or else the only one that fits it in another case, if
    /// the name may come from an identifier without quotes.
    async fn meant(&self, name: &str) -> Option<Meant> {
        if let Some(exact) = self.read().get(name) {
            return Some(Meant::of(exact));
        }
        let mut fitting: Vec<_> = self.fitting(name).iter().map(|opened| Meant::of(opened)).collect();
        for (table, path) in self.in_directories(name).await {
            if !fitting.iter().any(|known| known.name == table) {
                fitting.push(Meant { name: table, config: TableConfig::at(path), policy: Policy::Data });
            }
        }
        match fitting.iter().position(|meant| meant.name == name) {
            Some(exact) => Some(fitting.swap_remove(exact)),
            None if fitting.len() == 1 && names::may_be_unquoted(name) => fitting.pop(),
            None => None,
        }
    }

    /// The known tables whose names differ from this one in case at most.
    fn fitting(&self, name: &str) -> Vec<Arc<Opened>> {
        self.read().values().filter(|opened| opened.spec.name.eq_ignore_ascii_case(name)).cloned().collect()
    }

    /// The same of the data directories, in which tables may have appeared since the start.
    async fn in_directories(&self, name: &str) -> Vec<(String, PathBuf)> {
        let (data, name) = (self.data.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            data.iter().flat_map(|directory| catalog::fitting_tables_of(directory, &name)).collect()
        });
        // Such a task panics only by a bug, and is cancelled only at the end of the runtime.
        found.await.unwrap_or_default()
    }

    /// The table whose name differs from this one in case at most; the first of several.
    pub(super) async fn clash(&self, name: &str) -> Option<String> {
        if let Some(known) = self.fitting(name).first() {
            return Some(known.spec.name.clone());
        }
        self.in_directories(name).await.into_iter().next().map(|(table, _)| table)
    }

    /// Returns whether there is a table of exactly this name.
    pub(super) async fn has(&self, name: &str) -> bool {
        self.fitting(name).iter().any(|opened| opened.spec.name == name)
            || self.in_directories(name).await.iter().any(|(table, _)| table == name)
    }

    /// The names of the known tables.
    pub(super) fn names(&self) -> Vec<String> {
        self.read().keys().cloned().collect()
    }
}

/// Returns whether the table still has the files, in the same states, and the partition columns that it had.
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
        self.names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let opened = self.current(name).await.map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(opened.map(|opened| Arc::new(FilesTable::new(opened)) as Arc<dyn TableProvider>))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        let fitting = self.fitting(name);
        fitting.iter().any(|opened| opened.spec.name == name) || (fitting.len() == 1 && names::may_be_unquoted(name))
    }
}
