//! System V segments that a remote key names, held while UCX unpacks it.

use std::ffi::c_void;
use std::io;

use crate::envelope;
use crate::lanes::Lanes;

/// Length of what UCX packs for a System V segment (`uct_sysv_packed_rkey_t`): its id in 4 bytes, its owner's address in 8.
const PACKED: usize = 12;

/// Attached segments.
///
/// A segment goes with the last process that has it attached. If its owner dies before UCX 1.13 attaches it,
/// `ucp_ep_rkey_unpack` fails, and on its way out releases what it had not unpacked yet (`ucp_ep_rkey_unpack_internal`,
/// `err_destroy`): the reader crashes. So they are attached here first; while they are, UCX's own attaching succeeds.
#[derive(Debug)]
pub(crate) struct Segments(Vec<*const c_void>);

impl Segments {
    /// Attaches the segments of `key` through which these lanes would read.
    pub(crate) fn attach(key: &[u8], lanes: &Lanes) -> Result<Self, String> {
        let mut held = Segments(Vec::new());
        if !lanes.transport.name.contains("sysv") {
            return Ok(held);
        }
        for (domain, packed) in envelope::entries(key) {
            let Some(id) = packed.first_chunk().filter(|_| packed.len() == PACKED) else { continue };
            if lanes.domains & (1 << domain) == 0 {
                continue;
            }
            // SAFETY: no address is asked for, so that nothing is mapped over; read-only, and nobody reads through it.
            let start = unsafe { libc::shmat(i32::from_ne_bytes(*id), std::ptr::null(), libc::SHM_RDONLY) };
            if start.addr() == usize::MAX {
                let refused = io::Error::last_os_error();
                return Err(format!(
                    "its shared memory cannot be attached: {refused}; the peer is gone, or of another host"
                ));
            }
            held.0.push(start);
        }
        Ok(held)
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        for &start in &self.0 {
            // SAFETY: attached above, detached once.
            unsafe { libc::shmdt(start) };
        }
    }
}
