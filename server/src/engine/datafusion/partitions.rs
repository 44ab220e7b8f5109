//! A result as several streams: leaves out the last step of a plan if that only merges partitions.
//!
//! All streams belong to one plan and one execution, so that together they are exactly the result. A plan that ends in
//! one partition for another reason (a limit, an aggregate over everything) stays in one.

use std::sync::Arc;

use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_expr::LexOrdering;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::common::spawn_buffered;
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet};
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::sorts::streaming_merge::StreamingMergeBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    EmptyRecordBatchStream, ExecutionPlan, ExecutionPlanProperties, SendableRecordBatchStream,
};
use futures::stream::select_all;
use thallus_protocol::message::{MAX_SORT_KEYS, SortKey};

/// Batches that each of several merged partitions may produce in advance.
const MERGED_AHEAD: usize = 1;

/// A plan's partitions, distributed over streams.
pub(super) struct Dealt {
    /// The order of each stream, if the result is sorted.
    pub(super) order: Vec<SortKey>,
    /// As many streams as requested; some may be empty.
    pub(super) streams: Vec<SendableRecordBatchStream>,
}

/// Starts `plan` as `count` streams, at least one.
pub(super) fn deal(
    plan: &Arc<dyn ExecutionPlan>,
    count: usize,
    context: &Arc<TaskContext>,
) -> Result<Dealt, DataFusionError> {
    let Apart { plan, sorted_by, order } = take_apart(plan);
    let mut hands: Vec<Vec<SendableRecordBatchStream>> = (0..count).map(|_| Vec::new()).collect();
    for partition in 0..plan.output_partitioning().partition_count() {
        hands[partition % count].push(plan.execute(partition, Arc::clone(context))?);
    }
    let one = |(index, hand)| one_stream(&plan, sorted_by.as_ref(), index, hand, context);
    let streams = hands.into_iter().enumerate().map(one).collect::<Result<_, _>>()?;
    Ok(Dealt { order, streams })
}

/// A plan whose partitions together are the result.
struct Apart {
    plan: Arc<dyn ExecutionPlan>,
    sorted_by: Option<LexOrdering>,
    order: Vec<SortKey>,
}

/// Leaves out a last step that only merges partitions.
fn take_apart(plan: &Arc<dyn ExecutionPlan>) -> Apart {
    if let Some(merge) = plan.downcast_ref::<SortPreservingMergeExec>().filter(|merge| merge.fetch().is_none())
        && let Some(order) = sort_keys(merge.expr(), merge.input())
    {
        return Apart { plan: Arc::clone(merge.input()), sorted_by: Some(merge.expr().clone()), order };
    }
    let plan = match plan.downcast_ref::<CoalescePartitionsExec>().filter(|coalesce| coalesce.fetch().is_none()) {
        Some(coalesce) => coalesce.input(),
        None => plan,
    };
    Apart { plan: Arc::clone(plan), sorted_by: None, order: Vec::new() }
}

/// The ordering in terms of the result's columns, if the client can merge by it.
fn sort_keys(ordering: &LexOrdering, plan: &Arc<dyn ExecutionPlan>) -> Option<Vec<SortKey>> {
    let schema = plan.schema();
    let key = |sort: &datafusion::physical_expr::PhysicalSortExpr| {
        let column = sort.expr.downcast_ref::<Column>()?.index();
        let field = SortField::new(schema.fields().get(column)?.data_type().clone());
        RowConverter::supports_fields(&[field]).then_some(())?;
        let (descending, nulls_first) = (sort.options.descending, sort.options.nulls_first);
        Some(SortKey { column: u32::try_from(column).ok()?, descending, nulls_first })
    };
    let keys: Vec<_> = ordering.iter().map(key).collect::<Option<_>>()?;
    (keys.len() <= MAX_SORT_KEYS).then_some(keys)
}

/// The stream of the partitions in `hand`. If there are several, each runs in its own task, as it would if the plan
/// merged them.
fn one_stream(
    plan: &Arc<dyn ExecutionPlan>,
    sorted_by: Option<&LexOrdering>,
    index: usize,
    mut hand: Vec<SendableRecordBatchStream>,
    context: &Arc<TaskContext>,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let schema = plan.schema();
    if hand.len() < 2 {
        return Ok(hand.pop().unwrap_or_else(|| Box::pin(EmptyRecordBatchStream::new(schema))));
    }
    let parallel = hand.into_iter().map(|stream| spawn_buffered(stream, MERGED_AHEAD));
    let Some(ordering) = sorted_by else {
        return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, select_all(parallel))));
    };
    let consumer = MemoryConsumer::new(format!("partition {index}, merged"));
    StreamingMergeBuilder::new()
        .with_streams(parallel.collect())
        .with_schema(schema)
        .with_expressions(ordering)
        .with_metrics(BaselineMetrics::new(&ExecutionPlanMetricsSet::new(), index))
        .with_batch_size(context.session_config().batch_size())
        .with_reservation(consumer.register(context.memory_pool()))
        .build()
}
