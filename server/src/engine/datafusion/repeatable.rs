//! Inputs that are executed a second time.
//!
//! A nested loop join whose first input does not fit in memory executes that input again, to spill it. Its operators
//! have passed on their rows by then: a scan has taken its files, a repartition has closed its channels. The second
//! execution yields a part of the rows or none, or panics. So that it yields all of them, it gets operators of its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions, reset_plan_states};
use datafusion::physical_plan::joins::NestedLoopJoinExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};

/// Whether the plan has an input that may be executed twice. The filters that DataFusion derives while a query runs are
/// not reset, so such a plan must not have them.
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
            *first = Arc::new(RepeatableExec::over(Arc::clone(first)));
        }
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Ok(Transformed::yes(node.replace_children(children, options)?))
    })
    .data()
}

/// An operator whose input can be executed again.
#[derive(Debug)]
struct RepeatableExec {
    input: Arc<dyn ExecutionPlan>,
    executed: AtomicBool,
}

impl RepeatableExec {
    fn over(input: Arc<dyn ExecutionPlan>) -> Self {
        RepeatableExec { input, executed: AtomicBool::new(false) }
    }
}

impl DisplayAs for RepeatableExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepeatableExec")
    }
}

impl ExecutionPlan for RepeatableExec {
    fn name(&self) -> &str {
        "RepeatableExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Arc::new(RepeatableExec::over(input))),
            Err(_) => Err(DataFusionError::Internal(format!("{} has one child", self.name()))),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if !self.executed.swap(true, Ordering::AcqRel) {
            return self.input.execute(partition, context);
        }
        reset_plan_states(Arc::clone(&self.input))?.execute(partition, context)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }
}
