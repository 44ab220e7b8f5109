//! The borrower's side, when the bytes are there: arrays over them, validated.

use arrow_array::{RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, SchemaRef};

use super::check::{LayoutLimits, check};
use super::descriptor::{BatchDescriptor, Detail, NodeDescriptor};
use super::error::{LayoutError, LayoutProblem, Within};
use super::rebase;
use super::shape::{Shape, shape};

/// Makes a batch over the buffers that were lent for it, and validates whatever safe use of its arrays relies on.
///
/// The arrays share the memory of `buffers`. Copied are only offsets and views of slices, and buffers that are not
/// aligned for their type, which no buffer of a [`SlabLayout`](super::SlabLayout) is. Each value is looked at once.
///
/// The structure is held against the schema again, but against no limits: those are for [`check`], before the read.
///
/// # Errors
/// The descriptor does not fit the schema (as [`check`]), a buffer is not as long as described, or its bytes are not
/// those of a valid array.
pub fn rebuild(
    schema: &SchemaRef,
    descriptor: &BatchDescriptor,
    buffers: &[Buffer],
) -> Result<RecordBatch, LayoutError> {
    check(schema, descriptor, &LayoutLimits::NONE)?;
    if let Some(extra) = buffers.len().checked_sub(descriptor.buffers.len()).filter(|extra| *extra > 0) {
        return Err(LayoutProblem::ExtraBuffers { extra }.into());
    }
    let mut borrower =
        Borrower { nodes: descriptor.nodes.iter(), lens: descriptor.buffers.iter(), buffers: buffers.iter() };
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let data = borrower.array(field.data_type()).within(field.name())?;
        // `RecordBatch::try_new` checks this too, but cannot say it as an error of ours.
        required(field, &data).within(field.name())?;
        columns.push(make_array(data));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(count(descriptor.rows)?));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

struct Borrower<'a> {
    nodes: std::slice::Iter<'a, NodeDescriptor>,
    lens: std::slice::Iter<'a, u64>,
    buffers: std::slice::Iter<'a, Buffer>,
}

impl Borrower<'_> {
    fn array(&mut self, data_type: &DataType) -> Result<ArrayData, LayoutError> {
        let node = self.nodes.next().ok_or(LayoutProblem::MissingNode)?;
        let shape = shape(data_type)?;
        let nulls = self.nulls(node)?;
        let mut builder = ArrayData::builder(data_type.clone()).len(count(node.len)?).nulls(nulls.clone());
        match (shape, &node.detail) {
            (Shape::Null, Detail::None) => {}
            (Shape::Bits, Detail::Bits { first }) => {
                let (values, offset) = self.booleans(node, *first, nulls.as_ref())?;
                builder = builder.offset(offset).add_buffer(values);
            }
            (Shape::Fixed { align, .. }, Detail::None) => {
                builder = builder.add_buffer(rebase::aligned(&self.buffer("values")?, align));
            }
            (Shape::Bytes { wide }, Detail::Base(base)) => {
                builder = builder.add_buffer(self.offsets(wide, *base)?).add_buffer(self.buffer("values")?);
            }
            (Shape::Views, Detail::ViewBases(bases)) => {
                let views = rebase::views(&self.buffer("views")?, bases, nulls.as_ref())?;
                builder = builder.add_buffer(views);
                for _ in bases {
                    builder = builder.add_buffer(self.buffer("data")?);
                }
            }
            (Shape::List { wide, item }, Detail::Base(base)) => {
                let offsets = self.offsets(wide, *base)?;
                builder = builder.add_buffer(offsets).add_child_data(self.child(item)?);
            }
            (Shape::ListView { wide, item }, Detail::Base(base)) => {
                let (offsets, sizes) = (self.buffer("offsets")?, self.buffer("sizes")?);
                let items = self.child(item)?;
                // Arrow checks this for lists, but not for list views.
                required(item, &items).within(item.name())?;
                let (offsets, align) = if wide {
                    (rebase::list_views::<i64>(&offsets, &sizes, *base, items.len())?, align_of::<i64>())
                } else {
                    (rebase::list_views::<i32>(&offsets, &sizes, *base, items.len())?, align_of::<i32>())
                };
                builder = builder.add_buffer(offsets).add_buffer(rebase::aligned(&sizes, align)).add_child_data(items);
            }
            (Shape::FixedList { item, .. }, Detail::None) => builder = builder.add_child_data(self.child(item)?),
            (Shape::Struct { fields }, Detail::None) => {
                for field in fields {
                    builder = builder.add_child_data(self.child(field)?);
                }
            }
            (Shape::SparseUnion { fields }, Detail::None) => {
                builder = builder.add_buffer(self.buffer("type ids")?);
                for (_, field) in fields.iter() {
                    builder = builder.add_child_data(self.child(field)?);
                }
            }
            (Shape::DenseUnion { fields }, Detail::UnionBases(bases)) => {
                let (ids, offsets) = (self.buffer("type ids")?, self.buffer("offsets")?);
                let offsets = rebase::union(&ids, &offsets, bases, fields)?;
                builder = builder.add_buffer(ids).add_buffer(offsets);
                for (_, field) in fields.iter() {
                    builder = builder.add_child_data(self.child(field)?);
                }
            }
            (Shape::Dictionary { align, values, .. }, Detail::None) => {
                builder = builder.add_buffer(rebase::aligned(&self.buffer("keys")?, align));
                builder = builder.add_child_data(self.array(values).within("values")?);
            }
            (Shape::Runs { ends, values }, Detail::Runs { offset }) => {
                builder = builder.offset(count(*offset)?).add_child_data(self.child(ends)?);
                let runs = self.child(values)?;
                // Arrow does not check this.
                required(values, &runs).within(values.name())?;
                builder = builder.add_child_data(runs);
            }
            (_, detail) => {
                return Err(LayoutProblem::Detail { data_type: data_type.clone(), got: detail.name() }.into());
            }
        }
        Ok(builder.build()?)
    }

    fn child(&mut self, field: &Field) -> Result<ArrayData, LayoutError> {
        self.array(field.data_type()).within(field.name())
    }

    fn buffer(&mut self, what: &'static str) -> Result<Buffer, LayoutError> {
        let (len, buffer) = self.lens.next().zip(self.buffers.next()).ok_or(LayoutProblem::MissingBuffer { what })?;
        if buffer.len() as u64 != *len {
            return Err(LayoutProblem::Mismatch { what, expected: *len, got: buffer.len() as u64 }.into());
        }
        Ok(buffer.clone())
    }

    fn offsets(&mut self, wide: bool, base: u64) -> Result<Buffer, LayoutError> {
        let buffer = self.buffer("offsets")?;
        if wide { rebase::offsets::<i64>(&buffer, base) } else { rebase::offsets::<i32>(&buffer, base) }
    }

    fn nulls(&mut self, node: &NodeDescriptor) -> Result<Option<NullBuffer>, LayoutError> {
        if node.nulls == 0 {
            return Ok(None);
        }
        let bitmap = self.buffer("validity")?;
        let nulls = NullBuffer::new(bits("validity", bitmap, node.null_bit, node.len)?);
        let counted = nulls.null_count() as u64;
        if counted != node.nulls {
            return Err(LayoutProblem::Mismatch { what: "number of nulls", expected: node.nulls, got: counted }.into());
        }
        Ok(Some(nulls))
    }

    /// Bits of a boolean array, and the bit offset at which they begin.
    fn booleans(
        &mut self,
        node: &NodeDescriptor,
        first: u8,
        nulls: Option<&NullBuffer>,
    ) -> Result<(Buffer, usize), LayoutError> {
        let values = bits("values", self.buffer("values")?, first, node.len)?;
        // Arrow's validation wants the validity's buffer to be as long as if it had the offset of the values, although
        // it has its own. Where it is not, values are moved to offset 0; that is one bit per row, and rare.
        let needed = (values.offset() + values.len()).div_ceil(8);
        if nulls.is_some_and(|nulls| nulls.validity().len() < needed) {
            let mut moved = MutableBuffer::from_len_zeroed(values.len().div_ceil(8));
            for at in values.set_indices() {
                arrow_buffer::bit_util::set_bit(&mut moved, at);
            }
            return Ok((moved.into(), 0));
        }
        let offset = values.offset();
        Ok((values.into_inner(), offset))
    }
}

/// Bits as they lie in a buffer that `check` found to be long enough for them.
fn bits(what: &'static str, buffer: Buffer, first: u8, len: u64) -> Result<BooleanBuffer, LayoutError> {
    let len = count(len)?;
    let needed = len.checked_add(first.into()).ok_or(LayoutProblem::Overflow { what })?.div_ceil(8);
    if buffer.len() < needed {
        return Err(LayoutProblem::Mismatch { what, expected: needed as u64, got: buffer.len() as u64 }.into());
    }
    Ok(BooleanBuffer::new(buffer, first.into(), len))
}

fn required(field: &Field, data: &ArrayData) -> Result<(), LayoutError> {
    match data.null_count() {
        0 => Ok(()),
        _ if field.is_nullable() => Ok(()),
        nulls => Err(LayoutProblem::Nulls { nulls: nulls as u64 }.into()),
    }
}

fn count(len: u64) -> Result<usize, LayoutError> {
    usize::try_from(len).map_err(|_| LayoutProblem::Overflow { what: "a length" }.into())
}
