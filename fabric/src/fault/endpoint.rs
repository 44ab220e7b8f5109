//! The endpoint that wraps an endpoint. Every read is passed to the endpoint inside. Only its completion may be changed
//! or held back. So all checks of the fabric inside still apply. A second table holds the reads whose completions have
//! not been handed out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_protocol::{FabricKind, RegionId, RemoteRange};

use super::plan::{CallFaults, REASON, ReadFaults, fails};
use super::{Call, InjectedFault, ReadFault};
use crate::memory::{LocalRange, RangeHold, RegisteredMemory, TrustedPeer};
use crate::{Completion, Endpoint, Fabric, FabricError, MapsPeer, PresenceProbe, ReadFailure, ReadToken, Transport};

#[derive(Debug)]
pub(super) struct FaultyEndpoint {
    // First, to be dropped first: its drop may wait for the device, and the ranges below must be held until then.
    inner: Box<dyn Endpoint>,
    kind: FabricKind,
    limit: usize,
    calls: Arc<Mutex<CallFaults>>,
    reads: ReadFaults,
    /// Reads whose completions have not been handed out.
    outstanding: BTreeMap<ReadToken, Outstanding>,
    /// Completions of the endpoint inside that are held back.
    arrived: Vec<Completion>,
    life: Life,
    /// The waker of the last poll. A close or a death wakes it, since the next poll then has events to report.
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Alive,
    /// Died by plan. The endpoint inside has been closed, and flushes its reads.
    Dead,
    Closing,
}

#[derive(Debug)]
struct Outstanding {
    fault: Option<ReadFault>,
    /// Keeps the memory under the read until its completion is handed out, even if the fabric inside has completed it.
    _hold: RangeHold,
}

impl FaultyEndpoint {
    pub(super) fn new(
        inner: Box<dyn Endpoint>,
        kind: FabricKind,
        limit: usize,
        calls: Arc<Mutex<CallFaults>>,
        reads: ReadFaults,
    ) -> Self {
        FaultyEndpoint {
            inner,
            kind,
            limit,
            calls,
            reads,
            outstanding: BTreeMap::new(),
            arrived: Vec::new(),
            life: Life::Alive,
            waker: None,
        }
    }

    fn down(&self) -> FabricError {
        FabricError::EndpointDown { fabric: self.kind.clone(), reason: REASON.to_owned() }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Hands out the completions that are due. `over`: hands out all completions. Returns whether a delay is still
    /// counting.
    fn hand_out(&mut self, over: bool, completions: &mut Vec<Completion>) -> bool {
        let (life, outstanding) = (self.life, &mut self.outstanding);
        let mut counting = false;
        self.arrived.retain(|completion| {
            let fault = outstanding.get_mut(&completion.token).and_then(|read| read.fault.as_mut());
            let result = match fault {
                Some(ReadFault::Delay { polls }) if *polls > 0 && !over => {
                    *polls -= 1;
                    counting = true;
                    return true;
                }
                Some(ReadFault::Hang) if !over => return true,
                _ if life == Life::Dead => Err(ReadFailure::PeerGone(REASON.to_owned())),
                Some(ReadFault::Hang) => Err(ReadFailure::Flushed),
                Some(ReadFault::Fail(failure)) => Err(failure.clone()),
                Some(ReadFault::Delay { .. }) | None => completion.result.clone(),
            };
            outstanding.remove(&completion.token);
            completions.push(Completion { token: completion.token, result });
            false
        });
        counting
    }
}

#[deny(clippy::missing_trait_methods)]
impl Endpoint for FaultyEndpoint {
    fn address(&self) -> Bytes {
        self.inner.address()
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        if fails(&self.calls, Call::Connect) {
            return Err(FabricError::Connect { fabric: self.kind.clone(), reason: REASON.to_owned() });
        }
        self.inner.connect(peer)
    }

    fn transport(&self) -> Option<Transport> {
        self.inner.transport()
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        if fails(&self.calls, Call::Expose) {
            let (fabric, len) = (self.kind.clone(), range.len());
            return Err(FabricError::Registration { fabric, len, reason: REASON.to_owned() });
        }
        self.inner.expose(memory, range)
    }

    fn revoke(&mut self, key: &Bytes) {
        self.inner.revoke(key);
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        if fails(&self.calls, Call::Import) {
            return Err(FabricError::RemoteKey { fabric: self.kind.clone(), region, reason: REASON.to_owned() });
        }
        self.inner.import(region, base, len, key)
    }

    fn forget(&mut self, region: RegionId) {
        self.inner.forget(region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, mut into: LocalRange) -> Result<(), FabricError> {
        if self.life == Life::Dead {
            return Err(self.down());
        }
        // The endpoint inside checks this too, but it does not have the completions that are held back here.
        if self.outstanding.contains_key(&token) {
            return Err(FabricError::Misuse("a read's token is that of an outstanding read"));
        }
        if self.outstanding.len() >= self.limit {
            return Err(FabricError::TooManyReads { limit: self.limit });
        }
        if fails(&self.calls, Call::Post) {
            return Err(FabricError::Post { fabric: self.kind.clone(), reason: REASON.to_owned() });
        }
        let hold = into.hold();
        self.inner.post_read(token, from, into)?;
        let (fault, dies) = {
            let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let fault = self.reads.next().filter(|_| !calls.is_stopped());
            fault.iter().for_each(|fault| calls.count(fault.kind()));
            let dies = self.reads.is_over() && self.life == Life::Alive && !calls.is_stopped();
            if dies {
                calls.count(InjectedFault::Death);
            }
            (fault, dies)
        };
        self.outstanding.insert(token, Outstanding { fault, _hold: hold });
        if dies {
            self.life = Life::Dead;
            self.inner.close();
            self.wake();
        }
        Ok(())
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        self.inner.lends_from()
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        self.inner.peer_presence()
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        if self.inner.mapping().is_some() { Some(self) } else { None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        let before = completions.len();
        // Until the endpoint inside has no more completions and has registered the waker.
        let inner = loop {
            match self.inner.poll(cx, &mut self.arrived) {
                Poll::Ready(Ok(())) => {}
                other => break other,
            }
        };
        let over = inner.is_ready() || self.life != Life::Alive;
        let counting = self.hand_out(over, completions);
        if let Poll::Ready(Err(error)) = inner {
            return Poll::Ready(Err(error));
        }
        if self.life == Life::Dead && self.outstanding.is_empty() {
            return Poll::Ready(Err(self.down()));
        }
        if completions.len() > before {
            return Poll::Ready(Ok(()));
        }
        self.waker = Some(cx.waker().clone());
        if counting {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn close(&mut self) {
        if self.life == Life::Alive {
            self.inner.close();
        }
        self.life = Life::Closing;
        self.wake();
    }

    fn is_closed(&self) -> bool {
        self.life == Life::Closing && self.inner.is_closed() && self.outstanding.is_empty()
    }
}

#[deny(clippy::missing_trait_methods)]
impl MapsPeer for FaultyEndpoint {
    fn map(&mut self, from: RemoteRange, peer: TrustedPeer) -> Result<Buffer, FabricError> {
        if self.life == Life::Dead {
            return Err(self.down());
        }
        peer.map(&mut *self.inner, from)
    }
}
