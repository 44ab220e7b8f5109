//! The endpoints that a client offers, until the server has chosen one.

use std::sync::Arc;

use bytes::Bytes;
use thallus_fabric::memory::{PoolLimits, SlabPool};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError};
use thallus_protocol::FabricKind;
use thallus_protocol::message::FabricOffer;

/// An open endpoint, and the pool that its reads land in.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) kind: FabricKind,
    pub(crate) address: Bytes,
    pub(crate) endpoint: Box<dyn Endpoint>,
    pub(crate) pool: SlabPool,
    pub(crate) capabilities: Capabilities,
}

/// In order of preference.
#[derive(Debug, Default)]
pub(crate) struct Offers(Vec<Offer>);

impl Offers {
    /// Opens an endpoint of `fabric`.
    pub(crate) fn add(&mut self, fabric: &Arc<dyn Fabric>, pool: PoolLimits) -> Result<(), FabricError> {
        let endpoint = fabric.endpoint()?;
        self.0.push(Offer {
            kind: fabric.kind(),
            address: endpoint.address(),
            endpoint,
            pool: SlabPool::new(Arc::clone(fabric), pool),
            capabilities: fabric.capabilities(),
        });
        Ok(())
    }

    /// As they stand in the hello.
    pub(crate) fn on_the_wire(&self) -> Vec<FabricOffer> {
        self.0.iter().map(|offer| FabricOffer { kind: offer.kind.clone(), address: offer.address.clone() }).collect()
    }

    /// The one that was chosen. The others are closed: nothing was ever posted on them.
    pub(crate) fn choose(self, kind: &FabricKind) -> Option<Offer> {
        self.0.into_iter().find(|offer| offer.kind == *kind)
    }
}
