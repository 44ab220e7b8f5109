//! What runs a query: SQL in, a lazy stream of record batches out.
//!
//! The server knows an engine only by [`Engine`]. `datafusion` is the one that ships; thallus-scripted-engine
//! has the one for tests, which plays what it was told to, including every way to fail.

#[cfg(feature = "datafusion")]
pub mod datafusion;
mod error;

use std::fmt;
use std::pin::Pin;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{Stream, StreamExt};
use thallus_protocol::message::SortKey;

pub use error::{EngineError, EngineErrorKind};

/// Runs queries. Shared by every connection.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// Plans a query and starts it. Rows are produced as the stream is polled, with a bounded number of batches ahead.
    ///
    /// Dropping the future, or the stream, cancels the query and every task of it. A panic within the engine is an
    /// [`EngineError::Internal`] of that query, and nobody else's.
    ///
    /// # Errors
    /// [`EngineError`], for what shows before the first row.
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError>;

    /// Plans a query and starts it once, with its result in exactly `count` partitions (at least one), which can be
    /// polled in parallel: every row of the result is in one of them. Otherwise like [`Engine::execute`].
    ///
    /// By default all rows are in the first.
    ///
    /// # Errors
    /// As [`Engine::execute`].
    async fn execute_partitioned(&self, query: QueryRequest, count: usize) -> Result<PartitionedQuery, EngineError> {
        Ok(PartitionedQuery::in_first(self.execute(query).await?, count))
    }

    /// Begins to take rows for a table. Nothing is taken before [`Ingestion::finish`] has returned well: dropping the
    /// future, or the ingestion, takes none of them.
    ///
    /// This is the basis of ingestion: an engine that does not implement it takes no uploads, and clients are told so.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] by default; otherwise whatever shows before the first row.
    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        let message = format!("this server takes no uploads; nothing was written to {:?}", request.table);
        Err(EngineError::Unsupported { message })
    }

    /// What there is to query, for the start-up log.
    fn tables(&self) -> Vec<TableInfo>;
}

/// A query, as a client asks it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRequest {
    /// Exactly one statement.
    pub sql: String,
    /// Target number of rows in a batch; the engine's own if not given. No batch has more; the last, and those of
    /// selective queries, may have fewer.
    pub batch_rows: Option<usize>,
}

impl QueryRequest {
    /// The query `sql`, all else by default.
    #[must_use]
    pub fn new(sql: impl Into<String>) -> Self {
        QueryRequest { sql: sql.into(), batch_rows: None }
    }
}

/// Rows for a table, as a client announces them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IngestRequest {
    /// The table's name.
    pub table: String,
    /// Schema of every batch.
    pub schema: SchemaRef,
}

/// An upload on its way into an engine.
#[async_trait]
pub trait Ingestion: Send {
    /// Takes in the next batch. The client may send more once this has returned.
    ///
    /// # Errors
    /// [`EngineError`]: the upload ends, and none of its rows are taken.
    async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError>;

    /// All batches have come: takes their rows, for good. Returns how many.
    ///
    /// # Errors
    /// [`EngineError`]: none of the rows are taken.
    async fn finish(self: Box<Self>) -> Result<u64, EngineError>;
}

/// Record batches as they come, in the result's order. After an error there is nothing more.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, EngineError>> + Send>>;

/// A running query.
pub struct QueryStream {
    /// Schema of every batch.
    pub schema: SchemaRef,
    /// The rows. No batch is empty.
    pub batches: BatchStream,
}

impl fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// A running query whose result comes in partitions.
pub struct PartitionedQuery {
    /// Schema of every batch.
    pub schema: SchemaRef,
    /// If the result is sorted: by what, most significant first. Each partition is sorted so, and merging them by it
    /// gives the result; at most [`MAX_SORT_KEYS`](thallus_protocol::message::MAX_SORT_KEYS). A result without has no
    /// order, or all its rows in one partition.
    pub order: Vec<SortKey>,
    /// The rows.
    pub partitions: Vec<BatchStream>,
}

impl PartitionedQuery {
    /// All of a result in the first of `count` partitions.
    #[must_use]
    pub fn in_first(QueryStream { schema, batches }: QueryStream, count: usize) -> Self {
        let empty = (1..count).map(|_| futures::stream::empty().boxed());
        let partitions = std::iter::once(batches).chain(empty).collect();
        PartitionedQuery { schema, order: Vec::new(), partitions }
    }
}

impl fmt::Debug for PartitionedQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("PartitionedQuery");
        fields.field("schema", &self.schema).field("order", &self.order);
        fields.field("partitions", &self.partitions.len()).finish_non_exhaustive()
    }
}

/// A table, for people to read of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name in SQL.
    pub name: String,
    /// Where its rows come from: a path, or words.
    pub source: String,
    /// Format of its files.
    pub format: &'static str,
    /// Number of its columns.
    pub columns: usize,
    /// Number of its files at start-up.
    pub files: usize,
}

/// A batch in pieces of at most `rows` rows, without copying; nothing of an empty batch. For engines, which are asked
/// for batches of so many rows.
pub fn slices(
    item: Result<RecordBatch, EngineError>,
    rows: usize,
) -> impl Iterator<Item = Result<RecordBatch, EngineError>> + Send {
    let (batch, error) = match item {
        Ok(batch) => (Some(batch), None),
        Err(error) => (None, Some(Err(error))),
    };
    let pieces = batch.into_iter().flat_map(move |batch| {
        (0..batch.num_rows()).step_by(rows).map(move |start| Ok(batch.slice(start, rows.min(batch.num_rows() - start))))
    });
    pieces.chain(error)
}
