//! Joins that can be cancelled, and that let other queries run.
//!
//! A join combines each batch of its second input with all matching rows of the first, in one step. With many matches
//! per row a step takes minutes; if a filter discards the result, the join begins the next step without returning to
//! the scheduler (DataFusion issue 19358). A cancelled query then occupies its thread on. So every join receives its
//! second input in slices: few rows at first, more as long as a slice is combined quickly. Between slices, and between
//! the batches of its result, the thread is given back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, PiecewiseMergeJoinExec, SortMergeJoinExec,
};
use datafusion::physical_plan::{ExecutionPlan, RecordBatchStream, SendableRecordBatchStream};
use futures::{Stream, StreamExt};

use super::wrapped::WrappedExec;

/// A thread is given back after this time.
const TURN: Duration = Duration::from_millis(1);
/// Name of the operator in plans.
const NAME: &str = "PacedExec";
/// Factor by which slices grow and shrink.
const STEP: usize = 4;

/// The plan with a paced second input and a paced result of every join.
pub(super) fn pace(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        // This one combines each batch of its second input with one row of the first at a time.
        if node.downcast_ref::<CrossJoinExec>().is_some() {
            return Ok(Transformed::yes(paced(node)));
        }
        if !is_join(&*node) {
            return Ok(Transformed::no(node));
        }
        let mut children: Vec<_> = node.children().into_iter().map(Arc::clone).collect();
        let Some(input) = children.pop() else { return Ok(Transformed::no(node)) };
        children.push(sliced(input));
        let options = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        let join = node.replace_children(children, options)?;
        Ok(Transformed::yes(paced(join)))
    })
    .data()
}

fn is_join(node: &dyn ExecutionPlan) -> bool {
    node.downcast_ref::<HashJoinExec>().is_some()
        || node.downcast_ref::<NestedLoopJoinExec>().is_some()
        || node.downcast_ref::<SortMergeJoinExec>().is_some()
        || node.downcast_ref::<PiecewiseMergeJoinExec>().is_some()
}

/// Gives the thread back at times, between the batches of the input.
fn paced(input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    WrappedExec::over(input, NAME, |input| Box::pin(Paced::new(input, false)))
}

/// The same with the batches in slices, of a size that follows from the time that the consumer takes for them.
fn sliced(input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    WrappedExec::over(input, NAME, |input| Box::pin(Paced::new(input, true)))
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
    fn new(input: SendableRecordBatchStream, slices: bool) -> Self {
        let rows = if slices { 1 } else { usize::MAX };
        Paced { input, rest: None, rows, slices, turn: Instant::now(), given: None }
    }

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
