//! Arbitrary inputs of a client, in any order.

use bytes::Bytes;
use proptest::prelude::*;
use thallus_protocol::RegionId;
use thallus_protocol::message::*;

use super::messages::{Twist, arb_to_client, arb_twist, hello, up};
use crate::pair::memory::DATA_BASE;
use crate::pair::preface;

/// An input to a client or an action of its driver.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a test has few of them")]
pub(crate) enum ClientOp {
    Message(Message, usize),
    Schema(u32),
    Lent {
        stream: u32,
        seq: u64,
        lease: u64,
        rows: u64,
        twist: Twist,
    },
    Bytes(Vec<u8>),
    Read(usize, Result<u64, ()>),
    Answer,
    Execute {
        credit: u64,
        lazy: bool,
    },
    Upload {
        lent: bool,
    },
    /// A step of an upload's source.
    Source(usize, bool),
    Withdraw(usize),
    ReadPart(usize, usize),
    ReleaseBatch(usize),
    Take,
    Cancel(u32),
    Advance(u64),
}

pub(crate) fn arb_client_op() -> impl Strategy<Value = ClientOp> {
    let lent = (0..4_u32, prop_oneof![9 => 0..4_u64, 1 => any::<u64>()], 0..9_u64, 0..30_u64, arb_twist());
    prop_oneof![
        12 => arb_to_client().prop_map(|(message, payload)| ClientOp::Message(message, payload)),
        3 => (0..4_u32).prop_map(ClientOp::Schema),
        8 => lent.prop_map(|(stream, seq, lease, rows, twist)| ClientOp::Lent { stream, seq, lease, rows, twist }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(ClientOp::Bytes),
        8 => (0..4_usize, prop_oneof![6 => (0..2_u64).prop_map(Ok), 1 => Just(Err(()))])
            .prop_map(|(k, found)| ClientOp::Read(k, found)),
        1 => Just(ClientOp::Answer),
        2 => (prop::sample::select(vec![0_u64, 1000, 5000, u64::MAX]), any::<bool>())
            .prop_map(|(credit, lazy)| ClientOp::Execute { credit, lazy }),
        2 => any::<bool>().prop_map(|lent| ClientOp::Upload { lent }),
        6 => (0..4_usize, any::<bool>()).prop_map(|(k, ends)| ClientOp::Source(k, ends)),
        1 => (0..4_usize).prop_map(ClientOp::Withdraw),
        4 => (0..4_usize, 0..3_usize).prop_map(|(k, parts)| ClientOp::ReadPart(k, parts)),
        2 => (0..4_usize).prop_map(ClientOp::ReleaseBatch),
        3 => Just(ClientOp::Take),
        1 => (1..4_u32).prop_map(ClientOp::Cancel),
        1 => (0..6000_u64).prop_map(ClientOp::Advance),
    ]
}

/// A welcome with a working data plane, its region, an upload, and three queries, of which two have a schema.
pub(crate) fn welcome() -> Vec<ClientOp> {
    let data = Region { id: RegionId(2), base: DATA_BASE, len: 1 << 20, key: Bytes::new() };
    let mut ops = vec![
        ClientOp::Bytes(preface()),
        ClientOp::Message(Message::Welcome(hello(Fencing::LeaseWord)), 0),
        ClientOp::Message(Message::Lender(FromLender::Region(data)), 0),
        ClientOp::Answer,
    ];
    let credits = [(5000, false), (1000, true), (u64::MAX, false)];
    ops.extend(credits.map(|(credit, lazy)| ClientOp::Execute { credit, lazy }));
    ops.extend([ClientOp::Schema(1), ClientOp::Schema(2), ClientOp::Message(Message::Borrower(up()), 0)]);
    ops.push(ClientOp::Upload { lent: true });
    ops
}
