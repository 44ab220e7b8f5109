//! A connection to a server, as applications have it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use thallus_fabric::Fabric;
use thallus_fabric::driver::ControlIo;
use thallus_fabric::memory::PoolLimits;
use thallus_protocol::client::ClientConfig;
use thallus_protocol::codec::{FrameLimits, VERSIONS};
use thallus_protocol::inline::InlineLimits;
use thallus_protocol::layout::LayoutLimits;
use thallus_protocol::message::{self, ExecuteOptions};
use thallus_protocol::{ApiMisuse, LinkTimeouts};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::driver::{Command, Driver, Handle, Offers, Parts};
use crate::error::ClientError;
use crate::fabrics;
use crate::options::{ConnectOptions, Delivery, FabricPreference, QueryOptions};
use crate::report::ConnectionInfo;
use crate::result::ResultStream;

/// Regions that a server may have announced at once: several for each batch of many columns in flight.
const MAX_REGIONS: usize = 1 << 20;

/// Bytes that a stream may have in flight at first: four batches of an engine's usual size. Memory that is used again and again is
/// in a cache where the whole of a large window is not.
const FIRST_WINDOW: u64 = 4 << 20;

/// Protocol versions that this build speaks, for people.
#[must_use]
pub fn protocol_versions() -> String {
    VERSIONS.to_string()
}

/// A connection. Queries run on it side by side; each has its own [`ResultStream`].
///
/// The connection closes when the client and every result of it have been dropped, or by [`Client::close`].
#[derive(Debug)]
pub struct Client {
    handle: Arc<Handle>,
    info: Arc<Mutex<ConnectionInfo>>,
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
        let keep_bytes = usize::try_from(options.pool).unwrap_or(usize::MAX);
        let pool = PoolLimits { max_bytes: usize::MAX, keep_bytes, ..PoolLimits::default() };
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
            first_window: FIRST_WINDOW,
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
        tokio::spawn(driver.run());
        let client = Client { handle: Handle::new(commands), info, options };
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
        let started = Instant::now();
        let threshold = self.options.inline_threshold.filter(|_| options.delivery == Delivery::Auto);
        let execute = ExecuteOptions {
            delivery: match options.delivery {
                Delivery::Auto => message::Delivery::Auto,
                Delivery::Inline => message::Delivery::Inline,
                Delivery::Lent => message::Delivery::Lent,
            },
            batch_rows: options.batch_rows,
            deadline_ms: options.deadline.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
            inline_threshold: threshold,
            credit: options.window.unwrap_or(self.options.window).min(self.options.max_batch),
        };
        let Some((stream, items)) = self.handle.execute(sql.to_owned(), execute) else { return Err(gone()) };
        let result = ResultStream::new(Arc::clone(&self.handle), stream, items, started, Arc::clone(&self.info));
        result.begun(options.delivery).await
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
