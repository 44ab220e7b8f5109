//! What can be set for a UCX fabric.

use std::path::PathBuf;

/// Settings of a [`crate::UcxFabric`]. Where one is absent, UCX's environment (`UCX_*`), its configuration file and its
/// defaults stand, in this order; where one is given, it wins over them. Nothing is written to the process's
/// environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UcxOptions {
    /// The file of `libucp` to be loaded. `None`: the one that `THALLUS_UCX_LIBRARY` names, or the one that the dynamic
    /// linker finds. A process has one UCX: another file than that of the first fabric is refused.
    pub library: Option<PathBuf>,
    /// Transports that UCX may use, as in `UCX_TLS`: `tcp`, `posix,cma,self`, `rc,cma`.
    pub transports: Option<String>,
    /// Devices that UCX may use, as in `UCX_NET_DEVICES`: `mlx5_0:1`, `eth0`.
    pub net_devices: Option<String>,
    /// Any other options of UCX, without the prefix `UCX_`: `("RNDV_THRESH", "8k")`. `ucx_info -c` lists them.
    pub settings: Vec<(String, String)>,
    /// Whether [`thallus_fabric::Endpoint::poll`] asks to be polled again at once while reads are outstanding, instead
    /// of waiting for UCX's event descriptor: saves microseconds per read, costs a core. An idle endpoint waits either
    /// way.
    pub busy_poll: bool,
    /// Whether reads may be emulated by messages where UCX has no one-sided transport: over TCP, and of registered
    /// memory through shared memory. Off, because it endangers the lender: in UCX 1.13 to 1.19
    /// (`ucp_progress_get_reply`, unchanged up to 1.22) a process that answers an emulated read **aborts** when the
    /// reader dies meanwhile, and it answers for any address.
    ///
    /// Off, [`thallus_fabric::Fabric::register`] is unsupported where it would need emulation, and so is importing such
    /// a key.
    pub emulation: bool,
    /// Where `allocate` takes memory from.
    pub allocation: Allocation,
    /// Most threads that help to copy what is read through shared memory, of all endpoints of the fabric together; each
    /// connection's own task copies too. They are begun when there is much to copy, and sleep otherwise. With 0 that
    /// task copies alone.
    pub copy_threads: usize,
    /// Name of the UCX context, in UCX's own logs.
    pub name: String,
}

/// Where [`thallus_fabric::Fabric::allocate`] takes memory from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// A segment of UCX's choice: System V or POSIX shared memory, where these transports are enabled. Peers on the
    /// same host attach to it and copy from it themselves: this is the only memory that they read one-sidedly.
    #[default]
    Segment,
    /// Anonymous memory on transparent huge pages. Needs no room in shared memory and suits RDMA; a peer on
    /// the same host could read it only through messages that the lender's worker answers.
    HugePages,
}

impl Default for UcxOptions {
    fn default() -> Self {
        UcxOptions {
            library: None,
            transports: None,
            net_devices: None,
            settings: Vec::new(),
            busy_poll: false,
            emulation: false,
            allocation: Allocation::default(),
            // A few cores fill what memory gives; the rest are the application's.
            copy_threads: std::thread::available_parallelism().map_or(0, |cores| (cores.get() / 2).min(4)),
            name: "thallus".into(),
        }
    }
}
