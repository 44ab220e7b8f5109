//! Planning: from the text of a statement to a tree of operators.

use std::sync::Arc;

use arrow_array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ResolvedTableReference, TableReference};
use datafusion::datasource::source_as_provider;
use datafusion::error::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionConfig;
use tokio::runtime::Handle;

use super::database::{Catalogs, Change, Facts, Planning};
use super::guard::Allowed;
use super::names::{CATALOG, SCHEMA};
use super::plan_cache::{self, Key, Optimized, Read};
use super::scan::FilesTable;
use super::tables::Opened;
use super::{Shared, bounds, caught, counted, error, guard, limits, names, pacing, parameters, repeatable, whole_rows};
use crate::catalog::TableSpec;
use crate::config::MAX_BATCH_ROWS;
use crate::engine::{Defaults, Description, EngineError, QueryRequest};

/// Most rows in a batch of a query.
pub(super) fn batch_rows(shared: &Shared, query: &QueryRequest) -> usize {
    query.batch_rows.unwrap_or(shared.batch_rows).clamp(1, MAX_BATCH_ROWS)
}

/// A query that can be started.
pub(super) struct Planned {
    pub(super) plan: Arc<dyn ExecutionPlan>,
    pub(super) context: Arc<TaskContext>,
    pub(super) read: Read,
    /// The change that gets the rows.
    pub(super) change: Option<Change>,
}

/// Plans on a thread that may block. A step of planning is not cancelled, and for thousands of columns it takes
/// seconds: two such queries would occupy both of two threads on which all other queries run.
pub(super) async fn apart<T, F>(
    shared: &Arc<Shared>,
    planning: impl FnOnce(Arc<Shared>) -> F + Send + 'static,
) -> Result<T, EngineError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, EngineError>>,
{
    let Ok(planner) = Arc::clone(&shared.planners).acquire_owned().await else { return Err(error::shutting_down()) };
    let (shared, handle) = (Arc::clone(shared), Handle::current());
    let planning = tokio::task::spawn_blocking(move || {
        let _planner = planner;
        let _planning = bounds::Planning::begin();
        handle.block_on(planning(shared))
    });
    planning.await.unwrap_or_else(|e| Err(error::of_join(e)))
}

pub(super) async fn plan_apart(
    shared: &Arc<Shared>,
    query: Arc<QueryRequest>,
    row: Option<RecordBatch>,
    partitions: usize,
) -> Result<Planned, EngineError> {
    apart(shared, move |shared| async move { plan(&shared, &query, row.as_ref(), partitions).await }).await
}

/// A statement whose names and types are known.
struct Analyzed {
    state: SessionState,
    /// The plan of a query, or of the rows of a change.
    logical: LogicalPlan,
    change: Option<Change>,
}

/// From SQL to a plan of relations, for at least this number of partitions.
async fn analyze(shared: &Shared, query: &QueryRequest, partitions: usize) -> Result<Analyzed, EngineError> {
    let allowed = if shared.database.is_some() { Allowed::Changes } else { Allowed::Queries };
    let statement = guard::parse(&query.sql, shared.max_sql_bytes, allowed)?;
    let mut state = shared.context.state();
    let config = state.config().clone().with_batch_size(batch_rows(shared, query));
    let partitions = partitions.max(config.target_partitions());
    *state.config_mut() = with_defaults(config, &query.defaults).with_target_partitions(partitions);
    let catalogs = shared.catalogs();
    let known = catalogs.as_ref().map_or_else(|| shared.tables.names(), Catalogs::public_names);
    if let Some(catalogs) = &catalogs {
        state.register_catalog_list(Arc::new(catalogs.clone()));
    }
    names::check(&statement, &known)?;
    let statement = names::spelled(statement, |name| names::spelling(&known, name));
    whole_rows::check_lists(&state, &statement).await?;
    let facts = Facts::of(&query.sql, &statement, &state)?;
    // Needed only if planning fails, to check for a missing table.
    let reading = names::reading(&statement);
    let references = reading.and_then(|reading| state.resolve_table_references(&reading).ok()).unwrap_or_default();
    let logical = match whole_rows::plan(&state, statement).await {
        Ok(logical) => logical,
        Err(e) => {
            return Err(match of_planning(e) {
                // A table that was skipped, with the reason.
                unreadable @ EngineError::Source { .. } => unreadable,
                error => unknown_table(&known, &state, references).await.unwrap_or(error),
            });
        }
    };
    let (logical, change) = match &catalogs {
        Some(catalogs) => {
            let changed = Planning { catalogs, state: &state, facts }.change(&logical).await?;
            changed.map_or((logical, None), |(rows, change)| (rows, Some(change)))
        }
        None => (logical, None),
    };
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    match read_only.verify_plan(&logical) {
        Ok(()) => Ok(Analyzed { state, logical, change }),
        Err(e) => Err(EngineError::ReadOnly { statement: error::short(&e) }),
    }
}

fn with_defaults(config: SessionConfig, defaults: &Defaults) -> SessionConfig {
    let catalog = defaults.catalog.as_deref().unwrap_or(CATALOG);
    config.with_default_catalog_and_schema(catalog, defaults.schema.as_deref().unwrap_or(SCHEMA))
}

/// From SQL to an optimized plan of relations: a kept one, if its tables are the same. With a change, if it is one.
async fn optimize(
    shared: &Shared,
    query: &QueryRequest,
    row: Option<&RecordBatch>,
    partitions: usize,
) -> Result<(Arc<Optimized>, Option<Change>), EngineError> {
    let commit = shared.database.as_ref().map_or(0, |database| database.commits_so_far());
    let key = Key::of(query, partitions, batch_rows(shared, query), commit);
    if let Some(key) = &key
        && let Some(kept) = shared.plans.get(key)
    {
        if are_current(shared, &kept.read.tables).await {
            return Ok((kept, None));
        }
        shared.plans.remove(key);
    }
    let Analyzed { mut state, logical, change } = analyze(shared, query, partitions).await?;
    let logical = parameters::bind(logical, row, change.is_some())?;
    let key = key.filter(|_| change.is_none() && plan_cache::may_be_kept(&logical));
    let explains = matches!(logical, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_));
    let read = Read { tables: scanned_tables(&logical), explains };
    if limits::is_by_float(&logical) {
        disable_dynamic_filters(&mut state);
    }
    let plan = state.optimize(&logical).map_err(|e| error::of_datafusion(e, &specs(&read.tables)))?;
    let pool = &state.runtime_env().memory_pool;
    let (plan, is_counted) =
        counted::count(plan, pool, partitions.max(state.config().target_partitions())).map_err(of_planning)?;
    // The function that counts holds the memory of one query.
    let key = key.filter(|_| !is_counted);
    let rows = limits::rows_for_width(&plan, batch_rows(shared, query));
    *state.config_mut() = state.config().clone().with_batch_size(rows);
    let context = state.task_ctx();
    let optimized = Arc::new(Optimized { state, context, plan, read });
    if let Some(key) = key {
        shared.plans.insert(key, Arc::clone(&optimized));
    }
    Ok((optimized, change))
}

/// Whether the operator's files are as they were opened. Those of the database never change: each commit has others.
async fn are_current(shared: &Shared, tables: &[Arc<Opened>]) -> bool {
    let is_stored = |opened: &Opened| {
        shared
            .database
            .as_ref()
            .is_some_and(|database| opened.files.iter().all(|known| known.file.path.starts_with(database.data())))
    };
    let files: Vec<_> = tables.iter().filter(|opened| !is_stored(opened)).map(Arc::clone).collect();
    shared.tables.are_current(&files).await
}

/// From SQL to a plan with at least the requested number of partitions, if the plan can have them.
async fn plan(
    shared: &Shared,
    query: &QueryRequest,
    row: Option<&RecordBatch>,
    partitions: usize,
) -> Result<Planned, EngineError> {
    let (optimized, change) = optimize(shared, query, row, partitions).await?;
    let Optimized { state, context, plan: logical, read } = &*optimized;
    let failed = |e| error::of_datafusion(e, &specs(&read.tables));
    let mut plan = state.query_planner().create_physical_plan(logical, state).await.map_err(failed)?;
    if repeatable::is_needed(&plan) {
        let mut state = state.clone();
        disable_dynamic_filters(&mut state);
        plan = state.query_planner().create_physical_plan(logical, &state).await.map_err(failed)?;
    }
    let plan = limits::lift(plan).and_then(pacing::pace).and_then(caught::catch).and_then(repeatable::repeat);
    Ok(Planned { plan: plan.map_err(failed)?, context: Arc::clone(context), read: read.clone(), change })
}

/// Turns off the filters that DataFusion derives while a query runs.
fn disable_dynamic_filters(state: &mut SessionState) {
    let optimizer = &mut state.config_mut().options_mut().optimizer;
    optimizer.enable_dynamic_filter_pushdown = false;
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_join_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
}

fn of_planning(e: DataFusionError) -> EngineError {
    error::of_datafusion(e, &[])
}

/// The first of these tables that does not exist.
async fn unknown_table(known: &[String], state: &SessionState, references: Vec<TableReference>) -> Option<EngineError> {
    let defaults = &state.config_options().catalog;
    for reference in references {
        // In the SQL alone, a function that yields a table looks like a table.
        if state.table_functions().contains_key(reference.table()) {
            continue;
        }
        let ResolvedTableReference { catalog, schema, table } =
            reference.clone().resolve(&defaults.default_catalog, &defaults.default_schema);
        let exists = match state.schema_for_ref(TableReference::full(catalog, schema, Arc::clone(&table))) {
            Ok(schema) => schema.table_exist(&table),
            Err(_) => false,
        };
        if !exists {
            return Some(EngineError::UnknownTable { table: reference.to_string(), known: known.to_vec() });
        }
    }
    None
}

/// The tables that a plan reads.
fn scanned_tables(plan: &LogicalPlan) -> Vec<Arc<Opened>> {
    let mut tables: Vec<Arc<Opened>> = Vec::new();
    let visited = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
            && let Some(table) = provider.downcast_ref::<FilesTable>()
            && !tables.iter().any(|known| Arc::ptr_eq(known, &table.opened))
        {
            tables.push(Arc::clone(&table.opened));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    tables
}

pub(super) fn specs(tables: &[Arc<Opened>]) -> Vec<&TableSpec> {
    tables.iter().map(|opened| &*opened.spec).collect()
}

/// Plans a statement without running it.
pub(super) async fn described(shared: &Shared, query: &QueryRequest) -> Result<Description, EngineError> {
    let Analyzed { logical, change, .. } = analyze(shared, query, 1).await?;
    let parameters = parameters::fields(&logical)?;
    let result = match (change, parameters.fields().is_empty()) {
        (Some(_), _) => crate::engine::changes_schema(),
        // The plan of operators has the exact schema. It needs the values of all parameters.
        (None, true) => plan(shared, query, None, 1).await?.plan.schema(),
        (None, false) => Arc::clone(logical.schema().inner()),
    };
    Ok(Description { result, parameters })
}
