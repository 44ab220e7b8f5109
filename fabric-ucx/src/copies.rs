//! Reads of memory of the peer that this process has mapped: copies, made by the endpoint's own thread and by helpers
//! beside it.
//!
//! UCX could read it too, but its way depends on its version: a `memcpy` within the call up to 1.15, messages that the
//! lender answers from 1.16 on (`ucp_get_nbx` over `sysv` and `posix` is software emulation in the new protocols). And
//! one core copies a third to a half of what the memory of even a small machine gives, so where much is to be copied,
//! several threads do it: the endpoint as it is polled, piece by piece, and the threads of a [`CopyPool`] that its
//! fabric has for all of its endpoints. They sleep until somebody has enough for them to do.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;

use ucx_sys::ucs_status_t;

use crate::operations::Shared;
use crate::{MAX_READ, interleave};

/// Shorter reads are copied at once: they take less time than it takes to share them.
pub(crate) const SHORTEST: u64 = 4 << 10;
/// Short pieces are made several at a time, up to so many bytes.
const BITE: usize = 64 << 10;
/// Bytes that wait before a helper is called. Waking a thread takes as long as copying some hundred KiB.
const WORTH_A_CALL: usize = 2 << 20;
// What a helper is called for is several pieces.
const _: () = assert!(WORTH_A_CALL as u64 >= 8 * MAX_READ);

/// A piece to be copied.
struct Copy {
    operation: u64,
    from: *const u8,
    to: *mut u8,
    len: usize,
}

// SAFETY: pointers that whoever posted the copy vouches for until it is reported, on whatever thread
// ([`Copies::post`]).
unsafe impl Send for Copy {}

/// Copies `len` bytes at once. An aligned word of eight bytes does not tear, and is read after everything that was
/// copied before: a lease word is.
///
/// # Safety
/// `from` is valid for reads and `to` for writes of `len` bytes, and the two do not overlap. The peer may write at
/// `from` meanwhile.
pub(crate) unsafe fn copy_at_once(from: *const u8, to: *mut u8, len: usize) {
    fence(Ordering::Acquire);
    if len == 8 && from.cast::<u64>().is_aligned() {
        // SAFETY: the caller's promise; aligned, as was just checked. The peer writes the word atomically.
        let word = unsafe { AtomicU64::from_ptr(from.cast::<u64>().cast_mut()) }.load(Ordering::Acquire);
        // SAFETY: the caller's promise.
        unsafe { to.cast::<u64>().write_unaligned(word) };
    } else {
        // SAFETY: the caller's promise.
        unsafe { from.copy_to_nonoverlapping(to, len) };
    }
}

/// The copies of one endpoint.
pub(crate) struct Copies {
    pool: Arc<CopyPool>,
    queue: Arc<CopyQueue>,
    /// Those that this thread is making.
    making: Vec<Copy>,
}

/// Where copies lie until somebody makes them.
struct CopyQueue {
    shared: Arc<Shared>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Copy>,
    waiting_bytes: usize,
    /// Copies that somebody is making.
    underway: usize,
    /// Helpers that were called and have not left.
    helpers: usize,
    /// The endpoint's, which has nothing to do itself.
    waker: Option<Waker>,
}

impl Copies {
    /// For an endpoint that hears through `shared` which operations have ended.
    pub(crate) fn new(pool: &Arc<CopyPool>, shared: &Arc<Shared>) -> Self {
        let queue = Arc::new(CopyQueue { shared: shared.clone(), state: Mutex::default() });
        Copies { pool: pool.clone(), queue, making: Vec::new() }
    }

    /// Has `len` bytes copied, and the operation reported once that is done.
    ///
    /// # Safety
    /// Until the operation is reported, `from` is valid for reads and `to` for writes of `len` bytes, the two do not
    /// overlap, and nobody else touches what is at `to`. (The peer may write at `from` meanwhile, as it may under any
    /// one-sided read: the bytes are looked at only after its lease was proven.)
    pub(crate) unsafe fn post(&self, operation: u64, from: *const u8, to: *mut u8, len: usize) {
        let call = {
            let mut state = self.queue.lock();
            state.waiting.push_back(Copy { operation, from, to, len });
            state.waiting_bytes += len;
            // Those who have been called will take their share of what lies here.
            let call = state.helpers < self.pool.most && state.waiting_bytes >= WORTH_A_CALL * (state.helpers + 1);
            state.helpers += usize::from(call);
            call
        };
        if call && !self.pool.call(&self.queue) {
            self.queue.lock().helpers -= 1;
        }
    }

    /// Makes a copy on this thread, or several short ones. `false` if none waits.
    pub(crate) fn make_some(&mut self) -> bool {
        let begun = self.queue.lock().begin_some(&mut self.making);
        if begun {
            self.queue.make(&mut self.making);
        }
        begun
    }

    /// Has `waker` woken when a helper has made a copy. Whether any is under way: else all have been reported.
    pub(crate) fn wait(&self, waker: &Waker) -> bool {
        let mut state = self.queue.lock();
        let waits = state.underway > 0;
        if waits && state.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        waits
    }

    /// Reports what nobody has begun as cancelled.
    pub(crate) fn cancel(&self) {
        let cancelled = {
            let mut state = self.queue.lock();
            state.waiting_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        for copy in cancelled {
            self.queue.shared.ended(copy.operation, ucs_status_t::UCS_ERR_CANCELED);
        }
    }
}

impl State {
    /// Moves those that have waited longest to `making`, as under way. `false` if none waits.
    fn begin_some(&mut self, making: &mut Vec<Copy>) -> bool {
        let mut bytes = 0;
        while bytes < BITE
            && let Some(copy) = self.waiting.pop_front()
        {
            bytes += copy.len;
            making.push(copy);
        }
        self.waiting_bytes -= bytes;
        self.underway += making.len();
        !making.is_empty()
    }
}

impl CopyQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes copies until none waits, then leaves.
    fn help(&self) {
        let mut making = Vec::new();
        loop {
            let mut state = self.lock();
            if !state.begin_some(&mut making) {
                // Under the same lock: what is posted from here on calls somebody anew.
                state.helpers -= 1;
                return;
            }
            drop(state);
            self.make(&mut making);
        }
    }

    fn make(&self, copies: &mut Vec<Copy>) {
        for copy in &*copies {
            // SAFETY: what `post` demands holds until the report below.
            unsafe { interleave::copy(copy.from, copy.to, copy.len) };
        }
        // Under the lock that `wait` takes: who finds nothing under way finds the report.
        let waker = {
            let mut state = self.lock();
            self.shared.all_ended(copies.iter().map(|copy| copy.operation));
            state.underway -= copies.len();
            state.waker.take()
        };
        copies.clear();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.queue.lock();
        f.debug_struct("Copies").field("waiting", &state.waiting.len()).field("underway", &state.underway).finish()
    }
}

/// The helpers of one fabric: threads that are begun as they are needed, and end with the fabric.
#[derive(Debug)]
pub(crate) struct CopyPool {
    most: usize,
    calls: Arc<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    state: Mutex<PoolState>,
    somebody: Condvar,
}

#[derive(Default)]
struct PoolState {
    calls: VecDeque<Arc<CopyQueue>>,
    idle: usize,
    threads: usize,
    closed: bool,
}

impl CopyPool {
    /// A pool of at most so many. None of them is there yet.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(CopyPool { most, calls: Arc::default() })
    }

    /// Sends somebody there. `false` if there is nobody, nor can be.
    fn call(&self, queue: &Arc<CopyQueue>) -> bool {
        let mut state = self.calls.lock();
        if state.idle <= state.calls.len() && state.threads < self.most {
            let calls = self.calls.clone();
            match thread::Builder::new().name("thallus-copy".into()).spawn(move || calls.answer()) {
                Ok(_detached) => state.threads += 1,
                Err(error) => tracing::debug!(%error, "no thread that helps to copy can be begun"),
            }
        }
        if state.threads == 0 {
            return false;
        }
        state.calls.push_back(queue.clone());
        self.calls.somebody.notify_one();
        true
    }
}

impl Drop for CopyPool {
    fn drop(&mut self) {
        self.calls.lock().closed = true;
        self.calls.somebody.notify_all();
    }
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper's life.
    fn answer(&self) {
        let mut state = self.lock();
        loop {
            // Also once the fabric is gone: nobody else takes a called helper off its queue.
            while let Some(queue) = state.calls.pop_front() {
                drop(state);
                queue.help();
                state = self.lock();
            }
            if state.closed {
                return;
            }
            state.idle += 1;
            state = self.somebody.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl fmt::Debug for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolState").field("threads", &self.threads).field("idle", &self.idle).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::{Duration, Instant};

    use super::*;

    /// One that is made alone, and one of which several are.
    const LENGTHS: [usize; 2] = [256 << 10, 5 << 10];
    /// Enough for several helpers to be called.
    const BYTES: usize = 16 << 20;

    struct Counter(AtomicUsize, thread::Thread);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            self.1.unpark();
        }
    }

    /// Copies `pieces` pieces of `len` with so many helpers, as an endpoint does; what came of them, in the order of
    /// their reports.
    fn copied(helpers: usize, pieces: usize, len: usize, cancel_after: usize) -> (Vec<u8>, Vec<(u64, ucs_status_t)>) {
        let from: Vec<u8> = (0..pieces * len).map(|i| (i / 7) as u8).collect();
        let mut to = vec![0; from.len()];
        let (pool, shared) = (CopyPool::new(helpers), Arc::new(Shared::default()));
        let mut copies = Copies::new(&pool, &shared);
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
            ended.append(&mut shared.take_ended());
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
            let expected: Vec<_> =
                (0..(BYTES / len) as u64).map(|operation| (operation, ucs_status_t::UCS_OK)).collect();
            assert_eq!(ended, expected, "with {helpers} helpers");
        }
    }

    #[test]
    fn what_nobody_has_begun_can_be_cancelled_and_is_reported_too() {
        for (helpers, len) in [0, 2].into_iter().flat_map(|helpers| LENGTHS.map(|len| (helpers, len))) {
            let (to, ended) = copied(helpers, BYTES / len, len, 1);
            let mut operations: Vec<_> = ended.iter().map(|&(operation, _)| operation).collect();
            operations.sort_unstable();
            assert_eq!(operations, (0..(BYTES / len) as u64).collect::<Vec<_>>(), "with {helpers} helpers");
            assert!(
                ended.iter().any(|&(_, status)| status == ucs_status_t::UCS_ERR_CANCELED),
                "with {helpers} helpers"
            );
            for (operation, status) in ended {
                let at = operation as usize * len;
                let copied = to[at..at + len].iter().enumerate().all(|(i, &byte)| byte == ((at + i) / 7) as u8);
                assert_eq!(copied, status == ucs_status_t::UCS_OK, "piece {operation} with {helpers} helpers");
            }
        }
    }

    #[test]
    fn helpers_are_called_for_much_only_and_end_with_their_fabric() {
        let (pool, shared) = (CopyPool::new(3), Arc::new(Shared::default()));
        let copies = Copies::new(&pool, &shared);
        let from = vec![1; WORTH_A_CALL];
        let mut to = vec![0; WORTH_A_CALL];
        // SAFETY: alive until reported, and not touched.
        unsafe { copies.post(1, from.as_ptr(), to.as_mut_ptr(), WORTH_A_CALL - 1) };
        assert_eq!(pool.calls.lock().threads, 0, "for what this thread does sooner");
        // SAFETY: as above, the last byte.
        unsafe { copies.post(2, from[WORTH_A_CALL - 1..].as_ptr(), to.as_mut_ptr().add(WORTH_A_CALL - 1), 1) };
        assert_eq!(pool.calls.lock().threads, 1);
        let began = Instant::now();
        let mut ended = 0;
        while ended < 2 {
            ended += shared.take_ended().len();
            assert!(began.elapsed() < Duration::from_secs(20), "{copies:?}");
            thread::yield_now();
        }
        assert_eq!(to, from);
        let calls = Arc::downgrade(&pool.calls);
        drop((copies, pool));
        while calls.upgrade().is_some() {
            assert!(began.elapsed() < Duration::from_secs(20), "a helper outlives its fabric");
            thread::yield_now();
        }
    }
}
