//! Positions of a batch's buffers in the borrower's slab.

use super::error::{LayoutError, LayoutProblem, at_most};

/// Alignment of every buffer in the borrower's slab, in bytes: a cache line, which Arrow recommends.
pub const SLAB_ALIGNMENT: u64 = 64;

/// A range of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte, a multiple of [`SLAB_ALIGNMENT`].
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The ranges of a batch's buffers in a slab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabLayout {
    /// One range for each buffer, in order. They do not overlap.
    pub ranges: Vec<Range>,
    /// Length of the slab in bytes, a multiple of [`SLAB_ALIGNMENT`].
    pub len: u64,
}

/// The layout of a slab for buffers of these lengths.
pub(crate) fn slab(lens: &[u64], max_bytes: u64) -> Result<SlabLayout, LayoutError> {
    let overflow = || LayoutProblem::Overflow { what: "the slab's length" };
    let mut end = 0_u64;
    let mut ranges = Vec::with_capacity(lens.len());
    for &len in lens {
        ranges.push(Range { offset: end, len });
        end = len.checked_next_multiple_of(SLAB_ALIGNMENT).and_then(|len| end.checked_add(len)).ok_or_else(overflow)?;
        at_most("bytes of the batch", end, max_bytes)?;
    }
    Ok(SlabLayout { ranges, len: end })
}
