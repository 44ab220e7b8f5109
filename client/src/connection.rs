//! A connection to a server: the interface for applications.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures::{FutureExt, Stream};
use thallus_driver::ControlIo;
use thallus_fabric::Fabric;
use thallus_fabric::memory::PoolLimits;
use thallus_fabric::process;
use thallus_protocol::borrower::BorrowerConfig;
use thallus_protocol::client::{ClientConfig, UploadOptions as MachineUploadOptions};
use thallus_protocol::codec::{FrameLimits, VERSIONS};
use thallus_protocol::inline::{InlineError, InlineLimits, encode_parameters};
use thallus_protocol::layout::LayoutLimits;
use thallus_protocol::message::{self, Ingest, OpenOptions, ProcessId, Thresholds};
use thallus_protocol::{ApiMisuse, LinkTimeouts};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::driver::{Command, Driver, Handle, MAX_LEASES, Offers, Parts};
use crate::error::ClientError;
use crate::fabrics;
use crate::options::{Access, ConnectOptions, FabricPreference, LazyOptions, MAX_PARTITIONS, QueryOptions};
use crate::partitions::{self, Link, Links, ResultStream, Tasks};
use crate::report::{Carrier, ConnectionInfo};
use crate::result::LazyStream;
use crate::upload::{self, UploadOptions, UploadReport};

/// Most regions that a server may have announced at once. Each batch of many columns in flight may need several.
const MAX_REGIONS: usize = 1 << 20;

/// Initial window of a stream, in bytes. It is four times the size of one read, so that there is always something to
/// read while batches are consumed, credit is granted and further batches are lent. A stream whose reader does not
/// consume its batches holds this much memory.
const FIRST_WINDOW: u64 = 16 << 20;

/// Live bytes from which a batch of an upload is lent, before the first measurement.
const DEFAULT_THRESHOLD: u64 = 96 << 10;

/// Protocol versions that this build supports, as text.
#[must_use]
pub fn protocol_versions() -> String {
    VERSIONS.to_string()
}

/// A connection. Queries run on it concurrently; each has its own [`ResultStream`].
///
/// The connection closes when the client and all its results have been dropped, or by [`Client::close`]. The same holds
/// for the additional connections that the client makes, and keeps, for results in partitions.
///
/// # Mapped results
/// With [`Access::Map`], arrays lie in the memory of a server on this host that was started with `--allow-mapped`.
/// Nothing is copied, and data that is not accessed costs nothing. The two ends must trust each other: the server opens
/// its registered memory to this process, and this process relies on the server not to change lent batches, because a
/// batch is validated only once, on delivery.
///
/// - The arrays stay valid for as long as they are held, even after the result, the connection or the server's process
///   has ended. A forked process must not use them after its parent has ended.
/// - The server cannot reuse the memory of a batch until the last array of the batch is dropped; no timeout applies. An
///   open connection stays open until then. Once the connection is closed, by [`Client::close`] or by the server, the
///   server keeps the memory of the held arrays until this process ends. The same applies to arrays that were dropped
///   just before their runtime ended: [`Client::close`] waits for their release.
/// - Held arrays count against the server's limit of bytes on loan. At the limit, further batches travel inline, or the
///   result ends in an error with that reason. Drop arrays after use, or copy those to keep.
/// - Each partition of a result is mapped over its own connection. Merging partitions to the result's order copies
///   their rows.
#[derive(Debug)]
pub struct Client {
    links: Links,
    options: ConnectOptions,
}

impl Client {
    /// Connects to the server at a URL: `thallus://host:port?option=value`, with the options of [`ConnectOptions`].
    ///
    /// Must be called within a tokio runtime, which then drives the connection.
    ///
    /// # Errors
    /// [`ClientError::Url`]; and see [`Client::connect_with`].
    pub async fn connect(url: &str) -> Result<Client, ClientError> {
        Self::connect_with(url.parse()?).await
    }

    /// Connects with options that were built in Rust.
    ///
    /// # Errors
    /// [`ClientError::Url`] for options that contradict each other, [`ClientError::Connect`], [`ClientError::Timeout`],
    /// [`ClientError::Refused`], [`ClientError::Version`], [`ClientError::Protocol`] if the peer is no Thallus server,
    /// and [`ClientError::Fabric`] if one-sided reads are required and not available.
    pub async fn connect_with(options: ConnectOptions) -> Result<Client, ClientError> {
        options.validate()?;
        let tasks = Tasks::default();
        let (first, fabrics, missing) = in_time(&options, dial_first(&options, &tasks)).await?;
        let (more, others) = (options.clone(), tasks.clone());
        let dial = move || {
            let (options, fabrics, missing) = (more.clone(), fabrics.clone(), missing.clone());
            let tasks = others.clone();
            async move {
                let linked = async { link(tcp(&options).await?, &fabrics, missing, &options, &tasks).await };
                in_time(&options, linked).await
            }
            .boxed()
        };
        Ok(Client { links: Links::new(first, Some(Box::new(dial)), tasks), options })
    }

    /// Connects over a byte stream and fabrics from the caller: a tunnel, or a simulation. If `fabrics` is empty,
    /// `missing` is the reason; reports show it as the reason for results that travel inline.
    ///
    /// The client makes no further connections: partitions of a result share this one.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_over<S: ControlIo>(
        io: S,
        fabrics: &[Arc<dyn Fabric>],
        missing: Option<String>,
        options: ConnectOptions,
    ) -> Result<Client, ClientError> {
        let tasks = Tasks::default();
        let first = link(io, fabrics, missing, &options, &tasks).await?;
        Ok(Client { links: Links::new(first, None, tasks), options })
    }

    /// Like [`Client::connect_over`], with a function that makes byte streams, all to the same server. The client calls
    /// it for each connection.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_through<S, F>(
        connect: impl Fn() -> F + Send + Sync + 'static,
        fabrics: Vec<Arc<dyn Fabric>>,
        missing: Option<String>,
        options: ConnectOptions,
    ) -> Result<Client, ClientError>
    where
        S: ControlIo,
        F: Future<Output = std::io::Result<S>> + Send + 'static,
    {
        let tasks = Tasks::default();
        let (more, others) = (options.clone(), tasks.clone());
        let dial = move || {
            let (connected, options) = (connect(), more.clone());
            let (fabrics, missing, tasks) = (fabrics.clone(), missing.clone(), others.clone());
            async move {
                let linked = async {
                    let io = connected.await.map_err(cannot_connect(&options))?;
                    link(io, &fabrics, missing, &options, &tasks).await
                };
                in_time(&options, linked).await
            }
            .boxed()
        };
        let first = dial().await?;
        Ok(Client { links: Links::new(first, Some(Box::new(dial)), tasks), options })
    }

    /// Runs a query. Returns when the server has planned the query and sent the schema.
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn query(&self, sql: &str) -> Result<ResultStream, ClientError> {
        self.query_with(sql, QueryOptions::default()).await
    }

    /// Runs a query with options.
    ///
    /// # Errors
    /// [`ClientError::Query`] with the server's reason, [`ClientError::Timeout`] past the deadline,
    /// [`ClientError::ConnectionLost`], [`ClientError::TooManyPartitions`] beyond
    /// [`MAX_PARTITIONS`](crate::MAX_PARTITIONS), [`ClientError::Mapping`] for a mapped result over a connection
    /// without one-sided reads. A result in partitions may need further connections, so it can also fail as
    /// [`Client::connect_with`] does.
    pub async fn query_with(&self, sql: &str, options: QueryOptions) -> Result<ResultStream, ClientError> {
        let (started, open) = (Instant::now(), self.open_options(&options)?);
        let count = self.partitions(&options)?;
        if count == 1 {
            let part = self.links.first().query(sql, open, started)?.after_schema().await?;
            return Ok(ResultStream::from_single(part));
        }
        let links = self.links.open_links(count as usize).await?;
        let parts = partitions::open_partitions(&links, sql, &open, count, started).await?;
        ResultStream::from_partitions(parts, options.unordered, options.batch_rows, started)
    }

    /// Runs a query, and returns each of `partitions` partitions of its result as a separate stream, for readers on
    /// several threads.
    ///
    /// # Errors
    /// See [`Client::query_partitions_with`].
    pub async fn query_partitions(&self, sql: &str, partitions: u32) -> Result<Vec<ResultStream>, ClientError> {
        self.query_partitions_with(sql, QueryOptions::default().with_partitions(Some(partitions))).await
    }

    /// Runs a query with options, and returns each partition of its result as a separate stream.
    ///
    /// The partitions form the result only together: read all of them, and discard all of them if one ends in an error.
    /// The server then ends the other partitions that have not yet ended. A partition is read only when it is polled: a
    /// partition that is not polled blocks the others once the batches that the engine keeps ready are used up. If the
    /// result has an order, each partition is sorted by [`ResultStream::order`]. The server chooses the distribution of
    /// the rows, and some partitions may be empty.
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn query_partitions_with(
        &self,
        sql: &str,
        options: QueryOptions,
    ) -> Result<Vec<ResultStream>, ClientError> {
        let (started, open) = (Instant::now(), self.open_options(&options)?);
        let count = self.partitions(&options)?;
        let links = self.links.open_links(count as usize).await?;
        let parts = partitions::open_partitions(&links, sql, &open, count, started).await?;
        Ok(parts.into_iter().map(ResultStream::from_single).collect())
    }

    /// Uploads batches to a table of the server, which reads them from this client's memory. Returns when the server
    /// has accepted all rows permanently, or none.
    ///
    /// Uploads are the basis of ingestion: one stream of batches to one table, for servers whose engine supports it.
    /// The client polls `batches` as the server consumes them, so the number of batches in flight is bounded. Dropping
    /// the future withdraws the upload.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    ///
    /// use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    ///
    /// # async fn example(client: thallus_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    /// let batch = RecordBatch::try_from_iter([("n", numbers)])?;
    /// let batches = futures::stream::iter([Ok(batch.clone())]);
    /// let report = client.upload("numbers", batch.schema(), batches).await?;
    /// println!("{} rows", report.rows);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ClientError::Query`] with the server's reason: [`StreamCode::Unsupported`](crate::StreamCode::Unsupported) if
    /// its engine does not support uploads; [`ClientError::Source`] if `batches` yields an error;
    /// [`ClientError::ConnectionLost`], after which the rows may or may not have been accepted.
    pub async fn upload<B>(&self, table: &str, schema: SchemaRef, batches: B) -> Result<UploadReport, ClientError>
    where
        B: Stream<Item = Result<RecordBatch, ArrowError>> + Unpin,
    {
        self.upload_with(table, schema, batches, UploadOptions::default()).await
    }

    /// Uploads batches to a table of the server, with options.
    ///
    /// # Errors
    /// See [`Client::upload`]; [`ClientError::Timeout`] past the deadline.
    pub async fn upload_with<B>(
        &self,
        table: &str,
        schema: SchemaRef,
        batches: B,
        options: UploadOptions,
    ) -> Result<UploadReport, ClientError>
    where
        B: Stream<Item = Result<RecordBatch, ArrowError>> + Unpin,
    {
        let lend_from = options.lend_from.unwrap_or(self.options.lend_from);
        let UploadOptions { deadline, mode, temporary, defaults, .. } = options;
        let ingest = Ingest { mode, temporary };
        let machine = MachineUploadOptions { lend_from, measured: None, deadline, defaults, ingest };
        upload::run(&self.links.first().handle, table, schema, batches, machine, self.options.max_upload_loans).await
    }

    /// Runs a query and reads nothing of its result until requested: batch by batch, the requested columns and rows.
    ///
    /// ```no_run
    /// use futures::TryStreamExt;
    ///
    /// # async fn example(client: thallus_client::Client) -> Result<(), thallus_client::ClientError> {
    /// let mut result = client.query_lazy("SELECT * FROM lineitem").await?;
    /// while let Some(batch) = result.try_next().await? {
    ///     let prices = batch.columns(&[5]).await?;
    ///     if prices.num_rows() > 0 {
    ///         let first = batch.columns_in(&[0, 15], 0..1).await?;
    ///         println!("{first:?}");
    ///     }
    /// } // Dropping the batch releases it to the server, most of it unread.
    /// println!("{}", result.report());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn query_lazy(&self, sql: &str) -> Result<LazyStream, ClientError> {
        self.query_lazy_with(sql, LazyOptions::default()).await
    }

    /// Runs a query lazily, with options. The window bounds the unread batches that are held. The deadline applies to
    /// held batches, too. The result travels over one connection.
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn query_lazy_with(&self, sql: &str, options: LazyOptions) -> Result<LazyStream, ClientError> {
        let started = Instant::now();
        let LazyOptions { deadline, lend_from, batch_rows, window } = options;
        let read = QueryOptions { deadline, lend_from, batch_rows, window, ..QueryOptions::default() };
        let open = OpenOptions { access: message::Access::OnDemand, ..self.open_options(&read)? };
        let window = open.credit;
        let part = self.links.first().query(sql, open, started)?.after_schema().await?;
        Ok(LazyStream::new(part, window))
    }

    fn partitions(&self, options: &QueryOptions) -> Result<u32, ClientError> {
        let got = options.partitions.unwrap_or(self.options.partitions);
        // Every partition needs a connection: an unreasonable number is refused before any connection is made.
        let limit = MAX_PARTITIONS;
        if (1..=limit).contains(&got) { Ok(got) } else { Err(ClientError::TooManyPartitions { got, limit }) }
    }

    pub(crate) fn open_options(&self, options: &QueryOptions) -> Result<OpenOptions, ClientError> {
        Ok(OpenOptions {
            lend_from: options.lend_from.unwrap_or(self.options.lend_from),
            measured: None,
            access: match options.access {
                Access::Read => message::Access::Read,
                Access::Map => message::Access::Map(self.process()?),
            },
            batch_rows: options.batch_rows,
            deadline_ms: options.deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            credit: options.window.unwrap_or(self.options.window).min(self.options.max_batch),
            partition: None,
            parameters: options.parameters.as_ref().map(encode_parameters).transpose().map_err(parameters_error)?,
            defaults: options.defaults.clone(),
            ..OpenOptions::default()
        })
    }

    /// Identity of this process, by which a server on this host detects its end; or the reason why nothing can be
    /// mapped.
    fn process(&self) -> Result<ProcessId, ClientError> {
        if let Carrier::Inline { fallback } = self.connection().carrier {
            let reason = fallback.unwrap_or_else(|| "no fabric was requested".into());
            let message = format!("this connection's results travel inline: {reason}");
            return Err(ClientError::Mapping { message });
        }
        if let Some(process) = self.options.process {
            return Ok(process);
        }
        let unknown = |error| format!("the server could not detect the end of this process: {error}");
        process::current().map_err(|error| ClientError::Mapping { message: unknown(error) })
    }

    pub(crate) fn first_link(&self) -> &Link {
        self.links.first()
    }

    /// The tasks that drive the connections, for the owner of the runtime.
    pub(crate) fn tasks(&self) -> Tasks {
        self.links.tasks().clone()
    }

    /// The parameters agreed with the server, and the current carrier of results.
    #[must_use]
    pub fn connection(&self) -> ConnectionInfo {
        self.links.first().info()
    }

    /// Pings the server, and returns the round-trip time.
    ///
    /// # Errors
    /// [`ClientError::ConnectionLost`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let started = Instant::now();
        let (pong, answered) = oneshot::channel();
        if !self.links.first().handle.send(Command::Ping { pong }) {
            return Err(ClientError::gone());
        }
        // The connection's own timeouts bound this wait.
        answered.await.map_err(|_| ClientError::gone())?;
        Ok(started.elapsed())
    }

    /// Closes the connection in good order. Unfinished results end in [`ClientError::Cancelled`].
    pub async fn close(self) {
        self.links.close().await;
    }
}

/// A TCP connection to the server.
async fn tcp(options: &ConnectOptions) -> Result<TcpStream, ClientError> {
    let connected = async {
        let stream = TcpStream::connect(&options.address()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    connected.await.map_err(cannot_connect(options))
}

/// The first connection, and the fabrics for all of them. For a server on this host shared memory is tried alone: the
/// other fabrics take milliseconds to open. If the server does not have it, a second connection offers the others.
async fn dial_first(
    options: &ConnectOptions,
    tasks: &Tasks,
) -> Result<(Link, Vec<Arc<dyn Fabric>>, Option<String>), ClientError> {
    let stream = tcp(options).await?;
    let is_local = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
    if let Some(fabric) = is_local.then(|| fabrics::open_local(options)).flatten() {
        let fabrics = vec![fabric];
        let optional = ConnectOptions { require_fabric: false, ..options.clone() };
        let first = link(stream, &fabrics, None, &optional, tasks).await?;
        if first.info().carrier.fallback().is_none() {
            return Ok((first, fabrics, None));
        }
        // Before the second connection, which a server with a limit of connections would refuse.
        first.close().await;
        let (fabrics, missing) = fabrics::open(options)?;
        let second = link(tcp(options).await?, &fabrics, missing.clone(), options, tasks).await?;
        return Ok((second, fabrics, missing));
    }
    let (fabrics, missing) = fabrics::open(options)?;
    Ok((link(stream, &fabrics, missing.clone(), options, tasks).await?, fabrics, missing))
}

fn cannot_connect(options: &ConnectOptions) -> impl Fn(std::io::Error) -> ClientError {
    let address = options.address();
    move |source| ClientError::Connect { address: address.clone(), source }
}

async fn in_time<T>(
    options: &ConnectOptions,
    connected: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let limit = options.connect_timeout;
    let late = |_| ClientError::Timeout { what: format!("connecting to {}", options.address()), after: limit };
    timeout(limit, connected).await.map_err(late)?
}

/// A connection over `io`. Returns once both ends have agreed on the carrier of results.
async fn link<S: ControlIo>(
    io: S,
    fabrics: &[Arc<dyn Fabric>],
    missing: Option<String>,
    options: &ConnectOptions,
    tasks: &Tasks,
) -> Result<Link, ClientError> {
    let limit = options.connect_timeout;
    let keep_bytes = usize::try_from(options.pool).unwrap_or(usize::MAX);
    // Connecting touches the first chunk: 2 MiB would take longer than all else.
    let first_chunk_bytes = 256 << 10;
    let pool = PoolLimits { max_bytes: usize::MAX, keep_bytes, first_chunk_bytes, ..PoolLimits::default() };
    let mut offers = Offers::default();
    let mut missing = missing;
    for fabric in fabrics {
        let observer = options.loan_observer.as_ref().map(|observer| Arc::clone(&observer.0));
        if let Err(error) = offers.add(fabric, pool, options.max_upload_loans, observer) {
            missing.get_or_insert(error.to_string());
        }
    }
    let config = ClientConfig {
        name: format!("thallus-client {}", env!("CARGO_PKG_VERSION")),
        fabrics: offers.on_the_wire(),
        frame: FrameLimits::default(),
        checksum: true,
        first_window: FIRST_WINDOW,
        borrow: BorrowerConfig {
            max_batch_bytes: options.max_batch,
            max_regions: MAX_REGIONS,
            inline: InlineLimits::default(),
            layout: LayoutLimits { max_bytes: options.max_batch, ..LayoutLimits::default() },
            read_timeout: options.read_timeout,
        },
        timeouts: LinkTimeouts { handshake: limit, keepalive: options.keepalive, idle: options.idle_timeout },
        max_loan_bytes: options.max_upload_loans,
        max_leases: MAX_LEASES,
        word_nonce: word_nonce(options, tasks.number())?,
        lease_timeout: options.upload_lease,
        thresholds: Thresholds::uniform(DEFAULT_THRESHOLD),
    };
    let (commands, received) = mpsc::unbounded_channel();
    let (ready, connected) = oneshot::channel();
    let info = ConnectionInfo { address: options.address(), ..ConnectionInfo::default() };
    let info = Arc::new(Mutex::new(info));
    let wants_fabric = options.fabric != FabricPreference::None;
    let parts = Parts {
        io,
        config,
        offers,
        commands: received,
        info: Arc::clone(&info),
        ready,
        wants_fabric,
        missing,
        forced: !matches!(options.fabric, FabricPreference::Auto | FabricPreference::None),
        probe_timeout: limit / 2,
        measure: options.measure,
    };
    let driver = Driver::new(parts).map_err(bug)?;
    let link = Link { handle: Handle::new(commands), info, max_batch: options.max_batch };
    tasks.add(tokio::spawn(driver.run()), link.handle.maps());
    connected.await.unwrap_or_else(|_| Err(ClientError::gone()))?;
    match link.info().carrier.fallback() {
        Some(reason) if options.require_fabric => Err(ClientError::Fabric { message: reason.to_owned() }),
        _ => Ok(link),
    }
}

/// Entropy for the lease words of the client's connection `number`: from the system, or from a simulation's options.
fn word_nonce(options: &ConnectOptions, number: u64) -> Result<u64, ClientError> {
    if let Some(entropy) = options.entropy {
        return Ok(entropy.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    }
    getrandom::u64().map_err(|error| ClientError::Random { source: error.to_string().into() })
}

fn bug(misuse: ApiMisuse) -> ClientError {
    ClientError::Protocol { message: misuse.to_string() }
}

fn parameters_error(error: InlineError) -> ClientError {
    ClientError::Parameters { message: error.to_string() }
}
