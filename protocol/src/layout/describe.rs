//! The lender's side: what of a batch is live, without touching its bytes.

use arrow_array::{Array, OffsetSizeTrait, RecordBatch};
use arrow_buffer::{ArrowNativeType, Buffer, ScalarBuffer};
use arrow_data::ArrayData;

use super::descriptor::{BatchDescriptor, Detail, Extent, NodeDescriptor};
use super::dictionaries::{LentDictionaries, is_lent_once};
use super::error::{LayoutError, LayoutProblem, Within};
use super::extents;
use super::shape::{Shape, deeper, offset_width, shape};

/// Describes a batch, and lists the buffers that a borrower has to read to have it.
///
/// Buffer `i` belongs to `descriptor.buffers[i]`. Each is a slice of one of the batch's own buffers, cut to the bytes
/// that the batch's rows use, and keeps that buffer alive. No byte of data is copied. Offsets, views and type ids are
/// read, values are not.
///
/// Columns may share buffers; a buffer is listed as often as it is used.
///
/// # Errors
/// The batch has arrays that no [`rebuild`](super::rebuild) would accept: nested too deep, or (where they were made by
/// unchecked means) with offsets beyond their buffers.
pub fn describe(batch: &RecordBatch) -> Result<(BatchDescriptor, Vec<Buffer>), LayoutError> {
    let Described { descriptor, buffers, .. } = described(batch, Lender::default())?;
    Ok((descriptor, buffers))
}

/// What [`describe_compact`] made of a batch.
#[derive(Clone, Debug)]
pub struct Described {
    /// What the borrower is told.
    pub descriptor: BatchDescriptor,
    /// What it reads, one for each of the descriptor's.
    pub buffers: Vec<Buffer>,
    /// Bytes that were copied.
    pub copied: u64,
    /// Bytes of dictionaries that are not among the buffers, since the batch before had them.
    pub spared: u64,
    /// The batch's dictionaries, for the next one, once this one is on loan.
    pub dictionaries: LentDictionaries,
}

/// As [`describe`], but strings of views that lie scattered over their data buffers are copied side by side, where that is
/// much cheaper than to move what lies between them. A scan's never are; those that a sort returns may lie scattered over
/// the whole table, for each of its batches.
///
/// # Errors
/// As [`describe`].
pub fn describe_compact(batch: &RecordBatch) -> Result<Described, LayoutError> {
    described(batch, Lender { gathers: true, ..Lender::default() })
}

/// As [`describe_compact`], without the dictionaries that the stream's last loan had too.
///
/// # Errors
/// As [`describe`].
pub fn describe_after(batch: &RecordBatch, before: &LentDictionaries) -> Result<Described, LayoutError> {
    described(batch, Lender { gathers: true, before: Some(before), ..Lender::default() })
}

fn described(batch: &RecordBatch, mut lender: Lender<'_>) -> Result<Described, LayoutError> {
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let data = column.to_data();
        lender.array(&data, 0, data.len(), 0).within(field.name())?;
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
    /// What the borrower has of the batch before, if dictionaries are lent once.
    before: Option<&'a LentDictionaries>,
    spared: u64,
    dictionaries: LentDictionaries,
}

impl Lender<'_> {
    /// Describes elements `start..start + len` of an array.
    fn array(&mut self, data: &ArrayData, start: usize, len: usize, depth: usize) -> Result<(), LayoutError> {
        let depth = deeper(depth)?;
        if start.checked_add(len).is_none_or(|end| end > data.len()) {
            return Err(broken("children"));
        }
        let node = self.nodes.len();
        self.nodes.push(NodeDescriptor { len: len as u64, nulls: 0, null_bit: 0, detail: Detail::None });
        self.validity(node, data, start, len)?;
        // Where the element stands in the array's buffers, whose offset does not count for the bitmap.
        let first = data.offset().checked_add(start).ok_or_else(|| broken("values"))?;
        let child = |index: usize| data.child_data().get(index).ok_or_else(|| broken("children"));
        match shape(data.data_type())? {
            Shape::Null => {}
            Shape::Bits => {
                let (bits, bit) = bits(buffer(data, 0)?, first, len)?;
                self.nodes[node].detail = Detail::Bits { first: bit };
                self.buffers.push(bits);
            }
            Shape::Fixed { width, .. } => self.fixed(data, 0, first, len, width)?,
            Shape::Bytes { wide } => {
                let (base, count) = self.offsets(data, wide, first, len)?;
                self.nodes[node].detail = Detail::Base(base as u64);
                self.buffers.push(cut(buffer(data, 1)?, base, count, "values")?);
            }
            Shape::Views => self.views(node, data, first, start, len)?,
            Shape::List { wide, item } => {
                let (base, count) = self.offsets(data, wide, first, len)?;
                self.nodes[node].detail = Detail::Base(base as u64);
                self.array(child(0)?, base, count, depth).within(item.name())?;
            }
            Shape::ListView { wide, item } => {
                let (base, count) =
                    if wide { list_views::<i64>(data, first, len) } else { list_views::<i32>(data, first, len) }?;
                self.nodes[node].detail = Detail::Base(base as u64);
                self.fixed(data, 0, first, len, offset_width(wide))?;
                self.fixed(data, 1, first, len, offset_width(wide))?;
                self.array(child(0)?, base, count, depth).within(item.name())?;
            }
            Shape::FixedList { size, item } => {
                let size = usize::try_from(size).map_err(|_| broken("children"))?;
                let (base, count) =
                    first.checked_mul(size).zip(len.checked_mul(size)).ok_or_else(|| broken("children"))?;
                // With no element there is nothing at the child's end to begin at.
                let base = if count == 0 { 0 } else { base };
                self.array(child(0)?, base, count, depth).within(item.name())?;
            }
            Shape::Struct { fields } => {
                for (index, field) in fields.iter().enumerate() {
                    self.array(child(index)?, first, len, depth).within(field.name())?;
                }
            }
            Shape::SparseUnion { fields } => {
                self.fixed(data, 0, first, len, 1)?;
                for (index, (_, field)) in fields.iter().enumerate() {
                    self.array(child(index)?, first, len, depth).within(field.name())?;
                }
            }
            Shape::DenseUnion { fields } => {
                self.fixed(data, 0, first, len, 1)?;
                self.fixed(data, 1, first, len, 4)?;
                let used = union_ranges(data, first, len)?;
                let ranges: Vec<_> = fields.iter().map(|(id, _)| used[id.as_usize()].unwrap_or((0, 0))).collect();
                self.nodes[node].detail = Detail::UnionBases(ranges.iter().map(|range| range.0 as u64).collect());
                for (index, ((_, field), (low, high))) in fields.iter().zip(ranges).enumerate() {
                    self.array(child(index)?, low, high - low, depth).within(field.name())?;
                }
            }
            Shape::Dictionary { width, values: data_type, .. } => {
                self.fixed(data, 0, first, len, width)?;
                let values = child(0)?;
                let before = self.before.filter(|_| is_lent_once(data_type));
                let same = before.and_then(|before| before.find(self.dictionaries.count(), values));
                if let Some(bytes) = same {
                    self.spared = self.spared.saturating_add(bytes);
                    self.dictionaries.push(values.clone(), bytes);
                    self.nodes[node].detail = Detail::SameValues;
                    return Ok(());
                }
                let buffers = self.buffers.len();
                self.array(values, 0, values.len(), depth).within("values")?;
                if before.is_some() {
                    let bytes = self.buffers[buffers..].iter().map(|buffer| buffer.len() as u64).sum();
                    self.dictionaries.push(values.clone(), bytes);
                }
            }
            Shape::Runs { ends, values } => {
                let run_ends = child(0)?;
                let (low, high) = if len == 0 {
                    (0, 0)
                } else {
                    self.nodes[node].detail = Detail::Runs { offset: first as u64 };
                    match ends.data_type() {
                        arrow_schema::DataType::Int16 => run_range::<i16>(run_ends, first, len)?,
                        arrow_schema::DataType::Int32 => run_range::<i32>(run_ends, first, len)?,
                        _ => run_range::<i64>(run_ends, first, len)?,
                    }
                };
                if len == 0 {
                    self.nodes[node].detail = Detail::Runs { offset: 0 };
                }
                self.array(run_ends, low, high - low, depth).within(ends.name())?;
                self.array(child(1)?, low, high - low, depth).within(values.name())?;
            }
        }
        Ok(())
    }

    fn validity(&mut self, node: usize, data: &ArrayData, start: usize, len: usize) -> Result<(), LayoutError> {
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
            let (bits, bit) = bits(bitmap.inner(), first, len)?;
            self.nodes[node].nulls = count as u64;
            self.nodes[node].null_bit = bit;
            self.buffers.push(bits);
        }
        Ok(())
    }

    fn fixed(
        &mut self,
        data: &ArrayData,
        index: usize,
        first: usize,
        len: usize,
        width: u64,
    ) -> Result<(), LayoutError> {
        let width = usize::try_from(width).map_err(|_| broken("values"))?;
        let (offset, bytes) = first.checked_mul(width).zip(len.checked_mul(width)).ok_or_else(|| broken("values"))?;
        self.buffers.push(cut(buffer(data, index)?, offset, bytes, "values")?);
        Ok(())
    }

    /// Lends the offsets, and says where the elements that they point at begin, and how many those are.
    fn offsets(
        &mut self,
        data: &ArrayData,
        wide: bool,
        first: usize,
        len: usize,
    ) -> Result<(usize, usize), LayoutError> {
        if len == 0 {
            // An empty array may have no offset at all.
            self.buffers.push(cut(buffer(data, 0)?, 0, 0, "offsets")?);
            return Ok((0, 0));
        }
        self.fixed(data, 0, first, len + 1, offset_width(wide))?;
        let (low, high) = if wide {
            let offsets: ScalarBuffer<i64> = typed(buffer(data, 0)?, first, len + 1, "offsets")?;
            (offsets[0].to_usize(), offsets[len].to_usize())
        } else {
            let offsets: ScalarBuffer<i32> = typed(buffer(data, 0)?, first, len + 1, "offsets")?;
            (offsets[0].to_usize(), offsets[len].to_usize())
        };
        match (low, high) {
            (Some(low), Some(high)) if low <= high => Ok((low, high - low)),
            _ => Err(broken("offsets")),
        }
    }

    /// Lends the views, and of each data buffer the extents that they need.
    fn views(
        &mut self,
        node: usize,
        data: &ArrayData,
        first: usize,
        start: usize,
        len: usize,
    ) -> Result<(), LayoutError> {
        let views: ScalarBuffer<u128> = typed(buffer(data, 0)?, first, len, "views")?;
        let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0).map(|nulls| nulls.slice(start, len));
        let (nulls, buffers) = (nulls.as_ref(), &data.buffers()[1..]);
        let needed = extents::needed(&views, nulls, buffers)?;
        if self.gathers
            && needed.is_sparse(len)
            && let Some((views, strings)) = needed.gather(&views, nulls, buffers)
        {
            self.copied += (views.len() + strings.len()) as u64;
            self.buffers.extend([views, strings]);
            self.nodes[node].detail = Detail::Views(vec![Extent { buffer: 0, base: 0 }]);
            return Ok(());
        }
        self.fixed(data, 0, first, len, 16)?;
        let mut extents = Vec::with_capacity(needed.extents.len());
        for (extent, len) in needed.extents {
            let len = usize::try_from(len).map_err(|_| broken("data"))?;
            self.buffers.push(cut(&buffers[extent.buffer as usize], extent.base as usize, len, "data")?);
            extents.push(extent);
        }
        self.nodes[node].detail = Detail::Views(extents);
        Ok(())
    }
}

/// First element and number of elements that list views reference.
fn list_views<O: OffsetSizeTrait>(data: &ArrayData, first: usize, len: usize) -> Result<(usize, usize), LayoutError> {
    let offsets: ScalarBuffer<O> = typed(buffer(data, 0)?, first, len, "offsets")?;
    let sizes: ScalarBuffer<O> = typed(buffer(data, 1)?, first, len, "sizes")?;
    let (mut low, mut high) = (usize::MAX, 0);
    for (offset, size) in offsets.iter().zip(sizes.iter()) {
        let (Some(offset), Some(size)) = (offset.to_usize(), size.to_usize()) else { return Err(broken("offsets")) };
        // An empty list may point anywhere, and must not widen what is lent.
        if size > 0 {
            low = low.min(offset);
            high = high.max(offset.saturating_add(size));
        }
    }
    let low = low.min(high);
    Ok((low, high - low))
}

/// For each type id: first element, and one beyond the last, that a dense union uses of the child.
fn union_ranges(data: &ArrayData, first: usize, len: usize) -> Result<[Option<(usize, usize)>; 128], LayoutError> {
    let ids: ScalarBuffer<i8> = typed(buffer(data, 0)?, first, len, "type ids")?;
    let offsets: ScalarBuffer<i32> = typed(buffer(data, 1)?, first, len, "offsets")?;
    let mut used = [None; 128];
    for (at, (id, offset)) in ids.iter().zip(offsets.iter()).enumerate() {
        let (Some(id), Some(offset)) = (id.to_usize(), offset.to_usize()) else {
            return Err(LayoutProblem::OutOfRange { what: "union offset or type id", at }.into());
        };
        let range = used[id].get_or_insert((offset, offset));
        *range = (range.0.min(offset), range.1.max(offset + 1));
    }
    Ok(used)
}

/// Which runs the elements `first..first + len` lie in: first run, and one beyond the last. `len` is not 0.
fn run_range<E: ArrowNativeType + Ord>(
    ends: &ArrayData,
    first: usize,
    len: usize,
) -> Result<(usize, usize), LayoutError> {
    let ends: ScalarBuffer<E> = typed(buffer(ends, 0)?, ends.offset(), ends.len(), "run ends")?;
    let run_of = |element: usize| ends.partition_point(|end| end.as_usize() <= element);
    let (low, last) = (run_of(first), run_of(first + (len - 1)));
    if last >= ends.len() || low > last {
        return Err(broken("run ends"));
    }
    Ok((low, last + 1))
}

fn broken(what: &'static str) -> LayoutError {
    LayoutProblem::Broken { what }.into()
}

fn buffer(data: &ArrayData, index: usize) -> Result<&Buffer, LayoutError> {
    data.buffers().get(index).ok_or_else(|| broken("values"))
}

/// A range of a buffer's bytes, sharing its memory.
fn cut(buffer: &Buffer, offset: usize, len: usize, what: &'static str) -> Result<Buffer, LayoutError> {
    if len == 0 {
        // An offset at or beyond the end does not matter where nothing is taken.
        return Ok(buffer.slice_with_length(0, 0));
    }
    match offset.checked_add(len) {
        Some(end) if end <= buffer.len() => Ok(buffer.slice_with_length(offset, len)),
        _ => Err(broken(what)),
    }
}

/// The bytes that hold a range of bits, and which bit of the first byte is the first bit.
fn bits(buffer: &Buffer, first: usize, len: usize) -> Result<(Buffer, u8), LayoutError> {
    if len == 0 {
        return Ok((cut(buffer, 0, 0, "bits")?, 0));
    }
    let bit = first % 8;
    Ok((cut(buffer, first / 8, (bit + len).div_ceil(8), "bits")?, bit as u8))
}

/// A range of a buffer's elements.
fn typed<T: ArrowNativeType>(
    buffer: &Buffer,
    first: usize,
    len: usize,
    what: &'static str,
) -> Result<ScalarBuffer<T>, LayoutError> {
    let width = size_of::<T>();
    let (offset, bytes) = first.checked_mul(width).zip(len.checked_mul(width)).ok_or_else(|| broken(what))?;
    let range = cut(buffer, offset, bytes, what)?;
    // An empty range of a buffer that is not aligned is still not aligned, and arrow would panic.
    if range.as_ptr().align_offset(align_of::<T>()) != 0 {
        return if len == 0 { Ok(ScalarBuffer::from(Vec::new())) } else { Err(broken(what)) };
    }
    Ok(ScalarBuffer::new(range, 0, len))
}
