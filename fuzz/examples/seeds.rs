//! Writes the seeds: small valid inputs from which the fuzzer starts. The same on every run.

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
use thallus_protocol::testing::{Dice, all_types, batch};
use thallus_protocol::{FabricKind, LeaseId, RegionId, RemoteRange, StreamId};

fn folder(target: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder).expect("the seeds' folder can be made");
    folder
}

/// A connection of each kind that goes well, for the machines and their decoder.
fn connections() {
    let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::new() };
    let hello = ToServer::Hello(ClientHello { name: "c".into(), fabrics: vec![offer] });
    let options = ExecuteOptions { delivery: Delivery::Lent, credit: 2000, ..ExecuteOptions::default() };
    let (stream, leases) = (StreamId(1), vec![LeaseId(1)]);
    let said = [
        hello,
        ToServer::FabricUp { transport: "t".into() },
        ToServer::Execute { stream, sql: "s".into(), options },
        ToServer::Credit { stream, total: 3000 },
        ToServer::Release { leases },
        ToServer::Cancel { stream, reason: 0.into() },
        ToServer::Ping(1),
    ];
    let steps = said.iter().map(|message| {
        let body = postcard::to_stdvec(message).expect("no limit");
        [message_step(&body, &[]), answer_step(2), answer_step(2)].concat()
    });
    fs::write(folder("server_machine").join("000"), steps.flatten().collect::<Vec<_>>()).expect("seeds can be written");
    let frames = said.iter().map(|message| encode(message, Bytes::new(), FrameLimits::default()).expect("short").head);
    let frames: Vec<u8> = preface().into_iter().chain(frames.flatten()).collect();
    fs::write(folder("frame_decode").join("000"), with_part(&[24, 3, 9], &frames)).expect("seeds can be written");

    let range = |region, address, len| RemoteRange { region: RegionId(region), address, len };
    let region = |id| Region { id: RegionId(id), base: 0, len: 4096, key: Bytes::new() };
    let fabric = FabricChoice {
        kind: FabricKind::SIM,
        address: Bytes::new(),
        fencing: Fencing::LeaseWord,
        words: region(1),
        probe_at: range(1, 8, 8),
        probe_value: 1,
    };
    let limits = ServerLimits { max_streams: 3, max_loan_bytes: 4096, max_sql_bytes: 64 };
    let schema = Schema::new(vec![Field::new("f", DataType::Int64, false)]);
    let ipc = encode_schema(&schema).expect("IPC carries it");
    let node = NodeDescriptor { len: 2, nulls: 0, null_bit: 0, detail: Detail::None };
    let batch = LentBatch {
        lease: LeaseId(1),
        word: Some(LeaseWord { at: range(1, 0, 8), value: 1 }),
        descriptor: BatchDescriptor { rows: 2, nodes: vec![node], buffers: vec![16] },
        places: vec![range(2, 64, 16)],
    };
    let said = [
        (ToClient::Welcome(ServerHello { name: "s".into(), fabric: Ok(fabric), limits }), &[][..]),
        (ToClient::Region(region(2)), &[]),
        (ToClient::Schema { stream, order: Vec::new() }, &ipc),
        (ToClient::Lent { stream, seq: 0, batch }, &[]),
        (ToClient::Inline { stream, seq: 1, bytes: 6, more: true }, b"abc"),
        (ToClient::Inline { stream, seq: 1, bytes: 6, more: false }, b"def"),
        (ToClient::CreditWanted { stream, bytes: 9000 }, &[]),
        (ToClient::End { stream, batches: 2, stats: StreamStats::default() }, &[]),
        (ToClient::Failed { stream: StreamId(2), code: 1.into(), message: "no".into() }, &[]),
        (ToClient::Pong(1), &[]),
    ];
    let steps = said.iter().map(|(message, payload)| {
        let body = postcard::to_stdvec(message).expect("no limit");
        [message_step(&body, payload), answer_step(12), answer_step(12), answer_step(1)].concat()
    });
    fs::write(folder("client_machine").join("000"), steps.flatten().collect::<Vec<_>>()).expect("seeds can be written");
    let frames = said.iter().flat_map(|(message, payload)| {
        let frame = encode(message, Bytes::copy_from_slice(payload), FrameLimits::default()).expect("short");
        [frame.head, frame.payload].concat()
    });
    let frames: Vec<u8> = preface().into_iter().chain(frames).collect();
    fs::write(folder("frame_decode").join("001"), with_part(&[24, 3, 9], &frames)).expect("seeds can be written");
}

fn main() {
    connections();
    let (layout, inline, schema_only) = (folder("layout_rebuild"), folder("inline_decode"), folder("schema_decode"));
    for (index, schema) in schemas().iter().enumerate() {
        let batch = batch(schema, 5, &mut Dice::new(index as u64));
        fs::write(layout.join(format!("{index:03}")), layout_input(index, &batch)).expect("seeds can be written");
    }
    // Several columns to a file: a schema's message is much longer than a small batch's buffers.
    for (index, types) in all_types().chunks(4).enumerate() {
        let fields = types.iter().map(|data_type| Field::new("f", data_type.clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let (mut encoder, message) = InlineEncoder::new(&schema).expect("IPC carries these");
        let encoded = encoder.encode(&batch(&schema, 3, &mut Dice::new(index as u64))).expect("valid");
        fs::write(inline.join(format!("{index:03}")), with_part(&message, &encoded)).expect("seeds can be written");
        fs::write(schema_only.join(format!("{index:03}")), message).expect("seeds can be written");
    }
}
