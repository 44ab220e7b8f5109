//! The description of a lent batch, as sent on the control connection.

use serde::{Deserialize, Serialize};

use super::slab::SLAB_ALIGNMENT;

/// One batch: its arrays and the lengths of its buffers. The schema is not repeated.
///
/// The peer that sends one is not trusted: no field may be used before [`check`](super::check) has accepted it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchDescriptor {
    /// Number of rows, also if there is no column.
    pub rows: u64,
    /// The arrays, depth first, parents before children, columns in the schema's order.
    pub nodes: Vec<NodeDescriptor>,
    /// Length of each buffer in bytes, in the order of the arrays that they belong to.
    pub buffers: Vec<u64>,
}

impl BatchDescriptor {
    /// Number of lent bytes, without alignment.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.buffers.iter().fold(0, |sum, len| sum.saturating_add(*len))
    }

    /// Whether the batch can be rebuilt by itself, without dictionaries of earlier batches.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.detail != Detail::SameValues)
    }

    /// Number of bytes that the batch takes up in a borrower's slab, each buffer aligned. Credit counts these bytes.
    #[must_use]
    pub fn slab_bytes(&self) -> u64 {
        let aligned = |len: &u64| len.checked_next_multiple_of(SLAB_ALIGNMENT).unwrap_or(u64::MAX);
        self.buffers.iter().map(aligned).fold(0, u64::saturating_add)
    }
}

/// One array of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescriptor {
    /// Number of elements.
    pub len: u64,
    /// Number of nulls in the array's own bitmap. If it is 0, no bitmap is sent.
    pub nulls: u64,
    /// Position of the first element's bit in the bitmap's first byte: 0 to 7.
    pub null_bit: u8,
    /// Fields that depend on the type.
    pub detail: Detail,
}

/// The part of an array's description that depends on its type. Each type has one variant; dictionaries have two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detail {
    /// No detail: all types that are not mentioned below.
    None,
    /// Boolean: position of the first element's bit in the first byte of values.
    Bits {
        /// 0 to 7.
        first: u8,
    },
    /// Utf8, binary, lists, maps, list views: the number to subtract from each offset.
    Base(u64),
    /// Views: the lent extents of their data buffers, each a buffer of the batch. They ascend by buffer and base, do
    /// not overlap, and are not empty.
    Views(Vec<Extent>),
    /// Dense union: for each child, the number to subtract from the offsets into it.
    UnionBases(Vec<u64>),
    /// Run-end encoded: number of logical elements before the array's first, which the run ends count.
    Runs {
        /// Number of elements.
        offset: u64,
    },
    /// Dictionary: its values are those of the stream's last lent batch, and are not lent again. No array of values
    /// follows.
    SameValues,
}

/// A range of one of the data buffers that views point into. Its length is that of the batch's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Extent {
    /// Number of the data buffer in the views. Data buffers that no view needs are neither lent nor mentioned.
    pub buffer: u32,
    /// Start of the extent in that buffer, in bytes.
    pub base: u32,
}

impl Extent {
    /// Whether each extent begins at offset 0 of the data buffer with the extent's own number. Then views need no
    /// change.
    pub(super) fn are_whole(extents: &[Extent]) -> bool {
        (0..).zip(extents).all(|(buffer, extent)| *extent == Extent { buffer, base: 0 })
    }
}

/// Values of a detail whose variant fits its array. For other variants, the value that changes nothing.
impl Detail {
    /// Booleans: the first bit.
    pub(super) fn first_bit(&self) -> u8 {
        if let Detail::Bits { first } = self { *first } else { 0 }
    }

    /// Offsets: the number to subtract.
    pub(super) fn base(&self) -> u64 {
        if let Detail::Base(base) = self { *base } else { 0 }
    }

    /// Views: the extents.
    pub(super) fn extents(&self) -> &[Extent] {
        if let Detail::Views(extents) = self { extents } else { &[] }
    }

    /// Dense union: the number to subtract for each child.
    pub(super) fn union_bases(&self) -> &[u64] {
        if let Detail::UnionBases(bases) = self { bases } else { &[] }
    }

    /// Run-end encoded: number of elements of the run ends before the array's first.
    pub(super) fn run_offset(&self) -> u64 {
        if let Detail::Runs { offset } = self { *offset } else { 0 }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Detail::None => "none",
            Detail::Bits { .. } => "bits",
            Detail::Base(_) => "base",
            Detail::Views(_) => "views",
            Detail::UnionBases(_) => "union bases",
            Detail::Runs { .. } => "runs",
            Detail::SameValues => "same values",
        }
    }
}
