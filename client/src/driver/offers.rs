//! The endpoints that a client offers, until the server has chosen one.

use std::sync::Arc;

use bytes::Bytes;
use thallus_driver::{LoanPool, Pools};
use thallus_fabric::memory::PoolLimits;
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError};
use thallus_protocol::FabricKind;
use thallus_protocol::message::FabricOffer;

/// An open endpoint, the pools that its reads land in, and the pool that makes uploads readable by the server.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) kind: FabricKind,
    pub(crate) address: Bytes,
    pub(crate) endpoint: Box<dyn Endpoint>,
    pub(crate) pools: Pools,
    pub(crate) loans: Arc<LoanPool>,
    pub(crate) capabilities: Capabilities,
}

/// The offers, in order of preference.
#[derive(Debug, Default)]
pub(crate) struct Offers(Vec<Offer>);

impl Offers {
    /// Opens an endpoint of `fabric`. Uploads over it lend at most `max_loan_bytes` at a time.
    pub(crate) fn add(
        &mut self,
        fabric: &Arc<dyn Fabric>,
        pool: PoolLimits,
        max_loan_bytes: u64,
        observer: Option<Arc<dyn LoanObserver>>,
    ) -> Result<(), FabricError> {
        let endpoint = fabric.endpoint()?;
        self.0.push(Offer {
            kind: fabric.kind(),
            address: endpoint.address(),
            endpoint,
            pools: Pools::over(fabric, pool),
            // Batches that wait for credit are already copied or registered.
            loans: Arc::new(
                LoanPool::new(Arc::clone(fabric), None, max_loan_bytes.saturating_mul(2), None).with_observer(observer),
            ),
            capabilities: fabric.capabilities(),
        });
        Ok(())
    }

    /// The offers as sent in the hello.
    pub(crate) fn on_the_wire(&self) -> Vec<FabricOffer> {
        self.0.iter().map(|offer| FabricOffer { kind: offer.kind.clone(), address: offer.address.clone() }).collect()
    }

    /// The chosen offer. The others are closed: nothing was ever posted on them.
    pub(crate) fn choose(self, kind: &FabricKind) -> Option<Offer> {
        self.0.into_iter().find(|offer| offer.kind == *kind)
    }
}
