//! Offsets of a slice, made to count from where the lent range begins: the one thing that a borrower copies.
//!
//! Each of these takes one pass over offsets, and hands back the buffer that it got where nothing has to change.

use arrow_array::OffsetSizeTrait;
use arrow_buffer::{ArrowNativeType, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_data::MAX_INLINE_VIEW_LEN;
use arrow_schema::UnionFields;

use super::check::{SlabLayout, ViewsAt};
use super::descriptor::{BatchDescriptor, Detail, Extent};
use super::error::{LayoutError, LayoutProblem};

/// A buffer at an address that is a multiple of `alignment`: the buffer itself, or else a copy.
pub(super) fn aligned(buffer: &Buffer, alignment: usize) -> Buffer {
    if buffer.as_ptr().align_offset(alignment) == 0 {
        buffer.clone()
    } else {
        Buffer::from_slice_ref(buffer.as_slice())
    }
}

/// A buffer as elements. Its length is a multiple of theirs: `check` saw to that.
fn elements<T: ArrowNativeType>(buffer: &Buffer) -> ScalarBuffer<T> {
    ScalarBuffer::from(aligned(buffer, align_of::<T>()))
}

/// `offsets - base`, of utf8, binary, lists and maps.
pub(super) fn offsets<O: OffsetSizeTrait>(buffer: &Buffer, base: u64) -> Result<Buffer, LayoutError> {
    if base == 0 || buffer.is_empty() {
        return Ok(aligned(buffer, align_of::<O>()));
    }
    let offsets = elements::<O>(buffer);
    let base = base_of::<O>(base)?;
    if let Some(at) = offsets.iter().position(|&offset| offset < base) {
        return Err(LayoutProblem::OutOfRange { what: "offset", at }.into());
    }
    Ok(offsets.iter().map(|&offset| offset - base).collect::<Vec<O>>().into())
}

/// `offsets - base`, of list views, whose empty lists may point anywhere and are made to point at 0.
pub(super) fn list_views<O: OffsetSizeTrait>(
    offsets_buffer: &Buffer,
    sizes: &Buffer,
    base: u64,
    items: usize,
) -> Result<Buffer, LayoutError> {
    let offsets = elements::<O>(offsets_buffer);
    let sizes = elements::<O>(sizes);
    let base = base_of::<O>(base)?;
    let zero = O::usize_as(0);
    let strays = |(offset, size): (&O, &O)| *size == zero && offset.to_usize().is_none_or(|offset| offset > items);
    if base == zero && !offsets.iter().zip(sizes.iter()).any(strays) {
        return Ok(offsets.into_inner());
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
    Ok(rebased.into())
}

/// Views into the extents, one data buffer each, that were lent of their data buffers: the buffer itself, or a copy where
/// something has to change.
pub(super) fn views(
    buffer: &Buffer,
    extents: &[Extent],
    lens: &[u64],
    nulls: Option<&NullBuffer>,
) -> Result<Buffer, LayoutError> {
    let (views, _) = buffer.as_slice().as_chunks();
    let fits = Extent::are_whole(extents)
        && nulls.is_none_or(|nulls| views.iter().enumerate().all(|(at, view)| *view == NO_VIEW || nulls.is_valid(at)));
    if fits {
        return Ok(aligned(buffer, align_of::<u128>()));
    }
    let mut rebased = MutableBuffer::new(buffer.len());
    rebased.extend_from_slice(buffer.as_slice());
    let (views, _) = rebased.as_slice_mut().as_chunks_mut();
    if let Some(nulls) = nulls {
        clear_nulls(views, nulls.validity(), nulls.offset());
    }
    point(views, extents, lens);
    Ok(rebased.into())
}

impl SlabLayout {
    /// Rebases the views of a batch where they lie, in the slab that was read into, so that [`rebuild`](super::rebuild) has
    /// nothing to copy. The descriptor, the one that this layout is of, says afterwards what is so then.
    ///
    /// Nothing is validated here: a view that points at nothing that was lent is made to point at no buffer, and
    /// `rebuild` will find it.
    pub fn rebase(&self, descriptor: &mut BatchDescriptor, slab: &mut [u8]) {
        for &ViewsAt { node, buffer } in &self.views {
            let Some(node) = descriptor.nodes.get_mut(node) else { return };
            let Detail::Views(extents) = &mut node.detail else { return };
            let place = |index: usize| {
                let range = self.ranges.get(index)?;
                Some(usize::try_from(range.offset).ok()?..usize::try_from(range.offset.checked_add(range.len)?).ok()?)
            };
            let Some(lens) = descriptor.buffers.get(buffer + 1..) else { return };
            let Some(views) = place(buffer) else { return };
            let Some((before, views)) =
                slab.get_mut(..views.end).and_then(|slab| slab.split_at_mut_checked(views.start))
            else {
                return;
            };
            let (views, _) = views.as_chunks_mut();
            if node.nulls > 0 {
                let bitmap = buffer.checked_sub(1).and_then(place).and_then(|range| before.get(range));
                let Some(bitmap) = bitmap else { return };
                clear_nulls(views, bitmap, node.null_bit.into());
            }
            if !Extent::are_whole(extents) {
                point(views, extents, lens);
                *extents = (0..).take(extents.len()).map(|buffer| Extent { buffer, base: 0 }).collect();
            }
        }
    }
}

/// The view of an empty string.
const NO_VIEW: [u8; 16] = [0; 16];

/// Points at no data buffer, and is too long to need none.
const NOWHERE: [u8; 16] = u128::MAX.to_le_bytes();

/// Clears the views of nulls, which may hold anything.
fn clear_nulls(views: &mut [[u8; 16]], validity: &[u8], first: usize) {
    for (bit, view) in (first..).zip(views) {
        let valid = validity.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1);
        *view = (u128::from_le_bytes(*view) & u128::from(valid).wrapping_neg()).to_le_bytes();
    }
}

/// Makes views that point into an extent of a data buffer point into the buffer that was made of that extent.
fn point(views: &mut [[u8; 16]], extents: &[Extent], lens: &[u64]) {
    // Data buffers, of 4 GiB at most, as if one lay behind the other.
    let starts: Vec<u64> = extents.iter().map(|e| u64::from(e.buffer) << 32 | u64::from(e.base)).collect();
    let extent = |index: usize| Some((*starts.get(index)?, *lens.get(index)?));
    let (mut index, (mut start, mut len)) = (0, extent(0).unwrap_or_default());
    for bytes in views {
        let view = u128::from_le_bytes(*bytes);
        let string = u64::from(view as u32);
        if view as u32 <= MAX_INLINE_VIEW_LEN {
            continue;
        }
        // The offset is above the buffer's index.
        let at = ((view >> 64) as u64).rotate_left(32);
        if !(at.wrapping_sub(start) < len && string <= len - at.wrapping_sub(start)) {
            index = starts.partition_point(|start| *start <= at).wrapping_sub(1);
            (start, len) = extent(index).unwrap_or_default();
            if !(at.wrapping_sub(start) < len && string <= len - at.wrapping_sub(start)) {
                *bytes = NOWHERE;
                continue;
            }
        }
        let pointer = at.wrapping_sub(start) << 32 | index as u64;
        bytes[8..].copy_from_slice(&pointer.to_le_bytes());
    }
}

/// `offsets - base`, with the base of the child that each row's type id names.
pub(super) fn union(
    ids: &Buffer,
    offsets: &Buffer,
    bases: &[u64],
    fields: &UnionFields,
) -> Result<Buffer, LayoutError> {
    if bases.iter().all(|base| *base == 0) {
        return Ok(aligned(offsets, align_of::<i32>()));
    }
    let mut base_of_id = [None; 128];
    for ((id, _), base) in fields.iter().zip(bases) {
        if let Some(slot) = id.to_usize().and_then(|id| base_of_id.get_mut(id)) {
            *slot = Some(base_of::<i32>(*base)?);
        }
    }
    let offsets = elements::<i32>(offsets);
    let mut rebased = Vec::with_capacity(offsets.len());
    for (at, (&id, &offset)) in ids.as_slice().iter().zip(offsets.iter()).enumerate() {
        match base_of_id.get(usize::from(id)).copied().flatten() {
            Some(base) if offset >= base => rebased.push(offset - base),
            _ => return Err(LayoutProblem::OutOfRange { what: "union offset or type id", at }.into()),
        }
    }
    Ok(rebased.into())
}

fn base_of<O: OffsetSizeTrait>(base: u64) -> Result<O, LayoutError> {
    let limit = O::MAX_OFFSET as u64;
    match usize::try_from(base).ok().and_then(O::from_usize) {
        Some(base_of) if base <= limit => Ok(base_of),
        _ => Err(LayoutProblem::TooLarge { what: "base of the offsets", got: base, limit }.into()),
    }
}
