//! The data plane of a session, and the condition for mapped memory.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use thallus_driver::{ControlIo, KeepLoan, LendingParameters, LoanPool, Plane, Pools, Proof};
use thallus_fabric::memory::PoolLimits;
use thallus_fabric::{Fabric, FabricError, Maps};
use thallus_protocol::FabricKind;
use thallus_protocol::message::{Access, OpenOptions};
use thallus_protocol::server::{OpenedFabric, ServerCommand};

use super::Session;
use super::mapped::{self, MappingClient};

impl<S: ControlIo> Session<S> {
    pub(super) fn open_fabric(&mut self, kind: &FabricKind, peer: &[u8]) {
        let pool = self.shared.pools.iter().find(|pool| pool.fabric().kind() == *kind);
        let opened = match pool {
            Some(pool) => open(Arc::clone(pool), &self.shared.separate_pools, self.shared.machine.max_leases, peer)
                .map_err(|error| error.to_string()),
            None => Err(format!("fabric {kind} is no longer available")),
        };
        match opened {
            Ok((plane, opened)) => {
                self.connection.plane = Some(plane);
                self.command(ServerCommand::FabricOpened(opened));
            }
            Err(reason) => self.command(ServerCommand::FabricUnavailable { reason }),
        }
    }

    /// Reports the result of reading the client's probe.
    pub(super) fn proven(&mut self, result: Result<Proof, String>) {
        self.command(match result {
            Ok(Proof { transport, .. }) => ServerCommand::ReversePathUp { transport },
            Err(reason) => ServerCommand::ReversePathDown { reason },
        });
    }

    /// If the client maps a query's loans: the function that keeps them after the end of the connection, or the reason
    /// why mapping is not allowed.
    pub(super) fn keep_mapped(&mut self, options: &OpenOptions) -> Result<Option<KeepLoan>, String> {
        let Access::Map(process) = options.access else { return Ok(None) };
        if !self.shared.allow_mapped {
            return Err("this server does not allow mapping: start it with --allow-mapped, or read instead".into());
        }
        let Some(plane) = &mut self.connection.plane else {
            return Err("the connection has no data plane: its results travel inline".into());
        };
        let fabric = plane.loan_pool().fabric();
        let kind = fabric.kind();
        if let Maps::Nothing { reason } = fabric.capabilities().maps {
            return Err(format!("fabric {kind} maps no memory here: {reason}"));
        }
        let orphans = Arc::clone(&self.shared.orphans);
        let known = self.mapping_client.take().filter(|(known, _)| *known == process).map(|(_, client)| client);
        let by_fabric = || plane.peer_presence().map(|probe| MappingClient::by_fabric(process.pid, probe));
        let Some(client) = known.or_else(by_fabric).or_else(|| orphans.find(process, self.ends)) else {
            return Err(format!(
                "the server does not see that process {} is this client: over fabric {kind} both must be on one host, \
                 of one user, and in one namespace of processes, without address translation between them; over shm \
                 they need not be",
                process.pid
            ));
        };
        self.mapping_client = Some((process, client.clone()));
        Ok(Some(mapped::keep_for(client, orphans)))
    }
}

/// An endpoint that is connected to the peer's address, with lease words and the probe.
fn open(
    pool: Arc<LoanPool>,
    separate_pools: &SeparatePools,
    max_leases: u32,
    peer: &[u8],
) -> Result<(Plane, OpenedFabric), FabricError> {
    let fabric = pool.fabric();
    let mut endpoint = fabric.endpoint()?;
    let address = endpoint.address();
    endpoint.connect(peer)?;
    let pools = Pools::over(fabric, PoolLimits::default());
    // Allocates the memory for lease words of uploads now, and not during the first result.
    drop(pools.words.take(8));
    let capabilities = fabric.capabilities();
    let loans = endpoint.lends_from().map(|separate| separate_pools.pool(separate, &pool));
    let mut plane = Plane::new(endpoint, pools, &capabilities, loans.unwrap_or(pool));
    let LendingParameters { fencing, words, probe_value } = plane.open_words(max_leases)?;
    Ok((plane, OpenedFabric { address, fencing, words, probe_value }))
}

/// The pools for peers that must not see the memory of others (`Endpoint::lends_from`).
#[derive(Debug, Default)]
pub(crate) struct SeparatePools(Mutex<Vec<Weak<LoanPool>>>);

impl SeparatePools {
    /// The pool over this fabric, with the budget of `shared`.
    fn pool(&self, fabric: Arc<dyn Fabric>, shared: &LoanPool) -> Arc<LoanPool> {
        let mut pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        let known = pools.iter().filter_map(Weak::upgrade).find(|pool| Arc::ptr_eq(pool.fabric(), &fabric));
        known.unwrap_or_else(|| {
            let new = Arc::new(shared.over(fabric));
            pools.push(Arc::downgrade(&new));
            new
        })
    }

    /// The pools that connections use now.
    pub(crate) fn all(&self) -> Vec<Arc<LoanPool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}
