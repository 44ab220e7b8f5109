//! Messages of a borrower: the state of its data plane, credit, releases and cancellations.

use serde::{Deserialize, Serialize};

use super::{Extensions, Lending};
use crate::codes::CancelReason;
use crate::ids::{LeaseId, StreamId};

/// From the borrower of a stream to its lender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromBorrower {
    /// No. 0: The data plane works: this end has read the other end's probe.
    PathUp {
        /// The transport that carries the reads, for the lender's log.
        transport: String,
        /// From the client: how the client lends, so that the server can prove the reverse path. `None`: the client
        /// does not lend.
        lending: Option<Lending>,
        /// Fields of later versions.
        extensions: Extensions,
    },
    /// No. 1: This end cannot, or can no longer, read the other end's memory. The other end lends nothing from now on.
    PathDown {
        /// The reason.
        reason: String,
    },
    /// No. 2: More bytes may be sent. The total is cumulative and only grows.
    Credit {
        /// The stream.
        stream: StreamId,
        /// Bytes granted since the stream began.
        total: u64,
    },
    /// No. 3: The bytes of these leases have been read, or will not be read.
    Release {
        /// The leases. Each lease is released exactly once.
        leases: Vec<LeaseId>,
    },
    /// No. 4: The borrower cancels the stream. It still releases each batch on loan.
    Cancel {
        /// The stream.
        stream: StreamId,
        /// The reason.
        reason: CancelReason,
    },
}

impl FromBorrower {
    /// The name of the kind of message.
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
