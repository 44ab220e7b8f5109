//! The bytes of memory that each client makes its connection keep, for observers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The bytes of all connections, besides batches on loan.
#[derive(Debug, Default)]
pub(crate) struct HeldBytes {
    connections: Mutex<Vec<Arc<AtomicU64>>>,
}

impl HeldBytes {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<AtomicU64>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of each connection.
    pub(crate) fn by_connection(&self) -> Vec<u64> {
        self.lock().iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect()
    }

    /// The place of a new connection.
    pub(crate) fn add(self: &Arc<Self>) -> HeldByConnection {
        let bytes = Arc::default();
        self.lock().push(Arc::clone(&bytes));
        HeldByConnection { all: Arc::clone(self), bytes }
    }
}

/// The bytes of one connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct HeldByConnection {
    all: Arc<HeldBytes>,
    bytes: Arc<AtomicU64>,
}

impl HeldByConnection {
    /// Records the number of bytes that the connection keeps now.
    pub(crate) fn record(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for HeldByConnection {
    fn drop(&mut self) {
        self.all.lock().retain(|bytes| !Arc::ptr_eq(bytes, &self.bytes));
    }
}
