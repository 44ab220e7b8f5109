//! Dictionaries that batches of a stream have in common move once.
//!
//! Both ends go by the stream's last batch that was lent: where a dictionary of the next one is the same (the lender sees that by its
//! memory, which it holds), the descriptor says [`Detail::SameValues`](super::Detail::SameValues) in its place, and the borrower
//! takes the array that it has. Dictionaries are told apart by their order in the schema, so that nothing has to be numbered, and
//! each end keeps no more than one for each.

use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_schema::DataType;

use super::check::LayoutLimits;
use super::error::LayoutProblem;
use super::shape::{Shape, shape};

/// The lender's: those of the stream's last loan, in the order of the schema, each with the bytes that it was lent in.
#[derive(Clone, Debug, Default)]
pub struct LentDictionaries(Vec<(ArrayData, u64)>);

/// The borrower's: those of the stream's last batch that was lent, in the order of the schema.
#[derive(Debug)]
pub struct KeptDictionaries {
    kept: Vec<Kept>,
    bytes: u64,
    max_bytes: u64,
}

#[derive(Debug)]
struct Kept {
    values: ArrayData,
    bytes: u64,
    /// It has been looked at whether the array is worth the memory that it lies in.
    settled: bool,
}

impl Default for KeptDictionaries {
    /// Of as many bytes as a batch may have by default.
    fn default() -> Self {
        KeptDictionaries::new(LayoutLimits::default().max_bytes)
    }
}

/// Whether dictionaries with such values are lent once: with those that have children of their own it would take more than a
/// position to tell dictionaries apart.
pub(super) fn is_lent_once(values: &DataType) -> bool {
    matches!(shape(values), Ok(Shape::Bits | Shape::Fixed { .. } | Shape::Bytes { .. } | Shape::Views))
}

impl LentDictionaries {
    /// If the dictionary of this number is this one: in how many bytes it was lent.
    pub(super) fn find(&self, number: usize, values: &ArrayData) -> Option<u64> {
        // They are held here: what lies at the same place is the same.
        self.0.get(number).filter(|(known, _)| known.ptr_eq(values)).map(|(_, bytes)| *bytes)
    }

    pub(super) fn push(&mut self, values: ArrayData, bytes: u64) {
        self.0.push((values, bytes));
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

impl KeptDictionaries {
    /// None yet; of at most so many bytes together. What a batch may have is enough: an honest lender counts those that it spares.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        KeptDictionaries { kept: Vec::new(), bytes: 0, max_bytes }
    }

    /// The dictionary of this number, for another batch. Where it lies in a batch's memory of which it is a small part, it moves out
    /// of there first: it may be kept for long.
    pub(super) fn again<E>(
        &mut self,
        number: usize,
        assemble: impl FnOnce(ArrayDataBuilder) -> Result<ArrayData, E>,
    ) -> Result<Option<ArrayData>, E> {
        let Some(kept) = self.kept.get_mut(number) else { return Ok(None) };
        if !std::mem::replace(&mut kept.settled, true) && is_small_part(&kept.values) {
            kept.values = assemble(moved_out(&kept.values))?;
        }
        Ok(Some(kept.values.clone()))
    }

    /// Keeps the dictionary of this number, in place of the one before.
    ///
    /// # Errors
    /// They are too large together.
    pub(super) fn keep(&mut self, number: usize, values: &ArrayData) -> Result<(), LayoutProblem> {
        let bytes = parts(values).map(|buffer| buffer.len() as u64).sum();
        let kept = Kept { values: values.clone(), bytes, settled: false };
        self.bytes += bytes;
        match self.kept.get_mut(number) {
            Some(known) => self.bytes -= std::mem::replace(known, kept).bytes,
            // They come in order.
            None => self.kept.push(kept),
        }
        let (got, limit) = (self.bytes, self.max_bytes);
        if got > limit {
            return Err(LayoutProblem::TooLarge { what: "bytes of dictionaries that are kept", got, limit });
        }
        Ok(())
    }
}

/// The buffers of an array without children.
fn parts(values: &ArrayData) -> impl Iterator<Item = &Buffer> {
    values.buffers().iter().chain(values.nulls().map(|nulls| nulls.inner().inner()))
}

fn is_small_part(values: &ArrayData) -> bool {
    let bytes: usize = parts(values).map(Buffer::len).sum();
    parts(values).any(|buffer| buffer.capacity() / 2 > bytes)
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
