//! Results in partitions. Each partition is a stream on its own connection.
//!
//! One thread that drives one connection does not fill a fast link; several do, and the server's engine works on their
//! partitions in parallel. All partitions form one result or one error: the server ends all of them if one fails, and
//! [`ResultStream`] ends well only when every partition does.

mod links;
mod merge;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::future::try_join_all;
use futures::{Stream, StreamExt};
use thallus_protocol::GroupId;
use thallus_protocol::message::{OpenOptions, Partition, SortKey};
use tokio::time::Instant;

pub(crate) use links::{Link, Links, Tasks};
use merge::Merger;

use crate::error::{ClientError, StreamCode};
use crate::report::TransferReport;
use crate::result::PartStream;

/// A query's result: its schema, its batches as they arrive, and a report at any time.
///
/// Batches are in order, and each is validated. Nothing follows an error or the end. Dropping the stream cancels the
/// query, on the server too. The memory of a lent batch is reused when the last array over it is dropped.
///
/// If the result has an order, its partitions are merged to that order, unless the query requests unordered rows. If it
/// has none, batches of its partitions are delivered as they arrive. The result ends well only if every partition does.
#[derive(Debug)]
pub struct ResultStream(Source);

#[derive(Debug)]
enum Source {
    One(Box<PartStream>),
    Many(Box<Merged>),
}

impl ResultStream {
    pub(crate) fn from_single(part: PartStream) -> Self {
        ResultStream(Source::One(Box::new(part)))
    }

    pub(crate) fn from_partitions(
        parts: Vec<PartStream>,
        unordered: bool,
        batch_rows: Option<u32>,
        started: Instant,
    ) -> Result<Self, ClientError> {
        Ok(ResultStream(Source::Many(Box::new(Merged::new(parts, unordered, batch_rows, started)?))))
    }

    /// The schema of every batch.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        match &self.0 {
            Source::One(part) => part.schema(),
            Source::Many(merged) => Arc::clone(&merged.schema),
        }
    }

    /// The order of a partition of a sorted result, most significant key first. Merging all partitions by it yields the
    /// result's order. Empty for other results.
    #[must_use]
    pub fn order(&self) -> &[SortKey] {
        match &self.0 {
            Source::One(part) => part.order(),
            Source::Many(_) => &[],
        }
    }

    /// The transfer so far; the whole transfer once the stream has ended.
    #[must_use]
    pub fn report(&self) -> TransferReport {
        match &self.0 {
            Source::One(part) => part.report(),
            Source::Many(merged) => merged.report(),
        }
    }
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.0 {
            Source::One(part) => part.poll_next_unpin(cx),
            Source::Many(merged) => merged.poll_next(cx),
        }
    }
}

/// Requests a result in `count` partitions, distributed over the connections, and waits for the schema of each.
pub(crate) async fn open_partitions(
    links: &[Link],
    sql: &str,
    options: &OpenOptions,
    count: u32,
    started: Instant,
) -> Result<Vec<PartStream>, ClientError> {
    let group = random_group()?;
    let ask = |(index, link): (u32, &Link)| {
        let part = Some(Partition { group, index, count });
        link.query(sql, OpenOptions { partition: part, ..options.clone() }, started)
    };
    // Send all requests before waiting for any: the server begins when it has received the last.
    let asked: Vec<_> = (0..count).zip(links.iter().cycle()).map(ask).collect::<Result<_, _>>()?;
    // The first error drops the others, which cancels them.
    let parts = try_join_all(asked.into_iter().map(|part| part.after_schema())).await?;
    if let Some(first) = parts.first()
        && parts.iter().any(|part| part.schema() != first.schema() || part.order() != first.order())
    {
        return Err(ClientError::Protocol { message: "partitions of one result differ in their schema".into() });
    }
    Ok(parts)
}

/// A random group id: no other client can guess it, so none can join the group or detect the result.
fn random_group() -> Result<GroupId, ClientError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ClientError::Random { source: error.to_string().into() })?;
    Ok(GroupId(bytes))
}

/// All partitions of a result, as one stream.
struct Merged {
    parts: Vec<PartStream>,
    schema: SchemaRef,
    /// `None`: batches are delivered as they arrive.
    merger: Option<Merger>,
    /// Without a merger: the partition to poll first.
    turn: usize,
    started: Instant,
    waiting_since: Option<Instant>,
    /// Figures of the whole; the sums come from the partitions.
    report: TransferReport,
    ended: bool,
}

impl Merged {
    fn new(
        parts: Vec<PartStream>,
        unordered: bool,
        batch_rows: Option<u32>,
        started: Instant,
    ) -> Result<Self, ClientError> {
        let (schema, order) = parts.first().map_or_else(
            || (Arc::new(arrow::datatypes::Schema::empty()), Vec::new()),
            |first| (first.schema(), first.order().to_vec()),
        );
        let merger = match order.is_empty() || unordered {
            true => None,
            false => Some(Merger::new(parts.len(), &schema, &order, batch_rows).map_err(cannot_merge)?),
        };
        let report = TransferReport { first_answer: started.elapsed(), ..TransferReport::default() };
        Ok(Merged { parts, schema, merger, turn: 0, started, waiting_since: None, report, ended: false })
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<RecordBatch, ClientError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = if self.merger.is_some() { self.poll_merged(cx) } else { self.poll_any(cx) };
        match polled {
            Poll::Pending => {
                self.waiting_since.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => {
                if let Some(since) = self.waiting_since.take() {
                    self.report.wait += since.elapsed();
                }
            }
        }
        match polled {
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.failed(cx, error)))),
            Poll::Ready(None) => {
                self.report.complete = true;
                self.ended();
                Poll::Ready(None)
            }
            other => other,
        }
    }

    /// The next batch of any partition, polled in turn.
    fn poll_any(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<RecordBatch, ClientError>>> {
        let count = self.parts.len();
        for index in (0..count).map(|offset| (self.turn + offset) % count) {
            match self.parts[index].poll_next_unpin(cx) {
                Poll::Ready(Some(item)) => {
                    self.turn = index + 1;
                    return Poll::Ready(Some(item));
                }
                Poll::Ready(None) | Poll::Pending => {}
            }
        }
        if self.parts.iter().all(PartStream::has_ended) { Poll::Ready(None) } else { Poll::Pending }
    }

    /// The next batch in the result's order.
    fn poll_merged(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<RecordBatch, ClientError>>> {
        let Some(merger) = &mut self.merger else { return Poll::Ready(None) };
        loop {
            let mut waits = false;
            for (input, part) in self.parts.iter_mut().enumerate() {
                while merger.wants(input) && !part.has_ended() {
                    match part.poll_next_unpin(cx) {
                        Poll::Ready(Some(Ok(batch))) => {
                            if let Err(error) = merger.push(input, batch) {
                                return Poll::Ready(Some(Err(cannot_merge(error))));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                        Poll::Ready(None) => {}
                        Poll::Pending => {
                            waits = true;
                            break;
                        }
                    }
                }
            }
            if waits {
                return merger.flush().map_or(Poll::Pending, |batch| Poll::Ready(Some(Ok(batch))));
            }
            if let Some(batch) = merger.merge() {
                return Poll::Ready(Some(Ok(batch)));
            }
            let all_ended = self.parts.iter().enumerate().all(|(input, part)| part.has_ended() && merger.wants(input));
            if all_ended {
                return Poll::Ready(merger.flush().map(Ok));
            }
        }
    }

    /// Ends all partitions. If the server reports only the loss of another partition, that partition may have the
    /// reason.
    fn failed(&mut self, cx: &mut Context<'_>, mut error: ClientError) -> ClientError {
        for part in &mut self.parts {
            while is_echo(&error)
                && let Poll::Ready(Some(item)) = part.poll_next_unpin(cx)
            {
                error = item.err().unwrap_or(error);
            }
        }
        self.parts.iter_mut().for_each(PartStream::cancel);
        self.report.bytes_copied = self.merger.take().map_or(0, |merger| merger.copied());
        self.ended();
        error
    }

    fn ended(&mut self) {
        self.ended = true;
        self.report.total = self.started.elapsed();
    }

    fn report(&self) -> TransferReport {
        let mut report = self.report.clone();
        if !self.ended {
            report.total = self.started.elapsed();
        }
        report.bytes_copied = self.merger.as_ref().map_or(report.bytes_copied, Merger::copied);
        report.of_partitions(self.parts.iter().map(PartStream::report).collect())
    }
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Merged");
        fields.field("parts", &self.parts).field("sorted", &self.merger.is_some()).finish_non_exhaustive()
    }
}

fn is_echo(error: &ClientError) -> bool {
    matches!(error, ClientError::Query { kind: StreamCode::PartitionLost, .. })
}

fn cannot_merge(source: arrow::error::ArrowError) -> ClientError {
    ClientError::Merge { source }
}
