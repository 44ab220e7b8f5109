//! Scans whose decoders panic on a file that contradicts itself: the panic becomes an error of the file.
//!
//! The reader of Parquet finds much of that only when an index or a length is out of its bounds. A panic ends the
//! query's task, and would be reported as a bug of the server.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result};
use datafusion::parquet::errors::ParquetError;
use datafusion::physical_plan::{ExecutionPlan, RecordBatchStream, SendableRecordBatchStream};
use futures::{Stream, StreamExt};

use super::error;
use super::wrapped::WrappedExec;

/// The plan with every scan of files caught.
pub(super) fn catch(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        if node.downcast_ref::<DataSourceExec>().is_none() {
            return Ok(Transformed::no(node));
        }
        let caught = |input: SendableRecordBatchStream| -> SendableRecordBatchStream {
            Box::pin(Caught { schema: input.schema(), input: Some(input) })
        };
        Ok(Transformed::yes(WrappedExec::over(node, "CaughtExec", caught)))
    })
    .data()
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
                // The scan evaluates expressions of the query, too.
                if let Some(message) = error::outgrown(error::of_panic(&*panic)) {
                    return Poll::Ready(Some(Err(DataFusionError::Execution(message.to_owned()))));
                }
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
