//! Inputs that are executed a second time.
//!
//! A nested loop join whose first input does not fit in memory executes that input again, to spill it. Its operators
//! have passed on their rows by then: a scan has taken its files, a repartition has closed its channels. The second
//! execution yields a part of the rows or none, or panics. So that it yields all of them, it gets operators of its own.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::NestedLoopJoinExec;

use super::wrapped::WrappedExec;

/// Returns whether the plan has an input that may be executed twice. The filters that DataFusion derives while a query
/// runs are not reset, so such a plan must not have them.
pub(super) fn is_needed(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let found = plan.exists(|node| Ok(node.downcast_ref::<NestedLoopJoinExec>().is_some()));
    debug_assert!(found.is_ok(), "the visitor does not fail");
    found.unwrap_or(true)
}

/// The plan with a repeatable first input of every nested loop join.
pub(super) fn repeat(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        if node.downcast_ref::<NestedLoopJoinExec>().is_none() {
            return Ok(Transformed::no(node));
        }
        let mut children: Vec<_> = node.children().into_iter().map(Arc::clone).collect();
        if let Some(first) = children.first_mut() {
            *first = WrappedExec::repeatable(Arc::clone(first), "RepeatableExec");
        }
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Ok(Transformed::yes(node.replace_children(children, options)?))
    })
    .data()
}
