//! Tokio's clock as the machines' timestamps.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use thallus_protocol::Timestamp;
use tokio::time::{Instant, Sleep};

/// Measures the time since its creation, and wakes its task at the next deadline of a machine.
///
/// Most deadlines move later with every message. The timer is not moved then: it expires at its old time and is armed
/// again, because moving a timer costs more than an occasional early wake-up.
#[derive(Debug)]
pub struct Clock {
    epoch: Instant,
    sleep: Pin<Box<Sleep>>,
    /// The time at which `sleep` expires.
    set: Timestamp,
    /// The deadline. Never earlier than `set`.
    armed: Option<Timestamp>,
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl Clock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        let epoch = Instant::now();
        Clock { epoch, sleep: Box::pin(tokio::time::sleep_until(epoch)), set: Timestamp::ZERO, armed: None }
    }

    /// Time since the epoch.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.epoch.elapsed()
    }

    /// Sets the deadline at which [`Clock::poll`] becomes ready. `None` means never.
    pub fn arm(&mut self, deadline: Option<Timestamp>) {
        if let Some(at) = deadline
            && at < self.set
        {
            self.set(at);
        }
        self.armed = deadline;
    }

    /// Ready when the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.armed else { return Poll::Pending };
        ready!(self.sleep.as_mut().poll(cx));
        if at > self.set {
            self.set(at);
            ready!(self.sleep.as_mut().poll(cx));
        }
        self.armed = None;
        Poll::Ready(())
    }

    fn set(&mut self, at: Timestamp) {
        self.sleep.as_mut().reset(self.epoch + Duration::from_nanos(at.as_nanos()));
        self.set = at;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn after(millis: u64) -> Timestamp {
        Timestamp::ZERO + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn a_deadline_that_moves_is_met_where_it_is_in_the_end() {
        let mut clock = Clock::new();
        // The deadline is moved later while the timer is pending, then earlier, then set to the same time.
        for (armed, then) in [(5, 20), (60_000, 30), (40, 40)] {
            clock.arm(Some(after(armed)));
            let _early = poll_fn(|cx| Poll::Ready(clock.poll(cx))).await;
            clock.arm(Some(after(then)));
            poll_fn(|cx| clock.poll(cx)).await;
            assert!(clock.now() >= after(then), "{then}: {:?}", clock.now());
        }
    }

    #[tokio::test]
    async fn without_a_deadline_it_never_wakes_and_one_that_has_passed_is_met_at_once() {
        let mut clock = Clock::new();
        clock.arm(Some(after(5)));
        assert!(poll_fn(|cx| Poll::Ready(clock.poll(cx).is_pending())).await || clock.now() >= after(5));
        clock.arm(None);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(poll_fn(|cx| Poll::Ready(clock.poll(cx).is_pending())).await);
        clock.arm(Some(after(1)));
        // This would never return if the deadline were missed.
        poll_fn(|cx| clock.poll(cx)).await;
    }
}
