//! The network as an observer of leases.

use thallus_fabric::{Fencing, LeaseEnd, LeaseId, RemoteRange, STANDING_LEASE};

use super::super::loans::Lent;
use super::super::{Access, EndpointId, What};
use super::{Core, EndpointState};

impl Core {
    /// The lender's report that these ranges are on loan to its peer. See [`loans`](crate::SimOptions::loans).
    pub fn lent(&mut self, lender: EndpointId, lease: LeaseId, ranges: &[RemoteRange]) {
        if !self.options.loans {
            return;
        }
        let mut lent = Vec::with_capacity(ranges.len());
        for &RemoteRange { address, len, .. } in ranges {
            let content = self.memory.exposed_at(lender, address, len);
            let content = content.and_then(|(memory, offset)| memory.copy_out(offset, usize::try_from(len).ok()?));
            lent.push(Lent { address, len, content: content.filter(|_| lease != STANDING_LEASE) });
        }
        self.note(lender, What::Lent(lease, ranges.iter().map(|range| range.len).sum()));
        if !self.loans.open(lender, lease, lent) {
            self.violated(lender, Access::Ledger);
        }
    }

    /// The lender's report that a lease has ended.
    pub fn lease_ended(&mut self, lender: EndpointId, lease: LeaseId, end: LeaseEnd) {
        if !self.options.loans {
            return;
        }
        self.note(lender, What::Ended(lease, end));
        let stood = self.loans.end(lender, lease, end);
        // A withdrawn lease never began.
        if !stood && end != LeaseEnd::Withdrawn {
            self.violated(lender, Access::Ledger);
        }
        let fenced = match (end, self.options.fencing) {
            (LeaseEnd::Released | LeaseEnd::Withdrawn, _) | (LeaseEnd::Revoked, Fencing::LeaseWord) => true,
            (LeaseEnd::Revoked | LeaseEnd::TornDown, _) => {
                matches!(self.state(lender), None | Some(EndpointState::Closed))
            }
        };
        if !fenced {
            self.violated(lender, Access::EndedUnfenced);
        }
    }

    /// Number of leases of `lender` that stand, including that of its lease words.
    #[must_use]
    pub fn standing_leases(&self, lender: EndpointId) -> usize {
        self.loans.standing(lender)
    }
}
