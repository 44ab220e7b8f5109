//! Polls only those sources of a task that have been woken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// Wakes a task for one of its sources, and records that this source caused the wake-up.
///
/// Polling an endpoint costs system calls, and most events of a connection do not concern its endpoint. So the endpoint
/// is polled with a waker of its own. It is polled again only after that waker was woken, or after its owner has called
/// one of its methods and then [`ring`](Self::ring).
#[derive(Debug)]
pub struct Doorbell {
    bell: Arc<Bell>,
    waker: Waker,
    /// [`Doorbell::ring`] was called.
    due: bool,
}

#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Default for Doorbell {
    fn default() -> Self {
        Doorbell::new()
    }
}

impl Doorbell {
    /// A doorbell that is due, since its source has not been polled yet.
    #[must_use]
    pub fn new() -> Self {
        let bell = Arc::new(Bell::default());
        Doorbell { waker: Arc::clone(&bell).into(), bell, due: true }
    }

    /// Marks the source as due. Called by the owner, which calls [`Doorbell::answer`] next, so that no task is woken.
    pub fn ring(&mut self) {
        self.due = true;
    }

    /// Whether the source is due. If it is, the caller polls it with [`Doorbell::waker`]. If not, the task of `cx` is
    /// woken when the source becomes due.
    #[must_use]
    pub fn answer(&mut self, cx: &Context<'_>) -> bool {
        {
            let mut task = self.bell.task();
            if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                *task = Some(cx.waker().clone());
            }
        }
        // After the task was stored: a wake-up from here on finds the task.
        self.bell.rung.swap(false, Ordering::AcqRel) | std::mem::take(&mut self.due)
    }

    /// The waker that marks the source as due.
    #[must_use]
    pub fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl Bell {
    fn task(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // If it was due already, the task has been woken already.
        if !self.rung.swap(true, Ordering::AcqRel) {
            let task = self.task().clone();
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_source_is_polled_first_and_then_when_it_has_called() {
        let woken = Arc::new(Count::default());
        let task = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&task);
        let mut bell = Doorbell::new();
        let source = bell.waker().clone();
        assert!(bell.answer(&cx));
        assert!(!bell.answer(&cx));
        source.wake_by_ref();
        source.wake_by_ref();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "a source that is due already wakes no task again");
        assert!(bell.answer(&cx));
        bell.ring();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "a call of `ring` wakes no task");
        assert!(bell.answer(&cx) && !bell.answer(&cx));
    }

    #[test]
    fn the_task_that_asked_last_is_woken() {
        let [first, second] = [Arc::new(Count::default()), Arc::new(Count::default())];
        let mut bell = Doorbell::new();
        for count in [&first, &second] {
            let _first_time = bell.answer(&Context::from_waker(&Waker::from(Arc::clone(count))));
        }
        bell.waker().wake_by_ref();
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
    }

    /// No wake-up is lost between a source that wakes and a task that goes to sleep.
    #[tokio::test]
    async fn no_call_is_lost() {
        const CALLS: usize = 20_000;
        let mut bell = Doorbell::new();
        let (source, called) = (bell.waker().clone(), Arc::new(AtomicUsize::new(0)));
        let heard = Arc::new(AtomicUsize::new(0));
        let (calls, hears) = (Arc::clone(&called), Arc::clone(&heard));
        let caller = std::thread::spawn(move || {
            for call in 1..=CALLS {
                calls.store(call, Ordering::Release);
                source.wake_by_ref();
                while hears.load(Ordering::Acquire) < call {
                    std::thread::yield_now();
                }
            }
        });
        poll_fn(|cx| {
            while bell.answer(cx) {
                heard.store(called.load(Ordering::Acquire), Ordering::Release);
            }
            if heard.load(Ordering::Acquire) == CALLS { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        caller.join().unwrap();
    }
}
