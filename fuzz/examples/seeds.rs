//! Writes the seeds: small valid inputs from which the fuzzer starts. Every run writes the same seeds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use thallus_fuzz::frames::{answer_step, message_step, preface};
use thallus_fuzz::{layout_input, schemas, with_part};
use thallus_protocol::codec::{FrameLimits, encode};
use thallus_protocol::inline::{InlineEncoder, encode_schema};
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor};
use thallus_protocol::message::*;
use thallus_protocol::{FabricKind, LeaseId, RegionId, RemoteRange, StreamId};
use thallus_protocol_testing::{Dice, all_types, batch};

fn folder(target: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder).expect("the seeds' folder can be created");
    folder
}

fn none() -> Extensions {
    Extensions::none()
}

fn open(stream: u32, request: Request) -> Message {
    let options = OpenOptions { lend_from: LendFrom::Bytes(0), credit: 2000, ..OpenOptions::default() };
    Message::Open(Open { stream: StreamId(stream), request, options, extensions: none() })
}

/// Messages of a lender: a stream of two batches, and a stream that fails.
fn lent(stream: StreamId) -> Vec<(Message, Bytes)> {
    let range = |region, address, len| RemoteRange { region: RegionId(region), address, len };
    let schema = Schema::new(vec![Field::new("f", DataType::Int64, false)]);
    let ipc = encode_schema(&schema).expect("IPC supports this type");
    let node = NodeDescriptor { len: 2, nulls: 0, null_bit: 0, detail: Detail::None };
    let batch = LentBatch {
        lease: LeaseId(1),
        word: Some(LeaseWord { at: range(1, 0, 8), value: 1 }),
        descriptor: BatchDescriptor { rows: 2, nodes: vec![node], buffers: vec![16] },
        places: vec![range(2, 64, 16)],
    };
    let inline = |more| FromLender::Inline { stream, seq: 1, bytes: 6, more };
    let failure = Failure::new(1.into(), "no");
    let said = [
        (FromLender::Region(region(2)), Bytes::new()),
        (FromLender::Schema { stream, order: Vec::new(), extensions: none() }, ipc.into()),
        (FromLender::Lent { stream, seq: 0, batch }, Bytes::new()),
        (inline(true), Bytes::from_static(b"abc")),
        (inline(false), Bytes::from_static(b"def")),
        (FromLender::CreditWanted { stream, bytes: 9000 }, Bytes::new()),
        (FromLender::End { stream, batches: 2, stats: StreamStats::default(), extensions: none() }, Bytes::new()),
        (FromLender::Failed { stream: StreamId(stream.0 + 1), failure, extensions: none() }, Bytes::new()),
    ];
    said.into_iter().map(|(message, payload)| (Message::Lender(message), payload)).collect()
}

fn region(id: u32) -> Region {
    Region { id: RegionId(id), base: 0, len: 4096, key: Bytes::new() }
}

fn lending() -> Lending {
    let probe_at = RemoteRange { region: RegionId(1), address: 8, len: 8 };
    Lending { fencing: Fencing::LeaseWord, words: region(1), probe_at, probe_value: 1 }
}

fn write(machine: &str, number: &str, answers: &[u8], said: &[(Message, Bytes)]) {
    let steps = said.iter().flat_map(|(message, payload)| {
        let body = postcard::to_stdvec(message).expect("no limit");
        let answers = answers.iter().flat_map(|answer| answer_step(*answer));
        [message_step(&body, payload), answers.collect()].concat()
    });
    fs::write(folder(machine).join("000"), steps.collect::<Vec<_>>()).expect("seeds can be written");
    let frames = said.iter().flat_map(|(message, payload)| {
        let frame = encode(message, payload.clone(), FrameLimits::default()).expect("short");
        [frame.head, frame.payload].concat()
    });
    let frames: Vec<u8> = preface().into_iter().chain(frames).collect();
    fs::write(folder("frame_decode").join(number), with_part(&[24, 3, 9], &frames)).expect("seeds can be written");
}

/// Writes a successful connection for each machine, also as seeds for the frame decoder.
fn connections() {
    let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::new() };
    let hello = Hello { name: "c".into(), fabrics: vec![offer], max_loan_bytes: 4096, extensions: none() };
    let (stream, leases) = (StreamId(1), vec![LeaseId(1)]);
    let path_up = |lending| FromBorrower::PathUp { transport: "t".into(), lending, extensions: none() };
    let mut said = vec![
        Message::Hello(hello),
        Message::Borrower(path_up(Some(lending()))),
        open(1, Request::Sql("s".into())),
        Message::Borrower(FromBorrower::Credit { stream, total: 3000 }),
        Message::Borrower(FromBorrower::Release { leases }),
        Message::Borrower(FromBorrower::Cancel { stream, reason: 0.into() }),
        Message::Ping(1),
        open(2, Request::Upload("t".into())),
    ]
    .into_iter()
    .map(|message| (message, Bytes::new()))
    .collect::<Vec<_>>();
    said.extend(lent(StreamId(2)));
    write("server_machine", "000", &[18, 18, 14], &said);

    let fabric = FabricChoice { kind: FabricKind::SIM, address: Bytes::new(), lending: lending() };
    let limits = ServerLimits { max_streams: 3, max_loan_bytes: 4096, max_sql_bytes: 64 };
    let welcome = Welcome { name: "s".into(), fabric: Ok(fabric), limits, extensions: none() };
    let answer = Answer { stream: StreamId(4), result: Ok(1), extensions: none() };
    let mut said = vec![(Message::Welcome(welcome), Bytes::new())];
    said.extend(lent(stream));
    let credit = FromBorrower::Credit { stream: StreamId(4), total: 3000 };
    let more = [
        Message::Borrower(path_up(None)),
        Message::Borrower(credit),
        Message::Borrower(FromBorrower::Release { leases: vec![LeaseId(1)] }),
        Message::Answer(answer),
        Message::Pong(1),
    ];
    said.extend(more.into_iter().map(|message| (message, Bytes::new())));
    write("client_machine", "001", &[14, 14, 18, 1], &said);
}

fn main() {
    connections();
    let (layout, inline, schema_only) = (folder("layout_rebuild"), folder("inline_decode"), folder("schema_decode"));
    for (index, schema) in schemas().iter().enumerate() {
        let batch = batch(schema, 5, &mut Dice::new(index as u64));
        fs::write(layout.join(format!("{index:03}")), layout_input(index, &batch)).expect("seeds can be written");
    }
    // Several columns in each file: a schema's message is much longer than the buffers of a small batch.
    for (index, types) in all_types().chunks(4).enumerate() {
        let fields = types.iter().map(|data_type| Field::new("f", data_type.clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let (mut encoder, message) = InlineEncoder::new(&schema).expect("IPC supports these types");
        let encoded = encoder.encode(&batch(&schema, 3, &mut Dice::new(index as u64))).expect("valid");
        fs::write(inline.join(format!("{index:03}")), with_part(&message, &encoded)).expect("seeds can be written");
        fs::write(schema_only.join(format!("{index:03}")), message).expect("seeds can be written");
    }
}
