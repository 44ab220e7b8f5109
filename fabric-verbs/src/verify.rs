//! Checks whether a device enforces the bounds of memory windows.
//!
//! A test is necessary: Soft-RoCE, for example, has windows and checks reads against the region below the window, so
//! that a window exposes the whole region. On devices that do not enforce windows, loans are registered instead.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ibverbs_sys as sys;
use sys::ibv_access_flags as Access;
use thallus_fabric::memory::{PAGE, RegisteredMemory};

use crate::address::Side;
use crate::device::Device;
use crate::exposure::Window;
use crate::memory;
use crate::queue::{CompletionQueue, Domain, Path, QueuePair};

/// Maximum time of one work request of the check.
const BOUND: Duration = Duration::from_secs(3);
/// The range of the window of the check.
const OPEN: Range<usize> = 1024..2048;

/// Two queue pairs of this process, connected to each other through the port.
struct Loop {
    completions: Arc<CompletionQueue>,
    reader: QueuePair,
    lender: QueuePair,
}

/// `Ok` if the exposed range can be read and the rest is refused.
pub(crate) fn windows_hold(domain: &Arc<Domain>) -> Result<(), String> {
    let device = &domain.device;
    let memory = memory::allocate(domain, PAGE, Access::IBV_ACCESS_MW_BIND).map_err(|error| error.to_string())?;
    let within = outcome_of_read(device, domain, &memory, OPEN.start)?;
    if within != sys::ibv_wc_status::IBV_WC_SUCCESS {
        return Err(format!("memory within a memory window cannot be read (status {within})"));
    }
    for at in [OPEN.end, OPEN.start - 8] {
        let outside = outcome_of_read(device, domain, &memory, at)?;
        if outside == sys::ibv_wc_status::IBV_WC_SUCCESS {
            return Err("the device does not enforce the bounds of memory windows".to_owned());
        }
    }
    Ok(())
}

/// The status of an 8-byte read at this offset, through a window over [`OPEN`].
fn outcome_of_read(
    device: &Arc<Device>,
    domain: &Arc<Domain>,
    memory: &Arc<RegisteredMemory>,
    at: usize,
) -> Result<u32, String> {
    let ends = Loop::new(device, domain)?;
    let pinned = memory::pinned(memory).ok_or("memory of another fabric")?;
    let region = pinned.region().ok_or("memory without a region")?;
    let mut window = Window::new(domain)?;
    let key = window.next_key();
    match ends.run(&ends.lender, window.bind(pinned, &OPEN)?)? {
        sys::ibv_wc_status::IBV_WC_SUCCESS => window.bound(key),
        refused => return Err(format!("the device refuses to bind a memory window (status {refused})")),
    }
    let place = |offset: usize| -> NonNull<u8> {
        // SAFETY: offsets here are within the page.
        unsafe { pinned.start().add(offset) }
    };
    let mut target = sys::ibv_sge { addr: place(0).as_ptr() as u64, length: 8, lkey: region.local_key() };
    let mut read = sys::ibv_send_wr {
        sg_list: &mut target,
        num_sge: 1,
        opcode: sys::ibv_wr_opcode::IBV_WR_RDMA_READ,
        ..Default::default()
    };
    read.wr.rdma.remote_addr = place(at).as_ptr() as u64;
    read.wr.rdma.rkey = key;
    let status = ends.run(&ends.reader, read);
    // Windows are freed before the queue pairs that they are bound to.
    ends.fail();
    drop(window);
    status
}

impl Loop {
    fn new(device: &Arc<Device>, domain: &Arc<Domain>) -> Result<Self, String> {
        let completions = CompletionQueue::new(device, 8)?;
        let [reader, lender] = [(); 2].map(|()| QueuePair::new(domain, &completions, 4));
        let (reader, lender) = (reader?, lender?);
        let port = &device.port;
        let path = Path { lid: port.lid, gid: port.gid.bytes, mtu: port.mtu.min(3), reads_asked: 1, reads_served: 1 };
        let side = |pair: &QueuePair| Side { number: pair.number(), packet_number: 0 };
        reader.connect(&path, side(&reader), side(&lender))?;
        lender.connect(&path, side(&lender), side(&reader))?;
        Ok(Loop { completions, reader, lender })
    }

    /// Posts one request, and waits for its status.
    fn run(&self, pair: &QueuePair, mut request: sys::ibv_send_wr) -> Result<u32, String> {
        request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        // SAFETY: one request; its memory is a page that the caller has, which no other code uses, and which outlives
        // these queue pairs.
        unsafe { pair.post(&mut request) }?;
        let bound = Instant::now() + BOUND;
        let mut work = [sys::ibv_wc::default()];
        while self.completions.poll(&mut work)? == 0 {
            if Instant::now() > bound {
                return Err(format!("the device completes nothing within {BOUND:?}"));
            }
            std::thread::yield_now();
        }
        Ok(work[0].error().map_or(sys::ibv_wc_status::IBV_WC_SUCCESS, |(status, _)| status))
    }

    fn fail(&self) {
        for pair in [&self.reader, &self.lender] {
            if let Err(reason) = pair.fail() {
                tracing::debug!(reason, "a queue pair of the check for memory windows");
            }
        }
    }
}
