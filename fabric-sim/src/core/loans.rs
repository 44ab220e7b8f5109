//! The ledger of loans, for finding reads of memory that is not on loan.

use std::collections::BTreeMap;

use thallus_protocol::{LeaseEnd, LeaseId};

use super::EndpointId;

/// A range on loan, with its content at the time of the loan.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) address: u64,
    pub(super) len: u64,
    /// `None`: the lender keeps writing there, as to its lease words.
    pub(super) content: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Loan {
    ranges: Vec<Lent>,
    ended: Option<LeaseEnd>,
}

/// The status of the memory of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing<'a> {
    /// On loan: its content, if known, and whether an earlier loan of the same range was revoked. A buffer may be lent
    /// twice.
    OnLoan(Option<&'a [u8]>, bool),
    /// Was on loan; the lender revoked it before the borrower released it.
    Late,
    /// Was never on loan, or was released.
    Not,
}

/// The loans of all lenders, by the lending endpoint.
#[derive(Debug, Default)]
pub(super) struct Loans(BTreeMap<EndpointId, BTreeMap<LeaseId, Loan>>);

impl Loans {
    /// Records a new lease. Returns `false` if that lease stands already.
    pub(super) fn open(&mut self, lender: EndpointId, lease: LeaseId, ranges: Vec<Lent>) -> bool {
        let ranges = joined(ranges);
        self.0.entry(lender).or_default().insert(lease, Loan { ranges, ended: None }).is_none()
    }

    /// Ends a lease. Returns `false` if that lease does not stand.
    pub(super) fn end(&mut self, lender: EndpointId, lease: LeaseId, end: LeaseEnd) -> bool {
        let loan = self.0.get_mut(&lender).and_then(|loans| loans.get_mut(&lease));
        match loan.filter(|loan| loan.ended.is_none()) {
            Some(loan) => {
                loan.ended = Some(end);
                // Only the location matters from now on.
                loan.ranges.iter_mut().for_each(|range| range.content = None);
                true
            }
            None => false,
        }
    }

    /// Number of leases of `lender` that stand.
    pub(super) fn standing(&self, lender: EndpointId) -> usize {
        let loans = self.0.get(&lender);
        loans.map_or(0, |loans| loans.values().filter(|loan| loan.ended.is_none()).count())
    }

    /// The status of `len` bytes at `address` for the borrower of `lender`.
    pub(super) fn judge(&self, lender: EndpointId, address: u64, len: u64) -> Standing<'_> {
        let Some(loans) = self.0.get(&lender) else { return Standing::Not };
        let (mut on_loan, mut late) = (None, false);
        for loan in loans.values() {
            let range = loan.ranges.iter().find_map(|range| {
                let offset = address.checked_sub(range.address)?;
                (offset.checked_add(len)? <= range.len).then_some((offset, range))
            });
            match (range, loan.ended) {
                (Some((offset, range)), None) => {
                    let at = offset as usize..(offset + len) as usize;
                    on_loan = Some(range.content.as_ref().and_then(|content| content.get(at)));
                }
                (Some(_), Some(LeaseEnd::Revoked | LeaseEnd::TornDown)) => late = true,
                _ => {}
            }
        }
        match on_loan {
            Some(content) => Standing::OnLoan(content, late),
            None if late => Standing::Late,
            None => Standing::Not,
        }
    }
}

/// Merges neighbours, since a borrower may read them at once.
fn joined(ranges: Vec<Lent>) -> Vec<Lent> {
    let mut joined: Vec<Lent> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match (joined.last_mut(), range) {
            (
                Some(Lent { address, len, content: Some(content) }),
                Lent { address: next, len: more, content: Some(rest) },
            ) if address.checked_add(*len) == Some(next) => {
                *len += more;
                content.extend(rest);
            }
            (_, range) => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_lease_are_on_loan_together() {
        let lent = |address, bytes: &[u8]| Lent { address, len: bytes.len() as u64, content: Some(bytes.to_vec()) };
        let (lender, mut loans) = (EndpointId(1), Loans::default());
        assert!(loans.open(lender, LeaseId(1), vec![lent(100, b"ab"), lent(102, b"cde"), lent(106, b"f")]));
        assert_eq!(loans.judge(lender, 101, 3), Standing::OnLoan(Some(b"bcd"), false));
        assert_eq!(loans.judge(lender, 104, 3), Standing::Not, "there is a gap");
        assert!(loans.open(lender, LeaseId(2), vec![lent(105, b"-")]));
        assert_eq!(loans.judge(lender, 104, 2), Standing::Not, "another lease is another loan");
    }
}
