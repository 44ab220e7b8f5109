//! Views: statements with a name. A view is planned when a query needs it.
//!
//! Views over views form a tree that no single text bounds. So the nesting of a view with all that it reads is bounded,
//! and so is the number of tables that it reads. A view never reads itself.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::datasource::ViewTable;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectNamePart, Query, Statement as SqlStatement, Visit, Visitor};

use super::super::error::short;
use super::super::guard::{self, Allowed};
use super::super::names::CATALOG;
use super::super::names::statement_of;
use super::error::invalid;
use super::name::Name;
use super::names;
use super::snapshot::{Object, Snapshot, StoredView};
use crate::engine::EngineError;

/// Highest nesting of a view with all the views that it reads. A query over views may add [`guard::MAX_NESTING`].
const MAX_NESTING: usize = 512;
/// Most tables that a view reads, with those of all the views that it reads.
const MAX_READS: usize = 1000;

/// The plan of a view. The error is a reason, for people.
pub(super) async fn plan(snapshot: &Snapshot, mut state: SessionState, view: &StoredView) -> Result<ViewTable, String> {
    weigh(snapshot, view)?;
    let statement = guard::parse(&view.sql, view.sql.len(), Allowed::Changes).map_err(|e| e.to_string())?;
    let defaults = state.config().clone().with_default_catalog_and_schema(CATALOG, view.default_schema.as_str());
    *state.config_mut() = defaults;
    let plan = state.statement_to_plan(statement).await.map_err(|e| short(&e))?;
    match plan {
        LogicalPlan::Ddl(DdlStatement::CreateView(create)) => {
            let input = Arc::unwrap_or_clone(create.input);
            Ok(ViewTable::new(input, Some(view.sql.clone())))
        }
        _ => Err("its statement is not CREATE VIEW".to_owned()),
    }
}

/// The nesting of a view and the number of its tables, with all the views that it reads.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    nesting: usize,
    reads: usize,
}

/// Refuses a view that is too large, or reads itself.
fn weigh(snapshot: &Snapshot, view: &StoredView) -> Result<(), String> {
    let mut known = BTreeMap::new();
    weight(snapshot, view, &mut known).map(|_| ())
}

/// `known` has the views that were weighed, and `None` for those that are being weighed.
fn weight(
    snapshot: &Snapshot,
    view: &StoredView,
    known: &mut BTreeMap<Name, Option<Weight>>,
) -> Result<Weight, String> {
    let mut sum = Weight::default();
    for name in &view.reads {
        sum.reads += 1;
        let Some((name, Object::View(inner))) = snapshot.find(name) else { continue };
        let inner = match known.get(&name) {
            Some(Some(weight)) => *weight,
            Some(None) => return Err(format!("the view '{name}' would read itself")),
            None => {
                known.insert(name.clone(), None);
                let weight = weight(snapshot, inner, known)?;
                known.insert(name.clone(), Some(weight));
                weight
            }
        };
        sum.nesting = sum.nesting.max(inner.nesting);
        sum.reads = sum.reads.saturating_add(inner.reads);
    }
    sum.nesting = sum.nesting.saturating_add(view.nesting);
    if sum.nesting > MAX_NESTING {
        return Err(format!(
            "it is nested {} deep with the views that it reads; the limit is {MAX_NESTING}",
            sum.nesting
        ));
    }
    if sum.reads > MAX_READS {
        return Err(format!("it reads {} tables with the views that it reads; the limit is {MAX_READS}", sum.reads));
    }
    Ok(sum)
}

/// Refuses a new view, already in `snapshot`, that is too large or reads itself.
pub(super) fn check(snapshot: &Snapshot, name: &Name, view: &StoredView) -> Result<(), EngineError> {
    let mut known = BTreeMap::from([(name.clone(), None)]);
    let weighed = weight(snapshot, view, &mut known);
    weighed.map(|_| ()).map_err(|reason| invalid(format!("the view '{name}' cannot be created: {reason}")))
}

/// The tables and views that the query of a view names, each as often as it does.
pub(super) fn reads(state: &SessionState, query: &Query) -> Result<Vec<Name>, EngineError> {
    let references = state.resolve_table_references(&statement_of(query)).map_err(|e| invalid(short(&e)))?;
    let functions = state.table_functions();
    let tables = references.iter().filter(|reference| !functions.contains_key(reference.table()));
    let mut relations = Relations::default();
    let flow = query.visit(&mut relations);
    debug_assert!(flow.is_continue(), "the visitor does not break");
    let mut reads = Vec::new();
    for reference in tables {
        let name = names::of_reference(reference, &state.config_options().catalog)?;
        let times = relations.0.get(&name.object.to_ascii_lowercase()).copied().unwrap_or_default().max(1);
        reads.extend(std::iter::repeat_n(name, times));
    }
    Ok(reads)
}

/// How often each name is read, in lower case. Names of the statement's own tables count, too.
#[derive(Default)]
struct Relations(HashMap<String, usize>);

impl Visitor for Relations {
    type Break = ();

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        if let Some(ident) = relation.0.last().and_then(ObjectNamePart::as_ident) {
            *self.0.entry(ident.value.to_ascii_lowercase()).or_default() += 1;
        }
        ControlFlow::Continue(())
    }
}

/// The statement's query, if it creates a view.
pub(super) fn query_of(statement: &Statement) -> Option<&Query> {
    let Statement::Statement(statement) = statement else { return None };
    match &**statement {
        SqlStatement::CreateView(create) => Some(&create.query),
        _ => None,
    }
}
