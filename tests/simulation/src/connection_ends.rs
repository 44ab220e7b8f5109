//! The ends of the control connections, and their resets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// An end of a client's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The server's.
    Server,
    /// The client's.
    Client,
}

impl Side {
    /// The side at the other end.
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Server => Side::Client,
            Side::Client => Side::Server,
        }
    }

    /// The name in counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Side::Server => "server",
            Side::Client => "client",
        }
    }
}

/// The ends of all connections, which can be reset.
#[derive(Clone, Debug, Default)]
pub struct ConnectionEnds(Arc<Mutex<BTreeMap<(IpAddr, Side), ConnectionEnd>>>);

#[derive(Debug, Default)]
struct ConnectionEnd {
    resets: u64,
    wakers: Vec<Waker>,
}

impl ConnectionEnds {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(IpAddr, Side), ConnectionEnd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all current connections of this client at this side, with an error.
    pub fn reset(&self, client: IpAddr, side: Side) {
        let wakers = {
            let mut ends = self.lock();
            let end = ends.entry((client, side)).or_default();
            end.resets += 1;
            std::mem::take(&mut end.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Number of resets of the connections of this key.
    pub fn resets(&self, key: (IpAddr, Side)) -> u64 {
        self.lock().get(&key).map_or(0, |end| end.resets)
    }

    /// Whether a connection of this key has been reset since there were `before` resets. If not, the next reset wakes
    /// the task.
    pub fn is_reset(&self, key: (IpAddr, Side), before: u64, cx: &Context<'_>) -> bool {
        let mut ends = self.lock();
        let end = ends.entry(key).or_default();
        if end.resets != before {
            return true;
        }
        if !end.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            end.wakers.push(cx.waker().clone());
        }
        false
    }
}
