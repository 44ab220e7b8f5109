//! The data plane of a session, and the condition for mapped memory.

use std::sync::Arc;

use thallus_driver::{ControlIo, KeepLoan, LoanPool, OpenedWords, Plane, Pools, Proof};
use thallus_fabric::memory::PoolLimits;
use thallus_fabric::{FabricError, Maps};
use thallus_protocol::FabricKind;
use thallus_protocol::message::{Access, OpenOptions};
use thallus_protocol::server::{OpenedFabric, ServerCommand};

use super::{Session, mapped};

impl<S: ControlIo> Session<S> {
    pub(super) fn open_fabric(&mut self, kind: &FabricKind, peer: &[u8]) {
        let pool = self.shared.pools.iter().find(|pool| pool.fabric().kind() == *kind);
        let opened = match pool {
            Some(pool) => {
                open(Arc::clone(pool), self.shared.machine.max_leases, peer).map_err(|error| error.to_string())
            }
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
        let Some(plane) = &self.connection.plane else {
            return Err("the connection has no data plane: its results travel inline".into());
        };
        let fabric = plane.loan_pool().fabric();
        if let Maps::Nothing { reason } = fabric.capabilities().maps {
            return Err(format!("fabric {} maps no memory here: {reason}", fabric.kind()));
        }
        let orphans = Arc::clone(&self.shared.orphans);
        if self.seen != Some(process) && !orphans.sees(process) {
            return Err(format!(
                "the server does not see the client's process {}: both must be on one host and in one namespace of \
                 processes (containers have their own unless told otherwise)",
                process.pid
            ));
        }
        self.seen = Some(process);
        Ok(Some(mapped::keep_for(process, orphans)))
    }
}

/// An endpoint that is connected to the peer's address, with lease words and the probe.
fn open(pool: Arc<LoanPool>, max_leases: u32, peer: &[u8]) -> Result<(Plane, OpenedFabric), FabricError> {
    let fabric = pool.fabric();
    let mut endpoint = fabric.endpoint()?;
    let address = endpoint.address();
    endpoint.connect(peer)?;
    let pools = Pools::over(fabric, PoolLimits::default());
    // Allocates the memory for lease words of uploads now, and not during the first result.
    drop(pools.words.take(8));
    let capabilities = fabric.capabilities();
    let mut plane = Plane::new(endpoint, pools, &capabilities, pool);
    let OpenedWords { fencing, words, probe_value } = plane.open_words(max_leases)?;
    Ok((plane, OpenedFabric { address, fencing, words, probe_value }))
}
