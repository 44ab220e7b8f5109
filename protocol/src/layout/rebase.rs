//! Makes the offsets of a slice count from the start of the lent range. This is the only copy that a borrower makes.
//!
//! Each function makes one pass over offsets, and leaves the buffer unchanged if no offset has to change.

use arrow_array::OffsetSizeTrait;
use arrow_buffer::{ArrowNativeType, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_data::MAX_INLINE_VIEW_LEN;

use super::descriptor::Extent;
use super::error::{LayoutError, LayoutProblem};
use super::kind::TypeIds;
use super::slab::Range;

/// Replaces a buffer whose address is not a multiple of `alignment` by a copy.
pub(super) fn align(buffer: &mut Buffer, alignment: usize) {
    if buffer.as_ptr().align_offset(alignment) != 0 {
        *buffer = Buffer::from_slice_ref(buffer.as_slice());
    }
}

/// A buffer as elements. `check` has ensured that its length is a multiple of theirs.
fn elements<T: ArrowNativeType>(buffer: &mut Buffer) -> ScalarBuffer<T> {
    align(buffer, align_of::<T>());
    ScalarBuffer::from(buffer.clone())
}

/// Makes offsets of utf8, binary, lists and maps count from `base`.
pub(super) fn offsets<O: OffsetSizeTrait>(buffer: &mut Buffer, base: u64) -> Result<(), LayoutError> {
    if base == 0 || buffer.is_empty() {
        align(buffer, align_of::<O>());
        return Ok(());
    }
    let offsets = elements::<O>(buffer);
    let base = base_of::<O>(base)?;
    if let Some(at) = offsets.iter().position(|&offset| offset < base) {
        return Err(LayoutProblem::OutOfRange { what: "offset", at }.into());
    }
    *buffer = offsets.iter().map(|&offset| offset - base).collect::<Vec<O>>().into();
    Ok(())
}

/// Makes offsets of list views count from `base`. Offsets of empty lists, which may have any value, become 0.
pub(super) fn list_views<O: OffsetSizeTrait>(
    offsets_buffer: &mut Buffer,
    sizes: &mut Buffer,
    base: u64,
    items: usize,
) -> Result<(), LayoutError> {
    let offsets = elements::<O>(offsets_buffer);
    let sizes = elements::<O>(sizes);
    let base = base_of::<O>(base)?;
    let zero = O::usize_as(0);
    let strays = |(offset, size): (&O, &O)| *size == zero && offset.to_usize().is_none_or(|offset| offset > items);
    if base == zero && !offsets.iter().zip(sizes.iter()).any(strays) {
        return Ok(());
    }
    let mut rebased = Vec::with_capacity(offsets.len());
    for (at, (&offset, &size)) in offsets.iter().zip(sizes.iter()).enumerate() {
        if size == zero {
            rebased.push(zero);
        } else if offset >= base {
            rebased.push(offset - base);
        } else {
            return Err(LayoutProblem::OutOfRange { what: "list view", at }.into());
        }
    }
    *offsets_buffer = rebased.into();
    Ok(())
}

/// Makes views point into the lent extents of their data buffers, one data buffer for each extent. Copies the views
/// only if one has to change.
pub(super) fn views(buffer: &mut Buffer, extents: &[Extent], data: &[Buffer], nulls: Option<&NullBuffer>) {
    let (views, _) = buffer.as_slice().as_chunks();
    let fits = Extent::are_whole(extents)
        && nulls.is_none_or(|nulls| views.iter().enumerate().all(|(at, view)| *view == NO_VIEW || nulls.is_valid(at)));
    if fits {
        return align(buffer, align_of::<u128>());
    }
    let mut rebased = MutableBuffer::new(buffer.len());
    rebased.extend_from_slice(buffer.as_slice());
    let (views, _) = rebased.as_slice_mut().as_chunks_mut();
    if let Some(nulls) = nulls {
        clear_nulls(views, nulls);
    }
    point(views, &Extents::new(extents, data.iter().map(|buffer| buffer.len() as u64)));
    *buffer = rebased.into();
}

/// Views to rebase in place: see [`CheckedDescriptor::rebases`](super::CheckedDescriptor::rebases).
#[derive(Debug)]
pub struct Rebase {
    /// The range of the views in the slab. Each view has 16 bytes.
    pub range: Range,
    extents: Extents,
}

impl Rebase {
    /// A rebase of views in this range of a slab, into extents of these lengths.
    pub(super) fn new(range: Range, extents: &[Extent], lens: impl Iterator<Item = u64>) -> Self {
        Rebase { range, extents: Extents::new(extents, lens) }
    }

    /// Rebases some of the views. `views` must contain whole views only.
    pub fn apply(&self, views: &mut [u8]) {
        point(views.as_chunks_mut().0, &self.extents);
    }
}

/// The extents of an array of views, for lookups by a view's target.
#[derive(Debug)]
struct Extents {
    /// Start of each extent, if all data buffers, each of at most 4 GiB, lay one after the other.
    starts: Vec<u64>,
    lens: Vec<u64>,
}

impl Extents {
    fn new(extents: &[Extent], lens: impl Iterator<Item = u64>) -> Self {
        let starts = extents.iter().map(|e| u64::from(e.buffer) << 32 | u64::from(e.base)).collect();
        Extents { starts, lens: lens.take(extents.len()).collect() }
    }

    fn get(&self, index: usize) -> (u64, u64) {
        self.starts.get(index).copied().zip(self.lens.get(index).copied()).unwrap_or_default()
    }
}

/// The view of an empty string.
const NO_VIEW: [u8; 16] = [0; 16];

/// A view that points at no data buffer, and whose length requires one.
const NOWHERE: [u8; 16] = u128::MAX.to_le_bytes();

/// Clears the views of nulls, which may have any value.
fn clear_nulls(views: &mut [[u8; 16]], nulls: &NullBuffer) {
    for (view, valid) in views.iter_mut().zip(nulls) {
        *view = (u128::from_le_bytes(*view) & u128::from(valid).wrapping_neg()).to_le_bytes();
    }
}

/// Makes views that point into an extent of a data buffer point into the buffer for that extent.
fn point(views: &mut [[u8; 16]], extents: &Extents) {
    // Most views point into the same extent as the previous view.
    let (mut index, (mut start, mut len)) = (0, extents.get(0));
    for bytes in views {
        let view = u128::from_le_bytes(*bytes);
        if view as u32 <= MAX_INLINE_VIEW_LEN {
            continue;
        }
        let string = u64::from(view as u32);
        // In a view, the offset is above the buffer's index; the rotation swaps them.
        let at = ((view >> 64) as u64).rotate_left(32);
        let within = |start: u64, len: u64| at.wrapping_sub(start) < len && string <= len - at.wrapping_sub(start);
        if !within(start, len) {
            index = extents.starts.partition_point(|start| *start <= at).wrapping_sub(1);
            (start, len) = extents.get(index);
            if !within(start, len) {
                *bytes = NOWHERE;
                continue;
            }
        }
        let pointer = at.wrapping_sub(start) << 32 | index as u64;
        bytes[8..].copy_from_slice(&pointer.to_le_bytes());
    }
}

/// Makes offsets of a dense union count from the base of the child that each row's type id selects.
pub(super) fn union(ids: &Buffer, offsets: &mut Buffer, bases: &[u64], children: &TypeIds) -> Result<(), LayoutError> {
    if bases.iter().all(|base| *base == 0) {
        align(offsets, align_of::<i32>());
        return Ok(());
    }
    let bases = bases.iter().map(|base| base_of::<i32>(*base)).collect::<Result<Vec<_>, _>>()?;
    let base_of = |id: u8| children.child(id).and_then(|child| bases.get(child).copied());
    let old = elements::<i32>(offsets);
    let mut rebased = Vec::with_capacity(old.len());
    for (at, (&id, &offset)) in ids.as_slice().iter().zip(old.iter()).enumerate() {
        match base_of(id) {
            Some(base) if offset >= base => rebased.push(offset - base),
            _ => return Err(LayoutProblem::OutOfRange { what: "union offset or type id", at }.into()),
        }
    }
    *offsets = rebased.into();
    Ok(())
}

fn base_of<O: OffsetSizeTrait>(base: u64) -> Result<O, LayoutError> {
    let limit = O::MAX_OFFSET as u64;
    match usize::try_from(base).ok().and_then(O::from_usize) {
        Some(base_of) if base <= limit => Ok(base_of),
        _ => Err(LayoutProblem::TooLarge { what: "base of the offsets", got: base, limit }.into()),
    }
}
