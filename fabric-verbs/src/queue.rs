//! Protection domains, completion queues and queue pairs: thin owners. Each is destroyed before the object it was made
//! of.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;
use std::sync::Arc;

use ibverbs_sys as sys;
use sys::ibv_qp_attr_mask as Mask;
use sys::ibv_qp_state as state;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::address::Side;
use crate::device::Device;
use crate::library::{check, last_error};

/// Number of retries of unanswered requests. **Never 7**: Soft-RoCE takes 7 as "for ever", so that a dead peer would
/// hang its readers.
const RETRIES: u8 = 6;
/// Time to wait for an answer: 4.096 us times 2 to this power, 67 ms. With [`RETRIES`] a dead peer is noticed after 0.5
/// s or later, since devices round up.
const TIMEOUT: u8 = 14;
/// Queue pairs receive no messages, so no peer is ever "not ready"; the values are those of the specification's
/// examples.
const RNR_RETRIES: u8 = 6;
const MIN_RNR_TIMER: u8 = 12;
/// Hop limit of routed packets.
const HOP_LIMIT: u8 = 64;

/// An `ibv_pd`.
pub(crate) struct Domain {
    pub(crate) device: Arc<Device>,
    pub(crate) handle: *mut sys::ibv_pd,
}

// SAFETY: libibverbs is thread safe; the handle is freed by drop only.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Arc<Self>, String> {
        // SAFETY: an open context.
        let handle = unsafe { (device.verbs.ibv_alloc_pd)(device.context) };
        if handle.is_null() {
            return Err(last_error("ibv_alloc_pd"));
        }
        Ok(Arc::new(Domain { device: Arc::clone(device), handle }))
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({:p})", self.handle)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once; every object that was made in it holds it by `Arc`.
        if let Err(reason) = check("ibv_dealloc_pd", unsafe { (self.device.verbs.ibv_dealloc_pd)(self.handle) }) {
            tracing::error!(reason, "a protection domain could not be freed");
        }
    }
}

/// The descriptor of a completion channel, for tokio. Keeps the channel, and with it the descriptor, open.
#[derive(Debug)]
pub(crate) struct ChannelFd {
    fd: RawFd,
    _queue: Arc<CompletionQueue>,
}

impl ChannelFd {
    /// Registers the completion channel with the current tokio runtime.
    pub(crate) fn register(queue: &Arc<CompletionQueue>) -> Result<AsyncFd<ChannelFd>, String> {
        // Without a runtime, tokio would panic.
        tokio::runtime::Handle::try_current().map_err(|error| error.to_string())?;
        let channel = ChannelFd { fd: queue.fd(), _queue: Arc::clone(queue) };
        // SAFETY: the descriptor stays open, and the same, until the queue is dropped, and `ChannelFd` holds the queue.
        unsafe { AsyncFd::register_with_interest(channel, Interest::READABLE) }
            .map_err(|error| format!("cannot wait for completions: {}", io::Error::from(error)))
    }
}

impl AsRawFd for ChannelFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

/// An `ibv_cq` with a completion channel that does not block.
pub(crate) struct CompletionQueue {
    device: Arc<Device>,
    channel: *mut sys::ibv_comp_channel,
    handle: *mut sys::ibv_cq,
}

// SAFETY: libibverbs is thread safe; the handles are destroyed by drop only.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    pub(crate) fn new(device: &Arc<Device>, entries: u32) -> Result<Arc<Self>, String> {
        let verbs = device.verbs;
        // SAFETY: an open context.
        let channel = unsafe { (verbs.ibv_create_comp_channel)(device.context) };
        if channel.is_null() {
            return Err(format!(
                "{}; look at the limit of open files (`ulimit -n`)",
                last_error("ibv_create_comp_channel")
            ));
        }
        // From here on the drop destroys the objects that exist.
        let mut queue = CompletionQueue { device: Arc::clone(device), channel, handle: ptr::null_mut() };
        let fd = queue.fd();
        // SAFETY: the channel's own open descriptor.
        let made_nonblocking = unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) == 0
        };
        if !made_nonblocking {
            return Err(last_error("fcntl(O_NONBLOCK)"));
        }
        let entries = i32::try_from(entries.min(device.limits.max_completions)).unwrap_or(i32::MAX);
        // SAFETY: an open context and an open channel of it.
        queue.handle = unsafe { (verbs.ibv_create_cq)(device.context, entries, ptr::null_mut(), channel, 0) };
        if queue.handle.is_null() {
            return Err(last_error("ibv_create_cq"));
        }
        Ok(Arc::new(queue))
    }

    fn fd(&self) -> RawFd {
        // SAFETY: an open channel.
        unsafe { (*self.channel).fd }
    }

    /// Takes completions. Returns their number. If it is less than the length of `into`, there are no more now.
    pub(crate) fn poll(&self, into: &mut [sys::ibv_wc]) -> Result<usize, String> {
        let poll = self.device.operations().poll_cq.ok_or("the provider has no poll_cq")?;
        let room = i32::try_from(into.len()).unwrap_or(i32::MAX);
        // SAFETY: an open queue, and room for that many completions, which the provider writes whole.
        let count = unsafe { poll(self.handle, room, into.as_mut_ptr()) };
        usize::try_from(count).map_err(|_| format!("ibv_poll_cq: error {count}"))
    }

    /// Requests an event: the next completion makes the channel readable.
    pub(crate) fn arm(&self) -> Result<(), String> {
        let arm = self.device.operations().req_notify_cq.ok_or("the provider has no req_notify_cq")?;
        // SAFETY: an open queue.
        check("ibv_req_notify_cq", unsafe { arm(self.handle, 0) })
    }

    /// Takes an event of the channel. Returns `false` if there is none.
    pub(crate) fn take_event(&self) -> Result<bool, String> {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: an open channel, which does not block, and room for both results.
        if unsafe { (self.device.verbs.ibv_get_cq_event)(self.channel, &mut queue, &mut context) } == 0 {
            // SAFETY: one event of this queue was taken, and is acknowledged: destroying the queue waits for that.
            unsafe { (self.device.verbs.ibv_ack_cq_events)(queue, 1) };
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
            _ => Err(format!(
                "ibv_get_cq_event: {error}; the device failed or was removed: look at the kernel log (`dmesg`)"
            )),
        }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        let verbs = self.device.verbs;
        if !self.handle.is_null() {
            // SAFETY: created once, destroyed once; queue pairs that use it hold it by `Arc`, and every event was
            // acknowledged.
            if let Err(reason) = check("ibv_destroy_cq", unsafe { (verbs.ibv_destroy_cq)(self.handle) }) {
                tracing::error!(reason, "a completion queue could not be destroyed");
            }
        }
        // SAFETY: created once, destroyed once, after its queue.
        unsafe { (verbs.ibv_destroy_comp_channel)(self.channel) };
    }
}

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionQueue({:p})", self.handle)
    }
}

/// The destination of a queue pair's packets, and the negotiated parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// LID of the peer's port.
    pub(crate) lid: u16,
    pub(crate) gid: [u8; 16],
    /// `enum ibv_mtu`.
    pub(crate) mtu: u8,
    /// Reads in flight at once, as the reader and as the lender.
    pub(crate) reads_asked: u8,
    pub(crate) reads_served: u8,
}

/// A reliable connection's queue pair.
pub(crate) struct QueuePair {
    domain: Arc<Domain>,
    completions: Arc<CompletionQueue>,
    handle: *mut sys::ibv_qp,
}

// SAFETY: libibverbs is thread safe; the handle is destroyed by drop only.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A queue pair for this number of outstanding work requests. It receives no messages.
    pub(crate) fn new(
        domain: &Arc<Domain>,
        completions: &Arc<CompletionQueue>,
        work_requests: u32,
    ) -> Result<Self, String> {
        let mut attributes = sys::ibv_qp_init_attr {
            send_cq: completions.handle,
            recv_cq: completions.handle,
            cap: sys::ibv_qp_cap {
                max_send_wr: work_requests,
                max_recv_wr: 1,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: 0,
            },
            qp_type: sys::ibv_qp_type::IBV_QPT_RC,
            // Only requests with the signal flag cause a completion.
            sq_sig_all: 0,
            ..Default::default()
        };
        // SAFETY: an open domain, and attributes that name an open queue of the same device.
        let handle = unsafe { (domain.device.verbs.ibv_create_qp)(domain.handle, &mut attributes) };
        if handle.is_null() {
            return Err(format!(
                "{}; look at the resources of the device (`rdma resource`), at the cgroup's rdma.max and at \
                 `ulimit -l`",
                last_error("ibv_create_qp")
            ));
        }
        Ok(QueuePair { domain: Arc::clone(domain), completions: Arc::clone(completions), handle })
    }

    pub(crate) fn number(&self) -> u32 {
        // SAFETY: an open queue pair.
        unsafe { (*self.handle).qp_num }
    }

    /// Connects to the peer. `ours` has the packet numbers of this queue pair; `theirs` is the peer's queue pair.
    pub(crate) fn connect(&self, path: &Path, ours: Side, theirs: Side) -> Result<(), String> {
        let port = &self.domain.device.port;
        let access = sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ.0;
        let mut init = sys::ibv_qp_attr {
            qp_state: state::IBV_QPS_INIT,
            pkey_index: 0,
            port_num: port.number,
            qp_access_flags: access,
            ..Default::default()
        };
        self.modify(
            "ibv_modify_qp(INIT)",
            &mut init,
            Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS,
        )?;

        let mut address = sys::ibv_ah_attr { dlid: path.lid, port_num: port.number, ..Default::default() };
        // Within an InfiniBand subnet LIDs route; all other packets need the global header.
        let same_subnet = path.gid[..8] == port.gid.bytes[..8];
        if port.ethernet || path.lid == 0 || !same_subnet {
            address.is_global = 1;
            address.grh = sys::ibv_global_route {
                dgid: sys::ibv_gid { raw: path.gid },
                sgid_index: port.gid.index,
                hop_limit: HOP_LIMIT,
                ..Default::default()
            };
        }
        let mut ready = sys::ibv_qp_attr {
            qp_state: state::IBV_QPS_RTR,
            path_mtu: u32::from(path.mtu),
            dest_qp_num: theirs.number,
            rq_psn: theirs.packet_number,
            max_dest_rd_atomic: path.reads_served,
            min_rnr_timer: MIN_RNR_TIMER,
            ah_attr: address,
            ..Default::default()
        };
        self.modify(
            "ibv_modify_qp(RTR)",
            &mut ready,
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_AV
                | Mask::IBV_QP_PATH_MTU
                | Mask::IBV_QP_DEST_QPN
                | Mask::IBV_QP_RQ_PSN
                | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | Mask::IBV_QP_MIN_RNR_TIMER,
        )?;

        let mut send = sys::ibv_qp_attr {
            qp_state: state::IBV_QPS_RTS,
            timeout: TIMEOUT,
            retry_cnt: RETRIES,
            rnr_retry: RNR_RETRIES,
            sq_psn: ours.packet_number,
            max_rd_atomic: path.reads_asked,
            ..Default::default()
        };
        self.modify(
            "ibv_modify_qp(RTS)",
            &mut send,
            Mask::IBV_QP_STATE
                | Mask::IBV_QP_TIMEOUT
                | Mask::IBV_QP_RETRY_CNT
                | Mask::IBV_QP_RNR_RETRY
                | Mask::IBV_QP_SQ_PSN
                | Mask::IBV_QP_MAX_QP_RD_ATOMIC,
        )
    }

    /// Moves the queue pair to the error state: the device serves no more requests of the peer, and flushes those of
    /// this end.
    pub(crate) fn fail(&self) -> Result<(), String> {
        let mut error = sys::ibv_qp_attr { qp_state: state::IBV_QPS_ERR, ..Default::default() };
        self.modify("ibv_modify_qp(ERR)", &mut error, Mask::IBV_QP_STATE)
    }

    fn modify(&self, call: &str, attributes: &mut sys::ibv_qp_attr, mask: Mask) -> Result<(), String> {
        let mask = i32::try_from(mask.0).unwrap_or(i32::MAX);
        // SAFETY: an open queue pair, and attributes of which the mask names those that are set.
        check(call, unsafe { (self.domain.device.verbs.ibv_modify_qp)(self.handle, attributes, mask) })
    }

    /// Posts a chain of work requests.
    ///
    /// # Safety
    /// The chain and its scatter lists are well-formed, and the memory that they name stays registered, and is accessed
    /// by no other code where it is written, until the completion of the request or the destruction of the queue pair.
    pub(crate) unsafe fn post(&self, first: *mut sys::ibv_send_wr) -> Result<(), String> {
        let post = self.domain.device.operations().post_send.ok_or("the provider has no post_send")?;
        let mut refused = ptr::null_mut();
        // SAFETY: the caller's promise.
        check("ibv_post_send", unsafe { post(self.handle, first, &mut refused) })
    }

    /// Destroys the queue pair. After that the device accesses no memory for it.
    pub(crate) fn destroy(self) -> Result<(), (Self, String)> {
        // SAFETY: created once; on success the drop is skipped.
        match check("ibv_destroy_qp", unsafe { (self.domain.device.verbs.ibv_destroy_qp)(self.handle) }) {
            Ok(()) => {
                let gone = std::mem::ManuallyDrop::new(self);
                // SAFETY: both are read once, and dropped here instead of by the drop that is skipped.
                unsafe {
                    drop(ptr::read(&gone.completions));
                    drop(ptr::read(&gone.domain));
                }
                Ok(())
            }
            Err(reason) => Err((self, reason)),
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once: `destroy` skips this.
        let destroyed = check("ibv_destroy_qp", unsafe { (self.domain.device.verbs.ibv_destroy_qp)(self.handle) });
        if let Err(reason) = destroyed {
            tracing::error!(reason, "a queue pair could not be destroyed");
        }
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QueuePair({:#x})", self.number())
    }
}
