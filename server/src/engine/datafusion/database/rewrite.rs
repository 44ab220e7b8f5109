//! `DELETE` and `UPDATE`, as queries whose rows take the place of all rows of the table.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, LogicalPlanBuilder, Projection, when};

/// The rows that a `DELETE` leaves, of DataFusion's plan for those that it removes. `None`: it leaves none.
pub(super) fn left(removed: LogicalPlan) -> Result<Option<LogicalPlan>> {
    match removed {
        LogicalPlan::Filter(Filter { predicate, input, .. }) if is_table(&input) => {
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
