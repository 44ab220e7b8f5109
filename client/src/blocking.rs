//! The client without async: for tools, notebooks and tests.
//!
//! ```no_run
//! use thallus_client::blocking::Client;
//!
//! let client = Client::connect("thallus://localhost")?;
//! for batch in client.query("SELECT 1 AS one")? {
//!     println!("{} rows", batch?.num_rows());
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures::StreamExt;
use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};

use crate::partitions::Tasks;
use crate::{
    CatalogObject, ClientError, ConnectOptions, ConnectionInfo, Defaults, Description, LazyOptions, ObjectsRequest,
    QueryOptions, TransferReport, UploadOptions, UploadReport, Vendor,
};

/// A connection, driven by its own threads. Do not use it within an async runtime: it blocks.
#[derive(Debug)]
pub struct Client {
    // Dropped before the runtime that drives it.
    client: crate::Client,
    runtime: Arc<Background>,
}

/// The runtime that drives a connection until its last user is dropped.
#[derive(Debug)]
struct Background {
    runtime: Option<Runtime>,
    /// The tasks of connections, which may outlive the client and its results.
    connections: Tasks,
}

impl Background {
    fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        // Only the drop takes it out.
        match &self.runtime {
            Some(runtime) => runtime.block_on(future),
            None => unreachable!("the runtime is there until it is dropped"),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Mapped arrays need their connection to release them; its task ends once all are released.
        let mapped = self.connections.take_mapped();
        if let Some(runtime) = self.runtime.take()
            && !mapped.is_empty()
        {
            let driver = std::thread::Builder::new().name("thallus-mapped".into());
            // Without a thread the connection ends here, and the server keeps the mapped memory until this process
            // ends.
            let _driven = driver.spawn(move || {
                let _ended = runtime.block_on(join_all(mapped));
            });
        }
    }
}

impl Client {
    /// See [`crate::Client::connect`].
    ///
    /// # Errors
    /// See [`crate::Client::connect`].
    pub fn connect(url: &str) -> Result<Client, ClientError> {
        Self::connect_with(url.parse()?)
    }

    /// See [`crate::Client::connect_with`].
    ///
    /// # Errors
    /// See [`crate::Client::connect_with`]; [`ClientError::Connect`] if no thread can be started.
    pub fn connect_with(options: ConnectOptions) -> Result<Client, ClientError> {
        // Each partition's connection can use a thread, up to the number of cores.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (options.partitions as usize).clamp(1, cores);
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).thread_name("thallus-client").enable_all().build();
        let failed = |source| ClientError::Connect { address: options.address(), source };
        let mut background = Background { runtime: Some(runtime.map_err(failed)?), connections: Tasks::default() };
        let client = background.block_on(crate::Client::connect_with(options))?;
        background.connections = client.tasks();
        Ok(Client { client, runtime: Arc::new(background) })
    }

    /// See [`crate::Client::query`].
    ///
    /// # Errors
    /// See [`crate::Client::query`].
    pub fn query(&self, sql: &str) -> Result<Batches, ClientError> {
        self.query_with(sql, QueryOptions::default())
    }

    /// See [`crate::Client::query_with`].
    ///
    /// # Errors
    /// See [`crate::Client::query_with`].
    pub fn query_with(&self, sql: &str, options: QueryOptions) -> Result<Batches, ClientError> {
        let result = self.runtime.block_on(self.client.query_with(sql, options))?;
        Ok(Batches { result, runtime: Arc::clone(&self.runtime) })
    }

    /// See [`crate::Client::query_partitions_with`]. Read each partition on its own thread.
    ///
    /// # Errors
    /// See [`crate::Client::query_partitions_with`].
    pub fn query_partitions_with(&self, sql: &str, options: QueryOptions) -> Result<Vec<Batches>, ClientError> {
        let results = self.runtime.block_on(self.client.query_partitions_with(sql, options))?;
        Ok(results.into_iter().map(|result| Batches { result, runtime: Arc::clone(&self.runtime) }).collect())
    }

    /// See [`crate::Client::execute`].
    ///
    /// # Errors
    /// See [`crate::Client::execute`].
    pub fn execute(&self, sql: &str) -> Result<Option<u64>, ClientError> {
        self.runtime.block_on(self.client.execute(sql))
    }

    /// See [`crate::Client::execute_with`].
    ///
    /// # Errors
    /// See [`crate::Client::execute_with`].
    pub fn execute_with(&self, sql: &str, options: QueryOptions) -> Result<Option<u64>, ClientError> {
        self.runtime.block_on(self.client.execute_with(sql, options))
    }

    /// See [`crate::Client::describe`].
    ///
    /// # Errors
    /// See [`crate::Client::describe`].
    pub fn describe(&self, sql: &str) -> Result<Description, ClientError> {
        self.runtime.block_on(self.client.describe(sql))
    }

    /// See [`crate::Client::describe_with`].
    ///
    /// # Errors
    /// See [`crate::Client::describe_with`].
    pub fn describe_with(&self, sql: &str, defaults: Defaults) -> Result<Description, ClientError> {
        self.runtime.block_on(self.client.describe_with(sql, defaults))
    }

    /// See [`crate::Client::objects`].
    ///
    /// # Errors
    /// See [`crate::Client::objects`].
    pub fn objects(&self, request: &ObjectsRequest) -> Result<Vec<CatalogObject>, ClientError> {
        self.runtime.block_on(self.client.objects(request))
    }

    /// See [`crate::Client::upload_with`]. The batches are pulled on the calling thread.
    ///
    /// # Errors
    /// See [`crate::Client::upload_with`].
    pub fn upload_with(
        &self,
        table: &str,
        schema: SchemaRef,
        batches: impl IntoIterator<Item = Result<RecordBatch, ArrowError>>,
        options: UploadOptions,
    ) -> Result<UploadReport, ClientError> {
        let batches = futures::stream::iter(batches);
        self.runtime.block_on(self.client.upload_with(table, schema, std::pin::pin!(batches), options))
    }

    /// See [`crate::Client::vendor`].
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.client.vendor()
    }

    /// See [`crate::Client::query_lazy`].
    ///
    /// ```no_run
    /// use thallus_client::blocking::Client;
    ///
    /// let client = Client::connect("thallus://localhost")?;
    /// for batch in client.query_lazy("SELECT * FROM lineitem")? {
    ///     println!("{:?}", batch?.columns(&[0, 4])?);
    /// }
    /// # Ok::<(), thallus_client::ClientError>(())
    /// ```
    ///
    /// # Errors
    /// See [`crate::Client::query_lazy`].
    pub fn query_lazy(&self, sql: &str) -> Result<LazyBatches, ClientError> {
        self.query_lazy_with(sql, LazyOptions::default())
    }

    /// See [`crate::Client::query_lazy_with`].
    ///
    /// # Errors
    /// See [`crate::Client::query_lazy_with`].
    pub fn query_lazy_with(&self, sql: &str, options: LazyOptions) -> Result<LazyBatches, ClientError> {
        let result = self.runtime.block_on(self.client.query_lazy_with(sql, options))?;
        Ok(LazyBatches { result, runtime: Arc::clone(&self.runtime) })
    }

    /// See [`crate::Client::connection`].
    #[must_use]
    pub fn connection(&self) -> ConnectionInfo {
        self.client.connection()
    }

    /// See [`crate::Client::ping`].
    ///
    /// # Errors
    /// See [`crate::Client::ping`].
    pub fn ping(&self) -> Result<Duration, ClientError> {
        self.runtime.block_on(self.client.ping())
    }

    /// See [`crate::Client::close`].
    pub fn close(self) {
        self.runtime.block_on(self.client.close());
    }
}

/// A query's result, batch by batch. See [`crate::ResultStream`].
#[derive(Debug)]
pub struct Batches {
    result: crate::ResultStream,
    runtime: Arc<Background>,
}

impl Batches {
    /// See [`crate::ResultStream::report`].
    #[must_use]
    pub fn report(&self) -> TransferReport {
        self.result.report()
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.runtime.block_on(self.result.next())?;
        Some(next.map_err(|error| ArrowError::ExternalError(Box::new(error))))
    }
}

impl RecordBatchReader for Batches {
    fn schema(&self) -> SchemaRef {
        self.result.schema()
    }
}

/// A query's result that is read on request. See [`crate::LazyStream`].
#[derive(Debug)]
pub struct LazyBatches {
    result: crate::LazyStream,
    runtime: Arc<Background>,
}

impl LazyBatches {
    /// The schema of every batch.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.result.schema()
    }

    /// See [`crate::LazyStream::report`].
    #[must_use]
    pub fn report(&self) -> TransferReport {
        self.result.report()
    }
}

impl Iterator for LazyBatches {
    type Item = Result<LazyBatch, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.runtime.block_on(self.result.next())?;
        Some(next.map(|batch| LazyBatch { batch, runtime: Arc::clone(&self.runtime) }))
    }
}

/// A batch that is read on request. See [`crate::LazyBatch`].
#[derive(Debug)]
pub struct LazyBatch {
    // Dropped before the runtime that drives its connection.
    batch: crate::LazyBatch,
    runtime: Arc<Background>,
}

impl LazyBatch {
    /// See [`crate::LazyBatch::schema`].
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.batch.schema()
    }

    /// See [`crate::LazyBatch::num_rows`].
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// See [`crate::LazyBatch::column_bytes`].
    #[must_use]
    pub fn column_bytes(&self) -> Vec<u64> {
        self.batch.column_bytes()
    }

    /// See [`crate::LazyBatch::is_inline`].
    #[must_use]
    pub fn is_inline(&self) -> bool {
        self.batch.is_inline()
    }

    /// See [`crate::LazyBatch::columns`].
    ///
    /// # Errors
    /// See [`crate::LazyBatch::columns`].
    pub fn columns(&self, columns: &[usize]) -> Result<RecordBatch, ClientError> {
        self.runtime.block_on(self.batch.columns(columns))
    }

    /// See [`crate::LazyBatch::columns_in`].
    ///
    /// # Errors
    /// See [`crate::LazyBatch::columns_in`].
    pub fn columns_in(&self, columns: &[usize], rows: Range<usize>) -> Result<RecordBatch, ClientError> {
        self.runtime.block_on(self.batch.columns_in(columns, rows))
    }

    /// See [`crate::LazyBatch::read_all`].
    ///
    /// # Errors
    /// See [`crate::LazyBatch::read_all`].
    pub fn read_all(&self) -> Result<RecordBatch, ClientError> {
        self.runtime.block_on(self.batch.read_all())
    }
}
