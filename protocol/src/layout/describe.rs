//! The lender's side: finds the parts of a batch's buffers that its rows use, without a look at the values.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_buffer::{ArrowNativeType, Buffer, ScalarBuffer};
use arrow_data::ArrayData;

use super::descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use super::dictionaries::LentDictionaries;
use super::error::{LayoutError, LayoutProblem, Within, equal};
use super::extents;
use super::kind::{BufferLen, Kind};
use super::plan::{Node, Plan};
use super::referenced::{self, Referenced};

/// Describes a batch, and lists the buffers that a borrower must read.
///
/// Buffer `i` belongs to `descriptor.buffers[i]`. Each is a slice of one of the batch's own buffers, cut to the bytes
/// that the batch's rows use, and keeps that buffer alive. No byte of data is copied. Offsets, views and type ids are
/// read; values are not.
///
/// Columns may share buffers. A shared buffer is listed once for each use.
///
/// # Errors
/// The batch has columns of other types than the plan's schema, or arrays that no [`rebuild`](super::rebuild) would
/// accept: with offsets beyond their buffers, which is possible in arrays that were made unchecked.
pub fn describe(plan: &Plan, batch: &RecordBatch) -> Result<(BatchDescriptor, Vec<Buffer>), LayoutError> {
    let Described { descriptor, buffers, .. } = described(plan, batch, Lender::default())?;
    Ok((descriptor, buffers))
}

/// A batch as [`describe_compact`] lends it.
#[derive(Clone, Debug)]
pub struct Described {
    /// The description for the borrower.
    pub descriptor: BatchDescriptor,
    /// The buffers that the borrower reads, one for each of the descriptor's lengths.
    pub buffers: Vec<Buffer>,
    /// Number of bytes that were copied.
    pub copied: u64,
    /// Bytes of dictionaries that are not among the buffers, because the previous batch had them.
    pub spared: u64,
    /// The batch's dictionaries, for the next batch, once this one is on loan.
    pub dictionaries: LentDictionaries,
}

/// As [`describe`], but strings of views that lie scattered over their data buffers are copied side by side, if that is
/// much cheaper than moving the bytes between them. The strings of a scan are never scattered. The strings of a sort
/// may lie scattered over the whole table, in each of its batches.
///
/// # Errors
/// As [`describe`].
pub fn describe_compact(plan: &Plan, batch: &RecordBatch) -> Result<Described, LayoutError> {
    described(plan, batch, Lender { gathers: true, ..Lender::default() })
}

/// As [`describe_compact`], without the dictionaries that the stream's last loan had too.
///
/// # Errors
/// As [`describe`].
pub fn describe_after(plan: &Plan, batch: &RecordBatch, before: &LentDictionaries) -> Result<Described, LayoutError> {
    described(plan, batch, Lender { gathers: true, before: Some(before), ..Lender::default() })
}

fn described(plan: &Plan, batch: &RecordBatch, mut lender: Lender<'_>) -> Result<Described, LayoutError> {
    equal("number of columns", plan.columns().len() as u64, batch.num_columns() as u64)?;
    let columns = batch.schema_ref().fields().iter().zip(batch.columns());
    for (node, (field, column)) in plan.columns().iter().zip(columns) {
        let name = node.field.name();
        // Most batches have the same fields as the stream's schema, and need no comparison.
        if !Arc::ptr_eq(&node.field, field) && node.field.data_type() != column.data_type() {
            let (expected, got) = (node.field.data_type().clone(), column.data_type().clone());
            return Err(LayoutProblem::OtherType { expected, got }.into()).within(name);
        }
        let data = column.to_data();
        lender.array(node, &data, 0, data.len()).within(name)?;
    }
    let Lender { nodes, buffers, copied, spared, dictionaries, .. } = lender;
    let lens = buffers.iter().map(|buffer| buffer.len() as u64).collect();
    let descriptor = BatchDescriptor { rows: batch.num_rows() as u64, nodes, buffers: lens };
    Ok(Described { descriptor, buffers, copied, spared, dictionaries })
}

#[derive(Default)]
struct Lender<'a> {
    nodes: Vec<NodeDescriptor>,
    buffers: Vec<Buffer>,
    /// Whether scattered strings are copied side by side.
    gathers: bool,
    copied: u64,
    /// The dictionaries that the borrower has of the previous batch, if dictionaries are lent only once.
    before: Option<&'a LentDictionaries>,
    spared: u64,
    dictionaries: LentDictionaries,
}

/// Elements `start..start + len` of an array.
struct Slice<'a> {
    data: &'a ArrayData,
    start: usize,
    len: usize,
    /// Position of the first element in the array's buffers. It includes the array's offset, which does not apply to
    /// the bitmap.
    first: usize,
}

impl Lender<'_> {
    /// Describes elements `start..start + len` of an array.
    fn array(&mut self, node: &Node, data: &ArrayData, start: usize, len: usize) -> Result<(), LayoutError> {
        if start.checked_add(len).is_none_or(|end| end > data.len()) {
            return Err(broken("children"));
        }
        let at = self.nodes.len();
        self.nodes.push(NodeDescriptor { len: len as u64, nulls: 0, null_bit: 0, detail: Detail::None });
        self.validity(at, data, start, len)?;
        let first = data.offset().checked_add(start).ok_or_else(|| broken("values"))?;
        let slice = Slice { data, start, len, first };
        let own = self.buffers.len();
        self.own_buffers(node, &slice)?;
        match node.kind {
            // Most arrays have no children, strings or views.
            Kind::Null | Kind::Fixed { .. } => return Ok(()),
            Kind::Dictionary { number, .. } => return self.dictionary(node, at, data, number),
            _ => {}
        }
        let (detail, referenced) = self.refer(node, own, &slice)?;
        self.nodes[at].detail = detail;
        for (position, child) in node.children.iter().enumerate() {
            let range = referenced.of_child(position);
            let (start, len) = (place(range.start)?, place(range.end - range.start)?);
            self.array(child, child_of(data, position)?, start, len).within(child.field.name())?;
        }
        Ok(())
    }

    /// Lends the buffers whose live range follows from the slice alone.
    fn own_buffers(&mut self, node: &Node, slice: &Slice<'_>) -> Result<(), LayoutError> {
        let Slice { data, first, len, .. } = *slice;
        for (index, rule) in node.buffers().iter().enumerate() {
            self.buffers.push(match rule.len {
                BufferLen::Bits => bits(buffer(data, index)?, first, len)?,
                BufferLen::Elements(width) => elements(buffer(data, index)?, first, len, width)?,
                // An empty array may have no offsets at all.
                BufferLen::Offsets(_) if len == 0 => cut(buffer(data, index)?, 0, 0, "offsets")?,
                BufferLen::Offsets(width) => elements(buffer(data, index)?, first, len + 1, width)?,
                BufferLen::Referenced | BufferLen::Extents => continue,
            });
        }
        Ok(())
    }

    /// Returns the elements that the array refers to, and lends the bytes that strings and views refer to. The array's
    /// own buffers begin at `own` in the list of lent buffers.
    fn refer(&mut self, node: &Node, own: usize, slice: &Slice<'_>) -> Result<(Detail, Referenced), LayoutError> {
        let Slice { data, first, len, .. } = *slice;
        let same = |range: Range<u64>| (Detail::Base(range.start), Referenced::Same(range));
        let rows = |detail| (detail, Referenced::Same(first as u64..first as u64 + len as u64));
        Ok(match (&node.kind, &self.buffers[own..]) {
            (Kind::Bits, _) => (Detail::Bits { first: first_bit(first, len) }, Referenced::NONE),
            (Kind::Bytes { wide, .. }, [offsets]) => {
                let range = referenced::by_offsets(offsets, *wide).map_err(|_| broken("offsets"))?;
                let (start, len) = (place(range.start)?, place(range.end - range.start)?);
                self.buffers.push(cut(buffer(data, 1)?, start, len, "values")?);
                (Detail::Base(range.start), Referenced::NONE)
            }
            (Kind::Views { .. }, _) => (Detail::Views(self.views(own, slice)?), Referenced::NONE),
            (Kind::List { wide }, [offsets]) => {
                same(referenced::by_offsets(offsets, *wide).map_err(|_| broken("offsets"))?)
            }
            (Kind::ListView { wide }, [offsets, sizes]) => {
                same(referenced::by_list_views(offsets, sizes, *wide).map_err(|_| broken("offsets"))?)
            }
            (Kind::FixedList { size }, _) => {
                let range = (first as u64).checked_mul(*size).zip((len as u64).checked_mul(*size));
                let (start, items) = range.ok_or_else(|| broken("children"))?;
                // Without elements the child's end may lie before the start.
                let start = if items == 0 { 0 } else { start };
                (Detail::None, Referenced::Same(start..start + items))
            }
            (Kind::DenseUnion(ids), [types, offsets]) => {
                let used = referenced::by_union(types, offsets, ids, node.children.len())?;
                (Detail::UnionBases(used.iter().map(|range| range.start).collect()), Referenced::Each(used))
            }
            (Kind::Runs { .. }, _) if len == 0 => (Detail::Runs { offset: 0 }, Referenced::NONE),
            (Kind::Runs { width }, _) => {
                let ends = child_of(data, 0)?;
                let ends = elements(buffer(ends, 0)?, ends.offset(), ends.len(), *width as u64)?;
                let runs = referenced::by_runs(&ends, *width, first as u64, len as u64);
                let runs = runs.map_err(|_| broken("run ends"))?;
                (Detail::Runs { offset: first as u64 }, Referenced::Same(runs))
            }
            (Kind::Struct | Kind::SparseUnion, _) => rows(Detail::None),
            _ => return Err(broken("values")),
        })
    }

    /// Lends the values of a dictionary, unless the borrower has them of the previous batch.
    fn dictionary(
        &mut self,
        node: &Node,
        at: usize,
        data: &ArrayData,
        number: Option<usize>,
    ) -> Result<(), LayoutError> {
        let values = child_of(data, 0)?;
        let before = self.before.zip(number);
        if let Some(bytes) = before.and_then(|(before, number)| before.find(number, values)) {
            self.spared = self.spared.saturating_add(bytes);
            self.dictionaries.push(values.clone(), bytes);
            self.nodes[at].detail = Detail::SameValues;
            return Ok(());
        }
        let buffers = self.buffers.len();
        for child in node.children.iter() {
            self.array(child, values, 0, values.len()).within(child.field.name())?;
        }
        if before.is_some() {
            let bytes = self.buffers[buffers..].iter().map(|buffer| buffer.len() as u64).sum();
            self.dictionaries.push(values.clone(), bytes);
        }
        Ok(())
    }

    fn validity(&mut self, at: usize, data: &ArrayData, start: usize, len: usize) -> Result<(), LayoutError> {
        let Some(nulls) = data.nulls().filter(|nulls| nulls.null_count() > 0) else { return Ok(()) };
        let bitmap = nulls.inner();
        if start.checked_add(len).is_none_or(|end| end > bitmap.len()) {
            return Err(broken("validity"));
        }
        let first = bitmap.offset() + start;
        let count = if len == bitmap.len() {
            nulls.null_count()
        } else {
            len - bitmap.inner().count_set_bits_offset(first, len)
        };
        if count > 0 {
            self.buffers.push(bits(bitmap.inner(), first, len)?);
            self.nodes[at].nulls = count as u64;
            self.nodes[at].null_bit = first_bit(first, len);
        }
        Ok(())
    }

    /// Lends the extents that views need of each data buffer, or copies of the views and their strings.
    fn views(&mut self, own: usize, slice: &Slice<'_>) -> Result<Vec<Extent>, LayoutError> {
        let Slice { data, start, len, first } = *slice;
        let views: ScalarBuffer<u128> = typed(buffer(data, 0)?, first, len, "views")?;
        let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0).map(|nulls| nulls.slice(start, len));
        let (nulls, buffers) = (nulls.as_ref(), &data.buffers()[1..]);
        let needed = extents::needed(&views, nulls, buffers)?;
        if self.gathers
            && needed.is_sparse(len)
            && let Some((views, strings)) = needed.gather(&views, nulls, buffers)
        {
            self.copied += (views.len() + strings.len()) as u64;
            self.buffers.truncate(own);
            self.buffers.extend([views, strings]);
            return Ok(vec![Extent { buffer: 0, base: 0 }]);
        }
        let mut extents = Vec::with_capacity(needed.extents.len());
        for (extent, len) in needed.extents {
            self.buffers.push(cut(&buffers[extent.buffer as usize], extent.base as usize, place(len)?, "data")?);
            extents.push(extent);
        }
        Ok(extents)
    }
}

fn broken(what: &'static str) -> LayoutError {
    LayoutProblem::Broken { what }.into()
}

fn child_of(data: &ArrayData, position: usize) -> Result<&ArrayData, LayoutError> {
    data.child_data().get(position).ok_or_else(|| broken("children"))
}

/// A position or a length in memory.
fn place(number: u64) -> Result<usize, LayoutError> {
    usize::try_from(number).map_err(|_| broken("values"))
}

fn buffer(data: &ArrayData, index: usize) -> Result<&Buffer, LayoutError> {
    data.buffers().get(index).ok_or_else(|| broken("values"))
}

/// A range of a buffer's bytes, sharing its memory.
fn cut(buffer: &Buffer, offset: usize, len: usize, what: &'static str) -> Result<Buffer, LayoutError> {
    if len == 0 {
        // An empty range is valid at any offset, even beyond the end.
        return Ok(buffer.slice_with_length(0, 0));
    }
    match offset.checked_add(len) {
        Some(end) if end <= buffer.len() => Ok(buffer.slice_with_length(offset, len)),
        _ => Err(broken(what)),
    }
}

/// The bytes that hold a range of bits.
fn bits(buffer: &Buffer, first: usize, len: usize) -> Result<Buffer, LayoutError> {
    cut(buffer, first / 8, (usize::from(first_bit(first, len)) + len).div_ceil(8), "bits")
}

/// The bit of the first byte at which the range begins.
fn first_bit(first: usize, len: usize) -> u8 {
    if len == 0 { 0 } else { (first % 8) as u8 }
}

/// The bytes of a range of elements of this width.
fn elements(buffer: &Buffer, first: usize, len: usize, width: u64) -> Result<Buffer, LayoutError> {
    let width = place(width)?;
    let (offset, bytes) = first.checked_mul(width).zip(len.checked_mul(width)).ok_or_else(|| broken("values"))?;
    cut(buffer, offset, bytes, "values")
}

/// A range of a buffer's elements, if it is aligned for them.
fn typed<T: ArrowNativeType>(
    buffer: &Buffer,
    first: usize,
    len: usize,
    what: &'static str,
) -> Result<ScalarBuffer<T>, LayoutError> {
    let width = size_of::<T>();
    let (offset, bytes) = first.checked_mul(width).zip(len.checked_mul(width)).ok_or_else(|| broken(what))?;
    let range = cut(buffer, offset, bytes, what)?;
    // An empty range of an unaligned buffer is still unaligned, and arrow would panic.
    if range.as_ptr().align_offset(align_of::<T>()) != 0 {
        return if len == 0 { Ok(ScalarBuffer::from(Vec::new())) } else { Err(broken(what)) };
    }
    Ok(ScalarBuffer::new(range, 0, len))
}
