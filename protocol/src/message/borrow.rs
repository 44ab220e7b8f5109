//! What a borrower says: whether it can read, what it can take, and what it is done with.

use serde::{Deserialize, Serialize};

use super::{Extensions, Lending};
use crate::codes::CancelReason;
use crate::ids::{LeaseId, StreamId};

/// From the borrower of a stream to its lender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBorrower {
    /// No. 0: The data plane works: this end has read the other's probe.
    PathUp {
        /// What carries the reads, for the lender's log.
        transport: String,
        /// From the client: how it lends itself, so that the server can prove the reverse path. `None`: it does not
        /// lend.
        lending: Option<Lending>,
        /// Later additions.
        extensions: Extensions,
    },
    /// No. 1: This end cannot read the other's memory (any more). The other lends nothing from now on.
    PathDown {
        /// Why.
        reason: String,
    },
    /// No. 2: More bytes may be sent. Cumulative, so that it only ever grows.
    Credit {
        /// On this stream.
        stream: StreamId,
        /// Bytes granted since the stream began.
        total: u64,
    },
    /// No. 3: These leases' bytes have been read, or will not be.
    Release {
        /// Each exactly once.
        leases: Vec<LeaseId>,
    },
    /// No. 4: The borrower gives the stream up; batches on loan are still released one by one.
    Cancel {
        /// This stream.
        stream: StreamId,
        /// Why.
        reason: CancelReason,
    },
}

impl FromBorrower {
    /// The name of its kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            FromBorrower::PathUp { .. } => "path-up",
            FromBorrower::PathDown { .. } => "path-down",
            FromBorrower::Credit { .. } => "credit",
            FromBorrower::Release { .. } => "release",
            FromBorrower::Cancel { .. } => "cancel",
        }
    }
}
