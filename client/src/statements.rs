//! Requests about statements and tables, besides the rows of queries.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use futures::TryStreamExt;
use thallus_protocol::catalog::{CatalogObject, Description, is_change};
use thallus_protocol::inline::InlineError;
use thallus_protocol::message::{Defaults, LendFrom, ObjectsRequest, OpenOptions, Request, Vendor};
use tokio::time::Instant;

use crate::connection::Client;
use crate::error::ClientError;
use crate::options::QueryOptions;
use crate::partitions::ResultStream;

fn unreadable(error: InlineError) -> ClientError {
    ClientError::Protocol { message: format!("the server's answer cannot be read: {error}") }
}

impl Client {
    /// Runs a statement to its end. Returns the number of rows that it changed; `None` for a query, whose rows are
    /// discarded.
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn execute(&self, sql: &str) -> Result<Option<u64>, ClientError> {
        self.execute_with(sql, QueryOptions::default()).await
    }

    /// Runs a statement to its end, with options. With several rows of parameters, the numbers add up.
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn execute_with(&self, sql: &str, options: QueryOptions) -> Result<Option<u64>, ClientError> {
        let mut result = self.query_with(sql, options).await?;
        let changes = is_change(&result.schema());
        let mut changed = 0;
        while let Some(batch) = result.try_next().await? {
            if changes && let Some(counts) = batch.columns().first().and_then(|c| c.as_primitive_opt::<UInt64Type>()) {
                changed = counts.iter().flatten().fold(changed, u64::saturating_add);
            }
        }
        Ok(changes.then_some(changed))
    }

    /// Plans a statement without running it: the schemas of its result and of its parameters.
    ///
    /// # Errors
    /// [`ClientError::Query`] with the server's reason; [`ClientError::ConnectionLost`].
    pub async fn describe(&self, sql: &str) -> Result<Description, ClientError> {
        self.describe_with(sql, Defaults::default()).await
    }

    /// Plans a statement whose names without a catalog or a schema have these.
    ///
    /// # Errors
    /// See [`Client::describe`].
    pub async fn describe_with(&self, sql: &str, defaults: Defaults) -> Result<Description, ClientError> {
        let rows = self.answer(Request::Describe(sql.to_owned()), defaults).await?;
        match rows.as_slice() {
            [row] => Description::decode(row).map_err(unreadable),
            rows => Err(ClientError::Incomplete { got: rows.len() as u64, sent: 1 }),
        }
    }

    /// Lists catalogs, schemas, tables and columns.
    ///
    /// # Errors
    /// [`ClientError::Query`] with the server's reason; [`ClientError::ConnectionLost`].
    pub async fn objects(&self, request: &ObjectsRequest) -> Result<Vec<CatalogObject>, ClientError> {
        let rows = self.answer(Request::Objects(request.clone()), Defaults::default()).await?;
        let objects = rows.iter().map(CatalogObject::decode).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
        Ok(objects.concat())
    }

    /// The database behind the server. Its texts are empty if the server does not name it.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.connection().vendor
    }

    /// The rows of a request that is answered inline.
    async fn answer(&self, request: Request, defaults: Defaults) -> Result<Vec<RecordBatch>, ClientError> {
        let started = Instant::now();
        let options = QueryOptions::new().with_lend_from(LendFrom::Never).with_defaults(defaults);
        let open: OpenOptions = self.open_options(&options)?;
        let part = self.first_link().open(request, open, started)?.after_schema().await?;
        ResultStream::from_single(part).try_collect().await
    }
}
