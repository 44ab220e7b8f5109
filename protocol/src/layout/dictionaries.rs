//! Dictionaries that several batches of a stream share are lent once.
//!
//! Both ends compare a batch with the stream's last lent batch. If a dictionary is the same, the descriptor has
//! [`Detail::SameValues`](super::Detail::SameValues) in its place, and the borrower uses the array that it already has.
//! The lender keeps the dictionary's memory alive, and recognizes the dictionary by its address. The
//! [plan](super::Plan) numbers the dictionaries in the order of the schema. Each end keeps at most one dictionary for
//! each number.

use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use arrow_data::{ArrayData, ArrayDataBuilder};

use super::check::LayoutLimits;
use super::error::LayoutProblem;

/// The lender's dictionaries: those of the stream's last loan, in the order of the schema, each with the number of
/// bytes that were lent for it.
#[derive(Clone, Debug, Default)]
pub struct LentDictionaries(Vec<(ArrayData, u64)>);

/// The borrower's dictionaries: those of the stream's last lent batch, in the order of the schema.
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
    /// Whether the array needs no copy any more: it has been copied out of its batch's memory, or is a large part of
    /// it.
    settled: bool,
}

impl Default for KeptDictionaries {
    /// The limit is the default maximum of a batch's bytes.
    fn default() -> Self {
        KeptDictionaries::new(LayoutLimits::default().max_bytes)
    }
}

impl LentDictionaries {
    /// If the dictionary of this number is this array: the number of bytes that were lent for it.
    pub(super) fn find(&self, number: usize, values: &ArrayData) -> Option<u64> {
        // The arrays are held here, so that their memory cannot have been reused for another array.
        self.0.get(number).filter(|(known, _)| known.ptr_eq(values)).map(|(_, bytes)| *bytes)
    }

    pub(super) fn push(&mut self, values: ArrayData, bytes: u64) {
        self.0.push((values, bytes));
    }
}

impl KeptDictionaries {
    /// No dictionaries, with a limit of `max_bytes` in total. The limit of a batch is enough: a correct lender counts
    /// the bytes of repeated dictionaries, too.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        KeptDictionaries { kept: Vec::new(), bytes: 0, max_bytes }
    }

    /// The dictionary of this number, for another batch. A dictionary that is a small part of its batch's memory is
    /// first copied out of it, because it may be kept for long.
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

    /// Keeps the dictionary of this number, in place of the previous one.
    ///
    /// # Errors
    /// The dictionaries exceed the limit in total.
    pub(super) fn keep(&mut self, number: usize, values: &ArrayData) -> Result<(), LayoutProblem> {
        let bytes = parts(values).map(|buffer| buffer.len() as u64).sum();
        let kept = Kept { values: values.clone(), bytes, settled: false };
        self.bytes += bytes;
        match self.kept.get_mut(number) {
            Some(known) => self.bytes -= std::mem::replace(known, kept).bytes,
            // Dictionaries arrive in the order of their numbers.
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
