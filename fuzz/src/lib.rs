//! Splits the fuzz targets' input into parts, and builds the same input for the generator of seeds.

#![forbid(unsafe_code)]

pub mod client;
pub mod frames;
pub mod peer;
pub mod server;

use std::sync::Arc;

use arrow_array::Array;
use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use thallus_protocol::layout::{BatchDescriptor, LayoutLimits, Plan, SlabLayout, check};
use thallus_protocol_testing::all_types;

/// The schemas from which an input of `layout_rebuild` chooses: each type alone, and each within a list and a struct.
#[must_use]
pub fn schemas() -> Vec<SchemaRef> {
    let types = all_types();
    let field = |data_type: &DataType, nullable| Arc::new(Field::new("f", data_type.clone(), nullable));
    let schema = |fields| Arc::new(Schema::new(fields));
    let alone = types.iter().map(|data_type| schema(vec![field(data_type, true)]));
    let nested = types.iter().map(|data_type| {
        let list = DataType::List(field(data_type, true));
        schema(vec![field(&DataType::Struct(vec![field(data_type, true), field(&list, false)].into()), true)])
    });
    alone.chain(nested).collect()
}

/// Splits off the first part, which follows its length in two bytes. A length beyond the input means the rest of it.
#[must_use]
pub fn part(input: &[u8]) -> (&[u8], &[u8]) {
    match input {
        [low, high, rest @ ..] => rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len())),
        _ => (&[], &[]),
    }
}

/// Puts a part with its length before other bytes. [`part`] splits it off again.
///
/// # Panics
/// If the part is longer than 65535 bytes.
#[must_use]
pub fn with_part(part: &[u8], rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(part.len()).expect("seeds are short");
    [&len.to_le_bytes(), part, rest].concat()
}

/// Limits of `layout_rebuild`: small, so that each input takes little time.
pub const LIMITS: LayoutLimits = LayoutLimits { max_bytes: 1 << 20, max_len: 1 << 20, max_buffers: 1 << 10 };

/// Buffers of a slab in this layout, filled with the input's bytes, and with zeros after the end of the input.
#[must_use]
pub fn slab(layout: &SlabLayout, mut bytes: &[u8]) -> Vec<Buffer> {
    let cut = |range: &thallus_protocol::layout::Range| {
        let (filled, rest) = bytes.split_at((range.len as usize).min(bytes.len()));
        bytes = rest;
        let mut buffer = filled.to_vec();
        buffer.resize(range.len as usize, 0);
        Buffer::from_vec(buffer)
    };
    layout.ranges.iter().map(cut).collect()
}

/// The input of `layout_rebuild` for a batch of the schema at `index`.
///
/// # Panics
/// If the batch cannot be described.
#[must_use]
pub fn layout_input(index: usize, batch: &RecordBatch) -> Vec<u8> {
    let plan = Plan::new(&batch.schema()).expect("valid");
    let (descriptor, buffers) = thallus_protocol::layout::describe(&plan, batch).expect("valid");
    check(&plan, descriptor.clone(), &LIMITS).expect("small");
    let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
    let descriptor = postcard::to_stdvec::<BatchDescriptor>(&descriptor).expect("no limit");
    let index = u8::try_from(index).expect("fewer than 256 schemas");
    [vec![index], with_part(&descriptor, &bytes)].concat()
}

/// Checks an accepted batch by Arrow's full validation.
///
/// # Panics
/// If the batch is not valid.
pub fn assert_valid(batch: &RecordBatch) {
    for column in batch.columns() {
        assert_eq!(column.len(), batch.num_rows());
        column.to_data().validate_full().expect("an accepted array is valid");
    }
}
