//! Scans whose decoders panic on a file that contradicts itself: the panic becomes an error of the file.
//!
//! The reader of Parquet finds much of that only when an index or a length is out of its bounds. A panic ends the
//! query's task, and would be reported as a bug of the server.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::parquet::errors::ParquetError;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, RecordBatchStream, SendableRecordBatchStream,
};
use futures::{Stream, StreamExt};

use super::error;

/// The plan with every scan of files caught.
pub(super) fn catch(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        if node.downcast_ref::<DataSourceExec>().is_none() {
            return Ok(Transformed::no(node));
        }
        Ok(Transformed::yes(Arc::new(CaughtExec { input: node }) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

#[derive(Debug)]
struct CaughtExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for CaughtExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaughtExec")
    }
}

impl ExecutionPlan for CaughtExec {
    fn name(&self) -> &str {
        "CaughtExec"
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
            Ok([input]) => Ok(Arc::new(CaughtExec { input })),
            Err(_) => Err(DataFusionError::Internal("CaughtExec has one child".to_owned())),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(Caught { schema: input.schema(), input: Some(input) }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

struct Caught {
    schema: SchemaRef,
    /// `None` after a panic: the state of the scan is not to be used again.
    input: Option<SendableRecordBatchStream>,
}

impl Stream for Caught {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(input) = &mut self.input else { return Poll::Ready(None) };
        match catch_unwind(AssertUnwindSafe(|| input.poll_next_unpin(cx))) {
            Ok(polled) => polled,
            Err(panic) => {
                self.input = None;
                let reason = format!("its content contradicts itself{}", error::about_data(&*panic));
                Poll::Ready(Some(Err(ParquetError::General(reason).into())))
            }
        }
    }
}

impl RecordBatchStream for Caught {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
