//! Options of a UCX fabric.

use std::path::PathBuf;

/// Settings of a [`crate::UcxFabric`]. If a setting is absent, UCX's environment (`UCX_*`), its configuration file and
/// its defaults apply, in this order; if it is given, it overrides them. The process's environment is not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UcxOptions {
    /// The file of `libucp` to load. `None`: the file that `THALLUS_UCX_LIBRARY` names, or the one that the dynamic
    /// linker finds. A process has one UCX: another file than that of the first fabric is refused.
    pub library: Option<PathBuf>,
    /// Transports that UCX may use, as in `UCX_TLS`: `tcp`, `posix,cma,self`, `rc,cma`.
    pub transports: Option<String>,
    /// Devices that UCX may use, as in `UCX_NET_DEVICES`: `mlx5_0:1`, `eth0`.
    pub net_devices: Option<String>,
    /// Other options of UCX, without the prefix `UCX_`: `("RNDV_THRESH", "8k")`. `ucx_info -c` lists them.
    pub settings: Vec<(String, String)>,
    /// Whether [`thallus_fabric::Endpoint::poll`] requests another poll immediately while reads are outstanding,
    /// instead of waiting for UCX's event descriptor. This saves microseconds per read and costs a core. An idle
    /// endpoint waits in both cases.
    pub busy_poll: bool,
    /// Whether reads may be emulated by messages where UCX has only two-sided transports: over TCP, and of registered
    /// memory through shared memory. Off by default, because it endangers the lender: in UCX 1.13 to 1.19
    /// (`ucp_progress_get_reply`, unchanged up to 1.22) a process that answers an emulated read **aborts** when the
    /// reader dies meanwhile, and it answers for any address.
    ///
    /// If off, [`thallus_fabric::Fabric::register`] is unsupported where it would need emulation, and so is importing
    /// such a key.
    pub emulation: bool,
    /// The source of memory for `allocate`.
    pub allocation: Allocation,
    /// Maximum number of threads that help to copy memory that is read through shared memory, for all endpoints of the
    /// fabric together. Each connection's own task copies too. The threads are started when there is much to copy, and
    /// sleep otherwise. With 0, only that task copies.
    pub copy_threads: usize,
    /// Name of the UCX context, in UCX's own logs.
    pub name: String,
}

/// The source of memory for [`thallus_fabric::Fabric::allocate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocation {
    /// A shared-memory segment, System V or POSIX as UCX chooses, where these transports are enabled. Peers on the same
    /// host attach it and copy from it themselves. They can read no other memory one-sidedly.
    #[default]
    Segment,
    /// Anonymous memory on transparent huge pages. Needs no space in shared memory and suits RDMA. A peer on the same
    /// host could read it only through messages that the lender's worker answers.
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
            // A few cores use the whole memory bandwidth; the other cores are left to the application.
            copy_threads: std::thread::available_parallelism().map_or(0, |cores| (cores.get() / 2).min(4)),
            name: "thallus".into(),
        }
    }
}
