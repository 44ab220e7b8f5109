//! The pieces of a batch's path, each of which can be run repeatedly: to measure time (`benches/`) and to count
//! instructions (`src/bin/instructions.rs`).

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::Bytes;
use thallus_fabric::Fabric;
use thallus_fabric::memory::{PoolLimits, SlabPool, UncheckedAssembler};
use thallus_protocol::codec::{Decoded, Decoder, FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::inline::{InlineDecoder, InlineEncoder, InlineLimits};
use thallus_protocol::layout::{CheckedDescriptor, LayoutLimits, Plan, check, describe, rebuild_with};
use thallus_protocol::message::{FromLender, LeaseWord, LentBatch, Message};
use thallus_protocol::{LeaseId, RegionId, RemoteRange, StreamId};

use crate::pair::{Lent, Pair};
use crate::tables::first_batch;

/// Tables whose batches measure the layout: one for each kind of type.
const LAYOUTS: [&str; 7] = ["num8", "int256", "strings", "views", "nested", "dictionary", "lineitem"];
const CODEC: &str = "codec/lent batch";
const POOL: &str = "pool/take and return";
/// Batches of a query in the piece of the machines.
const BATCHES: u64 = 64;
/// Size of a slab taken from the pool: 1 MiB.
const SLAB: usize = 1 << 20;

/// A piece to be measured.
pub struct Piece {
    /// `PART/WHAT`.
    pub name: String,
    /// Number of batches that one run handles.
    pub batches: u64,
    /// One run.
    pub run: Box<dyn FnMut()>,
}

fn piece(name: impl Into<String>, batches: u64, run: impl FnMut() + 'static) -> Piece {
    Piece { name: name.into(), batches, run: Box::new(run) }
}

/// The pieces whose names are wanted, over memory of this fabric. Other pieces are not prepared.
pub fn pieces(fabric: Arc<dyn Fabric>, wanted: impl Fn(&str) -> bool) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    for name in LAYOUTS {
        if ["describe", "check", "rebuild"].iter().any(|step| wanted(&format!("layout/{step}/{name}"))) {
            pieces.extend(layout(name, &first_batch(name)?)?);
        }
    }
    if ["encode", "decode"].iter().any(|step| wanted(&format!("inline/{step}/100 rows"))) {
        pieces.extend(inline(&first_batch("num8")?.slice(0, 100))?);
    }
    if wanted(CODEC) {
        pieces.push(codec(&first_batch("num8")?)?);
    }
    if wanted(POOL) {
        pieces.push(pool(fabric)?);
    }
    for name in ["num8", "int256"] {
        if wanted(&format!("machines/lease/{name}")) {
            pieces.push(machines(name, &first_batch(name)?)?);
        }
    }
    pieces.retain(|piece| wanted(&piece.name));
    Ok(pieces)
}

fn layout(name: &str, batch: &RecordBatch) -> Result<Vec<Piece>, String> {
    let limits = LayoutLimits::default();
    let plan = Plan::new(&batch.schema()).map_err(|e| e.to_string())?;
    let (descriptor, buffers) = describe(&plan, batch).map_err(|e| e.to_string())?;
    let built = check(&plan, descriptor.clone(), &limits).map_err(|e| e.to_string())?;
    // Each run takes the descriptor back from the previous one, which saves a copy.
    let mut unchecked = Some(descriptor);
    let (lender, lender_plan) = (batch.clone(), plan.clone());
    Ok(vec![
        piece(format!("layout/describe/{name}"), 1, move || {
            black_box(describe(&lender_plan, black_box(&lender)).is_ok());
        }),
        piece(format!("layout/check/{name}"), 1, move || {
            let checked = unchecked.take().and_then(|descriptor| check(&plan, descriptor, &limits).ok());
            unchecked = black_box(checked).map(CheckedDescriptor::into_descriptor);
        }),
        piece(format!("layout/rebuild/{name}"), 1, move || {
            black_box(rebuild_with(black_box(&built), &buffers, &UncheckedAssembler).is_ok());
        }),
    ])
}

fn inline(batch: &RecordBatch) -> Result<Vec<Piece>, String> {
    let (mut encoder, schema) = InlineEncoder::new(&batch.schema()).map_err(|e| e.to_string())?;
    let message = Bytes::from(encoder.encode(batch).map_err(|e| e.to_string())?);
    let mut decoder = InlineDecoder::new(&schema, InlineLimits::default()).map_err(|e| e.to_string())?;
    let batch = batch.clone();
    Ok(vec![
        piece("inline/encode/100 rows", 1, move || {
            black_box(encoder.encode(black_box(&batch)).is_ok());
        }),
        piece("inline/decode/100 rows", 1, move || {
            black_box(decoder.decode(black_box(&message).clone()).is_ok());
        }),
    ])
}

/// The message of a lent batch, encoded and decoded.
fn codec(batch: &RecordBatch) -> Result<Piece, String> {
    let (descriptor, buffers) =
        describe(&Plan::new(&batch.schema()).map_err(|e| e.to_string())?, batch).map_err(|e| e.to_string())?;
    let place = |buffer: &arrow::buffer::Buffer| {
        let (address, len) = (buffer.as_ptr() as u64, buffer.len() as u64);
        RemoteRange { region: RegionId(2), address, len }
    };
    let places = buffers.iter().filter(|buffer| !buffer.is_empty()).map(place).collect();
    let word = LeaseWord { at: RemoteRange { region: RegionId(1), address: 4096, len: 8 }, value: u64::MAX / 3 };
    let lent = LentBatch { lease: LeaseId(12345), word: Some(word), descriptor, places };
    let message = Message::Lender(FromLender::Lent { stream: StreamId(3), seq: 1000, batch: lent });
    let limits = FrameLimits::default();
    let mut decoder = Decoder::new(limits);
    decoder.push(&Preface { versions: VERSIONS, features: FEATURES }.encode());
    decoder.decode::<Message>().map_err(|e| e.to_string())?;
    Ok(piece(CODEC, 1, move || {
        let frame = encode(black_box(&message), Bytes::new(), limits);
        if let Ok(frame) = frame {
            decoder.push(&frame.head);
        }
        black_box(matches!(decoder.decode::<Message>(), Ok(Some(Decoded::Message(..)))));
    }))
}

/// A slab taken from the pool, and returned by its last array.
fn pool(fabric: Arc<dyn Fabric>) -> Result<Piece, String> {
    let pool = SlabPool::new(fabric, PoolLimits::default());
    // Some slabs stay in use, as in a stream.
    let held: Vec<_> = (0..8).map(|_| pool.take(SLAB)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    Ok(piece(POOL, 1, move || {
        black_box(&held);
        let buffer = pool.take(black_box(SLAB)).ok().and_then(|slab| slab.into_buffer().ok());
        drop(black_box(buffer));
    }))
}

/// Both machines: leases opened, announced, read, proven, consumed, released, ended.
fn machines(name: &str, batch: &RecordBatch) -> Result<Piece, String> {
    let (descriptor, _) =
        describe(&Plan::new(&batch.schema()).map_err(|e| e.to_string())?, batch).map_err(|e| e.to_string())?;
    let (_, schema) = InlineEncoder::new(&batch.schema()).map_err(|e| e.to_string())?;
    let lent = Lent { schema: schema.into(), descriptor, rows: batch.num_rows() as u64, batches: BATCHES };
    let mut pair = Pair::new();
    Ok(piece(format!("machines/lease/{name}"), BATCHES, move || pair.query(&lent)))
}
