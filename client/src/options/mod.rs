//! How to reach a server, and how to run a query there.

mod url;

use std::time::Duration;

use thallus_fabric::observe::SharedObserver;
pub use thallus_protocol::message::LendFrom;
use thallus_protocol::message::ProcessId;

pub use self::url::{UrlError, parse_lend_from};

/// The port that a server listens on unless it is told otherwise.
pub const DEFAULT_PORT: u16 = 7807;

/// Most partitions that a result can be asked in; a server may allow fewer.
pub const MAX_PARTITIONS: u32 = 1024;

/// Which fabrics a client offers to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FabricPreference {
    /// Every fabric that this build has and that works here.
    #[default]
    Auto,
    /// UCX.
    Ucx,
    /// InfiniBand verbs.
    Verbs,
    /// None: results travel inline over the control connection.
    None,
}

impl FabricPreference {
    /// The names in a URL.
    pub const NAMES: [&str; 4] = ["auto", "ucx", "verbs", "none"];

    /// The name in a URL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FabricPreference::Auto => "auto",
            FabricPreference::Ucx => "ucx",
            FabricPreference::Verbs => "verbs",
            FabricPreference::None => "none",
        }
    }
}

/// How this client gets at the batches of a result that the server lends. A third way, on demand, gives another kind of
/// stream: [`Client::query_lazy`](crate::Client::query_lazy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads each batch one-sidedly into its own memory.
    #[default]
    Read,
    /// Does not read: the arrays lie in the server's memory, which this process maps. Nothing is copied. For a server
    /// on this host that [allows it](crate::Client#mapped-results), by UCX over shared memory.
    ///
    /// Asking for it states that the server's process is trusted: what that promises, and what happens if the server
    /// breaks the promise, is in the documentation of `thallus_fabric::memory::TrustedPeer::assume`.
    Map,
}

/// How to reach a server, and what to hold and to wait for on the way.
///
/// From a URL, `thallus://host[:port][?option=value&...]`, or built here:
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
    /// `fabric`: what carries results.
    pub fabric: FabricPreference,
    /// `require_fabric`: fail to connect, rather than fall back to inline.
    pub require_fabric: bool,
    /// `window`: most bytes of results that the server may have on loan or on the way to this client, for each stream.
    /// 128 MiB by default. A stream begins with 16 MiB (a partition with its share of that, 4 MiB at least), and has
    /// more only while both ends would wait for it.
    pub window: u64,
    /// `lend_from`: from how many live bytes on a batch is lent, and read one-sidedly; a smaller one travels inline.
    /// `never`: all travel inline, as Arrow IPC over the control connection; `0`: all are lent, however small. `auto`,
    /// the default, follows how long one-sided reads take on the connection: about 100 KiB through shared memory, more
    /// on slower paths; and a quarter of that after the first batches of a result.
    pub lend_from: LendFrom,
    /// `partitions`: streams in which each result comes, unless its query says otherwise, over as many connections; 1
    /// by default.
    pub partitions: u32,
    /// `max_batch`: the largest batch in bytes that is taken; a larger one ends its stream in an error. 256 MiB by
    /// default.
    pub max_batch: u64,
    /// `pool`: bytes of registered memory that are kept for reuse when no batch lives in them any more. 256 MiB by
    /// default.
    pub pool: u64,
    /// `connect_timeout`: for all of connecting: name, TCP, hello, fabric, probe. 10 s by default.
    pub connect_timeout: Duration,
    /// `read_timeout`: for the one-sided reads of one batch. 30 s by default.
    pub read_timeout: Duration,
    /// `idle_timeout`: silence of the server after which it is taken for gone. 30 s by default.
    pub idle_timeout: Duration,
    /// `keepalive`: silence after which the server is asked for a sign of life. 10 s by default.
    pub keepalive: Duration,
    /// The client reads the server's memory for a moment when it connects, and measures the rate
    /// ([`ConnectionInfo::rate`](crate::ConnectionInfo::rate)). `thallus ping` sets this.
    pub measure: bool,
    /// `busy_poll`: spin for completions: lower latency, at the cost of a core.
    pub busy_poll: bool,
    /// `copy_threads`: most threads that help to copy what is read through shared memory, for all connections of this
    /// process to servers on its host together. By default half of the processors, 4 at most. With 0 one core copies
    /// for each connection.
    pub copy_threads: Option<u8>,
    /// `ucx_tls`: transports that UCX may use, as `UCX_TLS`. UCX chooses by default.
    pub ucx_tls: Option<String>,
    /// `ucx_net_devices`: network devices that UCX may use, as `UCX_NET_DEVICES`. UCX chooses by default.
    pub ucx_net_devices: Option<String>,
    /// `device`: RDMA device that verbs use (`mlx5_0`). The first with an active port by default.
    pub verbs_device: Option<String>,
    /// The process that looks at mapped results, as the server is told. `None`: this one. For simulations, whose hosts
    /// are none.
    pub process: Option<ProcessId>,
    /// `max_upload_loans`: bytes of uploads that may be on loan to the server at once, over each connection. 256 MiB by
    /// default.
    pub max_upload_loans: u64,
    /// `upload_lease`: how long the server may keep a batch of an upload on loan. 60 s by default.
    pub upload_lease: Duration,
    /// Where the entropy for lease words comes from. `None`: the system. For simulations, which have a seed of their
    /// own.
    pub entropy: Option<u64>,
    /// Told of every lease of this client's uploads that begins and ends. For simulations, which check reads against
    /// that.
    pub loan_observer: Option<SharedObserver>,
    /// `port`: port of that device, counted from 1. The first that is active by default.
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

    /// Where to connect to: `host:port`, an IPv6 address in brackets.
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

/// How one query is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueryOptions {
    /// The query ends in an error this long after it was sent. `None`: it may take as long as it takes.
    pub deadline: Option<Duration>,
    /// From which size on batches are lent. `None`: [`ConnectOptions::lend_from`].
    pub lend_from: Option<LendFrom>,
    /// How this client gets at what is lent.
    pub access: Access,
    /// Rows that the engine should aim at in a batch. `None`: the server's choice.
    pub batch_rows: Option<u32>,
    /// Bytes on loan or on the way, for this result, or for each of its partitions. `None`: [`ConnectOptions::window`].
    pub window: Option<u64>,
    /// Streams in which the result comes, each over a connection of its own, so that several cores fill the link.
    /// `None`: [`ConnectOptions::partitions`].
    pub partitions: Option<u32>,
    /// Partitions of a result that has an order are merged to it, which copies rows at the client. With this, batches
    /// come as they arrive.
    pub unordered: bool,
}

impl QueryOptions {
    /// No deadline, and the server's and the connection's choice for the rest.
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
    }
}

/// How one query is to be run whose result is read on demand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LazyOptions {
    /// The query ends in an error this long after it was sent, and its batches that are held cannot be read any more.
    /// `None`: it may take as long as it takes.
    pub deadline: Option<Duration>,
    /// From which size on batches are lent. `None`: [`ConnectOptions::lend_from`].
    pub lend_from: Option<LendFrom>,
    /// Rows that the engine should aim at in a batch. `None`: the server's choice.
    pub batch_rows: Option<u32>,
    /// Bytes on loan at once. `None`: [`ConnectOptions::window`].
    pub window: Option<u64>,
}

impl LazyOptions {
    /// No deadline, and the server's and the connection's choice for the rest.
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
