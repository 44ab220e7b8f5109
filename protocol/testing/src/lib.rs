//! Generators of arbitrary schemas and batches, and an equality of batches, for the property tests of all crates.
//!
//! Every Arrow type occurs, nested up to three levels deep, with nulls. Arrays are cut from longer ones at every level,
//! so that offsets, bit offsets and bases are rarely zero. Values come from one seed per batch. This keeps generation
//! fast, and leaves the schema and the number of rows to proptest's shrinking.

mod arrays;
mod dice;
mod mutate;
mod same;
mod types;

use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, Schema, SchemaRef};
use proptest::collection::vec;
use proptest::prelude::*;
use thallus_protocol::layout::{Assemble, ValidArray};

pub use arrays::{array, shared_views};
pub use dice::Dice;
pub use mutate::{mutate_bytes, mutate_descriptor};
pub use same::{same_array, same_batch};
pub use types::{all_types, arb_data_type, arb_field};

/// Makes arrays with Arrow's own validation, and so checks the validation of the protocol.
#[derive(Clone, Copy, Debug)]
pub struct Distrust;

impl Assemble for Distrust {
    /// # Panics
    /// If Arrow refuses the array: an unchecked assembly of it would have been unsound.
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError> {
        Ok(array.into_builder().build().expect("a validated array is valid"))
    }
}

/// A schema of up to three columns of any type, sometimes with metadata.
pub fn arb_schema() -> impl Strategy<Value = SchemaRef> {
    let metadata = proptest::collection::hash_map("[a-z]{0,3}", "\\PC{0,3}", 0..2);
    (vec(arb_field(), 0..4), metadata)
        .prop_map(|(fields, metadata)| Arc::new(Schema::new_with_metadata(fields, metadata)))
}

/// A batch of any schema, with up to 39 rows, itself a slice.
pub fn arb_batch() -> impl Strategy<Value = RecordBatch> {
    (arb_schema(), 0..40_usize, any::<u64>())
        .prop_map(|(schema, rows, seed)| batch(&schema, rows, &mut Dice::new(seed)))
}

/// `n` batches of one schema.
pub fn arb_batches(n: usize) -> impl Strategy<Value = Vec<RecordBatch>> {
    (arb_schema(), vec((0..40_usize, any::<u64>()), n)).prop_map(|(schema, batches)| {
        batches.into_iter().map(|(rows, seed)| batch(&schema, rows, &mut Dice::new(seed))).collect()
    })
}

/// A batch with the given schema and number of rows. The same seed gives the same batch.
///
/// # Panics
/// If the schema has a type that arrays cannot have.
pub fn batch(schema: &SchemaRef, rows: usize, dice: &mut Dice) -> RecordBatch {
    let (before, after) = (dice.padding(), dice.padding());
    let whole = before + rows + after;
    let columns = schema.fields().iter().map(|field| array(field, whole, dice)).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(whole));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options).expect("columns fit").slice(before, rows)
}
