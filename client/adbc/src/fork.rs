//! Values that a forked child must not touch.
//!
//! A child has the memory of its parent, but none of its threads: a lock may be held by a thread that does not exist,
//! and the sockets are shared. So every use in a child is an error, and a drop in a child leaks.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use adbc_core::error::{Error, Result};
use thallus_fabric::memory::process_id;

use crate::error::invalid_state;

/// The process that first connected. Its children inherit global state of the fabrics, without the threads.
static FIRST: AtomicU32 = AtomicU32::new(0);

/// Declares that this process connects.
///
/// # Errors
/// This process is a child of one that has connected.
pub(crate) fn enter() -> Result<()> {
    let own = process_id();
    match FIRST.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(()),
        Err(first) if first == own => Ok(()),
        Err(first) => Err(forked(first)),
    }
}

fn forked(parent: u32) -> Error {
    invalid_state(format!(
        "this process was forked from process {parent}, which uses Thallus, and has none of its threads; connect only \
         in the child, or start it anew (Python: multiprocessing.set_start_method(\"spawn\"))"
    ))
}

/// A value that is used and dropped only in the process that made it.
pub(crate) struct Anchored<T> {
    /// `None` only within the drop.
    value: Option<T>,
    process: u32,
}

impl<T> Anchored<T> {
    pub(crate) fn new(value: T) -> Self {
        Anchored { value: Some(value), process: process_id() }
    }

    /// # Errors
    /// This is another process.
    pub(crate) fn get(&self) -> Result<&T> {
        self.value.as_ref().filter(|_| self.is_at_home()).ok_or_else(|| forked(self.process))
    }

    /// # Errors
    /// This is another process.
    pub(crate) fn get_mut(&mut self) -> Result<&mut T> {
        let (process, is_at_home) = (self.process, self.is_at_home());
        self.value.as_mut().filter(|_| is_at_home).ok_or_else(|| forked(process))
    }

    fn is_at_home(&self) -> bool {
        process_id() == self.process
    }
}

impl<T> Drop for Anchored<T> {
    fn drop(&mut self) {
        if !self.is_at_home() {
            std::mem::forget(self.value.take());
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Anchored<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anchored").field("value", &self.value).field("process", &self.process).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use adbc_core::error::Status;

    use super::*;

    /// A value as it is found in a child of its process.
    fn inherited<T>(value: T) -> Anchored<T> {
        Anchored { value: Some(value), process: process_id().wrapping_add(1) }
    }

    #[test]
    fn another_process_gets_an_error_and_leaks_the_value() {
        let value = Arc::new(());
        let mut found = inherited(Arc::clone(&value));
        assert_eq!(found.get().unwrap_err().status, Status::InvalidState);
        assert_eq!(found.get_mut().unwrap_err().status, Status::InvalidState);
        drop(found);
        assert_eq!(Arc::strong_count(&value), 2);
    }

    #[test]
    fn the_own_process_uses_and_drops_the_value() {
        let value = Arc::new(());
        let mut own = Anchored::new(Arc::clone(&value));
        assert!(own.get().is_ok() && own.get_mut().is_ok());
        drop(own);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
