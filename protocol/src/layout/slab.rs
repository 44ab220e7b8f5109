//! Where the buffers of a batch lie in the borrower's slab.

use super::error::{LayoutError, LayoutProblem, at_most};

/// Every buffer begins at a multiple of this many bytes in the borrower's slab: a cache line, and what Arrow
/// recommends.
pub const SLAB_ALIGNMENT: u64 = 64;

/// A range of a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte, a multiple of [`SLAB_ALIGNMENT`].
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Where the buffers of a batch go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlabLayout {
    /// One range for each buffer, in order, none overlapping another.
    pub ranges: Vec<Range>,
    /// Length of the slab in bytes, a multiple of [`SLAB_ALIGNMENT`].
    pub len: u64,
}

/// A slab for buffers of these lengths.
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
