//! Both ends of every control connection: their ages, the flipped bits on their way, and processes that stand still.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::connection_ends::Side;

/// A process of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// The server.
    Server,
    /// The client with this address.
    Client(IpAddr),
}

/// An end of a control connection: the client's address, and the side.
pub type End = (SocketAddr, Side);

/// All control connections.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The open ends, with the times since when they are open.
    open: BTreeMap<End, Duration>,
    /// Bytes of the stream from an end after which its receiver must find a flipped bit.
    flips: BTreeMap<End, u64>,
    /// Processes that stand still, with the tasks that wait for them to continue.
    still: BTreeMap<Process, Vec<Waker>>,
    /// The client whose link is dead in one direction, and the time since when it is.
    half_dead: Option<(IpAddr, Duration)>,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An end has opened.
    pub fn open(&self, end: End) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        self.lock().open.insert(end, now);
    }

    /// An end has closed. Whether it was one of a half-dead link.
    pub fn close(&self, end: End) -> bool {
        let mut state = self.lock();
        let since = state.open.remove(&end);
        matches!((since, state.half_dead), (Some(since), Some((client, dead))) if client == end.0.ip() && since < dead)
    }

    /// From now on the link of this client is dead in one direction.
    pub fn dies_half(&self, client: IpAddr, now: Duration) {
        self.lock().half_dead = Some((client, now));
    }

    /// The link works again.
    pub fn is_repaired(&self) {
        self.lock().half_dead = None;
    }

    /// An end of the half-dead link that has not closed within `limit`.
    pub fn unnoticed(&self, now: Duration, limit: impl Fn(Side) -> Duration) -> Option<(End, Duration)> {
        let state = self.lock();
        let (client, dead) = state.half_dead?;
        let ends = state.open.iter().filter(|((address, _), _)| address.ip() == client);
        let mut late = ends.map(|(end, since)| (*end, now.saturating_sub(dead.max(*since))));
        late.find(|((_, side), age)| *age > limit(*side))
    }

    /// A bit of the stream from an end was flipped. Its receiver must find it after this number of bytes.
    pub fn flip(&self, from: End, found_at: u64) {
        self.lock().flips.entry(from).and_modify(|first| *first = found_at.min(*first)).or_insert(found_at);
    }

    /// Bytes of the stream from an end after which its receiver must find a flipped bit.
    pub fn flipped(&self, from: End) -> Option<u64> {
        self.lock().flips.get(&from).copied()
    }

    /// A process stands still from now on. Its sockets fill.
    pub fn stand_still(&self, process: Process) {
        self.lock().still.entry(process).or_default();
    }

    /// A process can use its sockets again.
    pub fn go_on(&self, process: Process) {
        let wakers = self.lock().still.remove(&process);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Returns whether the process of an end stands still. If so, its task is woken when it continues.
    pub fn stands_still(&self, (client, side): End, cx: &Context<'_>) -> bool {
        let process = match side {
            Side::Server => Process::Server,
            Side::Client => Process::Client(client.ip()),
        };
        let mut state = self.lock();
        let Some(wakers) = state.still.get_mut(&process) else { return false };
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        true
    }
}
