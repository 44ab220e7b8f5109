//! Tokio's clock as the machines' timestamps.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thallus_protocol::Timestamp;
use tokio::time::{Instant, Sleep};

/// Counts from its making, and wakes at a machine's next deadline.
#[derive(Debug)]
pub struct Clock {
    epoch: Instant,
    sleep: Pin<Box<Sleep>>,
    armed: Option<Timestamp>,
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl Clock {
    /// A clock whose epoch is now.
    #[must_use]
    pub fn new() -> Self {
        let epoch = Instant::now();
        Clock { epoch, sleep: Box::pin(tokio::time::sleep_until(epoch)), armed: None }
    }

    /// Time since the epoch.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.epoch.elapsed()
    }

    /// Sets when [`Clock::poll`] is to be ready. `None`: never.
    pub fn arm(&mut self, deadline: Option<Timestamp>) {
        if let Some(at) = deadline
            && self.armed != deadline
        {
            self.sleep.as_mut().reset(self.epoch + Duration::from_nanos(at.as_nanos()));
        }
        self.armed = deadline;
    }

    /// Ready once the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.armed.is_none() {
            return Poll::Pending;
        }
        self.sleep.as_mut().poll(cx).map(|()| self.armed = None)
    }
}
