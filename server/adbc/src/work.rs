//! Work in a driver, which blocks: on a thread of its own, and cancelled when its result is no longer wanted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use adbc_core::{CancelHandle, Connection, Statement};
use adbc_driver_manager::{ManagedConnection, ManagedStatement};
use futures::FutureExt;
use thallus_server::engine::EngineError;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::error;

/// The first pause between two attempts to cancel. A driver forgets a cancellation that comes before its work.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The name of the threads that cancel.
const CANCELLING_THREAD: &str = "adbc-cancel";

/// Ends the work of a thread from another one.
#[derive(Default)]
pub(crate) struct Cancel {
    /// The statement that runs, and its connection.
    handles: Mutex<Vec<Box<dyn CancelHandle>>>,
    cancelled: AtomicBool,
    ended: AtomicBool,
}

impl Cancel {
    /// Has cancellations reach this statement.
    pub(crate) fn arm(&self, connection: &ManagedConnection, statement: &ManagedStatement) {
        let handles = vec![statement.get_cancel_handle(), connection.get_cancel_handle()];
        *self.handles.lock().unwrap_or_else(PoisonError::into_inner) = handles;
    }

    /// # Errors
    /// The work is cancelled.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        match self.cancelled.load(Ordering::Acquire) {
            true => Err(EngineError::Execution { message: "cancelled".to_owned() }),
            false => Ok(()),
        }
    }

    /// Lets no later cancellation reach the statement or its connection. Returns false if one may be on the way.
    pub(crate) fn disarm(&self) -> bool {
        let mut handles = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        handles.clear();
        self.check().is_ok()
    }

    /// Cancels what runs. Returns false if the driver cannot.
    fn once(&self) -> bool {
        // Not under the lock: the driver may take long, and the work arms another statement.
        let handles = std::mem::take(&mut *self.handles.lock().unwrap_or_else(PoisonError::into_inner));
        let mut able = handles.is_empty();
        for handle in &handles {
            match handle.try_cancel() {
                Err(error) if error::is_missing(&error) => {}
                Ok(()) => {
                    able = true;
                    break;
                }
                Err(error) => {
                    debug!(%error, "a cancellation failed");
                    able = true;
                }
            }
        }
        let mut now = self.handles.lock().unwrap_or_else(PoisonError::into_inner);
        if now.is_empty() {
            *now = handles;
        }
        able
    }

    /// Cancels until the work has ended.
    fn until_ended(&self) {
        let mut pause = FIRST_PAUSE;
        while !self.ended.load(Ordering::Acquire) {
            if !self.once() {
                debug!("the driver cannot cancel: the statement ends when the driver returns");
                return;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Marks the end of the work, also if it panics.
struct Ended(Arc<Cancel>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

/// Work on a thread. Dropping it cancels the work; the thread ends soon after.
pub(crate) struct Work {
    thread: JoinHandle<()>,
    cancel: Arc<Cancel>,
}

impl Work {
    /// Starts `work`.
    pub(crate) fn start(work: impl FnOnce(&Cancel) + Send + 'static) -> Self {
        let cancel = Arc::new(Cancel::default());
        let ended = Ended(Arc::clone(&cancel));
        let thread = tokio::task::spawn_blocking(move || {
            work(&ended.0);
            drop(ended);
        });
        Work { thread, cancel }
    }

    /// The end of the thread: `None` if it completed, else the error.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<EngineError>> {
        let end = ready!(self.thread.poll_unpin(cx));
        let message = |e: tokio::task::JoinError| match e.is_panic() {
            true => "the thread of the driver panicked; see the server's log".to_owned(),
            false => "the server is shutting down".to_owned(),
        };
        Poll::Ready(end.err().map(|e| EngineError::Internal { message: message(e) }))
    }

    /// Waits until the work has sent its answer.
    pub(crate) async fn answer<T>(
        &mut self,
        answer: oneshot::Receiver<Result<T, EngineError>>,
    ) -> Result<T, EngineError> {
        if let Ok(answer) = answer.await {
            return answer;
        }
        let end = std::future::poll_fn(|cx| self.poll_end(cx)).await;
        Err(end.unwrap_or_else(|| EngineError::Internal { message: "the driver's work has no result".to_owned() }))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.cancel.ended.load(Ordering::Acquire) {
            return;
        }
        self.cancel.cancelled.store(true, Ordering::Release);
        let cancel = Arc::clone(&self.cancel);
        // Not on this thread, which belongs to the server's tasks: some drivers open a connection to cancel.
        let spawned = thread::Builder::new().name(CANCELLING_THREAD.to_owned()).spawn(move || cancel.until_ended());
        if let Err(error) = spawned {
            warn!(%error, "cannot start a thread: a statement is not cancelled, and ends by itself");
        }
    }
}

/// Runs `work` on a thread, and returns its result. Dropping the future cancels the work.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce(&Cancel) -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    let (sender, answer) = oneshot::channel();
    let mut work = Work::start(move |cancel| {
        // The receiver may be dropped.
        let _gone = sender.send(work(cancel));
    });
    work.answer(answer).await
}
