//! Buffers that keep another value alive.

use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow_buffer::Buffer;

/// The same bytes, in a buffer that also keeps `guard`. When its last slice is dropped, first the given buffer is
/// dropped, then the guard. For memory of a peer: the drop of the guard reports to the peer that its memory is free
/// again.
#[must_use]
pub fn buffer_with_guard<G: Send + Sync + 'static>(buffer: Buffer, guard: G) -> Buffer {
    struct Kept<G> {
        // Fields are dropped in the order of their declaration.
        _buffer: Buffer,
        _guard: G,
    }
    let (start, len) = (buffer.as_ptr(), buffer.len());
    // Never null, since the pointer of an empty buffer dangles.
    let start = NonNull::new(start.cast_mut()).unwrap_or(NonNull::dangling());
    // Both values are only dropped, even if a panic unwinds past them.
    let owner = Arc::new(AssertUnwindSafe(Kept { _buffer: buffer, _guard: guard }));
    // SAFETY: the bytes are those of a buffer, initialised, valid and unchanged for as long as it lives, which is as
    // long as `owner` does.
    unsafe { Buffer::from_custom_allocation(start, len, owner) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_guard_goes_with_the_last_slice() {
        struct Count(Arc<AtomicUsize>);
        impl Drop for Count {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let dropped = Arc::new(AtomicUsize::new(0));
        let buffer = Buffer::from(vec![1_u8, 2, 3, 4]);
        let kept = buffer_with_guard(buffer.clone(), Count(Arc::clone(&dropped)));
        assert_eq!((kept.as_slice(), kept.as_ptr()), (buffer.as_slice(), buffer.as_ptr()));
        let slice = kept.slice_with_length(1, 2);
        drop((kept, buffer));
        assert_eq!((slice.as_slice(), dropped.load(Ordering::Relaxed)), (&[2_u8, 3][..], 0));
        drop(slice);
        assert_eq!(dropped.load(Ordering::Relaxed), 1);
        assert_eq!(buffer_with_guard(Buffer::from(&[][..]), ()).len(), 0);
    }
}
