//! Pins the bytes on the wire, which `docs/PROTOCOL.md` cites. A change here is a change of the protocol: it needs a
//! version or a feature bit, unless it adds an extension, or a variant at the end of an enum.

use bytes::Bytes;
use thallus_protocol::codec::{Decoded, Decoder, FEATURES, FrameLimits, Preface, VERSIONS, VersionRange, encode};
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

/// Checks that a message encodes to exactly these bytes (spaces are ignored), and that they decode to the same message.
#[expect(clippy::disallowed_methods, reason = "a test may read its environment, the protocol may not")]
fn pinned(message: Message, payload: &'static [u8], golden: &str) {
    let frame = encode(&message, Bytes::from_static(payload), FrameLimits::default()).expect("encodes");
    let bytes = hex(&[&frame.head[..], &frame.payload[..]].concat());
    if std::env::var_os("PRINT_GOLDEN").is_some() {
        println!("{golden} {bytes}");
        return;
    }
    let golden = golden.replace(' ', "");
    assert_eq!(bytes, golden, "{message:?}");
    let mut decoder = Decoder::new(FrameLimits::default());
    decoder.push(&Preface { versions: VERSIONS, features: FEATURES }.encode());
    decoder.push(&unhex(&golden));
    assert!(matches!(decoder.decode::<Message>(), Ok(Some(Decoded::Preface(_)))));
    assert_eq!(decoder.decode::<Message>(), Ok(Some(Decoded::Message(message, Bytes::from_static(payload)))));
    assert_eq!(decoder.decode::<Message>(), Ok(None));
}

fn range(region: u32, address: u64, len: u64) -> RemoteRange {
    RemoteRange { region: RegionId(region), address, len }
}

fn region() -> Region {
    Region { id: RegionId(3), base: 0x1000, len: 0x2000, key: Bytes::from_static(b"key") }
}

fn lending(fencing: Fencing) -> Lending {
    Lending { fencing, words: region(), probe_at: range(3, 0x1008, 8), probe_value: 300 }
}

fn none() -> Extensions {
    Extensions::none()
}

#[test]
fn preface() {
    let preface = Preface { versions: VersionRange { min: 1, max: 2 }, features: 5 };
    assert_eq!(hex(&preface.encode()), "5448414c4c55530a01000200b324e9cf0500000000000000");
    let ours = Preface { versions: VERSIONS, features: FEATURES };
    assert_eq!(hex(&ours.encode()), "5448414c4c55530a010001004a9194a00100000000000000");
    let mut decoder = Decoder::new(FrameLimits::default());
    decoder.push(&preface.encode());
    assert_eq!(decoder.decode::<Message>(), Ok(Some(Decoded::Preface(preface))));
}

#[test]
fn handshake() {
    let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::from_static(b"\x01\x02") };
    let hello = Hello { name: "c".into(), fabrics: vec![offer], max_loan_bytes: 1 << 20, extensions: none() };
    pinned(Message::Hello(hello.clone()), b"", "0f000000 00000000 33b1e487 1dba8d66 000163010373696d02010280804000");
    let extensions = none().with(2, Bytes::from_static(b"ab")).with(CRITICAL | 1, Bytes::new());
    pinned(
        Message::Hello(Hello { extensions, ..hello }),
        b"",
        "17000000 00000000 a994813b 91c4bf5a 000163010373696d020102808040020202616281800200",
    );
    let limits = ServerLimits { max_streams: 4, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 16 };
    let welcome =
        |fabric| Message::Welcome(Welcome { name: "s".into(), fabric, limits: limits.clone(), extensions: none() });
    let choice = |fencing| FabricChoice {
        kind: FabricKind::UCX,
        address: Bytes::from_static(b"addr"),
        lending: lending(fencing),
    };
    pinned(
        welcome(Ok(choice(Fencing::LeaseWord))),
        b"",
        "25000000 00000000 914aaff0 6ab69417 \
         01017300037563780461646472010380208040036b657903882008ac020480804080800400",
    );
    pinned(
        welcome(Ok(choice(Fencing::Revocation))),
        b"",
        "25000000 00000000 b62f8a71 774b2116 \
         01017300037563780461646472000380208040036b657903882008ac020480804080800400",
    );
    pinned(welcome(Err("none".into())), b"", "11000000 00000000 bc7d3c53 6c147466 01017301046e6f6e650480804080800400");
    pinned(Message::Ping(1), b"", "02000000 00000000 ef858460 e2ec51ec 0601");
    pinned(Message::Pong(2), b"", "02000000 00000000 14e596e0 9745ad60 0702");
    pinned(
        Message::Goodbye { code: CloseCode::ShuttingDown, message: String::new() },
        b"",
        "03000000 00000000 ebb949e8 3f89d048 080100",
    );
    pinned(
        Message::Goodbye { code: CloseCode::Normal, message: "bye".into() },
        b"",
        "06000000 00000000 06c452c7 0a6aa8aa 080003627965",
    );
}

#[test]
fn requests() {
    let open = |request, options| Message::Open(Open { stream: StreamId(7), request, options, extensions: none() });
    let options = OpenOptions {
        lend_from: LendFrom::Bytes(0),
        measured: None,
        access: Access::Read,
        batch_rows: Some(1000),
        deadline_ms: Some(5),
        credit: 1 << 16,
        ..OpenOptions::default()
    };
    pinned(
        open(Request::Sql("select 1".into()), options),
        b"",
        "1a000000 00000000 4c001330 49550e0b 0207010873656c65637420310200000001e80701058080040000",
    );
    pinned(
        open(Request::Describe("select 1".into()), OpenOptions::default()),
        b"",
        "14000000 00000000 2a37da1a 4c78d51c 0207030873656c65637420310100000000000000",
    );
    let tables = ObjectsRequest { depth: Depth::Tables, table: Some("t%".into()), ..ObjectsRequest::default() };
    pinned(
        open(Request::Objects(tables), OpenOptions::default()),
        b"",
        "14000000 00000000 d075b5ff beb615b4 0207040802000001027425000100000000000000",
    );
    let part = Partition { group: GroupId(*b"sixteen bytes of"), index: 2, count: 300 };
    let parted = OpenOptions { partition: Some(part), ..Default::default() };
    pinned(
        open(Request::Sql(String::new()), parted),
        b"",
        "1f000000 00000000 f78cb26b f20c54fa 02070100010000000000017369787465656e206279746573206f6602ac0200",
    );
    let process = ProcessId { pid: 4711, started: 1 << 20 };
    let ways = [
        (
            LendFrom::Auto,
            Some(Thresholds { first: 300, later: 75 }),
            Access::Read,
            "0f000000 00000000 cb22fbef 08653954 020701000101ac024b000000000000",
        ),
        (LendFrom::Never, None, Access::OnDemand, "0c000000 00000000 e8f54b9a 96bf4cdd 020701000000010000000000"),
        (
            LendFrom::Bytes(300),
            None,
            Access::Map(process),
            "13000000 00000000 561536e2 a7dac033 0207010002ac020002e7248080400000000000",
        ),
    ];
    for (lend_from, measured, access, golden) in ways {
        let options = OpenOptions { lend_from, measured, access, ..Default::default() };
        pinned(open(Request::Sql(String::new()), options), b"", golden);
    }
    pinned(
        open(Request::Upload("t".into()), OpenOptions::default()),
        b"",
        "0d000000 00000000 fe5afbcd 088b75f0 02070201740100000000000000",
    );
    let unknown = Request::Unknown { kind: 999, body: Bytes::from_static(b"what") };
    pinned(
        open(unknown, OpenOptions::default()),
        b"",
        "11000000 00000000 1401e337 23c83fff 0207e70704776861740100000000000000",
    );
    let answer = |result| Message::Answer(Answer { stream: StreamId(7), result, extensions: none() });
    pinned(answer(Ok(300)), b"", "06000000 00000000 9bc92267 3e1ab314 030700ac0200");
    pinned(
        answer(Err(Failure::new(StreamCode::ReadOnly, "no"))),
        b"",
        "09000000 00000000 bce2de29 ef79b746 0307010500026e6f00",
    );
}

#[test]
fn from_a_borrower() {
    let says = |message, golden| pinned(Message::Borrower(message), b"", golden);
    let up = |lending| FromBorrower::PathUp { transport: "shm".into(), lending, extensions: none() };
    says(up(None), "08000000 00000000 23beb9ab ca0c9d74 05000373686d0000");
    says(
        up(Some(lending(Fencing::LeaseWord))),
        "18000000 00000000 d501c3ad 29253929 05000373686d01010380208040036b657903882008ac0200",
    );
    says(FromBorrower::PathDown { reason: "why".into() }, "06000000 00000000 ace0991b 2ded5110 050103776879");
    says(
        FromBorrower::Credit { stream: StreamId(7), total: u64::MAX },
        "0d000000 00000000 bc7a3061 18bc4b0e 050207ffffffffffffffffff01",
    );
    says(
        FromBorrower::Release { leases: vec![LeaseId(1), LeaseId(1 << 40)] },
        "0a000000 00000000 4c22ab7b 9396cdf1 05030201808080808020",
    );
    says(
        FromBorrower::Cancel { stream: StreamId(7), reason: CancelReason::LeaseLost },
        "04000000 00000000 8f40dbc7 7a9dbfda 05040703",
    );
}

#[test]
fn from_a_lender() {
    let says = |message, payload, golden| pinned(Message::Lender(message), payload, golden);
    let stream = StreamId(7);
    says(FromLender::Region(region()), b"", "0b000000 00000000 29d3725f ad5e6fbe 04000380208040036b6579");
    says(FromLender::RegionGone(RegionId(3)), b"", "03000000 00000000 35115a78 9b99d0c8 040103");
    says(
        FromLender::Schema { stream, order: Vec::new(), extensions: none() },
        b"ipc",
        "05000000 03000000 b94970d7 423f4045 0402070000697063",
    );
    let order = vec![
        SortKey { column: 300, descending: true, nulls_first: false },
        SortKey { column: 0, descending: false, nulls_first: true },
    ];
    says(
        FromLender::Schema { stream, order, extensions: none() },
        b"ipc",
        "0c000000 03000000 14468244 f7c23823 04020702ac02010000000100697063",
    );
    says(
        FromLender::Inline { stream, seq: 2, bytes: 4, more: true },
        b"data",
        "06000000 04000000 20abf064 3634de3b 04030702040164617461",
    );
    says(FromLender::CreditWanted { stream, bytes: 500 }, b"", "05000000 00000000 69c2eae8 f43a333d 040507f403");
    let stats = StreamStats::from(vec![(1, 1), (2, 300), (12, 12), (999, 5)]);
    says(
        FromLender::End { stream, batches: 5, stats, extensions: none() },
        b"",
        "0d000000 00000000 a3cd0b4b aa352921 0406070503010102ac020c0c00",
    );
    let failed = |failure| FromLender::Failed { stream, failure, extensions: none() };
    says(
        failed(Failure::new(StreamCode::UnknownTable, "no")),
        b"",
        "09000000 00000000 f78a6a33 8daead31 0407070200026e6f00",
    );
    says(
        failed(Failure::new(StreamCode::Unknown(999), "no")),
        b"",
        "0a000000 00000000 345de255 0ec886fd 040707e70700026e6f00",
    );
    says(
        failed(Failure::cancelled(CancelReason::Dropped)),
        b"",
        "08000000 00000000 61a0c6cb 67162db6 0407070a01000000",
    );
}

#[test]
fn a_lent_batch() {
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
    let lent = |word| {
        let places = vec![range(3, 0x1000, 1), range(3, 0x1800, 16)];
        let batch = LentBatch { lease: LeaseId(6), word, descriptor: descriptor.clone(), places };
        Message::Lender(FromLender::Lent { stream: StreamId(7), seq: 1, batch })
    };
    pinned(
        lent(None),
        b"",
        "3b000000 00000000 7744db11 7ad56997 \
         040407010600020702010500020105010302010502090201050302000102030201050401030201050504020105060301001002038020\
         0103803010",
    );
    pinned(
        lent(Some(LeaseWord { at: range(1, 0x2000, 8), value: 1 << 63 })),
        b"",
        "49000000 00000000 f77faa38 80a6e9ee \
         040407010601018040088080808080808080800102070201050002010501030201050209020105030200010203020105040103020105\
         05040201050603010010020380200103803010",
    );
}

/// A peer may send more figures than this build has, or fewer.
#[test]
fn unknown_figures_are_ignored() {
    let mut known = StreamStats::default();
    (known.rows, known.credit_wait_nanos) = (1, 12);
    assert_eq!(Vec::<(u16, u64)>::from(known), [(1, 1), (12, 12)]);
    assert_eq!(StreamStats::from(vec![(12, 12), (999, 5), (1, 1)]), known);
}

/// Every code of this build keeps its number, and unknown numbers survive.
#[test]
fn codes() {
    let stream: Vec<String> = (0..31).map(|code| format!("{:?}", StreamCode::from(code))).collect();
    assert_eq!(
        stream.join(" "),
        "Unknown(0) Syntax UnknownTable Plan Unsupported ReadOnly Execution ResourcesExhausted Source Internal \
         Cancelled DeadlineExceeded TooManyStreams ShuttingDown BatchTooLarge LeaseExpired DataPlaneLost SqlTooLong \
         Unencodable PartitionInvalid PartitionMissing PartitionLost MappingRefused ReadFailed LeaseLost InvalidBatch \
         OutOfMemory AlreadyExists Parameters Constraint Unknown(30)"
    );
    let close: Vec<String> = (0..9).map(|code| format!("{:?}", CloseCode::from(code))).collect();
    assert_eq!(
        close.join(" "),
        "Normal ShuttingDown TooManyConnections ProtocolError IdleTimeout HandshakeTimeout Internal Unsupported \
         Unknown(8)"
    );
    let cancel: Vec<String> = (0..10).map(|code| format!("{:?}", CancelReason::from(code))).collect();
    assert_eq!(
        cancel.join(" "),
        "Dropped ReadFailed InvalidBatch LeaseLost BatchTooLarge DeadlineExceeded OutOfMemory RequestFailed \
         Unsupported Unknown(9)"
    );
    for code in 0..=u16::MAX {
        assert_eq!(u16::from(StreamCode::from(code)), code);
        assert_eq!(u16::from(CloseCode::from(code)), code);
        assert_eq!(u16::from(CancelReason::from(code)), code);
    }
}

/// Every code has a SQLSTATE of five characters.
#[test]
fn sqlstates() {
    for code in 0..=40 {
        let state = StreamCode::from(code).sqlstate();
        assert!(state.len() == 5 && state.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()), "{state}");
    }
    let states = [StreamCode::Syntax, StreamCode::UnknownTable, StreamCode::Cancelled].map(StreamCode::sqlstate);
    assert_eq!(states, ["42601", "42P01", "57014"]);
}
