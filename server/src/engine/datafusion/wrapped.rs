//! An operator that changes how its input is executed or how its batches come, and neither the rows nor their order.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions, reset_plan_states,
};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};

/// The batches of a partition, from those of the input.
pub(super) type Wrap = fn(SendableRecordBatchStream) -> SendableRecordBatchStream;

/// The change of the input.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// The stream of each partition is wrapped.
    Stream(Wrap),
    /// From the second execution on, the input gets operators of its own.
    Repeatable,
}

/// The operator.
#[derive(Debug)]
pub(super) struct WrappedExec {
    input: Arc<dyn ExecutionPlan>,
    name: &'static str,
    change: Change,
    executed: AtomicBool,
}

impl WrappedExec {
    /// An operator of this name over `input`.
    pub(super) fn over(input: Arc<dyn ExecutionPlan>, name: &'static str, wrap: Wrap) -> Arc<dyn ExecutionPlan> {
        Self::with(input, name, Change::Stream(wrap))
    }

    /// An operator of this name whose input can be executed again.
    pub(super) fn repeatable(input: Arc<dyn ExecutionPlan>, name: &'static str) -> Arc<dyn ExecutionPlan> {
        Self::with(input, name, Change::Repeatable)
    }

    fn with(input: Arc<dyn ExecutionPlan>, name: &'static str, change: Change) -> Arc<dyn ExecutionPlan> {
        Arc::new(WrappedExec { input, name, change, executed: AtomicBool::new(false) })
    }
}

impl DisplayAs for WrappedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl ExecutionPlan for WrappedExec {
    fn name(&self) -> &str {
        self.name
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
            Ok([input]) => Ok(WrappedExec::with(input, self.name, self.change)),
            Err(_) => Err(DataFusionError::Internal(format!("{} has one child", self.name))),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        match self.change {
            Change::Stream(wrap) => Ok(wrap(self.input.execute(partition, context)?)),
            Change::Repeatable if self.executed.swap(true, Ordering::AcqRel) => {
                reset_plan_states(Arc::clone(&self.input))?.execute(partition, context)
            }
            Change::Repeatable => self.input.execute(partition, context),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}
