//! Requests to an engine, and the answers that are not rows of a query.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::SchemaRef;
use futures::{StreamExt, stream};
use thallus_protocol::catalog::changes_schema;
use thallus_protocol::message::{Defaults, IngestMode};

use super::QueryStream;

/// A statement, as requested by a client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueryRequest {
    /// Exactly one statement.
    pub sql: String,
    /// Most rows in a batch, and the target; by default the engine's own. The last batch, and those of selective
    /// queries, may have fewer.
    pub batch_rows: Option<usize>,
    /// Values of the statement's parameters: `$1` and `?` by position, `$name` by name. The statement is run once for
    /// each row, and the results follow each other. `None`: the statement has no parameters.
    pub parameters: Option<RecordBatch>,
    /// The catalog and the schema of names that have none.
    pub defaults: Defaults,
}

impl QueryRequest {
    /// The query `sql`, with defaults for the rest.
    #[must_use]
    pub fn new(sql: impl Into<String>) -> Self {
        QueryRequest { sql: sql.into(), ..QueryRequest::default() }
    }
}

/// An upload, as announced by a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IngestRequest {
    /// The table's name.
    pub table: String,
    /// Schema of every batch.
    pub schema: SchemaRef,
    /// The treatment of the table.
    pub mode: IngestMode,
    /// The table lasts only as long as the client's connection.
    pub temporary: bool,
    /// The catalog and the schema of the table.
    pub defaults: Defaults,
}

impl IngestRequest {
    /// An upload that appends to an existing table in the engine's own catalog and schema.
    #[must_use]
    pub fn new(table: impl Into<String>, schema: SchemaRef) -> Self {
        let (mode, defaults) = (IngestMode::default(), Defaults::default());
        IngestRequest { table: table.into(), schema, mode, temporary: false, defaults }
    }
}

/// The result of a statement that has changed rows or tables: one row with the number of rows, 0 for a change of
/// tables.
#[must_use]
pub fn changed_rows(count: u64) -> QueryStream {
    let schema = changes_schema();
    let counts: ArrayRef = Arc::new(UInt64Array::from(vec![count]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![counts]);
    // The one column has the type of the one field.
    QueryStream { schema, batches: stream::iter(batch.ok().map(Ok)).boxed() }
}
