//! Errors that a correct peer never causes. Each of them ends the connection.

use thiserror::Error;

use crate::codec::DecodeError;
use crate::ids::{LeaseId, RegionId, StreamId};

/// The peer broke the protocol.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// The bytes are not a message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message that the state does not allow.
    #[error("unexpected message: {got} while {state}")]
    Unexpected {
        /// Name of the message.
        got: &'static str,
        /// State of the connection.
        state: &'static str,
    },
    /// A number beyond its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// Name of the number.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A stream id that is not above the last one.
    #[error("{0:?} was used before")]
    StreamReused(StreamId),
    /// A message for a stream that never existed.
    #[error("{0:?} does not exist")]
    UnknownStream(StreamId),
    /// A stream's messages are out of order.
    #[error("{stream:?}: {what}")]
    StreamOrder {
        /// The stream.
        stream: StreamId,
        /// The violation of the order.
        what: &'static str,
    },
    /// A batch out of sequence.
    #[error("{stream:?}: batch {got} arrived, batch {expected} was expected")]
    Sequence {
        /// The stream.
        stream: StreamId,
        /// The expected batch.
        expected: u64,
        /// The batch that arrived.
        got: u64,
    },
    /// A batch that costs more than the credit left.
    #[error("a batch costs {cost} bytes of credit, {available} bytes are left")]
    CreditExceeded {
        /// Cost of the batch in bytes.
        cost: u64,
        /// Credit left, in bytes.
        available: u64,
    },
    /// A cumulative grant that went down.
    #[error("credit shrank from {from} to {to}")]
    CreditShrank {
        /// Previous total.
        from: u64,
        /// New total.
        to: u64,
    },
    /// A lease that is not, or no longer, on loan to this peer.
    #[error("{0:?} is not on loan to this peer")]
    UnknownLease(LeaseId),
    /// A lease id used twice.
    #[error("{0:?} was used before")]
    LeaseReused(LeaseId),
    /// A region id that is in use.
    #[error("{0:?} is in use")]
    RegionInUse(RegionId),
    /// A region that does not exist.
    #[error("{0:?} does not exist")]
    UnknownRegion(RegionId),
    /// A range that is not within its region.
    #[error("range of {len} bytes at {address:#x} is outside {region:?}")]
    OutsideRegion {
        /// The region.
        region: RegionId,
        /// Start of the range.
        address: u64,
        /// Length of the range in bytes.
        len: u64,
    },
    /// A batch's places do not match its descriptor.
    #[error("{stream:?}: {what}")]
    Places {
        /// The stream.
        stream: StreamId,
        /// The mismatch.
        what: &'static str,
    },
    /// A batch that does not fit its schema.
    #[error("{stream:?}: invalid batch: {reason}")]
    Layout {
        /// The stream.
        stream: StreamId,
        /// The mismatch.
        reason: String,
    },
    /// The schema does not decode.
    #[error("{stream:?}: invalid schema: {reason}")]
    Schema {
        /// The stream.
        stream: StreamId,
        /// The problem.
        reason: String,
    },
    /// A message contains the same extension twice.
    #[error("extension {0:#06x} is present twice")]
    ExtensionTwice(u16),
    /// The peer chose a fabric that this end did not offer.
    #[error("the peer chose fabric {0}, which was not offered")]
    FabricNotOffered(String),
}
