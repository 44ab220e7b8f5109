//! Ctrl-C and SIGTERM: the first requests a clean stop, the second ends the process immediately.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::exit::leave;
use super::failure::{Failure, Interrupt};

/// Notifies its clones when the user requests a stop.
#[derive(Clone, Debug)]
pub struct Interrupts {
    seen: watch::Receiver<Option<Interrupt>>,
}

impl Interrupts {
    /// Watches a channel, whose value is set when the user requests a stop.
    #[must_use]
    pub fn new(seen: watch::Receiver<Option<Interrupt>>) -> Self {
        Interrupts { seen }
    }

    /// Installs handlers for a program that goes on after SIGINT, which stops the work that runs. SIGTERM ends the
    /// process; SIGINT too, if the program does not go on. The sender makes the program ready for the next SIGINT: send
    /// `None`. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn install_repeated(goes_on: bool) -> io::Result<(Self, watch::Sender<Option<Interrupt>>)> {
        Self::handle(move |_, now| now == Interrupt::Terminate || !goes_on)
    }

    /// Installs handlers for SIGINT and SIGTERM. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn install() -> io::Result<Self> {
        Self::handle(|before, _| before.is_some()).map(|(interrupts, _ready)| interrupts)
    }

    /// Installs handlers. `ends` decides by the stop before and by this one whether the process ends at once.
    fn handle(
        ends: impl Fn(Option<Interrupt>, Interrupt) -> bool + Send + 'static,
    ) -> io::Result<(Self, watch::Sender<Option<Interrupt>>)> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (tell, seen) = watch::channel(None);
        let ready = tell.clone();
        tokio::spawn(async move {
            loop {
                let now = tokio::select! {
                    Some(()) = interrupt.recv() => Interrupt::CtrlC,
                    Some(()) = terminate.recv() => Interrupt::Terminate,
                    else => return,
                };
                let before = *tell.borrow();
                if ends(before, now) {
                    leave(Failure::Interrupted(now).exit_code());
                }
                tell.send_replace(Some(now));
            }
        });
        Ok((Interrupts::new(seen), ready))
    }

    /// Returns when the user requests a stop, immediately if that has already happened.
    pub async fn wait(&mut self) -> Interrupt {
        match self.seen.wait_for(Option::is_some).await.map(|seen| *seen) {
            Ok(Some(interrupt)) => interrupt,
            // The sender is dropped, so no interrupt can arrive.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Runs a future until it completes or the user requests a stop. A stop drops the future, which cancels its work.
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
