//! Dictionaries that batches of a stream have in common move once.
//!
//! Both ends go by the stream's last batch that was lent: where a dictionary of the next one is the same (the lender sees that by its
//! memory, which it holds), the descriptor says [`Detail::SameValues`](super::Detail::SameValues) in its place, and the borrower
//! takes the array that it has. Dictionaries are told apart by their order in the schema, so that nothing has to be numbered, and
//! each end keeps no more than one for each.

use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use arrow_data::{ArrayData, ArrayDataBuilder};

use super::shape::Shape;

/// The lender's: those of the stream's last loan, in the order of the schema.
#[derive(Clone, Debug, Default)]
pub struct LentDictionaries(Vec<ArrayData>);

/// The borrower's: those of the stream's last batch, in the order of the schema.
#[derive(Debug, Default)]
pub struct KeptDictionaries(Vec<Kept>);

#[derive(Clone, Debug)]
struct Kept {
    values: ArrayData,
    /// It has been looked at whether the array is worth the memory that it lies in.
    settled: bool,
}

/// Whether dictionaries with such values are lent once: with those that have children of their own it would take more than a
/// position to tell dictionaries apart.
pub(super) fn is_shared(values: &Shape<'_>) -> bool {
    matches!(values, Shape::Bits | Shape::Fixed { .. } | Shape::Bytes { .. } | Shape::Views)
}

impl LentDictionaries {
    /// Whether the dictionary of this number is this one.
    pub(super) fn has(&self, number: usize, values: &ArrayData) -> bool {
        // They are held here: what lies at the same place is the same.
        self.0.get(number).is_some_and(|known| known.ptr_eq(values))
    }

    pub(super) fn push(&mut self, values: ArrayData) {
        self.0.push(values);
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

impl KeptDictionaries {
    /// The dictionary of this number, for another batch. Where it lies in a batch's memory of which it is a small part, it moves out
    /// of there first: it may be kept for long.
    pub(super) fn again<E>(
        &mut self,
        number: usize,
        assemble: impl FnOnce(ArrayDataBuilder) -> Result<ArrayData, E>,
    ) -> Result<Option<ArrayData>, E> {
        let Some(kept) = self.0.get_mut(number) else { return Ok(None) };
        if !std::mem::replace(&mut kept.settled, true) && is_small_part(&kept.values) {
            kept.values = assemble(moved_out(&kept.values))?;
        }
        Ok(Some(kept.values.clone()))
    }

    /// Keeps the dictionary of this number, in place of the one before.
    pub(super) fn keep(&mut self, number: usize, values: &ArrayData) {
        let kept = Kept { values: values.clone(), settled: false };
        match self.0.get_mut(number) {
            Some(known) => *known = kept,
            // They come in order.
            None => self.0.push(kept),
        }
    }
}

fn is_small_part(values: &ArrayData) -> bool {
    let bytes: usize = values.buffers().iter().map(Buffer::len).sum();
    values.buffers().iter().any(|buffer| buffer.capacity() / 2 > bytes)
}

/// The same array, in memory of its own.
fn moved_out(values: &ArrayData) -> ArrayDataBuilder {
    let copy = |buffer: &Buffer| {
        let mut copy = MutableBuffer::new(buffer.len());
        copy.extend_from_slice(buffer);
        Buffer::from(copy)
    };
    let nulls = values.nulls().map(|nulls| {
        let bits = nulls.inner();
        NullBuffer::new(BooleanBuffer::new(copy(bits.inner()), bits.offset(), bits.len()))
    });
    let builder = ArrayData::builder(values.data_type().clone()).len(values.len()).offset(values.offset());
    builder.nulls(nulls).buffers(values.buffers().iter().map(copy).collect())
}
