//! Queries of very many columns.
//!
//! DataFusion makes a column of the query of each column that `*` means, and compares each with all others, as text:
//! for 4,000 columns that takes 7 s, and nothing stops it (datafusion-sql 55, `push_projection_dedupl`). So whole rows,
//! `SELECT * FROM t`, are planned without a list of columns: a table by itself has the same ones. Other lists of
//! columns are bounded.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{ResolvedTableReference, TableReference};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr as PlanExpr, LogicalPlan};
use datafusion::sql::parser::Statement;
use datafusion::sql::planner::object_name_to_table_reference;
use datafusion::sql::sqlparser::ast::{
    Expr, GroupByExpr, Ident, ObjectName, OrderByKind, Query, Select, SelectItem, SetExpr, Statement as SqlStatement,
    Value, Visit, Visitor, WildcardAdditionalOptions, visit_relations,
};

use crate::engine::EngineError;

/// Most columns in a list of a `SELECT`, where whole rows are not all that it asks for.
const MOST_LISTED: usize = 4096;

/// The name of the only column of a query whose projections are removed.
const MARK: &str = "thallus: whole rows";

/// The plan of a statement.
pub(super) async fn plan(state: &SessionState, statement: Statement) -> Result<LogicalPlan> {
    if let Some(marked) = marked(&statement)
        && let Ok(plan) = state.statement_to_plan(marked).await
    {
        return without_projections(plan);
    }
    // The error is that of the statement as it was written.
    state.statement_to_plan(statement).await
}

/// Refuses a statement with too many columns in a list.
pub(super) async fn check_lists(state: &SessionState, statement: &Statement) -> Result<(), EngineError> {
    let mut lists = Lists { whole: whole_rows_of(statement).map(|(_, select)| select), ..Lists::default() };
    lists.add(statement);
    let mut longest = lists.longest;
    for tables in lists.of_wildcards {
        let mut columns = 0_usize;
        for table in tables {
            columns = columns.saturating_add(columns_of(state, table).await);
        }
        longest = longest.max(columns);
    }
    match longest {
        0..=MOST_LISTED => Ok(()),
        actual => Err(EngineError::TooLarge { what: "number of columns in a list", actual, limit: MOST_LISTED }),
    }
}

/// The number of columns of a table; 0 if there is none.
async fn columns_of(state: &SessionState, table: ObjectName) -> usize {
    let Ok(reference) = object_name_to_table_reference(table, true) else { return 0 };
    let defaults = &state.config_options().catalog;
    let ResolvedTableReference { catalog, schema, table } =
        reference.resolve(&defaults.default_catalog, &defaults.default_schema);
    let found = match state.schema_for_ref(TableReference::full(catalog, schema, Arc::clone(&table))) {
        Ok(schema) => schema.table(&table).await.ok().flatten(),
        Err(_) => None,
    };
    found.map_or(0, |table| table.schema().fields().len())
}

/// The lists of columns of a statement.
#[derive(Default)]
struct Lists<'a> {
    /// The list that is planned without its columns.
    whole: Option<&'a Select>,
    /// Number of columns of the longest list, where they are written out.
    longest: usize,
    /// The tables of each list with a wildcard.
    of_wildcards: Vec<Vec<ObjectName>>,
}

impl Lists<'_> {
    fn add(&mut self, statement: &Statement) {
        let flow = match statement {
            Statement::Statement(statement) => statement.visit(self),
            Statement::Explain(explain) => return self.add(&explain.statement),
            // Refused before.
            Statement::CreateExternalTable(_) | Statement::CopyTo(_) | Statement::Reset(_) => ControlFlow::Continue(()),
        };
        debug_assert!(flow.is_continue(), "the visitor does not break");
    }
}

impl Visitor for Lists<'_> {
    type Break = ();

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.longest = self.longest.max(select.projection.len());
        let is_wildcard =
            |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        let is_whole = self.whole.is_some_and(|whole| std::ptr::eq(whole, select));
        if !is_whole && select.projection.iter().any(is_wildcard) {
            let mut tables = Vec::new();
            let flow = visit_relations(&select.from, |name| {
                tables.push(name.clone());
                ControlFlow::<()>::Continue(())
            });
            debug_assert!(flow.is_continue(), "the visitor does not break");
            self.of_wildcards.push(tables);
        }
        ControlFlow::Continue(())
    }
}

/// The query of a statement, if it asks for the rows of one relation and nothing else.
fn whole_rows_of(statement: &Statement) -> Option<(&Query, &Select)> {
    let Statement::Statement(sql) = statement else { return None };
    let SqlStatement::Query(query) = &**sql else { return None };
    let SetExpr::Select(select) = &*query.body else { return None };
    (has_rows_as_they_are(query) && is_of_whole_rows(select)).then_some((query, select))
}

/// The statement with one column instead of `*`, if it asks for whole rows.
fn marked(statement: &Statement) -> Option<Statement> {
    let mut query = whole_rows_of(statement)?.0.clone();
    if let SetExpr::Select(select) = &mut *query.body {
        let alias = Ident::with_quote('"', MARK);
        select.projection = vec![SelectItem::ExprWithAlias { expr: Expr::value(Value::Null), alias }];
    }
    Some(Statement::Statement(Box::new(SqlStatement::Query(Box::new(query)))))
}

/// Returns true if all keys of the query's `ORDER BY` are names of columns. A number there is a place in the list of
/// columns, which is left out.
fn has_rows_as_they_are(query: &Query) -> bool {
    let is_column = |expr: &Expr| matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_));
    let orders_by_columns = query.order_by.as_ref().is_none_or(|order_by| match &order_by.kind {
        OrderByKind::Expressions(keys) => order_by.interpolate.is_none() && keys.iter().all(|key| is_column(&key.expr)),
        OrderByKind::All(_) => false,
    });
    orders_by_columns && query.pipe_operators.is_empty()
}

fn is_of_whole_rows(select: &Select) -> bool {
    let all = SelectItem::Wildcard(WildcardAdditionalOptions::default());
    let is_grouped = |keys: &GroupByExpr| !matches!(keys, GroupByExpr::Expressions(keys, _) if keys.is_empty());
    // A join by USING has fewer columns than its inputs.
    matches!(&select.from[..], [only] if only.joins.is_empty())
        && select.projection == [all]
        && select.exclude.is_none()
        && select.distinct.is_none()
        && select.top.is_none()
        && select.into.is_none()
        && select.lateral_views.is_empty()
        && select.having.is_none()
        && select.qualify.is_none()
        && !is_grouped(&select.group_by)
}

/// The plan without the projections to the marked column.
fn without_projections(plan: LogicalPlan) -> Result<LogicalPlan> {
    let is_mark = |expr: &PlanExpr| match expr {
        PlanExpr::Alias(alias) => alias.name == MARK,
        PlanExpr::Column(column) => column.name == MARK,
        _ => false,
    };
    plan.transform_up(|node| match node {
        LogicalPlan::Projection(projection) if projection.expr.iter().any(is_mark) => {
            Ok(Transformed::yes(projection.input.as_ref().clone()))
        }
        node => Ok(Transformed::no(node)),
    })
    .data()
}

#[cfg(test)]
mod tests {
    use super::super::guard;
    use super::*;
    use arrow::util::pretty::pretty_format_batches;
    use arrow_schema::{DataType, Field, Schema};
    use datafusion::datasource::empty::EmptyTable;
    use datafusion::prelude::SessionContext;

    fn parsed(sql: &str) -> Statement {
        guard::parse(sql, 1 << 20, guard::Allowed::Queries).unwrap()
    }

    /// The session, with a table `t` of columns `a` and `B`.
    async fn session() -> SessionContext {
        let session = SessionContext::new();
        let table = "CREATE TABLE t AS SELECT * FROM (VALUES (3, 'x'), (1, 'y'), (2, NULL)) AS rows(a, \"B\")";
        session.sql(table).await.unwrap().collect().await.unwrap();
        session
    }

    async fn shown(session: &SessionContext, plan: LogicalPlan) -> String {
        let rows = session.execute_logical_plan(plan).await.unwrap();
        let schema = rows.schema().inner().to_string();
        let rows = rows.collect().await.unwrap();
        format!("{schema}\n{}", pretty_format_batches(&rows).unwrap())
    }

    #[tokio::test]
    async fn the_rows_are_the_same_without_a_projection() {
        let session = session().await;
        for sql in [
            "SELECT * FROM t",
            "SELECT * FROM t AS u WHERE u.a > 1",
            "SELECT * FROM t ORDER BY a DESC LIMIT 2",
            "SELECT * FROM t u ORDER BY u.\"B\" NULLS FIRST, a OFFSET 1",
            "SELECT * FROM (SELECT a + 1, \"B\" AS b, a FROM t) ORDER BY b",
            "WITH u AS (SELECT a FROM t) SELECT * FROM u",
            "SELECT * FROM (VALUES (1, 2))",
            "SELECT * FROM t WHERE a IN (SELECT a FROM t WHERE a < 3) LIMIT 5",
        ] {
            assert!(marked(&parsed(sql)).is_some(), "{sql}");
            let state = session.state();
            let plan = plan(&state, parsed(sql)).await.unwrap();
            let listed = state.statement_to_plan(parsed(sql)).await.unwrap();
            assert!(!plan.display_indent().to_string().contains(MARK), "{sql}: {plan}");
            assert_eq!(plan.schema(), listed.schema(), "{sql}");
            assert_eq!(shown(&session, plan).await, shown(&session, listed).await, "{sql}");
        }
    }

    #[tokio::test]
    async fn lists_of_columns_are_bounded_and_whole_rows_are_not() {
        let session = SessionContext::new();
        for (name, columns) in [("wide", MOST_LISTED), ("wider", MOST_LISTED + 1), ("small", 1)] {
            let fields: Vec<_> = (0..columns).map(|i| Field::new(format!("c{i}"), DataType::Int8, true)).collect();
            let table = EmptyTable::new(Arc::new(Schema::new(fields)));
            session.register_table(name, Arc::new(table)).unwrap();
        }
        let state = session.state();
        let listed = |columns: usize| format!("SELECT {} FROM wide", vec!["1"; columns].join(","));
        for sql in [
            "SELECT * FROM wider",
            "SELECT * FROM WIDER AS w WHERE c0 IN (SELECT * FROM small) ORDER BY c1",
            "SELECT DISTINCT * FROM wide",
            "SELECT count(*) FROM wider",
            "SELECT *, 1 FROM missing",
            &listed(MOST_LISTED),
        ] {
            check_lists(&state, &parsed(sql)).await.unwrap();
        }
        for sql in [
            "SELECT *, 1 FROM wider",
            "SELECT c0 FROM (SELECT * FROM public.wider)",
            "SELECT * FROM (SELECT w.* FROM wide AS w JOIN small USING (c0))",
            "WITH w AS (SELECT * FROM wider LIMIT 1) SELECT * FROM w",
            "EXPLAIN SELECT * FROM wider",
            &listed(MOST_LISTED + 1),
        ] {
            let error = check_lists(&state, &parsed(sql)).await.unwrap_err().to_string();
            assert!(error.contains("4097") && error.contains("4096"), "{error}");
        }
    }

    #[tokio::test]
    async fn other_queries_are_planned_as_written() {
        for sql in [
            "SELECT a FROM t",
            "SELECT *, 1 FROM t",
            "SELECT t.* FROM t",
            "SELECT DISTINCT * FROM t",
            "SELECT * EXCLUDE (a) FROM t",
            "SELECT * FROM t ORDER BY 1",
            "SELECT * FROM t ORDER BY a + 1",
            "SELECT * FROM t GROUP BY ALL",
            "SELECT * FROM t, t AS u",
            "SELECT * FROM t JOIN t AS u USING (a)",
            "SELECT * FROM t UNION ALL SELECT * FROM t",
            "EXPLAIN SELECT * FROM t",
        ] {
            assert!(marked(&parsed(sql)).is_none(), "{sql}");
        }
        // The name of a column.
        assert!(plan(&session().await.state(), parsed("SELECT * FROM t ORDER BY ALL")).await.is_err());
        let error = plan(&session().await.state(), parsed("SELECT * FROM t WHERE c = 1")).await.unwrap_err();
        assert!(error.to_string().contains("No field named c") && !error.to_string().contains(MARK), "{error}");
    }
}
