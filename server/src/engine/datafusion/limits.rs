//! Limits and filters that DataFusion pushes too far down, and batches that it makes too large.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ExprSchema};
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};

/// Returns whether the plan sorts, joins or aggregates by floats. The filters that DataFusion derives from that while
/// the query runs must not skip row groups, since their extremes leave NaN out (DataFusion issue 15812).
pub(super) fn is_by_float(plan: &LogicalPlan) -> bool {
    let mut found = false;
    let visited = plan.apply_with_subqueries(|node| {
        if matches!(node, LogicalPlan::Sort(_) | LogicalPlan::Join(_) | LogicalPlan::Aggregate(_)) {
            let is_float = |column: &Column| {
                let fields =
                    node.inputs().into_iter().filter_map(|input| input.schema().field_from_column(column).ok());
                fields.into_iter().any(|field| field.data_type().is_floating())
            };
            found |= node.expressions().iter().any(|expr| expr.column_refs().into_iter().any(is_float));
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    found
}

/// Values of a batch within the engine, at most. DataFusion's filters, joins and groups allocate room for a whole batch
/// in each column, before they know the number of rows, and count it in no memory pool.
const MOST_VALUES: usize = 2 << 20;

/// The rows of the batches of an optimized plan: `rows`, or fewer if it has many columns.
pub(super) fn rows_for_width(plan: &LogicalPlan, rows: usize) -> usize {
    let mut columns = 1;
    let visited = plan.apply_with_subqueries(|node| {
        columns = columns.max(node.schema().fields().len());
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    rows.min((MOST_VALUES / columns).max(1))
}

/// Removes limits between the two steps of an aggregation. There they count partial groups, of which several become
/// one, and `SELECT DISTINCT x ... ORDER BY x LIMIT 3` has too few rows (DataFusion issue 24927).
pub(super) fn lift(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let is_final = node.downcast_ref::<AggregateExec>().is_some_and(|aggregate| {
            matches!(aggregate.mode(), AggregateMode::Final | AggregateMode::FinalPartitioned)
        });
        match node.children().as_slice() {
            [input] if is_final => match unlimited(input)? {
                Some(input) => Ok(Transformed::yes(with_input(&node, input)?)),
                None => Ok(Transformed::no(node)),
            },
            _ => Ok(Transformed::no(node)),
        }
    })
    .data()
}

/// The plan without limits down to the first step of the aggregation; `None` if it has none.
fn unlimited(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    if node.downcast_ref::<AggregateExec>().is_some() {
        return Ok(None);
    }
    let children = node.children();
    let [input] = children.as_slice() else { return Ok(None) };
    let below = unlimited(input)?.map(|input| with_input(node, input)).transpose()?;
    let current = below.as_ref().unwrap_or(node);
    match current.fetch() {
        Some(_) => Ok(current.with_fetch(None).or(below)),
        None => Ok(below),
    }
}

fn with_input(node: &Arc<dyn ExecutionPlan>, input: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    Arc::clone(node).replace_children(vec![input], ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}
