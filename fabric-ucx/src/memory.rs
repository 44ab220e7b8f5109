//! Memory that is registered with UCX: allocated by UCX or this crate, or by another part of the program.

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_fabric::memory::{PAGE, Pages, RegisteredMemory, check_available};
use thallus_fabric::{FabricError, Touch};
use thallus_protocol::FabricKind;
use ucx_sys::{self as sys, Version};

use crate::context::UcxContext;
use crate::domains::Domains;
use crate::envelope::{self, Kind};
use crate::status::check;

const LENDING: u32 = sys::UCP_MEM_MAP_PROT_LOCAL_READ | sys::UCP_MEM_MAP_PROT_REMOTE_READ;

/// A `ucp_mem_h`, and the owner of its memory.
pub(crate) struct UcxRegistration {
    handle: sys::ucp_mem_h,
    context: Arc<UcxContext>,
    /// Pages of this process that `drop` has to deregister before they are freed. If `None`, UCX allocated the memory
    /// and frees it, or another part of the program owns it.
    pages: Option<Pages>,
}

// SAFETY: the handle is used by `ucp_rkey_pack`, `ucp_get_nbx` (read only) and `ucp_mem_unmap` (once), which lock the
// context; pages are Send and Sync, and no code forms a reference to memory through this type.
unsafe impl Send for UcxRegistration {}
// SAFETY: as above.
unsafe impl Sync for UcxRegistration {}

impl UcxRegistration {
    /// This crate's part of `memory`, if a fabric over `context` registered it.
    pub(crate) fn of<'a>(memory: &'a RegisteredMemory, context: &Arc<UcxContext>) -> Option<&'a UcxRegistration> {
        let registration = memory.registration::<UcxRegistration>()?;
        Arc::ptr_eq(&registration.context, context).then_some(registration)
    }

    pub(crate) fn handle(&self) -> sys::ucp_mem_h {
        self.handle
    }
}

impl Drop for UcxRegistration {
    fn drop(&mut self) {
        // SAFETY: mapped once and unmapped once, before the memory is freed; a read into this memory holds it alive.
        let status = unsafe { self.context.ucx().ucp_mem_unmap(self.context.handle(), self.handle) };
        if let Err(reason) = check("ucp_mem_unmap", status) {
            tracing::error!(reason, "memory could not be deregistered");
        }
    }
}

impl fmt::Debug for UcxRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = if self.pages.is_some() { "this process's pages" } else { "memory of UCX or of another owner" };
        write!(f, "UcxRegistration({:p}, {owner})", self.handle)
    }
}

/// New memory from UCX itself, so that peers can attach it as a shared-memory segment.
pub(crate) fn allocate_segment(
    context: &Arc<UcxContext>,
    len: usize,
    touch: Touch,
) -> Result<Arc<RegisteredMemory>, FabricError> {
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::UCX, len, reason };
    let len = round_up(len).ok_or_else(|| error("zero or too many bytes".into()))?;
    check_available(len)?;
    let params = sys::ucp_mem_map_params_t {
        field_mask: u64::from(
            sys::UCP_MEM_MAP_PARAM_FIELD_LENGTH
                | sys::UCP_MEM_MAP_PARAM_FIELD_FLAGS
                | sys::UCP_MEM_MAP_PARAM_FIELD_PROT
                | sys::UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        ),
        length: len,
        flags: sys::UCP_MEM_MAP_ALLOCATE,
        prot: LENDING | sys::UCP_MEM_MAP_PROT_LOCAL_WRITE,
        memory_type: sys::UCS_MEMORY_TYPE_HOST,
        ..Default::default()
    };
    let mut handle = ptr::null_mut();
    // SAFETY: an open context, parameters whose mask names the fields that are set, room for the handle.
    check("ucp_mem_map(ALLOCATE)", unsafe { context.ucx().ucp_mem_map(context.handle(), &params, &mut handle) })
        .map_err(|reason| error(format!("{reason}; look at the size of /dev/shm, kernel.shmmax and `ulimit -l`")))?;
    let registration = UcxRegistration { handle, context: context.clone(), pages: None };

    let mut attributes = sys::ucp_mem_attr_t {
        field_mask: u64::from(sys::UCP_MEM_ATTR_FIELD_ADDRESS | sys::UCP_MEM_ATTR_FIELD_LENGTH),
        ..Default::default()
    };
    // SAFETY: a mapped handle, and room for the fields that the mask names.
    check("ucp_mem_query", unsafe { context.ucx().ucp_mem_query(handle, &mut attributes) }).map_err(error)?;
    let start = NonNull::new(attributes.address.cast::<u8>())
        .filter(|_| attributes.length >= len)
        .ok_or_else(|| error("UCX allocated less than requested".into()))?;
    if touch == Touch::Now {
        // SAFETY: `len` bytes that UCX has just allocated and that no other code accesses. Segments are zeroed by the
        // kernel; writing zeroes touches every page.
        unsafe { start.write_bytes(0, len) };
    }
    // SAFETY: valid for reads and writes until the registration unmaps it.
    Ok(Arc::new(unsafe { RegisteredMemory::new(start, len, Box::new(registration)) }))
}

/// New memory from anonymous (huge) pages, registered.
pub(crate) fn allocate_pages(context: &Arc<UcxContext>, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::UCX, len, reason };
    let len = round_up(len).ok_or_else(|| error("zero or too many bytes".into()))?;
    check_available(len)?;
    let pages = Pages::new(len).map_err(|refused| error(format!("mmap: {refused}")))?;
    let start = pages.start();
    let mut registration = map(context, start, len, true).map_err(error)?;
    registration.pages = Some(pages);
    // SAFETY: the pages are readable and writable until the registration drops them.
    Ok(Arc::new(unsafe { RegisteredMemory::new(start, len, Box::new(registration)) }))
}

/// Registers foreign memory for lending. It may be read-only (a mapped file).
pub(crate) fn register(context: &Arc<UcxContext>, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
    let len = buffer.len();
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::UCX, len, reason };
    if len == 0 {
        return Err(error("the buffer is empty".into()));
    }
    let start = NonNull::new(buffer.as_ptr().cast_mut()).ok_or_else(|| error("the buffer is at address 0".into()))?;
    let registration = map(context, start, len, false).map_err(error)?;
    Ok(Arc::new(RegisteredMemory::foreign(buffer, Box::new(registration))))
}

/// Registers `len` bytes at `start`, which the caller keeps valid until the registration is dropped.
fn map(context: &Arc<UcxContext>, start: NonNull<u8>, len: usize, writable: bool) -> Result<UcxRegistration, String> {
    let params = sys::ucp_mem_map_params_t {
        field_mask: u64::from(
            sys::UCP_MEM_MAP_PARAM_FIELD_ADDRESS
                | sys::UCP_MEM_MAP_PARAM_FIELD_LENGTH
                | sys::UCP_MEM_MAP_PARAM_FIELD_PROT
                | sys::UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
        ),
        address: start.as_ptr().cast(),
        length: len,
        // Without the write bits, a device that pins memory does not request writable pages from the kernel.
        prot: if writable { LENDING | sys::UCP_MEM_MAP_PROT_LOCAL_WRITE } else { LENDING },
        memory_type: sys::UCS_MEMORY_TYPE_HOST,
        ..Default::default()
    };
    let mut handle = ptr::null_mut();
    // SAFETY: an open context; parameters whose mask names the fields that are set, and which name memory that the
    // caller keeps valid until after the unmapping; room for the handle.
    check("ucp_mem_map", unsafe { context.ucx().ucp_mem_map(context.handle(), &params, &mut handle) }).map_err(
        |reason| {
            // UCX 1.13 requests all rights from the device, whatever `prot` is; 1.14 (`uct_ib_md_access_flags`) does
            // not.
            let asks_for_all = !writable && context.ucx().version() < Version::new(1, 14);
            let pages =
                if asks_for_all { "; UCX 1.13 cannot register read-only pages with an RDMA device" } else { "" };
            format!("{reason}; look at the limit of locked memory (`ulimit -l`){pages}")
        },
    )?;
    Ok(UcxRegistration { handle, context: context.clone(), pages: None })
}

/// The remote key of `memory`, in its envelope.
pub(crate) fn expose(context: &Arc<UcxContext>, memory: &RegisteredMemory) -> Result<Bytes, FabricError> {
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::UCX, len: memory.len(), reason };
    let registration = UcxRegistration::of(memory, context)
        .ok_or(FabricError::Misuse("memory to be exposed was registered by another fabric"))?;
    let packed = pack(registration).map_err(error)?;
    let about = (memory.address(), memory.len() as u64);
    Ok(envelope::seal(Kind::RemoteKey, context.ucx().version(), about, &packed).map_err(error)?.into())
}

/// The remote key, as UCX packs it.
fn pack(registration: &UcxRegistration) -> Result<Vec<u8>, String> {
    let (ucx, context) = (registration.context.ucx(), registration.context.handle());
    let (mut key, mut len) = (ptr::null_mut(), 0);
    // SAFETY: an open context, a mapped handle of it, room for both results.
    check("ucp_rkey_pack", unsafe { ucx.ucp_rkey_pack(context, registration.handle, &mut key, &mut len) })?;
    // SAFETY: UCX packed `len` bytes there.
    let packed = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), len) }.to_vec();
    // SAFETY: packed above, released once.
    unsafe { ucx.ucp_rkey_buffer_release(key) };
    Ok(packed)
}

/// The memory domains with which memory of this end is registered.
pub(crate) fn domains(context: &Arc<UcxContext>) -> Result<Domains, String> {
    let of = |memory: Arc<RegisteredMemory>| {
        let registration = UcxRegistration::of(&memory, context).ok_or("memory of another fabric")?;
        let key = pack(registration)?;
        if envelope::remote_key_fits(&key) {
            Ok(Domains::of(&key))
        } else {
            Err("UCX packed a malformed key".to_owned())
        }
    };
    let registered = of(allocate_pages(context, PAGE).map_err(|error| error.to_string())?)?;
    // There may be no segments: transports of shared memory can be excluded, or out of memory.
    let segment = allocate_segment(context, PAGE, Touch::WhenUsed).map_or(Ok(Domains::default()), of)?;
    Ok(registered.and(segment))
}

/// Rounds up to whole pages; `None` for zero and for lengths beyond the address space.
fn round_up(len: usize) -> Option<usize> {
    if len == 0 || len > isize::MAX as usize - PAGE { None } else { Some(len.next_multiple_of(PAGE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_pages() {
        assert_eq!((round_up(1), round_up(4096), round_up(4097)), (Some(4096), Some(4096), Some(8192)));
        assert_eq!((round_up(0), round_up(usize::MAX)), (None, None));
    }
}
