//! The bytes on the wire, pinned. A change here is a change of the protocol: from the first release on it needs a version or a feature
//! bit.

use std::fmt::Debug;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thallus_protocol::codec::{Decoded, Decoder, FrameLimits, Preface, VERSIONS, VersionRange, encode};
use thallus_protocol::codes::{CancelReason, CloseCode, StreamCode};
use thallus_protocol::layout::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use thallus_protocol::message::*;
use thallus_protocol::{FabricKind, GroupId, LeaseId, RegionId, RemoteRange, StreamId};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
}

/// Encodes to exactly these bytes (spaces left out), and decodes from them to the same message.
fn pinned<M: Serialize + DeserializeOwned + PartialEq + Debug>(message: M, payload: &'static [u8], golden: &str) {
    let golden = golden.replace(' ', "");
    let frame = encode(&message, Bytes::from_static(payload), FrameLimits::default()).expect("encodes");
    assert_eq!(hex(&[&frame.head[..], &frame.payload[..]].concat()), golden, "{message:?}");
    let mut decoder = Decoder::new(FrameLimits::default());
    decoder.push(&Preface { versions: VERSIONS, features: 0 }.encode());
    decoder.push(&unhex(&golden));
    assert!(matches!(decoder.decode::<M>(), Ok(Some(Decoded::Preface(_)))));
    assert_eq!(decoder.decode::<M>(), Ok(Some(Decoded::Message(message, Bytes::from_static(payload)))));
    assert_eq!(decoder.decode::<M>(), Ok(None));
}

fn range(region: u32, address: u64, len: u64) -> RemoteRange {
    RemoteRange { region: RegionId(region), address, len }
}

fn region() -> Region {
    Region { id: RegionId(3), base: 0x1000, len: 0x2000, key: Bytes::from_static(b"key") }
}

fn choice() -> FabricChoice {
    FabricChoice {
        kind: FabricKind::UCX,
        address: Bytes::from_static(b"addr"),
        fencing: Fencing::LeaseWord,
        words: region(),
        probe_at: range(3, 0x1008, 8),
        probe_value: 300,
    }
}

fn limits() -> ServerLimits {
    ServerLimits { max_streams: 4, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 16 }
}

#[test]
fn preface() {
    let preface = Preface { versions: VersionRange { min: 1, max: 2 }, features: 5 };
    assert_eq!(hex(&preface.encode()), "5448414c4c55530a01000200000000000500000000000000");
    assert_eq!(
        hex(&Preface { versions: VERSIONS, features: 0 }.encode()),
        "5448414c4c55530a01000100000000000000000000000000"
    );
    let mut decoder = Decoder::new(FrameLimits::default());
    decoder.push(&preface.encode());
    assert_eq!(decoder.decode::<ToServer>(), Ok(Some(Decoded::Preface(preface))));
}

#[test]
fn to_server() {
    let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::from_static(b"\x01\x02") };
    pinned(
        ToServer::Hello(ClientHello { name: "c".into(), fabrics: vec![offer] }),
        b"",
        "0b000000 00000000 000163010373696d020102",
    );
    pinned(ToServer::FabricUp { transport: "shm".into() }, b"", "05000000 00000000 010373686d");
    pinned(ToServer::FabricDown { reason: "why".into() }, b"", "05000000 00000000 0203776879");
    let options = ExecuteOptions {
        delivery: Delivery::Lent,
        batch_rows: Some(1000),
        deadline_ms: Some(5),
        inline_threshold: None,
        credit: 1 << 16,
        part: None,
        lazy: false,
    };
    pinned(
        ToServer::Execute { stream: StreamId(7), sql: "select 1".into(), options },
        b"",
        "17000000 00000000 03070873656c65637420310201e8070105008080040000",
    );
    let part = Partition { group: GroupId(*b"sixteen bytes of"), index: 2, count: 300 };
    pinned(
        ToServer::Execute {
            stream: StreamId(7),
            sql: String::new(),
            options: ExecuteOptions { part: Some(part), ..Default::default() },
        },
        b"",
        "1d000000 00000000 030700000000000001 7369787465656e206279746573206f66 02ac0200",
    );
    let process = ProcessId { pid: 4711, started: 1 << 20 };
    for (delivery, options) in [
        (Delivery::Mapped(process), "0f000000 00000000 03000003e724808040000000000000"),
        (Delivery::Auto, "0a000000 00000000 03000000000000000000"),
        (Delivery::Inline, "0a000000 00000000 03000001000000000000"),
    ] {
        let execute = ExecuteOptions { delivery, ..Default::default() };
        pinned(ToServer::Execute { stream: StreamId(0), sql: String::new(), options: execute }, b"", options);
    }
    pinned(
        ToServer::Credit { stream: StreamId(7), total: u64::MAX },
        b"",
        "0c000000 00000000 0407ffffffffffffffffff01",
    );
    pinned(
        ToServer::Release { leases: vec![LeaseId(1), LeaseId(1 << 40)] },
        b"",
        "09000000 00000000 050201808080808020",
    );
    pinned(ToServer::Cancel { stream: StreamId(7), reason: CancelReason::LeaseLost }, b"", "03000000 00000000 060703");
    pinned(ToServer::Ping(1), b"", "02000000 00000000 0701");
    pinned(ToServer::Pong(2), b"", "02000000 00000000 0802");
    pinned(ToServer::Goodbye { code: CloseCode::Normal, message: "bye".into() }, b"", "06000000 00000000 090003627965");
}

#[test]
fn to_client() {
    let welcome = |fabric| ToClient::Welcome(ServerHello { name: "s".into(), fabric, limits: limits() });
    pinned(
        welcome(Ok(choice())),
        b"",
        "24000000 00000000 00017300037563780461646472010380208040036b657903882008ac0204808040808004",
    );
    pinned(
        welcome(Ok(FabricChoice { fencing: Fencing::Revocation, ..choice() })),
        b"",
        "24000000 00000000 00017300037563780461646472000380208040036b657903882008ac0204808040808004",
    );
    pinned(welcome(Err("none".into())), b"", "10000000 00000000 00017301046e6f6e6504808040808004");
    pinned(ToClient::Region(region()), b"", "0a000000 00000000 010380208040036b6579");
    pinned(ToClient::RegionGone(RegionId(3)), b"", "02000000 00000000 0203");
    pinned(ToClient::Schema { stream: StreamId(7), order: Vec::new() }, b"ipc", "03000000 03000000 030700697063");
    let order = vec![
        SortKey { column: 300, descending: true, nulls_first: false },
        SortKey { column: 0, descending: false, nulls_first: true },
    ];
    pinned(ToClient::Schema { stream: StreamId(7), order }, b"ipc", "0a000000 03000000 030702ac020100000001697063");
    pinned(
        ToClient::Inline { stream: StreamId(7), seq: 2, bytes: 4, more: true },
        b"data",
        "05000000 04000000 040702040164617461",
    );
    let details = [
        Detail::None,
        Detail::Bits { first: 3 },
        Detail::Base(9),
        Detail::Views(vec![Extent { buffer: 0, base: 1 }, Extent { buffer: 2, base: 3 }]),
        Detail::UnionBases(vec![3]),
        Detail::Runs { offset: 4 },
        Detail::SameValues,
    ];
    let nodes = details.into_iter().map(|detail| NodeDescriptor { len: 2, nulls: 1, null_bit: 5, detail }).collect();
    let descriptor = BatchDescriptor { rows: 2, nodes, buffers: vec![1, 0, 16] };
    let lent = |word| ToClient::Lent {
        stream: StreamId(7),
        seq: 1,
        batch: LentBatch {
            lease: LeaseId(6),
            word,
            descriptor: descriptor.clone(),
            places: vec![range(3, 0x1000, 1), range(3, 0x1800, 16)],
        },
    };
    pinned(
        lent(None),
        b"",
        "3a000000 00000000 05070106000207020105000201050103020105020902010503020001020302010504010302010505040201050603010010020380200103803010",
    );
    pinned(
        lent(Some(LeaseWord { at: range(1, 0x2000, 8), value: 1 << 63 })),
        b"",
        "48000000 00000000 050701060101804008808080808080808080010207020105000201050103020105020902010503020001020302010504010302010505040201050603010010020380200103803010",
    );
    pinned(ToClient::CreditWanted { stream: StreamId(7), bytes: 500 }, b"", "04000000 00000000 0607f403");
    let stats = StreamStats {
        rows: 1,
        batches_lent: 2,
        batches_inline: 3,
        bytes_lent: 4,
        bytes_inline: 5,
        bytes_staged: 6,
        registrations: 7,
        regions: 8,
        page_faults: 9,
        first_batch_nanos: 10,
        execute_nanos: 11,
        credit_wait_nanos: 12,
    };
    let end = ToClient::End { stream: StreamId(7), batches: 5, stats };
    pinned(end, b"", "0f000000 00000000 070705010203040506070809 0a0b0c");
    let failed = |code| ToClient::Failed { stream: StreamId(7), code, message: "no".into() };
    pinned(failed(StreamCode::UnknownTable), b"", "06000000 00000000 080702026e6f");
    pinned(failed(StreamCode::Unknown(999)), b"", "07000000 00000000 0807e707026e6f");
    pinned(ToClient::Ping(1), b"", "02000000 00000000 0901");
    pinned(ToClient::Pong(2), b"", "02000000 00000000 0a02");
    pinned(
        ToClient::Goodbye { code: CloseCode::ShuttingDown, message: String::new() },
        b"",
        "03000000 00000000 0b0100",
    );
}

/// Every code that this build knows keeps its number, and numbers that it does not know survive.
#[test]
fn codes() {
    let stream: Vec<String> = (0..24).map(|code| format!("{:?}", StreamCode::from(code))).collect();
    assert_eq!(
        stream.join(" "),
        "Unknown(0) Syntax UnknownTable Plan Unsupported ReadOnly Execution ResourcesExhausted Source Internal Cancelled \
         DeadlineExceeded TooManyStreams ShuttingDown BatchTooLarge LeaseExpired DataPlaneLost SqlTooLong Unencodable \
         PartitionInvalid PartitionMissing PartitionLost MappingRefused Unknown(23)"
    );
    let close: Vec<String> = (0..8).map(|code| format!("{:?}", CloseCode::from(code))).collect();
    assert_eq!(
        close.join(" "),
        "Normal ShuttingDown TooManyConnections ProtocolError IdleTimeout HandshakeTimeout Internal Unknown(7)"
    );
    let cancel: Vec<String> = (0..8).map(|code| format!("{:?}", CancelReason::from(code))).collect();
    assert_eq!(
        cancel.join(" "),
        "Dropped ReadFailed InvalidBatch LeaseLost BatchTooLarge DeadlineExceeded OutOfMemory Unknown(7)"
    );
    for code in 0..=u16::MAX {
        assert_eq!(u16::from(StreamCode::from(code)), code);
        assert_eq!(u16::from(CloseCode::from(code)), code);
        assert_eq!(u16::from(CancelReason::from(code)), code);
    }
}
