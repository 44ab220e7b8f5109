//! The borrower's side of a lazy batch: which bytes hold some columns and some rows, and the arrays that they make.
//!
//! What a range of rows needs of an offset's target only the offset says. So a [`Projection`] goes in rounds: it names the
//! pieces of buffers that it can name by now, is given their bytes, and goes on from there, until it has a batch. Columns
//! of fixed width take one round, strings and lists of numbers two, and each level of nesting by offsets one more. Whole
//! columns take one round whatever they are: there is nothing to find out.
//!
//! The arrays are made by [`rebuild`](super::rebuild), from a descriptor cut to the rows: what is read in part is validated as
//! what is read whole. Only where a dictionary is used is more read than the rows need, namely all of it, and of run-end encoded
//! columns all run ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::{ByteView, MAX_INLINE_VIEW_LEN};
use arrow_schema::{DataType, Schema, SchemaRef, UnionFields};

use super::descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use super::error::{LayoutError, LayoutProblem, Within};
use super::rebuild::{Assemble, Checked, rebuild_with};
use super::shape::{Shape, deeper, offset_width, shape};

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

/// What a projection needs next.
#[derive(Debug)]
pub enum Step {
    /// The bytes of these pieces, to be given to [`Projection::give`].
    Read(Vec<Piece>),
    /// Nothing more: here it is.
    Done(RecordBatch),
}

/// Some columns and rows of a batch that is on loan, until they are arrays.
///
/// ```
/// # use std::sync::Arc;
/// # use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
/// # use thallus_protocol::layout::{Projection, Step, describe};
/// let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
/// let names: ArrayRef = Arc::new(StringArray::from(vec!["ada", "grace", "barbara"]));
/// let batch = RecordBatch::try_from_iter([("id", ids), ("name", names)])?;
/// let (descriptor, lent) = describe(&batch)?;
///
/// // Of the second column, the second row: two offsets first, then five letters.
/// let mut projection = Projection::new(&batch.schema(), &Arc::new(descriptor), &[1], 1..2)?;
/// let mut read = Vec::new();
/// let found = loop {
///     match projection.step()? {
///         Step::Read(pieces) => {
///             read.extend(pieces.iter().map(|piece| piece.len));
///             let bytes = |piece: &_| { let thallus_protocol::layout::Piece { buffer, offset, len } = *piece;
///                 lent[buffer].slice_with_length(offset as usize, len as usize) };
///             projection.give(pieces.iter().map(bytes).collect());
///         }
///         Step::Done(batch) => break batch,
///     }
/// };
/// assert_eq!(found, batch.project(&[1])?.slice(1, 1));
/// assert_eq!(read, [8, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Projection {
    /// Of the columns alone.
    schema: SchemaRef,
    descriptor: Arc<BatchDescriptor>,
    spans: Vec<Span>,
    rows: Range<u64>,
    /// By buffer: where what has been read begins, and what it is.
    have: BTreeMap<usize, Vec<(u64, Buffer)>>,
    asked: Vec<Piece>,
}

impl Projection {
    /// These columns, in this order, of these rows. The descriptor has been [checked](super::check).
    ///
    /// # Errors
    /// There is no such column or row, or the descriptor does not fit the schema.
    pub fn new(
        schema: &Schema,
        descriptor: &Arc<BatchDescriptor>,
        columns: &[usize],
        rows: Range<u64>,
    ) -> Result<Self, LayoutError> {
        if rows.start > rows.end || rows.end > descriptor.rows {
            return Err(LayoutProblem::TooLarge { what: "row", got: rows.end, limit: descriptor.rows }.into());
        }
        let count = schema.fields().len();
        if let Some(&column) = columns.iter().find(|column| **column >= count) {
            let (got, limit) = (column as u64, count.saturating_sub(1) as u64);
            return Err(LayoutProblem::TooLarge { what: "column", got, limit }.into());
        }
        let all = spans(schema, descriptor)?;
        let spans = columns.iter().map(|column| all[*column].clone()).collect();
        let schema = Arc::new(schema.project(columns)?);
        let descriptor = Arc::clone(descriptor);
        Ok(Projection { schema, descriptor, spans, rows, have: BTreeMap::new(), asked: Vec::new() })
    }

    /// The pieces to be read next, or the batch. Says the same again until it is given the bytes.
    ///
    /// # Errors
    /// What has been read is not that of valid arrays.
    pub fn step(&mut self) -> Result<Step, LayoutError> {
        self.step_with(&Checked)
    }

    /// As [`step`](Self::step), but by other means to make arrays of what has been validated.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with(&mut self, assemble: &dyn Assemble) -> Result<Step, LayoutError> {
        let mut cutter = Cutter::new(&self.descriptor, &self.have);
        for (field, span) in self.schema.fields().iter().zip(&self.spans) {
            (cutter.node, cutter.buffer) = (span.nodes.start, span.buffers.start);
            cutter
                .array(field.data_type(), self.rows.start, self.rows.end - self.rows.start, 0)
                .within(field.name())?;
        }
        if !cutter.missing.is_empty() {
            self.asked.clone_from(&cutter.missing);
            return Ok(Step::Read(cutter.missing));
        }
        let buffers = cutter.cut.iter().map(|buffer| buffer.len() as u64).collect();
        let rows = self.rows.end - self.rows.start;
        let descriptor = BatchDescriptor { rows, nodes: cutter.nodes, buffers };
        Ok(Step::Done(rebuild_with(&self.schema, &descriptor, &cutter.cut, assemble)?))
    }

    /// The bytes of the pieces that [`step`](Self::step) named, in its order. A buffer of another length is no answer.
    pub fn give(&mut self, buffers: Vec<Buffer>) {
        for (piece, buffer) in std::mem::take(&mut self.asked).into_iter().zip(buffers) {
            if buffer.len() as u64 == piece.len {
                self.have.entry(piece.buffer).or_default().push((piece.offset, buffer));
            }
        }
    }
}

/// Bytes on loan for each column. The descriptor has been [checked](super::check).
///
/// # Errors
/// The descriptor does not fit the schema.
pub fn column_bytes(schema: &Schema, descriptor: &BatchDescriptor) -> Result<Vec<u64>, LayoutError> {
    let sum =
        |span: &Span| descriptor.buffers[span.buffers.clone()].iter().fold(0_u64, |sum, len| sum.saturating_add(*len));
    Ok(spans(schema, descriptor)?.iter().map(sum).collect())
}

/// Which of a descriptor's arrays and buffers are a column's.
#[derive(Clone, Debug)]
struct Span {
    nodes: Range<usize>,
    buffers: Range<usize>,
}

fn spans(schema: &Schema, descriptor: &BatchDescriptor) -> Result<Vec<Span>, LayoutError> {
    let none = BTreeMap::new();
    let mut cutter = Cutter::new(descriptor, &none);
    schema.fields().iter().map(|field| cutter.pass(field.data_type(), 0).within(field.name())).collect()
}

/// Types of the arrays within an array, in the order of their nodes.
fn children<'a>(shape: &Shape<'a>) -> Vec<&'a DataType> {
    match shape {
        Shape::Null | Shape::Bits | Shape::Fixed { .. } | Shape::Bytes { .. } | Shape::Views => Vec::new(),
        Shape::List { item, .. } | Shape::ListView { item, .. } | Shape::FixedList { item, .. } => {
            vec![item.data_type()]
        }
        Shape::Struct { fields } => fields.iter().map(|field| field.data_type()).collect(),
        Shape::SparseUnion { fields } | Shape::DenseUnion { fields } => {
            fields.iter().map(|(_, field)| field.data_type()).collect()
        }
        Shape::Dictionary { values, .. } => vec![values],
        Shape::Runs { ends, values } => vec![ends.data_type(), values.data_type()],
    }
}

/// Buffers that an array has itself, its bitmap included. They come before those of its children.
fn own_buffers(shape: &Shape<'_>, node: &NodeDescriptor) -> usize {
    let values = match (shape, &node.detail) {
        (Shape::Null | Shape::FixedList { .. } | Shape::Struct { .. } | Shape::Runs { .. }, _) => 0,
        (Shape::Bits | Shape::Fixed { .. } | Shape::List { .. }, _) => 1,
        (Shape::SparseUnion { .. } | Shape::Dictionary { .. }, _) => 1,
        (Shape::Bytes { .. } | Shape::ListView { .. } | Shape::DenseUnion { .. }, _) => 2,
        (Shape::Views, Detail::Views(extents)) => 1 + extents.len(),
        (Shape::Views, _) => 1,
    };
    values + usize::from(node.nulls > 0)
}

/// Walks over arrays as the descriptor lists them, and cuts them to some of their elements as far as the bytes that say where
/// those are have been read.
struct Cutter<'a> {
    descriptor: &'a BatchDescriptor,
    have: &'a BTreeMap<usize, Vec<(u64, Buffer)>>,
    /// The next array and buffer of the descriptor.
    node: usize,
    buffer: usize,
    /// What has to be read before there can be arrays.
    missing: Vec<Piece>,
    /// The arrays, cut, and their buffers; of use only if nothing is missing.
    nodes: Vec<NodeDescriptor>,
    cut: Vec<Buffer>,
}

impl<'a> Cutter<'a> {
    fn new(descriptor: &'a BatchDescriptor, have: &'a BTreeMap<usize, Vec<(u64, Buffer)>>) -> Self {
        Cutter { descriptor, have, node: 0, buffer: 0, missing: Vec::new(), nodes: Vec::new(), cut: Vec::new() }
    }

    /// Goes past an array and all within it.
    fn pass(&mut self, data_type: &DataType, depth: usize) -> Result<Span, LayoutError> {
        let depth = deeper(depth)?;
        let (node, buffer) = (self.node, self.buffer);
        let of = self.next_node()?;
        let shape = shape(data_type)?;
        if of.detail == Detail::SameValues {
            // What is read in parts is described in full.
            return Err(LayoutProblem::Detail { data_type: data_type.clone(), got: of.detail.name() }.into());
        }
        self.buffer += own_buffers(&shape, of);
        for child in children(&shape) {
            self.pass(child, depth)?;
        }
        if self.buffer > self.descriptor.buffers.len() {
            return Err(LayoutProblem::MissingBuffer { what: "values" }.into());
        }
        Ok(Span { nodes: node..self.node, buffers: buffer..self.buffer })
    }

    /// An array as it is on loan.
    fn whole(&mut self, data_type: &DataType, depth: usize) -> Result<(), LayoutError> {
        let Span { nodes, buffers } = self.pass(data_type, depth)?;
        self.nodes.extend_from_slice(&self.descriptor.nodes[nodes]);
        for buffer in buffers {
            self.take(buffer, 0, self.descriptor.buffers[buffer], "values")?;
        }
        Ok(())
    }

    /// Elements `start..start + len` of an array.
    fn array(&mut self, data_type: &DataType, start: u64, len: u64, depth: usize) -> Result<(), LayoutError> {
        let of = self.descriptor.nodes.get(self.node).ok_or(LayoutProblem::MissingNode)?;
        if start.checked_add(len).is_none_or(|end| end > of.len) {
            return Err(stray("offset"));
        }
        // Of no element nothing is read, not even a dictionary.
        if len == of.len && len > 0 {
            return self.whole(data_type, depth);
        }
        let depth = deeper(depth)?;
        let of = self.next_node()?;
        let at = self.nodes.len();
        self.nodes.push(NodeDescriptor { len, nulls: 0, null_bit: 0, detail: Detail::None });
        let nulls = self.validity(at, of, start, len)?;
        let detail = match (shape(data_type)?, &of.detail) {
            (Shape::Null, _) => Detail::None,
            (Shape::Bits, Detail::Bits { first }) => {
                let buffer = self.next_buffer();
                let (_, first) = self.bits(buffer, *first, start, len, "values")?;
                Detail::Bits { first }
            }
            (Shape::Fixed { width, .. }, _) => {
                self.fixed(start, len, width, "values")?;
                Detail::None
            }
            (Shape::Bytes { wide }, Detail::Base(base)) => {
                let ends = self.offsets(start, len, wide, *base)?;
                let values = self.next_buffer();
                if let Some((low, high)) = ends {
                    self.take(values, low - base, high - low, "values")?;
                }
                Detail::Base(based(ends, len))
            }
            (Shape::Views, Detail::Views(extents)) => {
                let views = self.fixed(start, len, 16, "views")?;
                Detail::Views(self.view_data(views.zip(nulls), extents)?)
            }
            (Shape::List { wide, item }, Detail::Base(base)) => {
                let ends = self.offsets(start, len, wide, *base)?;
                self.within_part(item.data_type(), ends, *base, depth).within(item.name())?;
                Detail::Base(based(ends, len))
            }
            (Shape::ListView { wide, item }, Detail::Base(base)) => {
                let width = offset_width(wide);
                let (offsets, sizes) =
                    (self.fixed(start, len, width, "offsets")?, self.fixed(start, len, width, "sizes")?);
                let ends = offsets.zip(sizes).map(|(offsets, sizes)| list_views(&offsets, &sizes, wide, *base));
                let ends = ends.transpose()?;
                self.within_part(item.data_type(), ends, *base, depth).within(item.name())?;
                Detail::Base(ends.map_or(0, |(low, _)| low))
            }
            (Shape::FixedList { size, item }, _) => {
                let first = start.checked_mul(size).zip(len.checked_mul(size));
                let (first, items) = first.ok_or(LayoutProblem::Overflow { what: "the number of elements" })?;
                self.array(item.data_type(), first, items, depth).within(item.name())?;
                Detail::None
            }
            (Shape::Struct { fields }, _) => {
                for field in fields {
                    self.array(field.data_type(), start, len, depth).within(field.name())?;
                }
                Detail::None
            }
            (Shape::SparseUnion { fields }, _) => {
                self.fixed(start, len, 1, "type ids")?;
                for (_, field) in fields.iter() {
                    self.array(field.data_type(), start, len, depth).within(field.name())?;
                }
                Detail::None
            }
            (Shape::DenseUnion { fields }, Detail::UnionBases(bases)) => {
                let (ids, offsets) = (self.fixed(start, len, 1, "type ids")?, self.fixed(start, len, 4, "offsets")?);
                let ranges = ids.zip(offsets).map(|(ids, offsets)| union_ranges(&ids, &offsets, fields)).transpose()?;
                for (index, (_, field)) in fields.iter().enumerate() {
                    let base = bases.get(index).copied().unwrap_or(0);
                    let range = ranges.as_ref().map(|ranges| ranges[index].unwrap_or((base, base)));
                    self.within_part(field.data_type(), range, base, depth).within(field.name())?;
                }
                let low = |range: &Option<(u64, u64)>| range.map_or(0, |(low, _)| low);
                Detail::UnionBases(ranges.map_or_else(Vec::new, |ranges| ranges.iter().map(low).collect()))
            }
            (Shape::Dictionary { width, values, .. }, Detail::None) => {
                self.fixed(start, len, width, "keys")?;
                if len == 0 { self.array(values, 0, 0, depth) } else { self.whole(values, depth) }.within("values")?;
                Detail::None
            }
            (Shape::Runs { ends, values }, Detail::Runs { offset }) => {
                let first = offset.checked_add(start).ok_or(LayoutProblem::Overflow { what: "the first run" })?;
                let runs = if len == 0 { Some((0, 0)) } else { self.runs(ends.data_type(), first, len)? };
                for field in [ends, values] {
                    self.within_part(field.data_type(), runs, 0, depth).within(field.name())?;
                }
                Detail::Runs { offset: if len == 0 { 0 } else { first } }
            }
            (_, detail) => {
                return Err(LayoutProblem::Detail { data_type: data_type.clone(), got: detail.name() }.into());
            }
        };
        self.nodes[at].detail = detail;
        Ok(())
    }

    /// The elements of a child that offsets from `low` to `high` point at, if those are known by now.
    fn within_part(
        &mut self,
        data_type: &DataType,
        ends: Option<(u64, u64)>,
        base: u64,
        depth: usize,
    ) -> Result<(), LayoutError> {
        match ends {
            Some((low, high)) => {
                let first = low.checked_sub(base).ok_or_else(|| stray("offset"))?;
                self.array(data_type, first, high - low, depth)
            }
            None => self.pass(data_type, depth).map(drop),
        }
    }

    fn next_node(&mut self) -> Result<&'a NodeDescriptor, LayoutError> {
        let node = self.descriptor.nodes.get(self.node).ok_or(LayoutProblem::MissingNode)?;
        self.node += 1;
        Ok(node)
    }

    fn next_buffer(&mut self) -> usize {
        self.buffer += 1;
        self.buffer - 1
    }

    /// Bytes of a buffer, if they have been read; they become a buffer of what is cut.
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

    fn find(
        &mut self,
        buffer: usize,
        offset: u64,
        len: u64,
        what: &'static str,
    ) -> Result<Option<Buffer>, LayoutError> {
        let there = *self.descriptor.buffers.get(buffer).ok_or(LayoutProblem::MissingBuffer { what })?;
        if offset.checked_add(len).is_none_or(|end| end > there) {
            return Err(stray(what));
        }
        if len == 0 {
            return Ok(Some(Buffer::from(&[][..])));
        }
        for (first, bytes) in self.have.get(&buffer).into_iter().flatten() {
            let within = offset.checked_sub(*first).filter(|skip| skip + len <= bytes.len() as u64);
            if let Some(skip) = within {
                // Within a buffer that is in memory.
                return Ok(Some(bytes.slice_with_length(skip as usize, len as usize)));
            }
        }
        let piece = Piece { buffer, offset, len };
        // A column that was named twice.
        if !self.missing.contains(&piece) {
            self.missing.push(piece);
        }
        Ok(None)
    }

    fn fixed(&mut self, start: u64, len: u64, width: u64, what: &'static str) -> Result<Option<Buffer>, LayoutError> {
        let range = start.checked_mul(width).zip(len.checked_mul(width));
        let (offset, bytes) = range.ok_or(LayoutProblem::Overflow { what: "the buffer's length" })?;
        let buffer = self.next_buffer();
        self.take(buffer, offset, bytes, what)
    }

    /// The bytes that hold some bits, and which bit of the first is the first.
    fn bits(
        &mut self,
        buffer: usize,
        first: u8,
        start: u64,
        len: u64,
        what: &'static str,
    ) -> Result<(Option<Buffer>, u8), LayoutError> {
        let (byte, bit) = bit_at(first, start, len)?;
        Ok((self.take(buffer, byte, (u64::from(bit) + len).div_ceil(8), what)?, bit))
    }

    /// The nulls among the elements, if they are known by now.
    fn validity(
        &mut self,
        at: usize,
        of: &NodeDescriptor,
        start: u64,
        len: u64,
    ) -> Result<Option<Option<NullBuffer>>, LayoutError> {
        if of.nulls == 0 {
            return Ok(Some(None));
        }
        let buffer = self.next_buffer();
        let (byte, bit) = bit_at(of.null_bit, start, len)?;
        let Some(bits) = self.find(buffer, byte, (u64::from(bit) + len).div_ceil(8), "validity")? else {
            return Ok(None);
        };
        let len = usize::try_from(len).map_err(|_| LayoutProblem::Overflow { what: "a length" })?;
        let nulls = NullBuffer::new(BooleanBuffer::new(bits.clone(), bit.into(), len));
        let count = nulls.null_count() as u64;
        if count > of.nulls {
            return Err(LayoutProblem::TooLarge { what: "number of nulls", got: count, limit: of.nulls }.into());
        }
        if count == 0 {
            return Ok(Some(None));
        }
        self.cut.push(bits);
        (self.nodes[at].nulls, self.nodes[at].null_bit) = (count, bit);
        Ok(Some(Some(nulls)))
    }

    /// First and last offset of some elements, held against the base, if they are known by now.
    fn offsets(&mut self, start: u64, len: u64, wide: bool, base: u64) -> Result<Option<(u64, u64)>, LayoutError> {
        if len == 0 {
            self.fixed(0, 0, 1, "offsets")?;
            return Ok(Some((base, base)));
        }
        let offsets = self.fixed(start, len.saturating_add(1), offset_width(wide), "offsets")?;
        let Some(offsets) = offsets else { return Ok(None) };
        let mut numbers = integers(&offsets, if wide { 8 } else { 4 });
        match (numbers.next().flatten(), numbers.next_back().flatten()) {
            (Some(low), Some(high)) if base <= low && low <= high => Ok(Some((low, high))),
            _ => Err(stray("offset")),
        }
    }

    /// Of each extent the range that the views point into, once the views are known; none of those that they do not need.
    fn view_data(
        &mut self,
        views: Option<(Buffer, Option<NullBuffer>)>,
        extents: &[Extent],
    ) -> Result<Vec<Extent>, LayoutError> {
        let first = self.buffer;
        self.buffer += extents.len();
        let Some((views, nulls)) = views else { return Ok(Vec::new()) };
        let mut used: Vec<Option<(u64, u64)>> = vec![None; extents.len()];
        for (at, view) in views.as_chunks::<16>().0.iter().enumerate() {
            let view = u128::from_le_bytes(*view);
            // What a null points at is not lent.
            if view as u32 <= MAX_INLINE_VIEW_LEN || nulls.as_ref().is_some_and(|nulls| nulls.is_null(at)) {
                continue;
            }
            let view = ByteView::from(view);
            let target = Extent { buffer: view.buffer_index, base: view.offset };
            let extent = extents.partition_point(|extent| *extent <= target).checked_sub(1);
            let extent =
                extent.filter(|extent| extents[*extent].buffer == target.buffer).ok_or_else(|| stray("view"))?;
            let (low, high) = (u64::from(view.offset), u64::from(view.offset) + u64::from(view.length));
            let range = &mut used[extent];
            *range = Some(range.map_or((low, high), |(first, last)| (first.min(low), last.max(high))));
        }
        let mut needed = Vec::new();
        for (at, (extent, used)) in extents.iter().zip(used).enumerate() {
            if let Some((low, high)) = used {
                self.take(first + at, low - u64::from(extent.base), high - low, "data")?;
                // At most the offset of a view, which has as many bits.
                needed.push(Extent { base: low as u32, ..*extent });
            }
        }
        Ok(needed)
    }

    /// The runs that hold elements `first..first + len`, counted as run ends count, once all run ends are known.
    fn runs(&mut self, ends: &DataType, first: u64, len: u64) -> Result<Option<(u64, u64)>, LayoutError> {
        let of = self.descriptor.nodes.get(self.node).ok_or(LayoutProblem::MissingNode)?;
        let width = match ends {
            DataType::Int16 => 2,
            DataType::Int32 => 4,
            _ => 8,
        };
        let bytes = of.len.checked_mul(width).ok_or(LayoutProblem::Overflow { what: "the buffer's length" })?;
        let buffer = self.buffer + usize::from(of.nulls > 0);
        let Some(ends) = self.find(buffer, 0, bytes, "run ends")? else { return Ok(None) };
        let last = first.checked_add(len - 1).ok_or(LayoutProblem::Overflow { what: "the last run" })?;
        let (mut low, mut high) = (None, None);
        for (run, end) in (0_u64..).zip(integers(&ends, width as usize)) {
            let end = end.ok_or_else(|| stray("run end"))?;
            if end > first {
                low.get_or_insert(run);
            }
            if end > last {
                high = Some(run + 1);
                break;
            }
        }
        match (low, high) {
            (Some(low), Some(high)) => Ok(Some((low, high))),
            _ => Err(stray("run end")),
        }
    }
}

fn stray(what: &'static str) -> LayoutError {
    LayoutProblem::OutOfRange { what, at: 0 }.into()
}

/// What is to be subtracted from offsets that begin at `ends.0`; nothing where there are none.
fn based(ends: Option<(u64, u64)>, len: u64) -> u64 {
    ends.map_or(0, |(low, _)| if len == 0 { 0 } else { low })
}

/// The byte in which an array's element is a bit, and which bit of it.
fn bit_at(first: u8, start: u64, len: u64) -> Result<(u64, u8), LayoutError> {
    if len == 0 {
        return Ok((0, 0));
    }
    let bit = start.checked_add(first.into()).ok_or(LayoutProblem::Overflow { what: "the number of bits" })?;
    Ok((bit / 8, (bit % 8) as u8))
}

/// Signed integers of 2, 4 or 8 bytes; `None` for those below zero, which nothing here may be.
fn integers(buffer: &Buffer, width: usize) -> impl DoubleEndedIterator<Item = Option<u64>> {
    buffer.as_slice().chunks_exact(width).map(|chunk| {
        let number = match *chunk {
            [a, b] => i64::from(i16::from_le_bytes([a, b])),
            [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
            _ => chunk.first_chunk::<8>().map_or(-1, |chunk| i64::from_le_bytes(*chunk)),
        };
        u64::try_from(number).ok()
    })
}

/// First element, and one beyond the last, that list views use; the base where they use none.
fn list_views(offsets: &Buffer, sizes: &Buffer, wide: bool, base: u64) -> Result<(u64, u64), LayoutError> {
    let width = if wide { 8 } else { 4 };
    let mut used: Option<(u64, u64)> = None;
    for (offset, size) in integers(offsets, width).zip(integers(sizes, width)) {
        let size = size.ok_or_else(|| stray("list view"))?;
        // An empty one may point anywhere.
        if size == 0 {
            continue;
        }
        let low = offset.filter(|offset| *offset >= base).ok_or_else(|| stray("list view"))?;
        let high = low.checked_add(size).ok_or_else(|| stray("list view"))?;
        used = Some(used.map_or((low, high), |(first, last)| (first.min(low), last.max(high))));
    }
    Ok(used.unwrap_or((base, base)))
}

type UnionRange = Option<(u64, u64)>;

/// For each child of a dense union: first element, and one beyond the last, that is used.
fn union_ranges(ids: &Buffer, offsets: &Buffer, fields: &UnionFields) -> Result<Vec<UnionRange>, LayoutError> {
    let mut index_of = [None; 128];
    for (index, (id, _)) in fields.iter().enumerate() {
        if let Some(slot) = usize::try_from(id).ok().and_then(|id| index_of.get_mut(id)) {
            *slot = Some(index);
        }
    }
    let mut ranges = vec![None; fields.len()];
    for (id, offset) in ids.as_slice().iter().zip(integers(offsets, 4)) {
        let index = index_of.get(usize::from(*id)).copied().flatten();
        let (index, offset) = index.zip(offset).ok_or_else(|| stray("union offset or type id"))?;
        let range: &mut UnionRange = &mut ranges[index];
        *range = Some(range.map_or((offset, offset + 1), |(low, high)| (low.min(offset), high.max(offset + 1))));
    }
    Ok(ranges)
}
