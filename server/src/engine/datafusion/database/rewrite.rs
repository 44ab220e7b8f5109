//! `DELETE` and `UPDATE`, as queries whose rows take the place of all rows of the table.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder, Projection, when};

/// The rows that a `DELETE` leaves, of DataFusion's plan for those that it removes. `None`: it leaves none.
pub(super) fn left(removed: LogicalPlan) -> Result<Option<LogicalPlan>> {
    match removed {
        LogicalPlan::Filter(Filter { predicate, input, .. }) if is_table(&input) => {
            refuse_unsafe("DELETE", &predicate)?;
            // A row stays if the condition is NULL.
            let stays = Expr::IsNotTrue(Box::new(predicate));
            Ok(Some(LogicalPlan::Filter(Filter::try_new(stays, input)?)))
        }
        plan if is_table(&plan) => Ok(None),
        _ => Err(not_supported("DELETE with more than a condition")),
    }
}

/// All rows after an `UPDATE`, of DataFusion's plan for those that it changes. A last column tells whether a row is one
/// of these.
pub(super) fn updated(changed: LogicalPlan) -> Result<LogicalPlan> {
    let LogicalPlan::Projection(Projection { expr, input, .. }) = changed else {
        return Err(not_supported("UPDATE of this form"));
    };
    let (condition, table) = match Arc::unwrap_or_clone(input) {
        LogicalPlan::Filter(Filter { predicate, input, .. }) => {
            refuse_unsafe("UPDATE", &predicate)?;
            (Expr::IsTrue(Box::new(predicate)), Arc::unwrap_or_clone(input))
        }
        table => (datafusion::logical_expr::lit(true), table),
    };
    if !is_table(&table) || table.schema().fields().len() != expr.len() {
        return Err(not_supported("UPDATE with other tables"));
    }
    let mut columns = Vec::with_capacity(expr.len() + 1);
    for (index, value) in expr.into_iter().enumerate() {
        let column = Column::from(table.schema().qualified_field(index));
        let name = column.name.clone();
        let value = value.unalias();
        let value = match value {
            Expr::Column(same) if same == column => Expr::Column(same),
            value => when(condition.clone(), value).otherwise(Expr::Column(column))?,
        };
        columns.push(value.alias(name));
    }
    let mut flag = "is_changed".to_owned();
    while table.schema().has_column_with_unqualified_name(&flag) {
        flag.push('_');
    }
    columns.push(condition.alias(flag));
    LogicalPlanBuilder::from(table).project(columns)?.build()
}

/// Refuses conditions that would have another meaning here than in a query: `NOT IN` with a sub-query, whose NULLs
/// DataFusion considers only at the top of a filter, and functions whose value changes from call to call.
fn refuse_unsafe(statement: &str, condition: &Expr) -> Result<()> {
    let negated = condition.exists(|expr| Ok(matches!(expr, Expr::InSubquery(of) if of.negated)))?;
    let under_not = condition.exists(|expr| {
        let Expr::Not(inner) = expr else { return Ok(false) };
        inner.exists(|expr| Ok(matches!(expr, Expr::InSubquery(_))))
    })?;
    if negated || under_not {
        return Err(not_supported(&format!("{statement} with NOT IN and a sub-query (use NOT EXISTS, or a list)")));
    }
    if condition.is_volatile() {
        return Err(not_supported(&format!("{statement} with a function that is random in its condition")));
    }
    Ok(())
}

/// Returns whether a plan has all rows of one table.
fn is_table(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(scan) => scan.filters.is_empty() && scan.fetch.is_none(),
        LogicalPlan::SubqueryAlias(alias) => is_table(&alias.input),
        _ => false,
    }
}

fn not_supported(what: &str) -> DataFusionError {
    DataFusionError::NotImplemented(format!("{what}; a condition and values of the table itself are"))
}
