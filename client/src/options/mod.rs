//! Options for connections and queries.

mod url;

use std::time::Duration;

use arrow::array::RecordBatch;
use thallus_fabric::observe::SharedObserver;
pub use thallus_protocol::message::LendFrom;
use thallus_protocol::message::{Defaults, ProcessId};

pub use self::url::{UrlError, parse_lend_from};

/// The default port of a server.
pub const DEFAULT_PORT: u16 = 7807;

/// Most partitions that a query can request; a server may allow fewer.
pub const MAX_PARTITIONS: u32 = 1024;

/// The fabrics that a client offers to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FabricPreference {
    /// Every fabric of this build that works on this host.
    #[default]
    Auto,
    /// Shared memory of this host.
    Shm,
    /// UCX.
    Ucx,
    /// InfiniBand verbs.
    Verbs,
    /// None: results travel inline over the control connection.
    None,
}

impl FabricPreference {
    /// The names in a URL.
    pub const NAMES: [&str; 5] = ["auto", "shm", "ucx", "verbs", "none"];

    /// The name in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FabricPreference::Auto => "auto",
            FabricPreference::Shm => "shm",
            FabricPreference::Ucx => "ucx",
            FabricPreference::Verbs => "verbs",
            FabricPreference::None => "none",
        }
    }
}

/// How this client accesses the batches of a result that the server lends. The third way, on demand, yields another
/// kind of stream: [`Client::query_lazy`](crate::Client::query_lazy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads each batch one-sidedly into its own memory.
    #[default]
    Read,
    /// Does not read: the arrays lie in the server's memory, which this process maps. Nothing is copied. Requires a
    /// server on this host that [allows it](crate::Client#mapped-results), and a data plane over shm or UCX's shared
    /// memory.
    ///
    /// By requesting it, the caller declares the server's process as trusted. The documentation of
    /// `thallus_fabric::memory::TrustedPeer::assume` defines this promise, and the consequences if the server breaks
    /// it.
    Map,
}

/// The address of a server, and the limits and timeouts of its connections.
///
/// Parsed from a URL, `thallus://host[:port][?option=value&...]`, or built in Rust:
///
/// ```
/// use std::time::Duration;
/// use thallus_client::ConnectOptions;
///
/// let parsed: ConnectOptions = "thallus://db.example?window=16MiB&read_timeout=5s".parse()?;
/// let built = ConnectOptions::new("db.example").with_window(16 << 20).with_read_timeout(Duration::from_secs(5));
/// assert_eq!(parsed, built);
/// assert_eq!(built.to_string(), "thallus://db.example:7807?window=16MiB&read_timeout=5s");
/// # Ok::<(), thallus_client::UrlError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// Host name or address; an IPv6 address without brackets.
    pub host: String,
    /// TCP port, [`DEFAULT_PORT`] by default.
    pub port: u16,
    /// `fabric`: the carrier of results.
    pub fabric: FabricPreference,
    /// `require_fabric`: connecting fails instead of falling back to inline.
    pub require_fabric: bool,
    /// `window`: most bytes of results that the server may have on loan or in transit to this client, for each stream.
    /// 128 MiB by default. A stream begins with 16 MiB (a partition with its share of that, at least 4 MiB). The window
    /// grows only while both ends would otherwise wait for it.
    pub window: u64,
    /// `lend_from`: number of live bytes from which a batch is lent, and read one-sidedly; a smaller one travels
    /// inline. `never`: all travel inline, as Arrow IPC over the control connection; `0`: all are lent. `auto`, the
    /// default, follows the measured duration of one-sided reads on the connection: about 100 KiB through shared
    /// memory, more on slower paths; and a quarter of that after the first batches of a result.
    pub lend_from: LendFrom,
    /// `partitions`: number of streams for each result, unless its query sets another, over as many connections; 1 by
    /// default.
    pub partitions: u32,
    /// `max_batch`: size of the largest batch that is accepted, in bytes; a larger one ends its stream in an error. 256
    /// MiB by default.
    pub max_batch: u64,
    /// `pool`: bytes of registered memory that are kept for reuse when no batch uses them any more. 256 MiB by default.
    pub pool: u64,
    /// `connect_timeout`: limit for connecting as a whole: name, TCP, hello, fabric, probe. 10 s by default.
    pub connect_timeout: Duration,
    /// `read_timeout`: limit for the one-sided reads of one batch. 30 s by default.
    pub read_timeout: Duration,
    /// `idle_timeout`: the connection ends when the server has answered no ping for this long, and the connection has
    /// carried no other sign of life. Time in which this process stood still does not count. 30 s by default.
    pub idle_timeout: Duration,
    /// `keepalive`: time without a sign of life of the server after which the client pings it. At most a third of
    /// `idle_timeout` is used. 10 s by default.
    pub keepalive: Duration,
    /// Whether the client reads the server's memory for a moment when it connects, to measure the rate
    /// ([`ConnectionInfo::rate`](crate::ConnectionInfo::rate)). `thallus ping` sets this.
    pub measure: bool,
    /// `busy_poll`: spins for completions: lower latency, at the cost of a core.
    pub busy_poll: bool,
    /// `copy_threads`: most threads that help to copy data read through shared memory, for all connections of this
    /// process to servers on its host together. By default half of the processors, at most 4. With 0 one core copies
    /// for each connection.
    pub copy_threads: Option<u8>,
    /// `ucx_tls`: transports that UCX may use, as in `UCX_TLS`. By default UCX chooses.
    pub ucx_tls: Option<String>,
    /// `ucx_net_devices`: network devices that UCX may use, as in `UCX_NET_DEVICES`. By default UCX chooses.
    pub ucx_net_devices: Option<String>,
    /// `device`: RDMA device for verbs (`mlx5_0`). By default the first with an active port.
    pub verbs_device: Option<String>,
    /// Id of the process that accesses mapped results, as sent to the server. `None`: this process. For simulations,
    /// whose hosts have no processes.
    pub process: Option<ProcessId>,
    /// `max_upload_loans`: bytes of uploads that may be on loan to the server at a time, over each connection. 256 MiB
    /// by default.
    pub max_upload_loans: u64,
    /// `upload_lease`: longest lease of a batch of an upload. 60 s by default.
    pub upload_lease: Duration,
    /// Entropy for lease words. `None`: from the system. For simulations, which have their own seed.
    pub entropy: Option<u64>,
    /// Observer of the begin and end of every lease of this client's uploads. For simulations, which check reads
    /// against it.
    pub loan_observer: Option<SharedObserver>,
    /// `port`: port of that device, counted from 1. By default the first active port.
    pub verbs_port: Option<u8>,
    /// `gid`: index into the port's table of GIDs. By default RoCE v2 with an IPv4 address, if there is one.
    pub verbs_gid: Option<u8>,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $setter:ident, $field:ident: $ty:ty;)*) => {
        $($(#[$doc])*
        #[must_use]
        pub fn $setter(mut self, $field: $ty) -> Self {
            self.$field = $field;
            self
        })*
    };
}

impl ConnectOptions {
    /// Defaults, for a server on `host`: a name or an address, IPv6 with or without brackets.
    #[must_use]
    pub fn new(host: impl Into<String>) -> Self {
        let host: String = host.into();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).map(str::to_owned);
        ConnectOptions {
            host: bare.unwrap_or(host),
            port: DEFAULT_PORT,
            fabric: FabricPreference::Auto,
            require_fabric: false,
            window: 128 << 20,
            lend_from: LendFrom::Auto,
            partitions: 1,
            max_batch: 256 << 20,
            pool: 256 << 20,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            keepalive: Duration::from_secs(10),
            measure: false,
            busy_poll: false,
            copy_threads: None,
            ucx_tls: None,
            ucx_net_devices: None,
            verbs_device: None,
            process: None,
            max_upload_loans: 256 << 20,
            upload_lease: Duration::from_secs(60),
            entropy: None,
            loan_observer: None,
            verbs_port: None,
            verbs_gid: None,
        }
    }

    /// The address to connect to: `host:port`, an IPv6 address in brackets.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    setters! {
        /// Sets [`port`](Self::port).
        with_port, port: u16;
        /// Sets [`fabric`](Self::fabric).
        with_fabric, fabric: FabricPreference;
        /// Sets [`require_fabric`](Self::require_fabric).
        with_require_fabric, require_fabric: bool;
        /// Sets [`window`](Self::window), in bytes.
        with_window, window: u64;
        /// Sets [`lend_from`](Self::lend_from).
        with_lend_from, lend_from: LendFrom;
        /// Sets [`partitions`](Self::partitions).
        with_partitions, partitions: u32;
        /// Sets [`max_batch`](Self::max_batch), in bytes.
        with_max_batch, max_batch: u64;
        /// Sets [`pool`](Self::pool), in bytes.
        with_pool, pool: u64;
        /// Sets [`connect_timeout`](Self::connect_timeout).
        with_connect_timeout, connect_timeout: Duration;
        /// Sets [`read_timeout`](Self::read_timeout).
        with_read_timeout, read_timeout: Duration;
        /// Sets [`idle_timeout`](Self::idle_timeout).
        with_idle_timeout, idle_timeout: Duration;
        /// Sets [`keepalive`](Self::keepalive).
        with_keepalive, keepalive: Duration;
        /// Sets [`measure`](Self::measure).
        with_measure, measure: bool;
        /// Sets [`busy_poll`](Self::busy_poll).
        with_busy_poll, busy_poll: bool;
        /// Sets [`copy_threads`](Self::copy_threads).
        with_copy_threads, copy_threads: Option<u8>;
        /// Sets [`ucx_tls`](Self::ucx_tls).
        with_ucx_tls, ucx_tls: Option<String>;
        /// Sets [`ucx_net_devices`](Self::ucx_net_devices).
        with_ucx_net_devices, ucx_net_devices: Option<String>;
        /// Sets [`verbs_device`](Self::verbs_device).
        with_verbs_device, verbs_device: Option<String>;
        /// Sets [`process`](Self::process).
        with_process, process: Option<ProcessId>;
        /// Sets [`max_upload_loans`](Self::max_upload_loans), in bytes.
        with_max_upload_loans, max_upload_loans: u64;
        /// Sets [`upload_lease`](Self::upload_lease).
        with_upload_lease, upload_lease: Duration;
        /// Sets [`entropy`](Self::entropy).
        with_entropy, entropy: Option<u64>;
        /// Sets [`loan_observer`](Self::loan_observer).
        with_loan_observer, loan_observer: Option<SharedObserver>;
        /// Sets [`verbs_port`](Self::verbs_port).
        with_verbs_port, verbs_port: Option<u8>;
        /// Sets [`verbs_gid`](Self::verbs_gid).
        with_verbs_gid, verbs_gid: Option<u8>;
    }
}

/// Options of one query.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct QueryOptions {
    /// The query ends in an error this long after it was sent. `None`: no limit.
    pub deadline: Option<Duration>,
    /// Size from which batches are lent. `None`: [`ConnectOptions::lend_from`].
    pub lend_from: Option<LendFrom>,
    /// How this client accesses lent batches.
    pub access: Access,
    /// Target number of rows in a batch. `None`: the server's choice.
    pub batch_rows: Option<u32>,
    /// Bytes on loan or in transit, for this result, or for each of its partitions. `None`: [`ConnectOptions::window`].
    pub window: Option<u64>,
    /// Number of streams for the result, each over its own connection, so that several cores fill the link. `None`:
    /// [`ConnectOptions::partitions`].
    pub partitions: Option<u32>,
    /// Delivers batches as they arrive. Otherwise the partitions of a result that has an order are merged to that
    /// order, which copies rows at the client.
    pub unordered: bool,
    /// Values of the statement's parameters: `$1` and `?` by position, `$name` by name. The statement is run once for
    /// each row, and the results follow each other. At most about 60 KiB. `None`: the statement has no parameters.
    pub parameters: Option<RecordBatch>,
    /// The catalog and the schema of names that have none.
    pub defaults: Defaults,
}

impl QueryOptions {
    /// No deadline, and the server's and the connection's settings for the rest.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`lend_from`](Self::lend_from).
    #[must_use]
    pub fn with_lend_from(mut self, lend_from: LendFrom) -> Self {
        self.lend_from = Some(lend_from);
        self
    }

    setters! {
        /// Sets [`deadline`](Self::deadline).
        with_deadline, deadline: Option<Duration>;
        /// Sets [`access`](Self::access).
        with_access, access: Access;
        /// Sets [`batch_rows`](Self::batch_rows).
        with_batch_rows, batch_rows: Option<u32>;
        /// Sets [`window`](Self::window), in bytes.
        with_window, window: Option<u64>;
        /// Sets [`partitions`](Self::partitions).
        with_partitions, partitions: Option<u32>;
        /// Sets [`unordered`](Self::unordered).
        with_unordered, unordered: bool;
        /// Sets [`parameters`](Self::parameters).
        with_parameters, parameters: Option<RecordBatch>;
        /// Sets [`defaults`](Self::defaults).
        with_defaults, defaults: Defaults;
    }
}

/// Options of one query whose result is read on demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LazyOptions {
    /// The query ends in an error this long after it was sent, and its held batches can no longer be read. `None`: no
    /// limit.
    pub deadline: Option<Duration>,
    /// Size from which batches are lent. `None`: [`ConnectOptions::lend_from`].
    pub lend_from: Option<LendFrom>,
    /// Target number of rows in a batch. `None`: the server's choice.
    pub batch_rows: Option<u32>,
    /// Bytes on loan at a time. `None`: [`ConnectOptions::window`].
    pub window: Option<u64>,
}

impl LazyOptions {
    /// No deadline, and the server's and the connection's settings for the rest.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`lend_from`](Self::lend_from).
    #[must_use]
    pub fn with_lend_from(mut self, lend_from: LendFrom) -> Self {
        self.lend_from = Some(lend_from);
        self
    }

    setters! {
        /// Sets [`deadline`](Self::deadline).
        with_deadline, deadline: Option<Duration>;
        /// Sets [`batch_rows`](Self::batch_rows).
        with_batch_rows, batch_rows: Option<u32>;
        /// Sets [`window`](Self::window), in bytes.
        with_window, window: Option<u64>;
    }
}
