//! The data plane of one connection: its endpoint, its lease words, and the regions its peer has keys to.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use thallus_fabric::driver::Doorbell;
use thallus_fabric::memory::LeaseWords;
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::{Endpoint, FabricError, Fencing, STANDING_LEASE};
use thallus_protocol::message::{self, Region};
use thallus_protocol::server::OpenedFabric;
use thallus_protocol::{LeaseEnd, LeaseId, RegionId, RemoteRange};
use tracing::error;

use super::lender::{Lender, Part};
use super::regions::Regions;

/// How long an endpoint may take to close before it is given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// What stands in the probe: `THALLUS!`.
const PROBE: u64 = u64::from_le_bytes(*b"THALLUS!");

#[derive(Debug)]
enum State {
    Open,
    /// The endpoint failed as a whole; it is still to be closed.
    Failed,
    Closing {
        deadline: std::pin::Pin<Box<tokio::time::Sleep>>,
    },
    Closed,
}

/// What a data plane reports.
#[derive(Debug)]
pub(super) enum PlaneEvent {
    Failed(String),
    Closed,
}

#[derive(Debug)]
pub(super) struct DataPlane {
    endpoint: Box<dyn Endpoint>,
    /// Rings for the endpoint.
    bell: Doorbell,
    lender: Arc<Lender>,
    words: LeaseWords,
    regions: Regions,
    observer: Option<Arc<dyn LoanObserver>>,
    state: State,
}

impl DataPlane {
    /// An endpoint connected to the peer's address, with its lease words and the probe among them.
    pub(super) fn open(
        lender: Arc<Lender>,
        max_leases: u32,
        peer: &[u8],
        observer: Option<Arc<dyn LoanObserver>>,
    ) -> Result<(DataPlane, OpenedFabric), String> {
        let open = || -> Result<_, FabricError> {
            let fabric = lender.fabric();
            let mut endpoint = fabric.endpoint()?;
            let address = endpoint.address();
            endpoint.connect(peer)?;
            let words = || LeaseWords::new(&**fabric, max_leases as usize + 1);
            let words = lender.registrations().making_room(words)?;
            words.open(max_leases as usize, PROBE)?;
            let capabilities = fabric.capabilities();
            let mut regions = Regions::new(&capabilities);
            let (_, announcement) = regions.enter(&mut *endpoint, words.memory(), 0..words.memory().len(), true)?;
            let region = announcement.ok_or(FabricError::Misuse("the first region was known"))?;
            if let Some(observer) = &observer {
                let range = RemoteRange { region: region.id, address: region.base, len: region.len };
                observer.lent(&address, STANDING_LEASE, &[range]);
            }
            let fencing = match capabilities.fencing {
                Fencing::Revocation => message::Fencing::Revocation,
                Fencing::LeaseWord => message::Fencing::LeaseWord,
            };
            Ok((endpoint, words, regions, OpenedFabric { address, fencing, words: region, probe_value: PROBE }))
        };
        let (endpoint, words, regions, opened) = open().map_err(|error| error.to_string())?;
        let bell = Doorbell::new();
        Ok((DataPlane { endpoint, bell, lender, words, regions, observer, state: State::Open }, opened))
    }

    pub(super) fn lender(&self) -> &Arc<Lender> {
        &self.lender
    }

    pub(super) fn enter(&mut self, part: &Part) -> Result<(RegionId, Option<Region>), FabricError> {
        self.bell.ring();
        self.regions.enter(&mut *self.endpoint, &part.memory, part.scope.clone(), part.lasting)
    }

    /// Reports a lease that begins, for an observer to check reads against.
    pub(super) fn lent(&mut self, lease: LeaseId, places: &[RemoteRange]) {
        if let Some(observer) = &self.observer {
            observer.lent(&self.endpoint.address(), lease, places);
        }
    }

    /// Reports a lease that is over, before its memory is reused.
    pub(super) fn lease_ended(&mut self, lease: LeaseId, end: LeaseEnd) {
        if let Some(observer) = &self.observer {
            observer.lease_ended(&self.endpoint.address(), lease, end);
        }
    }

    pub(super) fn leave(&mut self, region: RegionId) -> bool {
        self.bell.ring();
        self.regions.leave(&mut *self.endpoint, region)
    }

    pub(super) fn open_word(&self, slot: u32, value: u64) -> Result<(), FabricError> {
        self.words.open(slot as usize, value)
    }

    pub(super) fn clear_word(&self, slot: u32) {
        if let Err(error) = self.words.revoke(slot as usize) {
            error!(%error, slot, "bug: a lease word could not be cleared");
        }
    }

    /// Cuts the peer off; [`PlaneEvent::Closed`] says when that is done.
    pub(super) fn close(&mut self) {
        self.bell.ring();
        self.endpoint.close();
        self.state = State::Closing { deadline: Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)) };
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<PlaneEvent> {
        if !self.bell.answer(cx) {
            return Poll::Pending;
        }
        let waker = self.bell.waker().clone();
        let polled = self.poll_endpoint(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            self.bell.ring();
        }
        polled
    }

    fn poll_endpoint(&mut self, cx: &mut Context<'_>) -> Poll<PlaneEvent> {
        let mut completions = Vec::new();
        loop {
            match &mut self.state {
                State::Failed | State::Closed => return Poll::Pending,
                State::Open => match self.endpoint.poll(cx, &mut completions) {
                    Poll::Pending => return Poll::Pending,
                    // A lender posts no reads: this is progress for its peer's sake.
                    Poll::Ready(Ok(())) => completions.clear(),
                    Poll::Ready(Err(error)) => {
                        self.state = State::Failed;
                        return Poll::Ready(PlaneEvent::Failed(error.to_string()));
                    }
                },
                State::Closing { deadline } => {
                    let polled = self.endpoint.poll(cx, &mut completions);
                    let late = deadline.as_mut().poll(cx).is_ready();
                    if late && !self.endpoint.is_closed() {
                        error!("an endpoint did not close within {CLOSE_TIMEOUT:?}");
                    }
                    if late || self.endpoint.is_closed() {
                        self.state = State::Closed;
                        return Poll::Ready(PlaneEvent::Closed);
                    }
                    if !matches!(polled, Poll::Ready(Ok(()))) {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}
