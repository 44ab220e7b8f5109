//! The server sends arbitrary messages. The client never panics, closes with a typed error or continues, reports the
//! end of each stream once, and holds no more bytes than it granted.

mod hostile;
mod pair;

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use hostile::client::Client;
use hostile::messages::{Twist, lent, lent_as, schema_of};
use hostile::ops::{arb_client_op, welcome};
use pair::script::schema_message;
use pair::{config, frame};
use proptest::prelude::*;
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::inline::{InlineLimits, decode_schema, encode_schema};
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor};
use thallus_protocol::message::*;
use thallus_protocol::{ConnectionError, PeerMisbehaved, StreamId};

proptest! {
    #![proptest_config(config(6000, "tests/regressions/hostile_server.txt"))]

    #[test]
    fn a_hostile_server(
        welcomed in prop_oneof![9 => Just(11_usize), 1 => 0..11_usize],
        ops in prop::collection::vec(arb_client_op(), 0..60),
    ) {
        let mut client = Client::new(frame());
        for op in welcome().into_iter().take(welcomed).chain(ops) {
            client.apply(op);
        }
        client.finish();
    }
}

fn welcomed() -> Client {
    let mut client = Client::new(frame());
    for op in welcome() {
        client.apply(op);
    }
    client
}

/// The next sequence number after this one does not exist.
#[test]
fn a_piece_with_the_last_sequence_number() {
    let mut client = welcomed();
    let inline = |seq| Message::Lender(FromLender::Inline { stream: StreamId(1), seq, bytes: 20, more: true });
    client.receive(&inline(0), vec![0; 5].into());
    client.receive(&inline(u64::MAX), vec![0; 5].into());
    let error = client.finish();
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::StreamOrder { .. })), "{error}");
}

/// The client's goodbye quotes the error, which may be longer than a message may be.
#[test]
fn an_error_that_quotes_megabytes() {
    let field = Field::new("x".repeat(300_000), DataType::Int64, false);
    let parent = Field::new("parent", DataType::Struct(vec![field].into()), false);
    let ipc = encode_schema(&Schema::new(vec![parent])).expect("IPC supports the schema");
    let mut client = Client::new(FrameLimits { message: 256 << 10, payload: 4 << 20 });
    for op in welcome().into_iter().take(7) {
        client.apply(op);
    }
    client.receive(&schema_of(StreamId(1), Vec::new()), ipc.into());
    let mut batch = lent(1, 3, Twist::Nothing);
    batch.descriptor.nodes[0].detail = Detail::Base(0);
    client.receive(&lent_as(StreamId(1), 0, batch), Bytes::new());
    let error = client.finish();
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Layout { .. })));
    assert!(error.to_string().len() > 300_000, "{error}");
}

/// Parts of batches are read in any order, so these batches cannot use dictionaries of other batches.
#[test]
fn a_batch_on_demand_with_the_dictionary_of_another() {
    for (stream, refused) in [(StreamId(1), false), (StreamId(2), true)] {
        let field = Field::new("word", DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()), false);
        let ipc = encode_schema(&Schema::new(vec![field])).expect("IPC supports the schema");
        let mut client = Client::new(frame());
        for op in welcome().into_iter().take(7) {
            client.apply(op);
        }
        client.receive(&schema_of(stream, Vec::new()), ipc.into());
        let node = NodeDescriptor { len: 16, nulls: 0, null_bit: 0, detail: Detail::SameValues };
        let descriptor = BatchDescriptor { rows: 16, nodes: vec![node], buffers: vec![16] };
        let mut batch = lent(1, 2, Twist::Descriptor(descriptor));
        batch.places.truncate(1);
        client.receive(&lent_as(stream, 0, batch), Bytes::new());
        let error = client.finish();
        assert_eq!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Layout { .. })), refused, "{error}");
    }
}

/// A merge of partitions accesses the columns of the sort order that the server announced.
#[test]
fn a_result_sorted_by_columns_that_it_does_not_have() {
    let sorted_by = |column, keys| {
        let mut client = Client::new(FrameLimits { message: 256 << 10, payload: 4 << 20 });
        for op in welcome().into_iter().take(7) {
            client.apply(op);
        }
        let order = vec![SortKey { column, descending: true, nulls_first: true }; keys];
        client.receive(&schema_of(StreamId(1), order), schema_message());
        client.finish()
    };
    let columns = decode_schema(&schema_message(), &InlineLimits::default()).expect("a valid schema").fields().len();
    let error = sorted_by(columns as u32, 1);
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Schema { .. })), "{error}");
    let error = sorted_by(0, MAX_SORT_KEYS + 1);
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Limit { what: "sort keys", .. })), "{error}");
    let error = sorted_by(columns as u32 - 1, MAX_SORT_KEYS);
    assert!(!matches!(error, ConnectionError::Peer(_)), "{error}");
}
