//! Failures to accept a connection: for want of descriptors or memory, or because the peer has gone. All are temporary.

use std::io;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// Pause after the first of several failures. Without descriptors, the connection stays in the queue, and each attempt
/// would fail at once.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// Interval between lines of the log.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Consecutive failures to accept: longer and longer pauses, and at most one line of the log a second.
#[derive(Debug)]
pub(crate) struct AcceptFailures {
    pause: Duration,
    logged: Option<Instant>,
    /// Failures since the last line of the log.
    unlogged: u64,
}

impl AcceptFailures {
    pub(crate) fn new() -> Self {
        AcceptFailures { pause: FIRST_PAUSE, logged: None, unlogged: 0 }
    }

    /// A connection was accepted.
    pub(crate) fn succeeded(&mut self) {
        self.pause = FIRST_PAUSE;
    }

    /// Reports a failure. Returns the time to wait before the next attempt.
    pub(crate) fn failed(&mut self, error: &io::Error) -> Duration {
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            warn!(%error, others = self.unlogged, "a connection could not be accepted: it waits");
            (self.logged, self.unlogged) = (Some(Instant::now()), 0);
        } else {
            self.unlogged += 1;
        }
        let pause = self.pause;
        self.pause = (2 * pause).min(MAX_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_the_log_has_one_line_a_second() {
        let (began, mut failures) = (Instant::now(), AcceptFailures::new());
        // EMFILE
        let error = io::Error::from_raw_os_error(24);
        let (mut attempts, mut lines) = (0, 0);
        while began.elapsed() < Duration::from_secs(10) {
            let pause = failures.failed(&error);
            attempts += 1;
            lines += u32::from(failures.unlogged == 0);
            assert!((FIRST_PAUSE..=MAX_PAUSE).contains(&pause));
            tokio::time::sleep(pause).await;
        }
        assert!((20..30).contains(&attempts), "{attempts} attempts");
        assert!((9..=11).contains(&lines), "{lines} lines");
        failures.succeeded();
        assert_eq!(failures.failed(&error), FIRST_PAUSE);
    }
}
