//! Arbitrary messages of a server.

use bytes::Bytes;
use proptest::prelude::*;
use thallus_protocol::layout::BatchDescriptor;
use thallus_protocol::message::*;
use thallus_protocol::{FabricKind, LeaseId, RegionId, RemoteRange, StreamId};
use thallus_protocol_testing::mutate_descriptor;

use super::client::LOAN;
use crate::pair::any_edge;
use crate::pair::memory::{DATA_BASE, PROBE, WORDS_BASE};
use crate::pair::script::descriptor;

/// A fault in a lent batch.
#[derive(Clone, Debug)]
pub(crate) enum Twist {
    Nothing,
    Descriptor(BatchDescriptor),
    Place { index: usize, place: RemoteRange },
    FewerPlaces,
    MorePlaces,
    Word(Option<LeaseWord>),
}

fn arb_range() -> impl Strategy<Value = RemoteRange> {
    let address = prop_oneof![Just(DATA_BASE), Just(WORDS_BASE), Just(WORDS_BASE + 3), Just(0), any_edge()];
    let len = prop_oneof![Just(8_u64), Just(0), Just(80), any_edge()];
    (0..5_u32, address, len).prop_map(|(region, address, len)| RemoteRange { region: RegionId(region), address, len })
}

pub(crate) fn arb_twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        20 => Just(Twist::Nothing),
        1 => (0..30_u64).prop_flat_map(|rows| mutate_descriptor(descriptor(rows))).prop_map(Twist::Descriptor),
        1 => (0..2_usize, arb_range()).prop_map(|(index, place)| Twist::Place { index, place }),
        1 => Just(Twist::FewerPlaces),
        1 => Just(Twist::MorePlaces),
        1 => prop::option::of((arb_range(), 0..2_u64)).prop_map(|word| {
            Twist::Word(word.map(|(at, value)| LeaseWord { at, value }))
        }),
    ]
}

fn arb_from_lender() -> impl Strategy<Value = (FromLender, usize)> {
    let stream = || (0..6_u32).prop_map(StreamId);
    let seq = || prop_oneof![6 => 0..3_u64, 1 => Just(u64::MAX), 1 => any::<u64>()];
    let region = (0..6_u32, any_edge(), any_edge()).prop_map(|(id, base, len)| {
        (FromLender::Region(Region { id: RegionId(id), base, len, key: Bytes::from_static(b"k") }), 0)
    });
    let inline_bytes = prop_oneof![4 => prop::sample::select(vec![0_u64, 5, 10, 20]), 1 => any_edge()];
    let inline = (stream(), seq(), inline_bytes, any::<bool>(), prop::sample::select(vec![0_usize, 5, 10, 20]))
        .prop_map(|(stream, seq, bytes, more, len)| (FromLender::Inline { stream, seq, bytes, more }, len));
    prop_oneof![
        2 => region,
        1 => (0..6_u32).prop_map(|id| (FromLender::RegionGone(RegionId(id)), 0)),
        8 => inline,
        3 => (stream(), any_edge()).prop_map(|(stream, bytes)| (FromLender::CreditWanted { stream, bytes }, 0)),
        2 => (stream(), seq(), arb_extensions()).prop_map(|(stream, batches, extensions)| {
            (FromLender::End { stream, batches, stats: StreamStats::default(), extensions }, 0)
        }),
        2 => (stream(), any::<u16>(), arb_extensions()).prop_map(|(stream, code, extensions)| {
            let failure = Failure::new(code.into(), "x".repeat(9000));
            (FromLender::Failed { stream, failure, extensions }, 0)
        }),
    ]
}

fn arb_extensions() -> impl Strategy<Value = Extensions> {
    let keys = prop_oneof![Just(7_u16), Just(CRITICAL | 7), any::<u16>()];
    let extensions = prop::collection::vec(keys, 1..70).prop_map(|keys| {
        keys.into_iter().fold(Extensions::none(), |all, key| all.with(key, Bytes::from_static(b"value")))
    });
    prop_oneof![12 => Just(Extensions::none()), 1 => extensions]
}

/// Messages about streams that the client lends.
fn arb_from_borrower() -> impl Strategy<Value = FromBorrower> {
    let stream = || (0..8_u32).prop_map(StreamId);
    let credit = prop_oneof![3 => 0..7000_u64, 1 => any_edge()];
    prop_oneof![
        6 => (stream(), credit).prop_map(|(stream, total)| FromBorrower::Credit { stream, total }),
        6 => prop::collection::vec((1..10_u64).prop_map(LeaseId), 0..3)
            .prop_map(|leases| FromBorrower::Release { leases }),
        2 => (stream(), any::<u16>())
            .prop_map(|(stream, reason)| FromBorrower::Cancel { stream, reason: reason.into() }),
        2 => Just(up()),
        1 => Just(FromBorrower::PathDown { reason: "x".repeat(9000) }),
    ]
}

pub(crate) fn up() -> FromBorrower {
    FromBorrower::PathUp { transport: "x".into(), lending: None, extensions: Extensions::none() }
}

pub(crate) fn arb_to_client() -> impl Strategy<Value = (Message, usize)> {
    let result = prop_oneof![
        (0..9_u64).prop_map(Ok),
        any::<u16>().prop_map(|code| Err(Failure::new(code.into(), "x".repeat(9000)))),
    ];
    prop_oneof![
        1 => Just((Message::Welcome(hello(Fencing::LeaseWord)), 0)),
        18 => arb_from_lender().prop_map(|(message, payload)| (Message::Lender(message), payload)),
        8 => arb_from_borrower().prop_map(|message| (Message::Borrower(message), 0)),
        2 => (0..8_u32, result, arb_extensions()).prop_map(|(stream, result, extensions)| {
            (Message::Answer(Answer { stream: StreamId(stream), result, extensions }), 0)
        }),
        1 => any::<u64>().prop_map(|nonce| (Message::Ping(nonce), 0)),
        1 => (0..5_u64).prop_map(|nonce| (Message::Pong(nonce), 0)),
        1 => (0..3_u16).prop_map(|code| (Message::Goodbye { code: code.into(), message: "x".repeat(9000) }, 0)),
        1 => Just((Message::Pong(1), 3)),
    ]
}

pub(crate) fn hello(fencing: Fencing) -> Welcome {
    let words = Region { id: RegionId(1), base: WORDS_BASE, len: 64, key: Bytes::new() };
    let probe_at = RemoteRange { region: RegionId(1), address: WORDS_BASE + 56, len: 8 };
    let lending = Lending { fencing, words, probe_at, probe_value: PROBE };
    let choice = FabricChoice { kind: FabricKind::SIM, address: Bytes::new(), lending };
    let limits = ServerLimits { max_streams: 4, max_loan_bytes: LOAN, max_sql_bytes: 100 };
    Welcome { name: "x".into(), fabric: Ok(choice), limits, extensions: Extensions::none() }
}

pub(crate) fn schema_of(stream: StreamId, order: Vec<SortKey>) -> Message {
    Message::Lender(FromLender::Schema { stream, order, extensions: Extensions::none() })
}

pub(crate) fn lent_as(stream: StreamId, seq: u64, batch: LentBatch) -> Message {
    Message::Lender(FromLender::Lent { stream, seq, batch })
}

pub(crate) fn lent(lease: u64, rows: u64, twist: Twist) -> LentBatch {
    let mut descriptor: BatchDescriptor = descriptor(rows);
    let place = RemoteRange { region: RegionId(2), address: DATA_BASE, len: rows * 8 };
    let mut places = vec![place; if rows > 0 { 2 } else { 0 }];
    let at = RemoteRange { region: RegionId(1), address: WORDS_BASE, len: 8 };
    let mut word = Some(LeaseWord { at, value: 1 });
    match twist {
        Twist::Nothing => {}
        Twist::Descriptor(other) => descriptor = other,
        Twist::Place { index, place } => {
            if let Some(found) = places.get_mut(index) {
                *found = place;
            }
        }
        Twist::FewerPlaces => drop(places.pop()),
        Twist::MorePlaces => places.push(place),
        Twist::Word(other) => word = other,
    }
    LentBatch { lease: LeaseId(lease), word, descriptor, places }
}
