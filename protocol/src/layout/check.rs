//! The borrower's side, before a byte is read: does the descriptor fit the schema and the limits?

use arrow_schema::{DataType, Schema};

use super::descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use super::dictionaries::is_lent_once;
use super::error::{LayoutError, LayoutProblem, Within};
use super::shape::{Shape, deeper, offset_width, shape};

/// Every buffer begins at a multiple of this many bytes in the borrower's slab: a cache line, and what Arrow recommends.
pub const SLAB_ALIGNMENT: u64 = 64;

/// The greatest batch that a borrower accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutLimits {
    /// Bytes of slab, alignment included.
    pub max_bytes: u64,
    /// Elements of any one array, rows included. Arrays of nulls or of empty structs have elements but no bytes, so
    /// that the limit on bytes does not bound them.
    pub max_len: u64,
    /// Buffers.
    pub max_buffers: usize,
}

impl Default for LayoutLimits {
    /// 4 GiB, 2^31 - 1 elements, 1 Mi buffers.
    fn default() -> Self {
        LayoutLimits { max_bytes: 4 << 30, max_len: (1 << 31) - 1, max_buffers: 1 << 20 }
    }
}

/// 2^33 bits are 1 GiB.
const MAX_WIDENED: u64 = 1 << 33;

impl LayoutLimits {
    /// What 63 bits can hold: for a batch that is in memory already.
    pub(super) const NONE: LayoutLimits =
        LayoutLimits { max_bytes: i64::MAX as u64, max_len: i64::MAX as u64, max_buffers: usize::MAX };
}

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
    /// Views that [`SlabLayout::rebases`] can rebase where they lie.
    pub(super) views: Vec<ViewsAt>,
}

/// Where the views of an array are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ViewsAt {
    /// Which node's.
    pub(super) node: usize,
    /// Which buffer has them.
    pub(super) buffer: usize,
}

/// Holds a descriptor against the schema and the limits: as many arrays and buffers as the schema needs, each as long
/// as the others demand, none too large. Costs a few steps per array, and never more memory than the descriptor itself.
///
/// Says nothing about the bytes, which nobody has read yet; [`rebuild`](super::rebuild) validates those.
///
/// # Errors
/// What does not fit, and in which field.
pub fn check(schema: &Schema, descriptor: &BatchDescriptor, limits: &LayoutLimits) -> Result<SlabLayout, LayoutError> {
    if descriptor.buffers.len() > limits.max_buffers {
        let (got, limit) = (descriptor.buffers.len() as u64, limits.max_buffers as u64);
        return Err(LayoutProblem::TooLarge { what: "number of buffers", got, limit }.into());
    }
    at_most("number of rows", descriptor.rows, limits.max_len)?;
    let (nodes, lens) = (descriptor.nodes.iter(), descriptor.buffers.iter());
    let mut checker = Checker { nodes, lens, descriptor, limits, views: Vec::new() };
    for field in schema.fields() {
        checker.array(field.data_type(), Some(descriptor.rows), 0).within(field.name())?;
    }
    if !checker.nodes.as_slice().is_empty() {
        return Err(LayoutProblem::ExtraNodes { extra: checker.nodes.len() }.into());
    }
    if !checker.lens.as_slice().is_empty() {
        return Err(LayoutProblem::ExtraBuffers { extra: checker.lens.len() }.into());
    }
    let views = checker.views;
    Ok(SlabLayout { views, ..slab(&descriptor.buffers, limits.max_bytes)? })
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
    Ok(SlabLayout { ranges, len: end, views: Vec::new() })
}

struct Checker<'a> {
    nodes: std::slice::Iter<'a, NodeDescriptor>,
    lens: std::slice::Iter<'a, u64>,
    descriptor: &'a BatchDescriptor,
    limits: &'a LayoutLimits,
    views: Vec<ViewsAt>,
}

impl<'a> Checker<'a> {
    /// Checks an array, whose length is known where its parent determines it. Says how long it is.
    fn array(&mut self, data_type: &DataType, expected: Option<u64>, depth: usize) -> Result<u64, LayoutError> {
        let depth = deeper(depth)?;
        let node = self.nodes.next().ok_or(LayoutProblem::MissingNode)?;
        let len = node.len;
        if let Some(expected) = expected {
            equal("length of the array", expected, len)?;
        }
        at_most("length of the array", len, self.limits.max_len)?;
        let shape = shape(data_type)?;
        self.validity(node, shape.has_validity())?;
        let detail = || LayoutProblem::Detail { data_type: data_type.clone(), got: node.detail.name() };
        match (shape, &node.detail) {
            (Shape::Null, Detail::None) => {}
            (Shape::Bits, Detail::Bits { first }) => self.bits("values", *first, len)?,
            (Shape::Fixed { width, .. }, Detail::None) => self.exactly("values", len, width)?,
            (Shape::Bytes { wide }, Detail::Base(_)) => {
                self.offsets(len, wide)?;
                self.at_will("values", len)?;
            }
            (Shape::Views, Detail::Views(extents)) => {
                if !Extent::are_whole(extents) {
                    let node = self.descriptor.nodes.len() - self.nodes.as_slice().len() - 1;
                    let buffer = self.descriptor.buffers.len() - self.lens.as_slice().len();
                    self.views.push(ViewsAt { node, buffer });
                }
                self.exactly("views", len, 16)?;
                self.extents(extents, len)?;
            }
            (Shape::List { wide, item }, Detail::Base(_)) => {
                self.offsets(len, wide)?;
                let items = self.array(item.data_type(), None, depth).within(item.name())?;
                at_most("elements of empty lists", items, if len == 0 { 0 } else { u64::MAX })?;
            }
            (Shape::ListView { wide, item }, Detail::Base(_)) => {
                self.exactly("offsets", len, offset_width(wide))?;
                self.exactly("sizes", len, offset_width(wide))?;
                let items = self.array(item.data_type(), None, depth).within(item.name())?;
                at_most("elements of empty lists", items, if len == 0 { 0 } else { u64::MAX })?;
            }
            (Shape::FixedList { size, item }, Detail::None) => {
                let items = len.checked_mul(size).ok_or(LayoutProblem::Overflow { what: "the number of elements" })?;
                // Arrow widens the list's bitmap to its elements, to see whether their nulls are masked. Elements may
                // have no bytes, so that nothing else bounds what that allocates.
                if node.nulls > 0 && !item.is_nullable() {
                    at_most("elements under a bitmap", items, MAX_WIDENED.min(self.limits.max_len))?;
                }
                self.array(item.data_type(), Some(items), depth).within(item.name())?;
            }
            (Shape::Struct { fields }, Detail::None) => {
                for field in fields {
                    self.array(field.data_type(), Some(len), depth).within(field.name())?;
                }
            }
            (Shape::SparseUnion { fields }, Detail::None) => {
                self.exactly("type ids", len, 1)?;
                for (_, field) in fields.iter() {
                    self.array(field.data_type(), Some(len), depth).within(field.name())?;
                }
            }
            (Shape::DenseUnion { fields }, Detail::UnionBases(bases)) => {
                equal("number of union bases", fields.len() as u64, bases.len() as u64)?;
                self.exactly("type ids", len, 1)?;
                self.exactly("offsets", len, 4)?;
                for (_, field) in fields.iter() {
                    self.array(field.data_type(), None, depth).within(field.name())?;
                }
            }
            (Shape::Dictionary { width, values, .. }, Detail::None) => {
                self.exactly("keys", len, width)?;
                self.array(values, None, depth).within("values")?;
            }
            (Shape::Dictionary { width, values, .. }, Detail::SameValues) if is_lent_once(values) => {
                self.exactly("keys", len, width)?;
            }
            (Shape::Runs { ends, values }, Detail::Runs { offset }) => {
                at_most("offset into the first run", *offset, (i64::MAX as u64).saturating_sub(len))?;
                let runs = self.array(ends.data_type(), None, depth).within(ends.name())?;
                at_most("number of runs", runs, len)?;
                self.array(values.data_type(), Some(runs), depth).within(values.name())?;
            }
            _ => return Err(detail().into()),
        }
        Ok(len)
    }

    fn validity(&mut self, node: &NodeDescriptor, allowed: bool) -> Result<(), LayoutError> {
        at_most("number of nulls", node.nulls, if allowed { node.len } else { 0 })?;
        if node.nulls > 0 {
            return self.bits("validity", node.null_bit, node.len);
        }
        at_most("first bit of no bitmap", node.null_bit.into(), 0)
    }

    fn bits(&mut self, what: &'static str, first: u8, len: u64) -> Result<(), LayoutError> {
        at_most("first bit", first.into(), if len == 0 { 0 } else { 7 })?;
        let bits = len.checked_add(first.into()).ok_or(LayoutProblem::Overflow { what: "the number of bits" })?;
        self.exactly(what, bits.div_ceil(8), 1)
    }

    fn offsets(&mut self, len: u64, wide: bool) -> Result<(), LayoutError> {
        // No element, no offset: not even the one that Arrow's format asks for.
        self.exactly("offsets", if len == 0 { 0 } else { len.saturating_add(1) }, offset_width(wide))
    }

    fn extents(&mut self, extents: &[Extent], len: u64) -> Result<(), LayoutError> {
        at_most("extents of no view", extents.len() as u64, if len == 0 { 0 } else { u64::MAX })?;
        let mut end = 0;
        for &Extent { buffer, base } in extents {
            let len = *self.lens.next().ok_or(LayoutProblem::MissingBuffer { what: "data" })?;
            at_most("length of an extent", len, 1 << 32)?;
            // Buffers, each of 4 GiB at most, as if one lay behind the other.
            let start = u64::from(buffer) << 32 | u64::from(base);
            if len == 0 || start < end {
                return Err(LayoutProblem::Extent { buffer, base, len }.into());
            }
            at_most("end of an extent", u64::from(base) + len, 1 << 32)?;
            end = start.saturating_add(len);
        }
        Ok(())
    }

    fn exactly(&mut self, what: &'static str, count: u64, width: u64) -> Result<(), LayoutError> {
        let expected = count.checked_mul(width).ok_or(LayoutProblem::Overflow { what: "the buffer's length" })?;
        equal(what, expected, *self.lens.next().ok_or(LayoutProblem::MissingBuffer { what })?)
    }

    /// A buffer whose length only the bytes can tell; none where there is no element.
    fn at_will(&mut self, what: &'static str, len: u64) -> Result<(), LayoutError> {
        let got = *self.lens.next().ok_or(LayoutProblem::MissingBuffer { what })?;
        at_most("bytes of no element", got, if len == 0 { 0 } else { u64::MAX })
    }
}

fn equal(what: &'static str, expected: u64, got: u64) -> Result<(), LayoutError> {
    if expected == got { Ok(()) } else { Err(LayoutProblem::Mismatch { what, expected, got }.into()) }
}

fn at_most(what: &'static str, got: u64, limit: u64) -> Result<(), LayoutError> {
    if got <= limit { Ok(()) } else { Err(LayoutProblem::TooLarge { what, got, limit }.into()) }
}
