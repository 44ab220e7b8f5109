//! The engine: SQL in, a lazy stream of record batches out.
//!
//! The server uses an engine only through [`Engine`]. `datafusion` is the engine that ships. The crate
//! `thallus-scripted-engine` is the engine for tests: it plays scripts, including every kind of failure.

#[cfg(feature = "datafusion")]
pub mod datafusion;
mod error;
mod request;

use std::fmt;
use std::pin::Pin;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{Stream, StreamExt};
pub use thallus_protocol::catalog::{CatalogObject, Description, TableObject, changes_schema, is_change};
use thallus_protocol::message::SortKey;
pub use thallus_protocol::message::{Defaults, Depth, IngestMode, ObjectsRequest, Vendor};

pub use error::{EngineError, EngineErrorKind};
pub use request::{IngestRequest, QueryRequest, changed_rows};

/// Runs queries. Shared by every connection.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug + 'static {
    /// Plans a query and starts it. Rows are produced as the stream is polled, with a bounded number of batches ahead.
    ///
    /// A statement that changes rows or tables has been run to its end when this returns. Its result is
    /// [`changed_rows`].
    ///
    /// Dropping the future, or the stream, cancels the query and all its tasks. A panic within the engine is an
    /// [`EngineError::Internal`] of that query, and does not affect other queries.
    ///
    /// # Errors
    /// [`EngineError`], if an error is detected before the first row.
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError>;

    /// Plans a query and starts it once, with its result in exactly `count` partitions (at least one), which can be
    /// polled in parallel. Every row of the result is in one of them. Otherwise like [`Engine::execute`].
    ///
    /// By default all rows are in the first partition.
    ///
    /// # Errors
    /// As [`Engine::execute`].
    async fn execute_partitioned(&self, query: QueryRequest, count: usize) -> Result<PartitionedQuery, EngineError> {
        Ok(PartitionedQuery::in_first(self.execute(query).await?, count))
    }

    /// Plans a statement without running it.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] by default; otherwise as [`Engine::execute`].
    async fn describe(&self, query: QueryRequest) -> Result<Description, EngineError> {
        let _sql = query;
        Err(EngineError::Unsupported { message: "this server's engine describes no statements".to_owned() })
    }

    /// Lists catalogs, schemas, tables and columns, in the order of their names.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] by default; otherwise any error of the catalog.
    async fn objects(&self, request: ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
        let _request = request;
        Err(EngineError::Unsupported { message: "this server's engine lists no objects".to_owned() })
    }

    /// The database behind this engine, for clients that ask for its name.
    fn vendor(&self) -> Vendor {
        Vendor::default()
    }

    /// Begins an upload of rows to a table. No row is stored before [`Ingestion::finish`] has returned successfully:
    /// dropping the future, or the ingestion, discards all of them.
    ///
    /// This is the basis of ingestion: an engine that does not implement it accepts no uploads, and clients receive an
    /// error.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] by default; otherwise any error that is detected before the first row.
    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        let message = format!("this server accepts no uploads; nothing was written to {:?}", request.table);
        Err(EngineError::Unsupported { message })
    }

    /// The tables, for the start-up log.
    fn tables(&self) -> Vec<TableInfo>;
}

/// A running upload to an engine.
#[async_trait]
pub trait Ingestion: Send {
    /// Adds the next batch. The client may send more once this has returned.
    ///
    /// # Errors
    /// [`EngineError`]: the upload ends, and none of its rows are stored.
    async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError>;

    /// Stores the rows of all batches permanently, after the last batch. Returns their number.
    ///
    /// # Errors
    /// [`EngineError`]: none of the rows are stored.
    async fn finish(self: Box<Self>) -> Result<u64, EngineError>;
}

/// Record batches in the result's order. Nothing follows an error.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch, EngineError>> + Send>>;

/// A running query.
pub struct QueryStream {
    /// Schema of every batch.
    pub schema: SchemaRef,
    /// The record batches. None is empty.
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
    /// The order of a sorted result, most significant key first; at most
    /// [`MAX_SORT_KEYS`](thallus_protocol::message::MAX_SORT_KEYS) keys. Each partition is sorted by it, and merging
    /// the partitions by it yields the result. If it is empty, the result has no order, or all its rows are in one
    /// partition.
    pub order: Vec<SortKey>,
    /// The streams of the partitions.
    pub partitions: Vec<BatchStream>,
}

impl PartitionedQuery {
    /// All rows of a result in the first of `count` partitions.
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

/// Description of a table, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Name of the table in SQL.
    pub name: String,
    /// Source of the rows: a path or a description.
    pub source: String,
    /// Format of the files.
    pub format: &'static str,
    /// Number of columns.
    pub columns: usize,
    /// Number of files at start-up.
    pub files: usize,
}

/// Slices of a batch with at most `rows` rows each, without copying. An empty batch has none. For engines with a limit
/// of rows per batch.
pub fn slices<E: Send>(
    item: Result<RecordBatch, E>,
    rows: usize,
) -> impl Iterator<Item = Result<RecordBatch, E>> + Send {
    let (batch, error) = match item {
        Ok(batch) => (Some(batch), None),
        Err(error) => (None, Some(Err(error))),
    };
    let pieces = batch.into_iter().flat_map(move |batch| {
        (0..batch.num_rows()).step_by(rows).map(move |start| Ok(batch.slice(start, rows.min(batch.num_rows() - start))))
    });
    pieces.chain(error)
}
