//! Ctrl-C and SIGTERM: the first asks to stop and to clean up, the second ends the process there and then.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::failure::{Failure, Interrupt};

/// Tells, in as many places as need it, that the user wants to stop.
#[derive(Clone, Debug)]
pub struct Interrupts {
    seen: watch::Receiver<Option<Interrupt>>,
}

impl Interrupts {
    /// Listens to a channel, in which there is something once the user wants to stop.
    #[must_use]
    pub fn new(seen: watch::Receiver<Option<Interrupt>>) -> Self {
        Interrupts { seen }
    }

    /// Takes over SIGINT and SIGTERM from now on, within a tokio runtime.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn install() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (tell, seen) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let now = tokio::select! {
                    Some(()) = interrupt.recv() => Interrupt::CtrlC,
                    Some(()) = terminate.recv() => Interrupt::Terminate,
                    else => return,
                };
                if tell.borrow().is_some() {
                    super::leave(Failure::Interrupted(now).exit_code());
                }
                tell.send_replace(Some(now));
            }
        });
        Ok(Interrupts::new(seen))
    }

    /// Ends when the user wants to stop, at once if that was already so.
    pub async fn wait(&mut self) -> Interrupt {
        match self.seen.wait_for(Option::is_some).await.map(|seen| *seen) {
            Ok(Some(interrupt)) => interrupt,
            // Whoever would tell is gone, so there will be none.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Runs a future unless the user wants to stop; then it is dropped, which cancels what it did.
    ///
    /// # Errors
    /// [`Failure::Interrupted`].
    pub async fn unless<F: Future>(&mut self, work: F) -> Result<F::Output, Failure> {
        tokio::select! {
            biased;
            interrupt = self.wait() => Err(Failure::Interrupted(interrupt)),
            output = work => Ok(output),
        }
    }
}
