//! Tokio's clock as the machines' timestamps, without the time in which this process stood still.
//!
//! A process can stand still for longer than any timeout: it is stopped by a signal, its virtual machine is paused, its
//! task is blocked. Its peer may have sent megabytes meanwhile, which nothing has read. So a deadline that has passed
//! proves nothing yet. Two rules make it a proof:
//! - **Time in which the process stood still does not count.** A machine's time passes a deadline by [`LATE`] at most
//!   before the machine has handled the deadline. Time beyond that is left out, for all later deadlines too.
//! - **A deadline is met only after the runtime has looked at its sockets.** [`Clock::poll`] is ready once a timer has
//!   expired that was set, if the clock is late, after the process continued. Tokio collects the events of all sockets
//!   before it expires timers. So all that arrived before the process continued can be read now, and the connection
//!   reads it before it passes the deadline on (see [`Connection::poll_control`](crate::Connection::poll_control)).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use thallus_protocol::Timestamp;
use tokio::time::{Instant, Sleep};
use tracing::debug;

/// A deadline that is handled later than this was missed because the process stood still.
const LATE: Duration = Duration::from_millis(100);
/// A timer that expires later than this is set again, so that the runtime looks at its sockets in between.
const STALE: Duration = Duration::from_millis(5);
/// The shortest timer. A timer in the past would expire without a look at the sockets.
const TURN: Duration = Duration::from_millis(1);

/// Measures the time since its creation, and wakes its task at the next deadline of a machine.
///
/// Most deadlines move later with every message. The timer is not moved then: it expires at its old time and is armed
/// again, because moving a timer costs more than an occasional early wake-up.
#[derive(Debug)]
pub struct Clock {
    /// The time zero. It moves later by the time in which the process stood still.
    epoch: Instant,
    sleep: Pin<Box<Sleep>>,
    /// The time at which `sleep` expires.
    set: Instant,
    /// The deadline.
    armed: Option<Timestamp>,
    /// The last time that was returned.
    latest: Timestamp,
    /// `sleep` has been set again because it had expired late.
    looked_again: bool,
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
        let sleep = Box::pin(tokio::time::sleep_until(epoch));
        Clock { epoch, sleep, set: epoch, armed: None, latest: Timestamp::ZERO, looked_again: false }
    }

    /// Time since the epoch in which the process ran.
    #[must_use]
    pub fn now(&mut self) -> Timestamp {
        let now = Timestamp::ZERO + self.epoch.elapsed();
        match self.armed {
            Some(at) if now.since(at) > LATE => {
                // Time never goes back.
                self.latest = at.max(self.latest);
                let stood_still = now.since(self.latest);
                debug!(?stood_still, "this process stood still");
                self.epoch += stood_still;
            }
            _ => self.latest = now,
        }
        self.latest
    }

    /// Sets the deadline at which [`Clock::poll`] becomes ready. `None` means never.
    pub fn arm(&mut self, deadline: Option<Timestamp>) {
        if deadline == self.armed {
            return;
        }
        self.looked_again = false;
        self.armed = deadline;
        if let Some(at) = deadline
            && self.instant(at) < self.set
        {
            self.set(at);
        }
    }

    /// Ready when the deadline has passed and all that arrived before can be read. It remains ready until
    /// [`Clock::arm`] sets another deadline.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.armed else { return Poll::Pending };
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.set < self.instant(at) {
                self.set(at);
            } else if !self.looked_again && self.set.elapsed() > STALE {
                self.looked_again = true;
                self.set(at);
            } else {
                return Poll::Ready(());
            }
        }
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.epoch + Duration::from_nanos(at.as_nanos())
    }

    /// Sets the timer to `at`, but not to a time that has passed.
    fn set(&mut self, at: Timestamp) {
        self.set = self.instant(at).max(Instant::now() + TURN);
        self.sleep.as_mut().reset(self.set);
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

    /// Lets the process stand still, as a signal would.
    fn stand_still(millis: u64) {
        std::thread::sleep(Duration::from_millis(millis));
    }

    #[tokio::test]
    async fn time_in_which_the_process_stood_still_does_not_count() {
        let mut clock = Clock::new();
        clock.arm(Some(after(50)));
        stand_still(500);
        assert_eq!(clock.now(), after(50));
        poll_fn(|cx| clock.poll(cx)).await;
        assert!(clock.now() < after(150), "{:?}", clock.now());
        // The next deadline is as far away as it was before.
        clock.arm(Some(after(250)));
        let started = std::time::Instant::now();
        poll_fn(|cx| clock.poll(cx)).await;
        assert!(started.elapsed() >= Duration::from_millis(95), "{:?}", started.elapsed());
    }

    #[tokio::test]
    async fn time_never_goes_back() {
        let mut clock = Clock::new();
        clock.arm(Some(after(50)));
        stand_still(90);
        let before = clock.now();
        stand_still(100);
        assert!(clock.now() >= before, "{:?}", clock.now());
    }

    /// Whichever call notices it first: here it is the poll.
    #[tokio::test]
    async fn a_deadline_that_passed_while_the_process_stood_still_is_met_after_a_look_at_the_sockets() {
        let mut clock = Clock::new();
        clock.arm(Some(after(20)));
        assert!(poll_fn(|cx| Poll::Ready(clock.poll(cx).is_pending())).await);
        let (ours, theirs) = pipe().await;
        // The runtime knows that nothing has arrived.
        let mut byte = [0; 1];
        assert!(ours.try_read(&mut byte).is_err());
        stand_still(300);
        theirs.try_write(b"x").unwrap();
        poll_fn(|cx| clock.poll(cx)).await;
        assert_eq!(ours.try_read(&mut byte).ok(), Some(1), "the runtime has not looked");
        assert_eq!(clock.now(), after(20));
    }

    async fn pipe() -> (tokio::net::TcpStream, tokio::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let theirs = listener.accept().await.unwrap().0;
        theirs.writable().await.unwrap();
        (connected, theirs)
    }
}
