//! Reads every byte of a batch.

use arrow::array::{Array, ArrayData, RecordBatch};

/// The sum of all words of all buffers, at the speed of memory.
pub(super) fn sum(batch: &RecordBatch) -> u64 {
    batch.columns().iter().map(|column| of(&column.to_data())).fold(0, u64::wrapping_add)
}

fn of(data: &ArrayData) -> u64 {
    let nulls = data.nulls().map(|nulls| bytes(nulls.validity()));
    let buffers = data.buffers().iter().map(|buffer| bytes(buffer));
    let children = data.child_data().iter().map(of);
    nulls.into_iter().chain(buffers).chain(children).fold(0, u64::wrapping_add)
}

fn bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().fold(0_u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)));
    rest.iter().fold(words, |sum, byte| sum.wrapping_add(u64::from(*byte)))
}
