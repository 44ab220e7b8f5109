//! Memory that is registered with the device: pages of this crate, or a foreign buffer.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_buffer::Buffer;
use ibverbs_sys as sys;
use sys::ibv_access_flags as Access;
use thallus_fabric::FabricError;
use thallus_fabric::memory::{PAGE, Pages, RegisteredMemory, check_available};
use thallus_protocol::FabricKind;

use crate::library::check;
use crate::limits;
use crate::queue::Domain;

/// An `ibv_mr`.
pub(crate) struct Region {
    domain: Arc<Domain>,
    handle: *mut sys::ibv_mr,
}

// SAFETY: libibverbs is thread safe; the handle is deregistered by drop only, and its keys do not change.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Registers memory, which pins it.
    ///
    /// # Safety
    /// The memory is mapped until the region is dropped, for writing too if `access` includes it.
    pub(crate) unsafe fn register(
        domain: &Arc<Domain>,
        start: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Self, String> {
        let flags = i32::try_from(access.0).unwrap_or(0);
        // SAFETY: an open domain, and memory that the caller guarantees.
        let handle = unsafe { (domain.device.verbs.ibv_reg_mr)(domain.handle, start.as_ptr().cast(), len, flags) };
        if handle.is_null() {
            let error = std::io::Error::last_os_error();
            let advice = match error.raw_os_error() {
                Some(libc::ENOMEM | libc::EAGAIN) => limits::memlock_advice(),
                Some(libc::EINVAL) => "; the device does not register such memory (a mapped file?)".to_owned(),
                _ => String::new(),
            };
            return Err(format!("ibv_reg_mr: {error}{advice}"));
        }
        Ok(Region { domain: Arc::clone(domain), handle })
    }

    pub(crate) fn handle(&self) -> *mut sys::ibv_mr {
        self.handle
    }

    pub(crate) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    pub(crate) fn local_key(&self) -> u32 {
        // SAFETY: a registered region.
        unsafe { (*self.handle).lkey }
    }

    pub(crate) fn remote_key(&self) -> u32 {
        // SAFETY: a registered region.
        unsafe { (*self.handle).rkey }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered once, deregistered once; windows over it are freed, since they hold what holds this.
        if let Err(reason) = check("ibv_dereg_mr", unsafe { (self.domain.device.verbs.ibv_dereg_mr)(self.handle) }) {
            tracing::error!(reason, "memory could not be deregistered");
        }
    }
}

/// Memory and its registration in the fabric's domain. Every object through which the device may reach it holds it by
/// `Arc`.
pub(crate) struct Pinned {
    /// `None` for foreign memory that each loan registers separately. Before the owner: memory is deregistered before
    /// it is freed.
    region: Option<Region>,
    start: NonNull<u8>,
    owner: Owner,
}

enum Owner {
    Pages(#[expect(dead_code, reason = "held for its drop")] Pages),
    Foreign(#[expect(dead_code, reason = "held for its drop")] Buffer),
}

// SAFETY: the owner and the region are Send and Sync; `start` is only an address.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn region(&self) -> Option<&Region> {
        self.region.as_ref()
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Whether reads may write to it.
    pub(crate) fn is_writable(&self) -> bool {
        matches!(self.owner, Owner::Pages(_))
    }
}

/// This crate's part of registered memory.
pub(crate) struct VerbsRegistration(Arc<Pinned>);

impl fmt::Debug for VerbsRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = if self.0.is_writable() { "anonymous pages" } else { "foreign" };
        write!(f, "VerbsRegistration({owner}, registered: {})", self.0.region.is_some())
    }
}

/// The memory behind `memory`, if this crate registered it.
pub(crate) fn pinned(memory: &RegisteredMemory) -> Option<&Arc<Pinned>> {
    memory.registration::<VerbsRegistration>().map(|registration| &registration.0)
}

/// New memory from anonymous (huge) pages. `extra`: the access of peers or windows, besides reads into the memory.
pub(crate) fn allocate(domain: &Arc<Domain>, len: usize, extra: Access) -> Result<Arc<RegisteredMemory>, FabricError> {
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::VERBS, len, reason };
    let len = len
        .checked_next_multiple_of(PAGE)
        .filter(|&len| len > 0 && isize::try_from(len).is_ok())
        .ok_or_else(|| error("zero or too many bytes".into()))?;
    check_available(len)?;
    let pages = Pages::new(len).map_err(|refused| error(format!("mmap: {refused}")))?;
    let start = pages.start();
    // SAFETY: pages that are readable and writable until `Pinned` drops them, after the region.
    let region = unsafe { Region::register(domain, start, len, Access::IBV_ACCESS_LOCAL_WRITE | extra) };
    let region = Some(region.map_err(error)?);
    let registration = VerbsRegistration(Arc::new(Pinned { region, start, owner: Owner::Pages(pages) }));
    // SAFETY: as above; no other code has the pages.
    Ok(Arc::new(unsafe { RegisteredMemory::new(start, len, Box::new(registration)) }))
}

/// Registers foreign memory for lending. It may be read-only. Without `access` it is not registered yet.
pub(crate) fn register(
    domain: &Arc<Domain>,
    buffer: Buffer,
    access: Option<Access>,
) -> Result<Arc<RegisteredMemory>, FabricError> {
    let len = buffer.len();
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::VERBS, len, reason };
    if len == 0 {
        return Err(error("the buffer is empty".into()));
    }
    let start = NonNull::new(buffer.as_ptr().cast_mut()).ok_or_else(|| error("the buffer is at address 0".into()))?;
    let region = access
        // SAFETY: the buffer's bytes are valid for reads, which is all that the access allows, until `Pinned` drops it.
        .map(|access| unsafe { Region::register(domain, start, len, access) })
        .transpose()
        .map_err(error)?;
    let owner = Owner::Foreign(buffer.clone());
    let registration = VerbsRegistration(Arc::new(Pinned { region, start, owner }));
    Ok(Arc::new(RegisteredMemory::foreign(buffer, Box::new(registration))))
}
