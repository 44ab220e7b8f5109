//! How the fuzz targets cut their input into parts, so that the generator of seeds can put it together.

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

/// The schemas that an input of `layout_rebuild` chooses from: each type alone, and each within a list and a struct.
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

/// Cuts off a part that is preceded by its length in two bytes; a part that is too long ends with the input.
#[must_use]
pub fn part(input: &[u8]) -> (&[u8], &[u8]) {
    match input {
        [low, high, rest @ ..] => rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len())),
        _ => (&[], &[]),
    }
}

/// Puts a part before others, for [`part`] to cut off.
///
/// # Panics
/// If the part is longer than 65535 bytes.
#[must_use]
pub fn with_part(part: &[u8], rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(part.len()).expect("seeds are short");
    [&len.to_le_bytes(), part, rest].concat()
}

/// What `layout_rebuild` accepts: small, so that no input costs much.
pub const LIMITS: LayoutLimits = LayoutLimits { max_bytes: 1 << 20, max_len: 1 << 20, max_buffers: 1 << 10 };

/// A slab as `check` lays it out, with the input's bytes in its buffers, and zeros where the input ends.
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

/// What must hold of every batch that was accepted.
///
/// # Panics
/// If it does not hold.
pub fn assert_valid(batch: &RecordBatch) {
    for column in batch.columns() {
        assert_eq!(column.len(), batch.num_rows());
        column.to_data().validate_full().expect("an array that was accepted is valid");
    }
}
