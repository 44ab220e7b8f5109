//! A fabric with memory and no endpoints, for the unit tests of this module.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow_buffer::Buffer;
use thallus_protocol::FabricKind;

use super::{FilePiece, RegisteredMemory, Registration};
use crate::{Capabilities, Endpoint, Fabric, FabricError, Fencing, Maps, Touch};

#[derive(Debug, Default)]
pub(crate) struct TestFabric {
    /// Bytes registered now.
    pub(crate) registered: Arc<AtomicUsize>,
    /// Breaks the contract of `allocate`: each call returns the same memory.
    pub(crate) share_allocations: bool,
    pub(crate) shared: Mutex<Option<Arc<RegisteredMemory>>>,
    /// `allocate` fails.
    pub(crate) fail: bool,
    /// `register` is not supported.
    pub(crate) own_only: bool,
    /// Number of calls of `register`.
    pub(crate) asked: Arc<AtomicUsize>,
    /// Maximum number of bytes that it registers.
    pub(crate) room: Option<usize>,
    /// See [`Capabilities::registers_when_exposed`].
    pub(crate) registers_when_exposed: bool,
}

#[derive(Debug)]
struct TestRegistration {
    len: usize,
    registered: Arc<AtomicUsize>,
}

impl Drop for TestRegistration {
    fn drop(&mut self) {
        self.registered.fetch_sub(self.len, Ordering::SeqCst);
    }
}

impl TestFabric {
    fn registration(&self, len: usize) -> Box<dyn Registration> {
        self.registered.fetch_add(len, Ordering::SeqCst);
        Box::new(TestRegistration { len, registered: Arc::clone(&self.registered) })
    }

    fn refused(&self, len: usize) -> FabricError {
        FabricError::Registration { fabric: self.kind(), len, reason: "refused by the test".to_owned() }
    }
}

impl Fabric for TestFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::new("test")
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fencing: Fencing::LeaseWord,
            max_read: u64::MAX,
            max_outstanding_reads: 1,
            exposes_ranges: false,
            registers_when_exposed: self.registers_when_exposed,
            maps: Maps::Nothing { reason: "it has no endpoints".into() },
        }
    }

    fn allocate(&self, len: usize, _touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        if self.fail {
            return Err(self.refused(len));
        }
        let register = |_: NonNull<u8>, len| Ok(self.registration(len));
        let memory = Arc::new(RegisteredMemory::heap(len, register).unwrap_or_else(|| Err(self.refused(len)))?);
        if self.share_allocations {
            return Ok(Arc::clone(self.shared.lock().unwrap().get_or_insert(memory)));
        }
        Ok(memory)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.room.is_some_and(|room| self.registered.load(Ordering::SeqCst) + buffer.len() > room) {
            return Err(self.refused(buffer.len()));
        }
        if self.own_only {
            return Err(FabricError::Unsupported { fabric: self.kind(), what: "register memory of others" });
        }
        let registration = self.registration(buffer.len());
        Ok(Arc::new(RegisteredMemory::foreign(buffer, registration)))
    }

    fn adopt(&self, _piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        Err(FabricError::Unsupported { fabric: self.kind(), what: "lend memory files" })
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        Err(FabricError::Unsupported { fabric: self.kind(), what: "connect" })
    }
}
