//! Reads of the peer's memory, which this process has mapped: copies, made by the endpoint's own task and by helper
//! threads.
//!
//! One core copies at a third to a half of the memory bandwidth of even a small machine. So several threads make large
//! copies: the endpoint's task as it polls, piece by piece, and the threads of a [`CopyPool`], which all endpoints of a
//! fabric share. The threads sleep until an endpoint has enough work for them.

mod interleave;
mod pool;
mod prefault;
mod queue;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::task::Waker;

pub use pool::CopyPool;
pub use prefault::Prefault;
use queue::Copy;
pub use queue::{CopyQueue, End, Reports};

/// Shorter reads are copied at once: they take less time than it takes to share them.
pub const SHORTEST: u64 = 4 << 10;
/// Bytes in the queue per helper that is woken. Waking a thread takes as long as copying some hundred KiB.
const BYTES_PER_HELPER: usize = 2 << 20;

/// Copies `len` bytes at once. An aligned word of eight bytes does not tear, and is read after everything that was
/// copied before: a lease word is.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of `len` bytes, and the two do not overlap. The peer may write at
/// `from` meanwhile.
pub unsafe fn copy_at_once(from: *const u8, to: *mut u8, len: usize) {
    fence(Ordering::Acquire);
    if len == 8 && from.cast::<u64>().is_aligned() {
        // SAFETY: the caller's promise; aligned, as was just checked. The peer writes the word atomically.
        let word = unsafe { AtomicU64::from_ptr(from.cast::<u64>().cast_mut()) }.load(Ordering::Relaxed);
        // Not an acquiring load: of read-only memory the standard library allows relaxed loads only.
        fence(Ordering::Acquire);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<u64>().write_unaligned(word) };
    } else {
        // SAFETY: the caller's promise.
        unsafe { from.copy_to_nonoverlapping(to, len) };
    }
}

/// The copies of one endpoint.
pub struct Copies {
    pool: Arc<CopyPool>,
    queue: Arc<CopyQueue>,
    /// The copies that this thread is making.
    making: Vec<Copy>,
}

impl Copies {
    /// The copies of an endpoint, which learns from `reports` that operations have ended.
    pub fn new(pool: &Arc<CopyPool>, reports: &Arc<Reports>) -> Self {
        let queue = Arc::new(CopyQueue::new(reports));
        Copies { pool: pool.clone(), queue, making: Vec::new() }
    }

    /// Has `len` bytes copied, and the operation reported once that is done.
    ///
    /// # Safety
    /// Until the operation is reported, `from` is valid for reads and `to` for writes of `len` bytes, the two do not
    /// overlap, and no other code accesses the bytes at `to`. (The peer may write at `from` meanwhile, as it may under
    /// any one-sided read: the bytes are looked at only after its lease was proven.)
    pub unsafe fn post(&self, operation: u64, from: *const u8, to: *mut u8, len: usize) {
        let call = {
            let mut state = self.queue.lock();
            state.waiting.push_back(Copy { operation, from, to, len });
            state.waiting_bytes += len;
            // The helpers that were woken before take their share of the queue.
            let call =
                state.helpers < self.pool.most() && state.waiting_bytes >= BYTES_PER_HELPER * (state.helpers + 1);
            state.helpers += usize::from(call);
            call
        };
        if call && !self.pool.wake_helper(&self.queue) {
            self.queue.lock().helpers -= 1;
        }
    }

    /// Makes a copy on this thread, or several short ones. `false` if none waits.
    pub fn make_some(&mut self) -> bool {
        let begun = self.queue.lock().begin_some(&mut self.making);
        if begun {
            self.queue.make(&mut self.making);
        }
        begun
    }

    /// Wakes `waker` when a helper has made a copy. Returns whether any copy is being made; if not, all were reported.
    pub fn wait(&self, waker: &Waker) -> bool {
        let mut state = self.queue.lock();
        let waits = state.underway > 0;
        if waits && state.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        waits
    }

    /// Reports the copies that no thread has begun as cancelled.
    pub fn cancel(&self) {
        self.queue.cancel();
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.queue.lock();
        f.debug_struct("Copies").field("waiting", &state.waiting.len()).field("underway", &state.underway).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// A length that is taken alone, and one of which several are taken at a time.
    const LENGTHS: [usize; 2] = [256 << 10, 5 << 10];
    /// Enough for several helpers to be woken.
    const BYTES: usize = 16 << 20;

    struct Counter(AtomicUsize, thread::Thread);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.unpark();
        }
    }

    /// Copies `pieces` pieces of `len` bytes with `helpers` helpers, as an endpoint does. Returns the results in the
    /// order of their reports.
    fn copied(helpers: usize, pieces: usize, len: usize, cancel_after: usize) -> (Vec<u8>, Vec<(u64, End)>) {
        let from: Vec<u8> = (0..pieces * len).map(|i| (i / 7) as u8).collect();
        let mut to = vec![0; from.len()];
        let (pool, reports) = (CopyPool::new(helpers), Arc::new(Reports::default()));
        let mut copies = Copies::new(&pool, &reports);
        let base = to.as_mut_ptr();
        for piece in 0..pieces {
            // SAFETY: both live until every operation was reported, below; the pieces are disjoint, and `to` is not
            // touched before.
            unsafe { copies.post(piece as u64, from[piece * len..].as_ptr(), base.add(piece * len), len) };
        }
        let waker = Waker::from(Arc::new(Counter(AtomicUsize::new(0), thread::current())));
        let began = Instant::now();
        let mut ended = Vec::new();
        while ended.len() < pieces {
            assert!(began.elapsed() < Duration::from_secs(20), "{copies:?} with {helpers} helpers, reported {ended:?}");
            ended.append(&mut reports.take());
            if ended.len() >= cancel_after {
                copies.cancel();
            }
            if !copies.make_some() && copies.wait(&waker) {
                thread::park_timeout(Duration::from_secs(1));
            }
        }
        (to, ended)
    }

    #[test]
    fn every_piece_is_copied_and_reported_once_however_many_help() {
        for (helpers, len) in [0, 1, 4].into_iter().flat_map(|helpers| LENGTHS.map(|len| (helpers, len))) {
            let (to, mut ended) = copied(helpers, BYTES / len, len, usize::MAX);
            assert!(to.iter().enumerate().all(|(i, &byte)| byte == (i / 7) as u8), "with {helpers} helpers");
            ended.sort_by_key(|&(operation, _)| operation);
            let expected: Vec<_> = (0..(BYTES / len) as u64).map(|operation| (operation, End::Done)).collect();
            assert_eq!(ended, expected, "with {helpers} helpers");
        }
    }

    #[test]
    fn copies_that_no_thread_has_begun_can_be_cancelled_and_are_reported() {
        for (helpers, len) in [0, 2].into_iter().flat_map(|helpers| LENGTHS.map(|len| (helpers, len))) {
            let (to, ended) = copied(helpers, BYTES / len, len, 1);
            let mut operations: Vec<_> = ended.iter().map(|&(operation, _)| operation).collect();
            operations.sort_unstable();
            assert_eq!(operations, (0..(BYTES / len) as u64).collect::<Vec<_>>(), "with {helpers} helpers");
            assert!(ended.iter().any(|&(_, end)| end == End::Cancelled), "with {helpers} helpers");
            for (operation, end) in ended {
                let at = operation as usize * len;
                let copied = to[at..at + len].iter().enumerate().all(|(i, &byte)| byte == ((at + i) / 7) as u8);
                assert_eq!(copied, end == End::Done, "piece {operation} with {helpers} helpers");
            }
        }
    }

    #[test]
    fn helpers_are_woken_for_long_queues_only_and_end_with_their_fabric() {
        let (pool, reports) = (CopyPool::new(3), Arc::new(Reports::default()));
        let copies = Copies::new(&pool, &reports);
        let from = vec![1; BYTES_PER_HELPER];
        let mut to = vec![0; BYTES_PER_HELPER];
        // SAFETY: alive until reported, and not touched.
        unsafe { copies.post(1, from.as_ptr(), to.as_mut_ptr(), BYTES_PER_HELPER - 1) };
        assert_eq!(pool.threads(), 0, "for what this thread does sooner");
        // SAFETY: as above, the last byte.
        unsafe { copies.post(2, from[BYTES_PER_HELPER - 1..].as_ptr(), to.as_mut_ptr().add(BYTES_PER_HELPER - 1), 1) };
        assert_eq!(pool.threads(), 1);
        let began = Instant::now();
        let mut ended = 0;
        while ended < 2 {
            ended += reports.take().len();
            assert!(began.elapsed() < Duration::from_secs(20), "{copies:?}");
            thread::yield_now();
        }
        assert_eq!(to, from);
        let calls = pool.watch();
        drop((copies, pool));
        while calls.upgrade().is_some() {
            assert!(began.elapsed() < Duration::from_secs(20), "a helper outlives its fabric");
            thread::yield_now();
        }
    }
}
