//! Cuts arrays on loan to some of their elements, and finds the bytes of those elements, as far as offsets and views
//! have been read.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::{ByteView, MAX_INLINE_VIEW_LEN};

use super::descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use super::error::{LayoutError, LayoutProblem, Within};
use super::kind::{BufferLen, Kind};
use super::plan::Node;
use super::referenced::{self, Cover, Referenced};

/// A range of one of a batch's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Position of the buffer in [`BatchDescriptor::buffers`].
    pub buffer: usize,
    /// First byte within the buffer.
    pub offset: u64,
    /// Length in bytes, not 0.
    pub len: u64,
}

/// The pieces that have been read, by buffer: the offset of each piece in the buffer, and its bytes.
pub(super) type ReadPieces = BTreeMap<usize, Vec<(u64, Buffer)>>;

/// The descriptor's arrays and buffers that belong to an array and to all arrays within it.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) nodes: Range<usize>,
    pub(super) buffers: Range<usize>,
}

/// The nulls among the elements of an array.
enum Nulls {
    /// The bitmap has not been read.
    NotRead,
    /// There are no nulls.
    Absent,
    /// The bitmap of the nulls.
    Bitmap(NullBuffer),
}

/// Iterates over arrays in the descriptor's order, and cuts them to some of their elements.
pub(super) struct Cutter<'a> {
    descriptor: &'a BatchDescriptor,
    have: &'a ReadPieces,
    /// The next array and buffer of the descriptor.
    node: usize,
    buffer: usize,
    /// Pieces that must be read before the arrays can be made.
    missing: Vec<Piece>,
    /// The arrays after the cut, and their buffers. They are complete only if no piece is missing.
    nodes: Vec<NodeDescriptor>,
    cut: Vec<Buffer>,
}

/// The result of a [`Cutter`].
pub(super) enum Cut {
    /// These pieces must be read first.
    Missing(Vec<Piece>),
    /// The arrays and their buffers.
    Done(Vec<NodeDescriptor>, Vec<Buffer>),
}

impl<'a> Cutter<'a> {
    pub(super) fn new(descriptor: &'a BatchDescriptor, have: &'a ReadPieces) -> Self {
        Cutter { descriptor, have, node: 0, buffer: 0, missing: Vec::new(), nodes: Vec::new(), cut: Vec::new() }
    }

    /// Cuts the column that has this span to elements `start..start + len`.
    pub(super) fn column(&mut self, node: &Node, span: &Span, start: u64, len: u64) -> Result<(), LayoutError> {
        (self.node, self.buffer) = (span.nodes.start, span.buffers.start);
        self.array(node, start, len)
    }

    pub(super) fn finish(self) -> Cut {
        if self.missing.is_empty() { Cut::Done(self.nodes, self.cut) } else { Cut::Missing(self.missing) }
    }

    /// Skips an array and all arrays within it.
    pub(super) fn pass(&mut self, node: &Node) -> Result<Span, LayoutError> {
        let (first_node, first_buffer) = (self.node, self.buffer);
        let of = self.next_node()?;
        if let Detail::SameValues = of.detail {
            // A batch that is read in parts must contain all its dictionaries.
            let data_type = node.field.data_type().clone();
            return Err(LayoutProblem::Detail { data_type, got: of.detail.name() }.into());
        }
        self.buffer += usize::from(of.nulls > 0) + node.buffer_count(&of.detail);
        for child in node.children.iter() {
            self.pass(child)?;
        }
        if self.buffer > self.descriptor.buffers.len() {
            return Err(LayoutProblem::MissingBuffer { what: "values" }.into());
        }
        Ok(Span { nodes: first_node..self.node, buffers: first_buffer..self.buffer })
    }

    /// Takes a whole array, without a cut.
    fn whole(&mut self, node: &Node) -> Result<(), LayoutError> {
        let Span { nodes, buffers } = self.pass(node)?;
        self.nodes.extend_from_slice(&self.descriptor.nodes[nodes]);
        for buffer in buffers {
            self.take(buffer, 0, self.descriptor.buffers[buffer], "values")?;
        }
        Ok(())
    }

    /// Cuts an array to elements `start..start + len`.
    fn array(&mut self, node: &Node, start: u64, len: u64) -> Result<(), LayoutError> {
        let of = self.descriptor.nodes.get(self.node).ok_or_else(|| LayoutProblem::MissingNode)?;
        if start.checked_add(len).is_none_or(|end| end > of.len) {
            return Err(stray("offset"));
        }
        // For zero elements nothing is read, not even a dictionary.
        if len == of.len && len > 0 {
            return self.whole(node);
        }
        let of = self.next_node()?;
        let at = self.nodes.len();
        self.nodes.push(NodeDescriptor { len, nulls: 0, null_bit: 0, detail: Detail::None });
        let nulls = self.validity(at, of, start, len)?;
        let own = self.own_buffers(node, of, start, len)?;
        match node.kind {
            // Most arrays have no children, strings or views.
            Kind::Null | Kind::Fixed { .. } => return Ok(()),
            Kind::Dictionary { .. } => {
                return node.children.iter().try_for_each(|values| {
                    let cut = if len == 0 { self.array(values, 0, 0) } else { self.whole(values) };
                    cut.within(values.field.name())
                });
            }
            _ => {}
        }
        let (detail, referenced) = self.refer(node, of, &nulls, own, start..start + len)?;
        self.nodes[at].detail = detail;
        for (position, child) in node.children.iter().enumerate() {
            match &referenced {
                Some(referenced) => {
                    let range = referenced.of_child(position);
                    self.array(child, range.start, range.end - range.start)
                }
                None => self.pass(child).map(drop),
            }
            .within(child.field.name())?;
        }
        Ok(())
    }

    /// Takes the parts of an array's own buffers that the positions of the elements determine. `None` for parts that
    /// have not been read, and for parts that other values determine.
    fn own_buffers(
        &mut self,
        node: &Node,
        of: &NodeDescriptor,
        start: u64,
        len: u64,
    ) -> Result<[Option<Buffer>; 2], LayoutError> {
        let mut own = [None, None];
        for (rule, own) in node.buffers().iter().zip(&mut own) {
            *own = match rule.len {
                BufferLen::Bits => {
                    let (byte, bit) = bit_at(of.detail.first_bit(), start, len)?;
                    let buffer = self.next_buffer();
                    self.take(buffer, byte, (u64::from(bit) + len).div_ceil(8), rule.what)?
                }
                BufferLen::Elements(width) => self.elements(start, len, width, rule.what)?,
                BufferLen::Offsets(width) if len == 0 => self.elements(0, 0, width, rule.what)?,
                BufferLen::Offsets(width) => self.elements(start, len.saturating_add(1), width, rule.what)?,
                BufferLen::Referenced | BufferLen::Extents => None,
            };
        }
        Ok(own)
    }

    /// The array's detail after the cut, and the elements of its children that it refers to, if they are known by now.
    /// Takes the bytes that strings and views refer to.
    fn refer(
        &mut self,
        node: &Node,
        of: &NodeDescriptor,
        nulls: &Nulls,
        own: [Option<Buffer>; 2],
        rows: Range<u64>,
    ) -> Result<(Detail, Option<Referenced>), LayoutError> {
        let (len, base) = (rows.end - rows.start, of.detail.base());
        let nothing = Some(Referenced::NONE);
        Ok(match (&node.kind, own) {
            (Kind::Bits, _) => (Detail::Bits { first: bit_at(of.detail.first_bit(), rows.start, len)?.1 }, nothing),
            (Kind::Bytes { wide, .. }, [offsets, _]) => {
                let range = ends(offsets, *wide)?;
                let values = self.next_buffer();
                if let Some(range) = &range {
                    let lent = lent(range, base)?;
                    self.take(values, lent.start, lent.end - lent.start, "values")?;
                }
                (Detail::Base(range.map_or(0, |range| range.start)), nothing)
            }
            (Kind::Views { .. }, [views, _]) => {
                (Detail::Views(self.view_data(views, nulls, of.detail.extents())?), nothing)
            }
            (Kind::List { wide }, [offsets, _]) => based(ends(offsets, *wide)?, base)?,
            (Kind::ListView { wide }, [offsets, sizes]) => {
                let both = offsets.zip(sizes);
                based(both.map(|(o, s)| referenced::by_list_views(&o, &s, *wide)).transpose()?, base)?
            }
            (Kind::FixedList { size }, _) => {
                let items = rows.start.checked_mul(*size).zip(rows.end.checked_mul(*size));
                let (start, end) = items.ok_or_else(|| LayoutProblem::Overflow { what: "the number of elements" })?;
                (Detail::None, Some(Referenced::Same(start..end)))
            }
            (Kind::Struct | Kind::SparseUnion, _) => (Detail::None, Some(Referenced::Same(rows))),
            (Kind::DenseUnion(type_ids), [Some(ids), Some(offsets)]) => {
                let used = referenced::by_union(&ids, &offsets, type_ids, node.children.len())?;
                let starts = used.iter().map(|range| range.start).collect();
                let ranges = used.iter().zip(of.detail.union_bases()).map(|(range, base)| lent(range, *base));
                (Detail::UnionBases(starts), Some(Referenced::Each(ranges.collect::<Result<_, _>>()?)))
            }
            (Kind::DenseUnion(_), _) => (Detail::UnionBases(Vec::new()), None),
            (Kind::Null | Kind::Fixed { .. } | Kind::Dictionary { .. }, _) => (Detail::None, nothing),
            (Kind::Runs { .. }, _) if len == 0 => (Detail::Runs { offset: 0 }, nothing),
            (Kind::Runs { width }, _) => {
                let first = of.detail.run_offset().checked_add(rows.start);
                let first = first.ok_or_else(|| LayoutProblem::Overflow { what: "the first run" })?;
                (Detail::Runs { offset: first }, self.runs(*width, first, len)?.map(Referenced::Same))
            }
        })
    }

    fn next_node(&mut self) -> Result<&'a NodeDescriptor, LayoutError> {
        let node = self.descriptor.nodes.get(self.node).ok_or_else(|| LayoutProblem::MissingNode)?;
        self.node += 1;
        Ok(node)
    }

    fn next_buffer(&mut self) -> usize {
        self.buffer += 1;
        self.buffer - 1
    }

    /// Bytes of a buffer, if they have been read. They become a buffer of the arrays after the cut.
    fn take(
        &mut self,
        buffer: usize,
        offset: u64,
        len: u64,
        what: &'static str,
    ) -> Result<Option<Buffer>, LayoutError> {
        let found = self.find(buffer, offset, len, what)?;
        self.cut.extend(found.clone());
        Ok(found)
    }

    /// Bytes of a buffer, if they have been read. Otherwise records them as missing.
    fn find(
        &mut self,
        buffer: usize,
        offset: u64,
        len: u64,
        what: &'static str,
    ) -> Result<Option<Buffer>, LayoutError> {
        let there = *self.descriptor.buffers.get(buffer).ok_or_else(|| LayoutProblem::MissingBuffer { what })?;
        if offset.checked_add(len).is_none_or(|end| end > there) {
            return Err(stray(what));
        }
        if len == 0 {
            return Ok(Some(Buffer::from(&[][..])));
        }
        for (first, bytes) in self.have.get(&buffer).into_iter().flatten() {
            let within = offset.checked_sub(*first).filter(|skip| skip + len <= bytes.len() as u64);
            if let Some(skip) = within {
                // The casts are exact: the range is within a buffer in memory.
                return Ok(Some(bytes.slice_with_length(skip as usize, len as usize)));
            }
        }
        let piece = Piece { buffer, offset, len };
        // The piece may be missing already, because a column can be requested twice.
        if !self.missing.contains(&piece) {
            self.missing.push(piece);
        }
        Ok(None)
    }

    /// A range of elements of this width in the next buffer.
    fn elements(
        &mut self,
        start: u64,
        len: u64,
        width: u64,
        what: &'static str,
    ) -> Result<Option<Buffer>, LayoutError> {
        let range = start.checked_mul(width).zip(len.checked_mul(width));
        let (offset, bytes) = range.ok_or_else(|| LayoutProblem::Overflow { what: "the buffer's length" })?;
        let buffer = self.next_buffer();
        self.take(buffer, offset, bytes, what)
    }

    fn validity(&mut self, at: usize, of: &NodeDescriptor, start: u64, len: u64) -> Result<Nulls, LayoutError> {
        if of.nulls == 0 {
            return Ok(Nulls::Absent);
        }
        let buffer = self.next_buffer();
        let (byte, bit) = bit_at(of.null_bit, start, len)?;
        let Some(bits) = self.find(buffer, byte, (u64::from(bit) + len).div_ceil(8), "validity")? else {
            return Ok(Nulls::NotRead);
        };
        let len = usize::try_from(len).map_err(|_| LayoutProblem::Overflow { what: "a length" })?;
        let nulls = NullBuffer::new(BooleanBuffer::new(bits.clone(), bit.into(), len));
        let count = nulls.null_count() as u64;
        if count > of.nulls {
            return Err(LayoutProblem::TooLarge { what: "number of nulls", got: count, limit: of.nulls }.into());
        }
        if count == 0 {
            return Ok(Nulls::Absent);
        }
        self.cut.push(bits);
        (self.nodes[at].nulls, self.nodes[at].null_bit) = (count, bit);
        Ok(Nulls::Bitmap(nulls))
    }

    /// Takes the range of each extent that the views point into, once views and nulls are known. An extent that no view
    /// points into is skipped. Returns the ranges as extents.
    fn view_data(
        &mut self,
        views: Option<Buffer>,
        nulls: &Nulls,
        extents: &[Extent],
    ) -> Result<Vec<Extent>, LayoutError> {
        let first = self.buffer;
        self.buffer += extents.len();
        let nulls = match nulls {
            Nulls::NotRead => return Ok(Vec::new()),
            Nulls::Absent => None,
            Nulls::Bitmap(nulls) => Some(nulls),
        };
        let Some(views) = views else { return Ok(Vec::new()) };
        let mut used = vec![Cover::NOTHING; extents.len()];
        for (at, view) in views.as_chunks::<16>().0.iter().enumerate() {
            let view = u128::from_le_bytes(*view);
            // The view of a null may have any target, and its target is not lent.
            if view as u32 <= MAX_INLINE_VIEW_LEN || nulls.is_some_and(|nulls| nulls.is_null(at)) {
                continue;
            }
            let view = ByteView::from(view);
            let target = Extent { buffer: view.buffer_index, base: view.offset };
            let extent = extents.partition_point(|extent| *extent <= target).checked_sub(1);
            let extent = extent.filter(|extent| extents[*extent].buffer == target.buffer);
            let start = u64::from(view.offset);
            used[extent.ok_or_else(|| stray("view"))?].add(start, start + u64::from(view.length));
        }
        let mut needed = Vec::new();
        for (at, (extent, used)) in extents.iter().zip(used.into_iter().map(Cover::range)).enumerate() {
            if used.start < used.end {
                self.take(first + at, used.start - u64::from(extent.base), used.end - used.start, "data")?;
                // The cast is exact: the start is a view's offset, which has 32 bits.
                needed.push(Extent { base: used.start as u32, ..*extent });
            }
        }
        Ok(needed)
    }

    /// The runs that hold elements `first..first + len`, in the positions of the run ends, once all run ends are known.
    /// The array of the run ends is the next one.
    fn runs(&mut self, width: usize, first: u64, len: u64) -> Result<Option<Range<u64>>, LayoutError> {
        let of = self.descriptor.nodes.get(self.node).ok_or_else(|| LayoutProblem::MissingNode)?;
        let bytes = of.len.checked_mul(width as u64);
        let bytes = bytes.ok_or_else(|| LayoutProblem::Overflow { what: "the buffer's length" })?;
        let buffer = self.buffer + usize::from(of.nulls > 0);
        let ends = self.find(buffer, 0, bytes, "run ends")?;
        Ok(ends.map(|ends| referenced::by_runs(&ends, width, first, len)).transpose()?)
    }
}

fn stray(what: &'static str) -> LayoutError {
    LayoutProblem::OutOfRange { what, at: 0 }.into()
}

/// The elements or bytes that offsets refer to, if the offsets have been read.
fn ends(offsets: Option<Buffer>, wide: bool) -> Result<Option<Range<u64>>, LayoutError> {
    Ok(offsets.map(|offsets| referenced::by_offsets(&offsets, wide)).transpose()?)
}

/// The position of a range of elements among the lent elements, the first of which is element `base`.
fn lent(range: &Range<u64>, base: u64) -> Result<Range<u64>, LayoutError> {
    // An empty range may have any position.
    if range.start == range.end {
        return Ok(0..0);
    }
    let start = range.start.checked_sub(base).ok_or_else(|| stray("offset"))?;
    Ok(start..start + (range.end - range.start))
}

/// The detail of offsets that refer to a range, and that range among the lent elements, if it is known.
fn based(range: Option<Range<u64>>, base: u64) -> Result<(Detail, Option<Referenced>), LayoutError> {
    let lent = range.as_ref().map(|range| lent(range, base)).transpose()?;
    Ok((Detail::Base(range.map_or(0, |range| range.start)), lent.map(Referenced::Same)))
}

/// The byte of an array's element in a bitmap, and its bit in that byte.
fn bit_at(first: u8, start: u64, len: u64) -> Result<(u64, u8), LayoutError> {
    if len == 0 {
        return Ok((0, 0));
    }
    let bit = start.checked_add(first.into()).ok_or_else(|| LayoutProblem::Overflow { what: "the number of bits" })?;
    Ok((bit / 8, (bit % 8) as u8))
}
