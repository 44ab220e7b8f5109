//! A connection to a server, as applications have it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thallus_fabric::Fabric;
use thallus_fabric::driver::ControlIo;
use thallus_fabric::memory::PoolLimits;
use thallus_fabric::process;
use thallus_protocol::client::ClientConfig;
use thallus_protocol::codec::{FrameLimits, VERSIONS};
use thallus_protocol::inline::InlineLimits;
use thallus_protocol::layout::LayoutLimits;
use thallus_protocol::message::{self, ExecuteOptions, ProcessId};
use thallus_protocol::{ApiMisuse, LinkTimeouts};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::driver::{Command, Driver, Handle, Offers, Parts};
use crate::error::ClientError;
use crate::fabrics;
use crate::options::{ConnectOptions, Delivery, FabricPreference, QueryOptions};
use crate::report::{Carrier, ConnectionInfo};
use crate::result::{LazyStream, ResultStream};

/// Regions that a server may have announced at once: several for each batch of many columns in flight.
const MAX_REGIONS: usize = 1 << 20;

/// Protocol versions that this build speaks, for people.
#[must_use]
pub fn protocol_versions() -> String {
    VERSIONS.to_string()
}

/// A connection. Queries run on it side by side; each has its own [`ResultStream`].
///
/// The connection closes when the client and every result of it have been dropped, or by [`Client::close`].
///
/// # Mapped results
/// With [`Delivery::Mapped`], arrays lie in the memory of a server on this host that was started with `--allow-mapped`: nothing is
/// copied, and what is not looked at costs nothing. Both ends trust each other then: the server opens its registered memory
/// to this process, which relies on it not to change what it has lent.
///
/// - The arrays are good for as long as they are held, whatever becomes of their result, the connection and the server's process. A
///   process that is forked must not use them after its parent has ended.
/// - The server has its memory back when the last array of a batch is dropped, and until then keeps it: no timeout applies. An open
///   connection stays open for that. Once it is closed, by [`Client::close`] or by the server, what is held is kept by the
///   server until this process ends. So does what was dropped just before its runtime ended: [`Client::close`] waits for that.
/// - What is held counts against what the server may have on loan. Where that is used up, further batches come inline, or the result
///   ends in an error that says so: drop what was used, or copy what is to be kept.
#[derive(Debug)]
pub struct Client {
    handle: Arc<Handle>,
    info: Arc<Mutex<ConnectionInfo>>,
    options: ConnectOptions,
    /// What drives the connection, for whoever has to wait for its end.
    pub(crate) task: Option<JoinHandle<()>>,
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

    /// Connects with options that were made in Rust.
    ///
    /// # Errors
    /// [`ClientError::Url`] for options that contradict each other, [`ClientError::Connect`], [`ClientError::Timeout`],
    /// [`ClientError::Refused`], [`ClientError::Version`], [`ClientError::Protocol`] if something else listens there, and
    /// [`ClientError::Fabric`] if one-sided reads were required and are not to be had.
    pub async fn connect_with(options: ConnectOptions) -> Result<Client, ClientError> {
        options.validate()?;
        let address = options.address();
        let limit = options.connect_timeout;
        let connecting = async {
            let failed = |source| ClientError::Connect { address: address.clone(), source };
            let stream = TcpStream::connect(&address).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            let (fabrics, missing) = fabrics::open(&options)?;
            Self::connect_over(stream, &fabrics, missing, options).await
        };
        let late = |_| ClientError::Timeout { what: format!("connecting to {address}"), after: limit };
        timeout(limit, connecting).await.map_err(late)?
    }

    /// Connects over a byte stream and fabrics of the caller's: a tunnel, or a simulation. If there are no fabrics,
    /// `missing` says why, and is reported as the reason for results that travel inline.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_over<S: ControlIo>(
        io: S,
        fabrics: &[Arc<dyn Fabric>],
        missing: Option<String>,
        options: ConnectOptions,
    ) -> Result<Client, ClientError> {
        let limit = options.connect_timeout;
        let pool = PoolLimits { max_bytes: usize::MAX, ..PoolLimits::default() };
        let mut offers = Offers::default();
        let mut missing = missing;
        for fabric in fabrics {
            if let Err(error) = offers.add(fabric, pool) {
                missing.get_or_insert(error.to_string());
            }
        }
        let config = ClientConfig {
            name: format!("thallus-client {}", env!("CARGO_PKG_VERSION")),
            fabrics: offers.on_the_wire(),
            frame: FrameLimits::default(),
            max_batch_bytes: options.max_batch,
            max_regions: MAX_REGIONS,
            inline: InlineLimits::default(),
            layout: LayoutLimits { max_bytes: options.max_batch, ..LayoutLimits::default() },
            timeouts: LinkTimeouts { handshake: limit, keepalive: options.keepalive, idle: options.idle_timeout },
            read_timeout: options.read_timeout,
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
        };
        let driver = Driver::new(parts).map_err(bug)?;
        let task = Some(tokio::spawn(driver.run()));
        let client = Client { handle: Handle::new(commands), info, options, task };
        connected.await.unwrap_or_else(|_| Err(gone()))?;
        if client.options.require_fabric
            && let Some(reason) = client.connection().carrier.fallback()
        {
            return Err(ClientError::Fabric { message: reason.to_owned() });
        }
        Ok(client)
    }

    /// Runs a query. Comes back when the server has planned it and sent the schema.
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
    /// [`ClientError::ServerGone`].
    pub async fn query_with(&self, sql: &str, options: QueryOptions) -> Result<ResultStream, ClientError> {
        self.execute(sql, options, false).await
    }

    /// Runs a query of whose result nothing is read until it is asked for: which columns, which rows, batch by batch.
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
    /// } // The batch is dropped: its memory goes back to the server, unread for the most part.
    /// println!("{}", result.report());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn query_lazy(&self, sql: &str) -> Result<LazyStream, ClientError> {
        self.query_lazy_with(sql, QueryOptions::default()).await
    }

    /// Runs a query lazily, with options. Its window bounds what is held unread; its deadline holds for what is held, too.
    ///
    /// # Errors
    /// See [`Client::query_with`].
    pub async fn query_lazy_with(&self, sql: &str, options: QueryOptions) -> Result<LazyStream, ClientError> {
        let window = options.window.unwrap_or(self.options.window);
        Ok(LazyStream::new(self.execute(sql, options, true).await?, window))
    }

    async fn execute(&self, sql: &str, options: QueryOptions, lazy: bool) -> Result<ResultStream, ClientError> {
        let started = Instant::now();
        let has_threshold = matches!(options.delivery, Delivery::Auto | Delivery::Mapped);
        let threshold = Some(self.options.inline_threshold).filter(|_| has_threshold);
        let execute = ExecuteOptions {
            delivery: match options.delivery {
                Delivery::Auto => message::Delivery::Auto,
                Delivery::Inline => message::Delivery::Inline,
                Delivery::Lent => message::Delivery::Lent,
                Delivery::Mapped => message::Delivery::Mapped(self.borrower(lazy)?),
            },
            batch_rows: options.batch_rows,
            deadline_ms: options.deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            inline_threshold: threshold,
            credit: options.window.unwrap_or(self.options.window).min(self.options.max_batch),
            lazy,
        };
        let Some((stream, items)) = self.handle.execute(sql.to_owned(), execute) else { return Err(gone()) };
        let mut result = ResultStream::new(Arc::clone(&self.handle), stream, items, started, Arc::clone(&self.info));
        result.mapped_from = threshold.filter(|_| options.delivery == Delivery::Mapped);
        result.begun(options.delivery).await
    }

    /// This process, as a server on this host knows when it is gone; or why nothing is mapped.
    fn borrower(&self, lazy: bool) -> Result<ProcessId, ClientError> {
        if lazy {
            let message =
                "a lazy result is not: what is mapped is there, and costs nothing until it is looked at".into();
            return Err(ClientError::Mapping { message });
        }
        if let Carrier::Inline { fallback } = self.connection().carrier {
            let reason = fallback.unwrap_or_else(|| "no fabric was asked for".into());
            let message = format!("this connection's results travel inline: {reason}");
            return Err(ClientError::Mapping { message });
        }
        if let Some(process) = self.options.process {
            return Ok(process);
        }
        let unknown = |error| format!("the server could not know when this process has ended: {error}");
        process::current().map_err(|error| ClientError::Mapping { message: unknown(error) })
    }

    pub(crate) fn maps(&self) -> Arc<AtomicBool> {
        self.handle.maps()
    }

    /// What was agreed on with the server, and what carries results now.
    #[must_use]
    pub fn connection(&self) -> ConnectionInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the server for a sign of life, and says how long it took.
    ///
    /// # Errors
    /// [`ClientError::ServerGone`].
    pub async fn ping(&self) -> Result<Duration, ClientError> {
        let started = Instant::now();
        let (pong, answered) = oneshot::channel();
        if !self.handle.send(Command::Ping { pong }) {
            return Err(gone());
        }
        // The connection's own timeouts see to it that this ends.
        answered.await.map_err(|_| gone())?;
        Ok(started.elapsed())
    }

    /// Closes the connection in good order. Results that are not at their end end in [`ClientError::Cancelled`].
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.handle.send(Command::Close { done }) {
            // The sender is dropped when all is done.
            let _closed = closed.await;
        }
    }
}

fn gone() -> ClientError {
    ClientError::ServerGone { message: "the connection has ended".into() }
}

fn bug(misuse: ApiMisuse) -> ClientError {
    ClientError::Protocol { message: misuse.to_string() }
}
