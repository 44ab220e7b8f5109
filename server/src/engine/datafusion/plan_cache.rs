//! Plans of earlier queries. A statement that comes again is not parsed and optimized again, as long as its tables are
//! the same.
//!
//! A plan is kept if it always has the same meaning: all of its functions are immutable, so that no value of `now()` is
//! in it, and all of its tables are files, whose state can be compared.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::execution::{SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

use super::opened::Opened;
use super::scan::FilesTable;
use crate::engine::{Defaults, QueryRequest};

/// Most plans that are kept. Beyond it the one that was not used for the longest time is dropped.
const MOST_PLANS: usize = 256;
/// Longest text of a statement whose plan is kept, in bytes.
const MOST_SQL_BYTES: usize = 4096;
/// Most bytes of the constants of a plan that is kept.
const MOST_LITERAL_BYTES: usize = 64 << 10;
/// Most columns of a result whose plan is kept.
const MOST_COLUMNS: usize = 256;

/// The tables of a query, and the kind of its rows.
#[derive(Clone)]
pub(super) struct Read {
    /// The tables, as they were when the query was planned.
    pub(super) tables: Vec<Arc<Opened>>,
    /// True if the rows are a plan.
    pub(super) explains: bool,
}

/// A statement from its text to its optimized plan.
pub(super) struct Optimized {
    pub(super) state: SessionState,
    pub(super) context: Arc<TaskContext>,
    pub(super) plan: LogicalPlan,
    pub(super) read: Read,
}

/// The facts that a plan depends on, besides the tables.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    sql: String,
    defaults: Defaults,
    partitions: usize,
    batch_rows: usize,
    /// The commit of the database.
    commit: u64,
}

impl Key {
    /// The key of a statement, if its plan may be kept.
    pub(super) fn of(query: &QueryRequest, partitions: usize, batch_rows: usize, commit: u64) -> Option<Self> {
        let may_be_kept = query.parameters.is_none() && query.sql.len() <= MOST_SQL_BYTES;
        may_be_kept.then(|| Key {
            sql: query.sql.clone(),
            defaults: query.defaults.clone(),
            partitions,
            batch_rows,
            commit,
        })
    }
}

struct Entry {
    optimized: Arc<Optimized>,
    /// Number of the last use.
    used: u64,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<Key, Entry>,
    uses: u64,
}

impl Entries {
    /// Drops the plans of other commits of the database: they keep its data files.
    fn forget_others(&mut self, commit: u64) {
        self.by_key.retain(|key, _| key.commit == commit);
    }
}

/// The plans that are kept.
#[derive(Default)]
pub(super) struct PlanCache(Mutex<Entries>);

impl PlanCache {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Optimized>> {
        let mut entries = self.lock();
        entries.forget_others(key.commit);
        entries.uses += 1;
        let uses = entries.uses;
        let entry = entries.by_key.get_mut(key)?;
        entry.used = uses;
        Some(Arc::clone(&entry.optimized))
    }

    pub(super) fn insert(&self, key: Key, optimized: Arc<Optimized>) {
        if literal_bytes(&optimized.plan) > MOST_LITERAL_BYTES {
            return;
        }
        let mut entries = self.lock();
        entries.forget_others(key.commit);
        entries.uses += 1;
        let used = entries.uses;
        if entries.by_key.len() >= MOST_PLANS {
            let oldest = entries.by_key.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                entries.by_key.remove(&oldest);
            }
        }
        entries.by_key.insert(key, Entry { optimized, used });
    }

    /// Drops the plans of commits before this one.
    pub(super) fn committed(&self, commit: u64) {
        self.lock().forget_others(commit);
    }

    pub(super) fn remove(&self, key: &Key) {
        self.lock().by_key.remove(key);
    }

    /// Number of plans; for tests.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().by_key.len()
    }
}

/// Whether a plan that was not optimized yet may be kept.
pub(super) fn may_be_kept(plan: &LogicalPlan) -> bool {
    if matches!(plan, LogicalPlan::Explain(_) | LogicalPlan::Analyze(_)) || plan.schema().fields().len() > MOST_COLUMNS
    {
        return false;
    }
    let mut always_same = true;
    let visited = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source);
            always_same &= provider.is_ok_and(|provider| provider.downcast_ref::<FilesTable>().is_some());
        }
        node.apply_expressions(|expr| {
            always_same &= !expr.exists(|expr| Ok(!is_immutable(expr)))?;
            Ok(TreeNodeRecursion::Continue)
        })
    });
    always_same && visited.is_ok()
}

/// Bytes of all constants of a plan. Planning makes them of the calls of functions.
fn literal_bytes(plan: &LogicalPlan) -> usize {
    let mut bytes = 0;
    let visited = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Literal(value, _) = expr {
                    bytes += value.size();
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    if visited.is_ok() { bytes } else { usize::MAX }
}

fn is_immutable(expr: &Expr) -> bool {
    match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Immutable,
        Expr::ScalarVariable(..) | Expr::Placeholder(_) => false,
        _ => true,
    }
}
