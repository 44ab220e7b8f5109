//! What a correct peer never does. Any of it ends the connection.

use thiserror::Error;

use crate::codec::DecodeError;
use crate::ids::{LeaseId, RegionId, StreamId};

/// The peer broke the protocol.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// Bytes that are no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A message that does not belong here.
    #[error("unexpected message: {got} while {state}")]
    Unexpected {
        /// What came.
        got: &'static str,
        /// In which state of the connection.
        state: &'static str,
    },
    /// A field beyond its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The limit.
        limit: u64,
    },
    /// A stream id that is not above the last one.
    #[error("{0:?} was used before")]
    StreamReused(StreamId),
    /// A message for a stream that never was.
    #[error("{0:?} does not exist")]
    UnknownStream(StreamId),
    /// A stream's messages are out of order.
    #[error("{stream:?}: {what}")]
    StreamOrder {
        /// The stream.
        stream: StreamId,
        /// What is out of order.
        what: &'static str,
    },
    /// A batch out of its place.
    #[error("{stream:?}: batch {got} came where {expected} was due")]
    Sequence {
        /// The stream.
        stream: StreamId,
        /// The batch that was due.
        expected: u64,
        /// The batch that came.
        got: u64,
    },
    /// More bytes than were granted.
    #[error("a batch costs {cost} bytes of credit, {available} were left")]
    CreditExceeded {
        /// What it costs.
        cost: u64,
        /// What was left.
        available: u64,
    },
    /// A cumulative grant that went down.
    #[error("credit shrank from {from} to {to}")]
    CreditShrank {
        /// Total before.
        from: u64,
        /// Total now.
        to: u64,
    },
    /// A lease that is not on loan to this peer, or not any more.
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
        /// The region it names.
        region: RegionId,
        /// Its address.
        address: u64,
        /// Its length.
        len: u64,
    },
    /// A batch's places do not match its descriptor.
    #[error("{stream:?}: {what}")]
    Places {
        /// The stream.
        stream: StreamId,
        /// What does not match.
        what: &'static str,
    },
    /// A batch that does not fit its schema.
    #[error("{stream:?}: invalid batch: {reason}")]
    Layout {
        /// The stream.
        stream: StreamId,
        /// What does not fit.
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
    /// An extension that a message has twice.
    #[error("extension {0:#06x} is given twice")]
    ExtensionTwice(u16),
    /// A fabric that this end never offered.
    #[error("the peer chose fabric {0}, which was not offered")]
    FabricNotOffered(String),
}
