//! Offsets of a slice, made to count from where the lent range begins: the one thing that a borrower copies.
//!
//! Each of these takes one pass over offsets, and hands back the buffer that it got where nothing has to change.

use arrow_array::OffsetSizeTrait;
use arrow_buffer::{ArrowNativeType, Buffer, NullBuffer, ScalarBuffer};
use arrow_data::{ByteView, MAX_INLINE_VIEW_LEN};
use arrow_schema::UnionFields;

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

/// Views whose offsets count from each data buffer's base. What a null points at was not lent, so its view is cleared.
pub(super) fn views(buffer: &Buffer, bases: &[u64], nulls: Option<&NullBuffer>) -> Result<Buffer, LayoutError> {
    let views = elements::<u128>(buffer);
    let is_null = |at: usize| nulls.is_some_and(|nulls| nulls.is_null(at));
    let points = |view: u128| view as u32 > MAX_INLINE_VIEW_LEN;
    let moved = bases.iter().any(|base| *base != 0);
    if !moved && (nulls.is_none() || !views.iter().enumerate().any(|(at, view)| points(*view) && is_null(at))) {
        return Ok(views.into_inner());
    }
    let mut rebased = Vec::with_capacity(views.len());
    for (at, &view) in views.iter().enumerate() {
        if !points(view) {
            rebased.push(view);
            continue;
        }
        if is_null(at) {
            rebased.push(0);
            continue;
        }
        let mut view = ByteView::from(view);
        let stray = || LayoutProblem::OutOfRange { what: "view", at };
        let base = *bases.get(view.buffer_index as usize).ok_or_else(stray)?;
        view.offset = u64::from(view.offset).checked_sub(base).ok_or_else(stray)? as u32;
        rebased.push(view.as_u128());
    }
    Ok(rebased.into())
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
