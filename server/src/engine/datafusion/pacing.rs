//! Joins that can be cancelled, and that let other queries run.
//!
//! A join combines each batch of its second input with all matching rows of the first, in one step. With many matches
//! per row a step takes minutes; if a filter discards the result, the join begins the next step without returning to
//! the scheduler (DataFusion issue 19358). A cancelled query then occupies its thread on. So every join receives its
//! second input in slices: few rows at first, more as long as a slice is combined quickly. Between slices, and between
//! the batches of its result, the thread is given back.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec,
};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, RecordBatchStream, SendableRecordBatchStream,
};
use futures::{Stream, StreamExt};

/// A thread is given back after this time.
const TURN: Duration = Duration::from_millis(1);
/// Factor by which slices grow and shrink.
const STEP: usize = 4;

/// The plan with a paced second input and a paced result of every join.
pub(super) fn pace(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        // This one combines each batch of its second input with one row of the first at a time.
        if node.downcast_ref::<CrossJoinExec>().is_some() {
            return Ok(Transformed::yes(Arc::new(PacedExec { input: node, slices: false })));
        }
        if !is_join(&*node) {
            return Ok(Transformed::no(node));
        }
        let mut children: Vec<_> = node.children().into_iter().map(Arc::clone).collect();
        let Some(input) = children.pop() else { return Ok(Transformed::no(node)) };
        children.push(Arc::new(PacedExec { input, slices: true }));
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        let join = node.replace_children(children, options)?;
        Ok(Transformed::yes(Arc::new(PacedExec { input: join, slices: false })))
    })
    .data()
}

fn is_join(node: &dyn ExecutionPlan) -> bool {
    node.downcast_ref::<HashJoinExec>().is_some()
        || node.downcast_ref::<NestedLoopJoinExec>().is_some()
        || node.downcast_ref::<SortMergeJoinExec>().is_some()
        || node.downcast_ref::<PiecewiseMergeJoinExec>().is_some()
}

/// Gives the thread back at times, between the batches of its input.
#[derive(Debug)]
struct PacedExec {
    input: Arc<dyn ExecutionPlan>,
    /// Whether it yields the batches in slices, of a size that follows from the time that the consumer takes for them.
    slices: bool,
}

impl DisplayAs for PacedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacedExec")
    }
}

impl ExecutionPlan for PacedExec {
    fn name(&self) -> &str {
        "PacedExec"
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
            Ok([input]) => Ok(Arc::new(PacedExec { input, slices: self.slices })),
            Err(_) => Err(DataFusionError::Internal("PacedExec has one child".to_owned())),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let rows = if self.slices { 1 } else { usize::MAX };
        Ok(Box::pin(Paced { input, rest: None, rows, slices: self.slices, turn: Instant::now(), given: None }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

struct Paced {
    input: SendableRecordBatchStream,
    /// The rows that follow the last slice.
    rest: Option<RecordBatch>,
    /// Rows of the next slice.
    rows: usize,
    slices: bool,
    /// When the thread was given back last.
    turn: Instant,
    /// Time of the last slice, and whether it had as many rows as it might.
    given: Option<(Instant, bool)>,
}

impl Paced {
    /// Adapts the size of slices to the time that the consumer took for the last one.
    fn adapt(&mut self) {
        let Some((given, was_full)) = self.given.take() else { return };
        match given.elapsed() {
            long if long > TURN => self.rows = (self.rows / STEP).max(1),
            short if was_full && short < TURN / STEP as u32 => self.rows = self.rows.saturating_mul(STEP),
            _ => {}
        }
    }
}

impl Stream for Paced {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.adapt();
        if self.turn.elapsed() > TURN {
            self.turn = Instant::now();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let batch = match self.rest.take() {
            Some(rest) => rest,
            None => {
                let next = self.input.poll_next_unpin(cx);
                if next.is_pending() {
                    self.turn = Instant::now();
                }
                match ready!(next) {
                    Some(Ok(batch)) => batch,
                    end => return Poll::Ready(end),
                }
            }
        };
        let rows = self.rows.min(batch.num_rows());
        if rows < batch.num_rows() {
            self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        }
        if self.slices {
            self.given = Some((Instant::now(), rows == self.rows));
        }
        Poll::Ready(Some(Ok(batch.slice(0, rows))))
    }
}

impl RecordBatchStream for Paced {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}
