//! Cancelling from another thread.

use std::sync::Arc;

use adbc_core::CancelHandle;
use adbc_core::error::Result;
use tokio::sync::watch;

use crate::fork::Anchored;

/// Cancels the operations that run when it is called: those of one statement, or of a connection and its statements.
#[derive(Clone, Debug)]
pub(crate) struct Cancel(Arc<Anchored<watch::Sender<u64>>>);

impl Cancel {
    pub(crate) fn new() -> Self {
        Cancel(Arc::new(Anchored::new(watch::Sender::new(0))))
    }

    /// Notices cancels from now on.
    ///
    /// # Errors
    /// This is a forked child.
    pub(crate) fn watch(&self) -> Result<watch::Receiver<u64>> {
        Ok(self.0.get()?.subscribe())
    }

    /// Cancels.
    ///
    /// # Errors
    /// This is a forked child.
    pub(crate) fn cancel(&self) -> Result<()> {
        self.0.get()?.send_modify(|number| *number = number.wrapping_add(1));
        Ok(())
    }
}

impl CancelHandle for Cancel {
    fn try_cancel(&self) -> Result<()> {
        self.cancel()
    }
}

/// The cancels that concern one operation.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Of its statement and its connection.
    receivers: [Option<watch::Receiver<u64>>; 2],
}

impl Watch {
    /// Notices cancels of these from now on.
    ///
    /// # Errors
    /// This is a forked child.
    pub(crate) fn new(connection: &Cancel, statement: Option<&Cancel>) -> Result<Self> {
        Ok(Watch { receivers: [Some(connection.watch()?), statement.map(Cancel::watch).transpose()?] })
    }

    /// Returns once the operation is cancelled.
    pub(crate) async fn cancelled(&mut self) {
        let [connection, statement] = &mut self.receivers;
        tokio::select! {
            () = cancelled_by(connection) => {}
            () = cancelled_by(statement) => {}
        }
    }
}

async fn cancelled_by(receiver: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = receiver
        && receiver.changed().await.is_ok()
    {
        return;
    }
    // The statement or the connection object was dropped, so nothing cancels any more.
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_cancel_ends_what_runs_and_nothing_later() {
        let (connection, statement) = (Cancel::new(), Cancel::new());
        let mut running = Watch::new(&connection, Some(&statement)).unwrap();
        let mut other = Watch::new(&connection, None).unwrap();
        assert!(running.cancelled().now_or_never().is_none());
        statement.cancel().unwrap();
        assert!(running.cancelled().now_or_never().is_some());
        assert!(other.cancelled().now_or_never().is_none());
        let mut later = Watch::new(&connection, Some(&statement)).unwrap();
        assert!(later.cancelled().now_or_never().is_none());
        connection.cancel().unwrap();
        assert!(later.cancelled().now_or_never().is_some() && other.cancelled().now_or_never().is_some());
    }

    #[test]
    fn dropped_objects_cancel_nothing() {
        let (connection, statement) = (Cancel::new(), Cancel::new());
        let mut running = Watch::new(&connection, Some(&statement)).unwrap();
        drop((connection, statement));
        assert!(running.cancelled().now_or_never().is_none());
    }
}
