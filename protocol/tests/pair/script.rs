//! Scripts of the engine for queries, and the settings of a connection.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use proptest::prelude::*;
use thallus_protocol::inline::encode_schema;
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor};
use thallus_protocol::message::Fencing;
use thallus_protocol::{StreamId, codes::StreamCode};

/// A batch that the engine yields.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Batch {
    /// A batch of `rows` rows, lent if the machine lends; in a region of its own or in the common region.
    Lent { rows: u64, own_region: bool },
    /// An inline batch of `bytes` bytes.
    Inline { bytes: usize },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Finish,
    Fail,
    /// The engine yields nothing more, and does not end.
    Stall,
}

/// Behaviour of the engine for one query.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) batches: Vec<Batch>,
    pub(crate) ending: Ending,
}

pub(crate) const FAILURE: StreamCode = StreamCode::Execution;

/// Two columns of 64-bit integers: two buffers in each batch with rows, none in a batch without rows.
pub(crate) fn schema() -> Schema {
    let column = |name| Arc::new(Field::new(name, DataType::Int64, false));
    Schema::new(vec![column("a"), column("b")])
}

pub(crate) fn schema_message() -> Bytes {
    encode_schema(&schema()).expect("a schema that IPC supports").into()
}

pub(crate) fn descriptor(rows: u64) -> BatchDescriptor {
    let node = NodeDescriptor { len: rows, nulls: 0, null_bit: 0, detail: Detail::None };
    BatchDescriptor { rows, nodes: vec![node.clone(), node], buffers: vec![rows * 8, rows * 8] }
}

/// The bytes of an inline batch, different for each stream and batch.
pub(crate) fn inline_bytes(stream: StreamId, seq: u64, len: usize) -> Bytes {
    (0..len).map(|i| (u64::from(stream.0) * 31 + seq * 7 + i as u64) as u8).collect()
}

impl Batch {
    /// Size at the borrower, in bytes.
    pub(crate) fn bytes(self, lent: bool) -> u64 {
        match self {
            Batch::Lent { rows, .. } if lent => descriptor(rows).slab_bytes(),
            other => other.inline_len() as u64,
        }
    }

    /// Size of the batch when it travels inline, in bytes.
    pub(crate) fn inline_len(self) -> usize {
        match self {
            Batch::Lent { rows, .. } => rows as usize * 16 + 40,
            Batch::Inline { bytes } => bytes,
        }
    }
}

pub(crate) fn arb_script() -> impl Strategy<Value = Script> {
    let rows = prop_oneof![4 => 1..300_u64, 1 => Just(0), 1 => 300..700_u64];
    let batch = prop_oneof![
        3 => (rows, prop::bool::weighted(0.2)).prop_map(|(rows, own_region)| Batch::Lent { rows, own_region }),
        1 => (0..3000_usize).prop_map(|bytes| Batch::Inline { bytes }),
        1 => (3000..13_000_usize).prop_map(|bytes| Batch::Inline { bytes }),
    ];
    let ending = prop_oneof![6 => Just(Ending::Finish), 1 => Just(Ending::Fail), 1 => Just(Ending::Stall)];
    (prop::collection::vec(batch, 0..8), ending).prop_map(|(batches, ending)| Script { batches, ending })
}

/// Settings of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub(crate) fencing: Fencing,
    pub(crate) server_has_fabric: bool,
    pub(crate) open_works: bool,
    pub(crate) connect_works: bool,
    /// The client has lease words of its own, and lends uploads.
    pub(crate) client_lends: bool,
    /// Fabric tasks are answered in the same turn, as by a driver that need not wait.
    pub(crate) instant: bool,
    pub(crate) max_streams: u32,
    pub(crate) max_loan_bytes: u64,
    pub(crate) max_leases: u32,
    pub(crate) max_batch_bytes: u64,
}

pub(crate) fn arb_knobs() -> impl Strategy<Value = Knobs> {
    let mostly = || prop::bool::weighted(0.93);
    (
        prop_oneof![Just(Fencing::Revocation), Just(Fencing::LeaseWord)],
        (mostly(), mostly(), mostly(), mostly(), any::<bool>()),
        1..6_u32,
        prop_oneof![Just(6_000_u64), Just(12_000), Just(1 << 20)],
        1..8_u32,
        prop_oneof![Just(8_000_u64), Just(1 << 20)],
    )
        .prop_map(|(fencing, (has, open, connect, lends, instant), streams, loan, leases, batch)| Knobs {
            fencing,
            server_has_fabric: has,
            open_works: open,
            connect_works: connect,
            client_lends: lends,
            instant,
            max_streams: streams,
            max_loan_bytes: loan,
            max_leases: leases,
            max_batch_bytes: batch,
        })
}

/// Settings of a connection without failures.
pub(crate) fn plain() -> Knobs {
    Knobs {
        fencing: Fencing::LeaseWord,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        client_lends: true,
        instant: true,
        max_streams: 4,
        max_loan_bytes: 1 << 20,
        max_leases: 8,
        max_batch_bytes: 1 << 20,
    }
}
