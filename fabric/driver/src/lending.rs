//! The lender's side of a connection's data plane: lease words, regions that the peer has remote keys for, and the
//! memory of each loan.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thallus_fabric::memory::LeaseWords;
use thallus_fabric::{Endpoint, FabricError, Fencing, STANDING_LEASE};
use thallus_protocol::lender::{LenderCommand, Loan, LoanCost};
use thallus_protocol::message::{self, Region};
use thallus_protocol::{LeaseEnd, LeaseId, RegionId, RemoteRange};
use tracing::{error, warn};

use crate::loans::{LoanBuffers, LoanPool, Part, PreparedLoan};
use crate::regions::Regions;

/// The value of the probe: the bytes `THALLUS!`.
pub const PROBE: u64 = u64::from_le_bytes(*b"THALLUS!");

/// Keeps the memory of a loan that was torn down while its borrower may still have it mapped.
pub type KeepLoan = Arc<dyn Fn(LoanBuffers) + Send + Sync>;

/// The memory of a loan, and the function that keeps it if the borrower may have it mapped after the end of the lease.
struct LoanMemory {
    held: Option<LoanBuffers>,
    keep: Option<KeepLoan>,
}

impl LoanMemory {
    /// The lease has ended. The borrower no longer uses the memory, unless the lease was torn down while the memory was
    /// mapped.
    fn end(mut self, end: LeaseEnd) {
        if matches!(end, LeaseEnd::Released | LeaseEnd::Withdrawn) {
            self.keep = None;
        }
    }
}

impl Drop for LoanMemory {
    fn drop(&mut self) {
        // Also runs when a connection's task ends early.
        if let (Some(keep), Some(held)) = (self.keep.take(), self.held.take()) {
            keep(held);
        }
    }
}

impl fmt::Debug for LoanMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoanMemory").field("kept", &self.keep.is_some()).finish_non_exhaustive()
    }
}

/// One loan, from the time at which its batch is passed to the machine.
#[derive(Debug)]
struct ActiveLoan {
    parts: Vec<Part>,
    /// The regions of its parts, once they are exposed to the peer.
    regions: Vec<RegionId>,
    memory: LoanMemory,
}

/// The parameters of lending that the machine announces.
#[derive(Clone, Debug)]
pub struct LendingParameters {
    /// The fencing of lent memory.
    pub fencing: message::Fencing,
    /// The region of the lease words.
    pub words: Region,
    /// The value of the probe.
    pub probe_value: u64,
}

/// The loans of one connection.
#[derive(Debug)]
pub(crate) struct Lending {
    pool: Arc<LoanPool>,
    words: Option<LeaseWords>,
    regions: Regions,
    loans: BTreeMap<LeaseId, ActiveLoan>,
    last_lease: u64,
}

impl Lending {
    pub(crate) fn new(pool: Arc<LoanPool>) -> Self {
        let regions = Regions::new(&pool.fabric().capabilities());
        Lending { pool, words: None, regions, loans: BTreeMap::new(), last_lease: 0 }
    }

    /// Starts lending: allocates the lease words, with the probe among them, and exposes them to the peer.
    pub(crate) fn open(
        &mut self,
        endpoint: &mut dyn Endpoint,
        max_leases: u32,
    ) -> Result<LendingParameters, FabricError> {
        let fabric = self.pool.fabric();
        let words = || LeaseWords::new(&**fabric, max_leases as usize + 1);
        let words = self.pool.registrations().retry_after_dropping_idle(words)?;
        words.open(max_leases as usize, PROBE)?;
        let whole = 0..words.memory().len();
        let (_, announcement) = self.regions.enter(endpoint, words.memory(), whole, true)?;
        let region = announcement.ok_or(FabricError::Misuse("the first region was known"))?;
        if let Some(observer) = self.pool.observer() {
            let range = RemoteRange { region: region.id, address: region.base, len: region.len };
            observer.lent(&endpoint.address(), STANDING_LEASE, &[range]);
        }
        let fencing = match fabric.capabilities().fencing {
            Fencing::Revocation => message::Fencing::Revocation,
            Fencing::LeaseWord => message::Fencing::LeaseWord,
        };
        self.words = Some(words);
        Ok(LendingParameters { fencing, words: region, probe_value: PROBE })
    }

    /// The pool that makes batches readable by the peer.
    pub(crate) fn pool(&self) -> &Arc<LoanPool> {
        &self.pool
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.loans.is_empty()
    }

    /// Lets go of announced memory that its owner wants back. Returns the regions to be retired.
    pub(crate) fn let_go(&mut self, endpoint: &mut dyn Endpoint) -> Vec<RegionId> {
        self.regions.let_go(endpoint)
    }

    /// Creates the loan of a batch for the machine, under a new lease. `keep`: see [`KeepLoan`].
    pub(crate) fn lend(&mut self, loan: PreparedLoan, cost: LoanCost, keep: Option<KeepLoan>) -> Loan {
        let PreparedLoan { descriptor, parts, staged, held } = loan;
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        let memory = LoanMemory { held: Some(held), keep };
        self.loans.insert(lease, ActiveLoan { parts, regions: Vec::new(), memory });
        Loan { lease, descriptor, staged, cost }
    }

    /// A lease begins: sets its lease word and exposes its memory to the peer.
    pub(crate) fn open_lease(
        &mut self,
        endpoint: &mut dyn Endpoint,
        lease: LeaseId,
        word: Option<(u32, u64)>,
    ) -> LenderCommand {
        let mut announce = Vec::new();
        let Some(loan) = self.loans.get_mut(&lease) else {
            return LenderCommand::NotExposed { lease, announce, reason: "bug: the loan is not known".into() };
        };
        let mut places = Vec::with_capacity(loan.parts.len());
        for part in &loan.parts {
            match self.regions.enter(endpoint, &part.memory, part.scope.clone(), part.lasting) {
                Ok((region, announcement)) => {
                    loan.regions.push(region);
                    places.push(RemoteRange { region, address: part.address, len: part.len });
                    announce.extend(announcement);
                }
                Err(error) => return LenderCommand::NotExposed { lease, announce, reason: error.to_string() },
            }
        }
        if let Some(observer) = self.pool.observer() {
            observer.lent(&endpoint.address(), lease, &places);
        }
        if let (Some((slot, value)), Some(words)) = (word, &self.words)
            && let Err(error) = words.open(slot as usize, value)
        {
            error!(%error, %lease, "bug: a lease word could not be set");
        }
        LenderCommand::Exposed { lease, announce, places }
    }

    /// A lease has ended: clears its lease word, then frees its memory. Returns the regions that have no user any more.
    pub(crate) fn end_lease(
        &mut self,
        endpoint: &mut dyn Endpoint,
        lease: LeaseId,
        slot: Option<u32>,
        end: LeaseEnd,
    ) -> Vec<RegionId> {
        // A borrower that is still reading must notice the end of the lease. So the word is cleared before the memory
        // is reused.
        if let (Some(slot), Some(words)) = (slot, &self.words)
            && let Err(error) = words.revoke(slot as usize)
        {
            error!(%error, slot, "bug: a lease word could not be cleared");
        }
        if let Some(observer) = self.pool.observer() {
            observer.lease_ended(&endpoint.address(), lease, end);
        }
        if end == LeaseEnd::Revoked {
            warn!(%lease, "the peer did not release a lease in time; it was revoked");
        }
        let Some(ActiveLoan { regions, memory, .. }) = self.loans.remove(&lease) else { return Vec::new() };
        memory.end(end);
        regions.into_iter().filter(|region| self.regions.leave(endpoint, *region)).collect()
    }
}
