//! The engine that ships: Apache DataFusion over files.
//!
//! The engine has its own tokio runtime, for three reasons: planning and scanning are long computations that must not
//! delay the connections; the threads have stacks deep enough for the deepest query that `guard` accepts; and all tasks
//! of queries can be counted.

mod about;
mod bounds;
mod caught;
mod counted;
mod database;
mod error;
mod files;
mod guard;
mod limits;
mod names;
mod objects;
mod open_error;
mod opened;
mod operators;
mod pacing;
mod parameters;
mod parquet_chunks;
mod parquet_columns;
mod parquet_counts;
mod parquet_reader;
mod partitions;
mod paths;
mod plan_cache;
mod planning;
mod repeatable;
mod run;
mod scan;
mod spill;
mod store;
mod sums;
mod tables;
#[cfg(test)]
mod tests;
mod whole_rows;
mod wrapped;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool, MemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::registry::FunctionRegistry;
use datafusion::object_store::path::Path;
use datafusion::prelude::{SessionConfig, SessionContext};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use super::{
    CatalogObject, Defaults, Description, Engine, EngineError, IngestRequest, Ingestion, ObjectsRequest,
    PartitionedQuery, QueryRequest, QueryStream, TableInfo, Vendor,
};
use crate::catalog::{self, CatalogError, Resolved};
use crate::config::{EngineConfig, MemoryPoolKind, ServerConfig};
use about::About;
pub use database::DatabaseError;
use database::{Catalogs, Database};
use names::{CATALOG, SCHEMA, SERVER_SCHEMA};
pub use open_error::OpenError;
use paths::Directories;
use plan_cache::PlanCache;
use spill::SpillDirectory;
use store::ReadOnlyStore;
use tables::Tables;

/// Stack of each of the engine's threads: four times the size that the tests show to suffice for every shape of query
/// with the greatest [`guard::MAX_NESTING`]. Only touched pages cost memory.
const STACK_BYTES: usize = 64 << 20;
/// Most queries that are planned at a time.
const MAX_PLANNERS: usize = 64;
/// Number of the largest consumers that an out-of-memory error names.
const CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(5).expect("not zero");

/// The parts of the engine that each query's task needs.
struct Shared {
    context: SessionContext,
    tables: Arc<Tables>,
    about: Arc<About>,
    /// `None`: the server only reads.
    database: Option<Arc<Database>>,
    directories: Arc<Directories>,
    batch_rows: usize,
    max_sql_bytes: usize,
    plans: PlanCache,
    /// Bounds the queries that are planned at a time. A planner has a thread that may block, and waits for other jobs
    /// of such threads, of which the runtime has 512.
    planners: Arc<Semaphore>,
    /// Dropped with the last task of a query.
    spill: Option<SpillDirectory>,
}

impl Shared {
    /// The catalogs with the database as it is now. `None`: there is no database, and the session has them.
    fn catalogs(&self) -> Option<Catalogs> {
        self.database.as_ref().map(|database| Catalogs::new(database, &self.tables, Arc::clone(&self.about) as _))
    }
}

/// Runs SQL over Parquet, CSV, JSON and Arrow files with DataFusion.
pub struct DataFusionEngine {
    /// `Some` until the end of `drop`.
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
    tables: Vec<TableInfo>,
}

impl DataFusionEngine {
    /// Opens every table of the configuration, and starts the engine's threads.
    ///
    /// Reads every file's schema, to detect corrupt files now. Does not read the data.
    ///
    /// # Errors
    /// [`OpenError`], for the first table that cannot be served, or a resource that is not available.
    pub async fn open(config: &ServerConfig) -> Result<Self, OpenError> {
        Self::open_with_stack(config, STACK_BYTES).await
    }

    async fn open_with_stack(config: &ServerConfig, stack_bytes: usize) -> Result<Self, OpenError> {
        let resolved = catalog::resolve(config)?;
        let tables = Arc::new(Tables::new(config.data.clone()));
        let spill = SpillDirectory::open(&config.engine)?;
        let database = config.database.as_deref().map(Database::open).transpose()?.map(Arc::new);
        if let Some(database) = &database {
            refuse_overlap(config, &resolved, database)?;
        }
        let of_database = database.iter().flat_map(|database| database.directories().map(ToOwned::to_owned));
        let directories = resolved.tables.iter().flat_map(Directories::of_table).chain(config.data.iter().cloned());
        let directories = directories.chain(of_database);
        let directories =
            Arc::new(Directories::new(directories.chain(spill.iter().map(|spill| spill.path().to_owned()))));
        let context = context(config, &resolved, spill.as_ref(), database.as_deref())?;
        let (about_tables, about_directories) = (Arc::clone(&tables), Arc::clone(&directories));
        let about = About { tables: about_tables, directories: about_directories, database: database.clone() };
        let about = Arc::new(about);
        serve(&context, [(SCHEMA, Arc::clone(&tables) as _), (SERVER_SCHEMA, Arc::clone(&about) as _)])?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.engine.effective_partitions())
            .thread_name("thallus-engine")
            .thread_stack_size(stack_bytes)
            .enable_all()
            .build()
            .map_err(OpenError::Threads)?;
        // From here on `DataFusionEngine::drop` drops the runtime, in a way that an asynchronous context allows.
        let mut engine = DataFusionEngine {
            runtime: Some(runtime),
            shared: Arc::new(Shared {
                context,
                tables,
                about,
                database,
                directories,
                batch_rows: config.engine.batch_rows,
                max_sql_bytes: config.engine.max_sql_bytes.as_usize(),
                plans: PlanCache::default(),
                planners: Arc::new(Semaphore::new(MAX_PLANNERS)),
                spill,
            }),
            tables: Vec::new(),
        };
        let shared = Arc::clone(&engine.shared);
        // On the engine's own threads, so that a panic of a decoder on a corrupt file becomes an error here.
        engine.tables = engine
            .handle()
            .spawn(async move { register(&shared, resolved).await })
            .await
            .map_err(|e| OpenError::Internal(error::of_join(e).message()))??;
        Ok(engine)
    }

    fn handle(&self) -> &tokio::runtime::Handle {
        self.runtime.as_ref().expect("taken only by drop").handle()
    }

    /// Number of tasks of all queries together; for tests and metrics.
    #[must_use]
    pub fn alive_tasks(&self) -> usize {
        self.handle().metrics().num_alive_tasks()
    }

    /// Bytes of the engine's memory that queries hold now; for tests and metrics.
    #[must_use]
    pub fn memory_reserved(&self) -> usize {
        self.shared.context.runtime_env().memory_pool.reserved()
    }
}

impl fmt::Debug for DataFusionEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataFusionEngine").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Drop for DataFusionEngine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which panics in an asynchronous context.
            runtime.shutdown_background();
            // A task that still computes would keep the directory beyond the end of the process.
            if let Some(spill) = &self.shared.spill {
                spill.remove();
            }
        }
    }
}

#[async_trait]
impl Engine for DataFusionEngine {
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError> {
        run::start(self.handle(), Arc::clone(&self.shared), query).await
    }

    async fn execute_partitioned(&self, query: QueryRequest, count: usize) -> Result<PartitionedQuery, EngineError> {
        run::start_partitioned(self.handle(), Arc::clone(&self.shared), query, count.max(1)).await
    }

    async fn describe(&self, query: QueryRequest) -> Result<Description, EngineError> {
        run::describe(self.handle(), Arc::clone(&self.shared), query).await
    }

    async fn objects(&self, request: ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
        let shared = Arc::clone(&self.shared);
        let listed = self.handle().spawn(async move { objects::list(&shared, &request).await });
        listed.await.unwrap_or_else(|e| Err(error::of_join(e)))
    }

    fn vendor(&self) -> Vendor {
        let defaults = Defaults { catalog: Some(CATALOG.to_owned()), schema: Some(SCHEMA.to_owned()) };
        Vendor { name: "DataFusion".to_owned(), version: datafusion::DATAFUSION_VERSION.to_owned(), defaults }
    }

    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        let Some(database) = &self.shared.database else {
            let message = format!("this server accepts no uploads; nothing was written to {:?}", request.table);
            return Err(EngineError::Unsupported { message });
        };
        let begun = database::begin(database, &self.shared.tables, self.handle(), request).await;
        begun.map_err(|e| self.shared.directories.hide(e))
    }

    fn tables(&self) -> Vec<TableInfo> {
        self.tables.clone()
    }
}

/// Refuses a database whose files would be rows of a table, or the other way round.
fn refuse_overlap(config: &ServerConfig, resolved: &Resolved, database: &Database) -> Result<(), OpenError> {
    let [root, _data] = database.directories();
    let paths = config.data.iter().chain(resolved.tables.iter().map(|spec| &spec.path));
    for path in paths {
        let found = path.canonicalize().unwrap_or_else(|_| path.clone());
        if found.starts_with(root) || root.starts_with(&found) {
            return Err(OpenError::Overlap { database: root.to_owned(), path: path.clone() });
        }
    }
    Ok(())
}

/// DataFusion, set up to read `specs` and nothing else.
fn context(
    server: &ServerConfig,
    resolved: &Resolved,
    spill: Option<&SpillDirectory>,
    database: Option<&Database>,
) -> Result<SessionContext, OpenError> {
    let config = &server.engine;
    let environment = environment(config, spill)?;
    let url = "file://".parse().map_err(|e| OpenError::Internal(format!("file:// is no URL: {e}")))?;
    let paths = resolved.tables.iter().map(|spec| spec.path.clone()).chain(server.data.iter().cloned());
    let paths = paths.chain(database.map(|database| database.data().to_owned()));
    // A data directory that cannot be expressed as a path has been refused before.
    let roots =
        paths.filter_map(|path| std::path::absolute(path).ok().and_then(|path| Path::from_absolute_path(path).ok()));
    environment.register_object_store(&url, Arc::new(ReadOnlyStore::new(roots.collect())));
    let session = SessionConfig::new()
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_target_partitions(config.effective_partitions())
        .with_batch_size(config.batch_rows)
        // Without it `TIMESTAMP WITH TIME ZONE` is a type without a zone.
        .set_str("datafusion.execution.time_zone", "UTC")
        // With it `SELECT DISTINCT a, count(*) OVER () ... LIMIT` fails (DataFusion issue 25350).
        .set_bool("datafusion.optimizer.enable_distinct_aggregation_soft_limit", false);
    let state =
        SessionStateBuilder::new_with_default_features().with_config(session).with_runtime_env(environment).build();
    let context = SessionContext::new_with_state(state);
    bounds::register(&context);
    sums::register(&context);
    let rewrite = Arc::new(operators::Rewrite::new());
    let registered = context.state_ref().write().register_function_rewrite(rewrite);
    registered.map_err(|e| OpenError::Internal(e.strip_backtrace()))?;
    Ok(context)
}

/// Gives the session these schemas, and no others.
fn serve(context: &SessionContext, schemas: [(&str, Arc<dyn SchemaProvider>); 2]) -> Result<(), OpenError> {
    let catalog = MemoryCatalogProvider::new();
    for (name, schema) in schemas {
        catalog.register_schema(name, schema).map_err(|e| OpenError::Internal(e.strip_backtrace()))?;
    }
    context.register_catalog(CATALOG, Arc::new(catalog));
    Ok(())
}

fn environment(config: &EngineConfig, spill: Option<&SpillDirectory>) -> Result<Arc<RuntimeEnv>, OpenError> {
    let bytes = config.effective_memory_limit().as_usize();
    let pool: Arc<dyn MemoryPool> = match config.memory_pool {
        MemoryPoolKind::Fair => Arc::new(TrackConsumersPool::new(FairSpillPool::new(bytes), CONSUMERS_NAMED)),
        MemoryPoolKind::Greedy => Arc::new(TrackConsumersPool::new(GreedyMemoryPool::new(bytes), CONSUMERS_NAMED)),
    };
    let mode = match spill {
        None => DiskManagerMode::Disabled,
        Some(spill) => DiskManagerMode::Directories(vec![spill.path().to_owned()]),
    };
    RuntimeEnvBuilder::new()
        .with_memory_pool(pool)
        .with_disk_manager_builder(
            DiskManagerBuilder::default().with_mode(mode).with_max_temp_directory_size(config.max_spill_bytes.bytes()),
        )
        // Listings of directories are not cached, so that the next query sees new and removed files.
        .with_object_list_cache_limit(0)
        .build_arc()
        .map_err(|e| OpenError::SpillDirectory { path: spill::parent(config), reason: e.strip_backtrace() })
}

/// Opens every table. One of a data directory that cannot be opened is skipped, unless the configuration is strict.
async fn register(shared: &Shared, resolved: Resolved) -> Result<Vec<TableInfo>, OpenError> {
    let mut state = shared.context.state();
    // The catalog has the tables, and they keep this session: each would keep the other alive for ever.
    state.register_catalog_list(Arc::new(MemoryCatalogProviderList::new()));
    shared.tables.set_state(state.clone());
    if let Some(database) = &shared.database {
        database.set_state(state.clone());
    }
    let Resolved { tables: specs, mut skipped } = resolved;
    let mut tables = Vec::new();
    for spec in specs {
        let policy = spec.policy;
        // The files that were skipped belong to their table, which looks at them again.
        let of_table = |error: &mut CatalogError| error.parts().0 == Some(spec.name.as_str());
        let files = skipped.extract_if(.., of_table).collect();
        let opened = match tables::open(&state, spec, files, None).await {
            Ok(opened) => opened,
            Err(error) if policy == catalog::Policy::Data => {
                skipped.push(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        tables.push(TableInfo {
            name: opened.spec.name.clone(),
            source: opened.spec.path.display().to_string(),
            format: opened.spec.format.as_str(),
            columns: opened.schema().fields().len(),
            files: opened.files.len(),
        });
        tables::warn_of(&opened.skipped, None);
        shared.tables.insert(opened);
    }
    tables::warn_of(&skipped, None);
    match skipped.pop() {
        Some(reason) if tables.is_empty() => return Err(reason.into()),
        last => skipped.extend(last),
    }
    shared.tables.set_skipped(skipped);
    if let Some(database) = &shared.database {
        for table in &tables {
            if database.shadows(&table.name) {
                let (table, source) = (&table.name, &table.source);
                tracing::warn!(%table, %source, "the database has a table of this name, which is served instead");
            }
        }
        tables.extend(database.describe());
    }
    Ok(tables)
}
