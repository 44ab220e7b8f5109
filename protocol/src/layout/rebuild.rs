//! The borrower's side, when the bytes are there: arrays over them, validated.

use std::fmt;

use arrow_array::{OffsetSizeTrait, RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_schema::{ArrowError, DataType, Field, SchemaRef};

use super::check::{LayoutLimits, check};
use super::descriptor::{BatchDescriptor, Detail, NodeDescriptor};
use super::dictionaries::{KeptDictionaries, is_lent_once};
use super::error::{LayoutError, LayoutProblem, Within};
use super::shape::{Shape, shape};
use super::{rebase, valid};

/// An array that has been validated, all but made. Only this module makes them.
#[derive(Debug)]
pub struct ValidArray(ArrayDataBuilder);

impl ValidArray {
    /// The array's parts, for which [`ArrayData::validate_data`] would find nothing to say: `build` of these succeeds, and
    /// what it takes time to validate has been validated.
    #[must_use]
    pub fn into_builder(self) -> ArrayDataBuilder {
        self.0
    }
}

/// What makes arrays of what is valid already.
///
/// Safe code can make arrays in no way but one that validates them, string by string: [`Checked`]. Who may use other means
/// can save that.
pub trait Assemble: fmt::Debug + Send + Sync {
    /// Makes the array.
    ///
    /// # Errors
    /// Arrow found something wrong after all: a defect, please report it.
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError>;
}

/// Has Arrow validate once more.
#[derive(Clone, Copy, Debug)]
pub struct Checked;

impl Assemble for Checked {
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError> {
        array.into_builder().build()
    }
}

/// Makes a batch over the buffers that were lent for it, and validates whatever safe use of its arrays relies on.
///
/// The arrays share the memory of `buffers`. Copied are only offsets and views of slices (views only if they were not
/// [rebased](super::SlabLayout::rebases) where they lie), and buffers that are not aligned for their type, which no buffer
/// of a [`SlabLayout`](super::SlabLayout) is.
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
    rebuild_with(schema, descriptor, buffers, &Checked)
}

/// As [`rebuild`], but by other means to make arrays of what has been validated.
///
/// # Errors
/// As [`rebuild`].
pub fn rebuild_with(
    schema: &SchemaRef,
    descriptor: &BatchDescriptor,
    buffers: &[Buffer],
    assemble: &dyn Assemble,
) -> Result<RecordBatch, LayoutError> {
    rebuild_after(schema, descriptor, buffers, &mut KeptDictionaries::default(), assemble)
}

/// As [`rebuild_with`], for the batches of one stream in order, of which one may have dictionaries of the one before.
///
/// # Errors
/// As [`rebuild`]. The stream cannot go on: dictionaries may be missing.
pub fn rebuild_after(
    schema: &SchemaRef,
    descriptor: &BatchDescriptor,
    buffers: &[Buffer],
    kept: &mut KeptDictionaries,
    assemble: &dyn Assemble,
) -> Result<RecordBatch, LayoutError> {
    check(schema, descriptor, &LayoutLimits::NONE)?;
    if let Some(extra) = buffers.len().checked_sub(descriptor.buffers.len()).filter(|extra| *extra > 0) {
        return Err(LayoutProblem::ExtraBuffers { extra }.into());
    }
    let (nodes, lens) = (descriptor.nodes.iter(), descriptor.buffers.iter());
    let mut borrower = Borrower { nodes, lens, buffers: buffers.iter(), assemble, kept, dictionaries: 0 };
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
    assemble: &'a dyn Assemble,
    kept: &'a mut KeptDictionaries,
    /// Those that were met.
    dictionaries: usize,
}

impl Borrower<'_> {
    fn array(&mut self, data_type: &DataType) -> Result<ArrayData, LayoutError> {
        let node = self.nodes.next().ok_or(LayoutProblem::MissingNode)?;
        let shape = shape(data_type)?;
        let nulls = self.nulls(node)?;
        let len = count(node.len)?;
        let mut builder = ArrayData::builder(data_type.clone()).len(len).nulls(nulls.clone());
        // What is validated here, as a whole, is only put together; the rest is left to Arrow's own validation.
        match (shape, &node.detail) {
            (Shape::Fixed { align, .. }, Detail::None) => {
                let values = rebase::aligned(&self.buffer("values")?, align);
                return self.put_together(builder.add_buffer(values));
            }
            (Shape::Bytes { wide }, Detail::Base(base)) => {
                let (offsets, values) = (self.offsets(wide, *base)?, self.buffer("values")?);
                let utf8 = matches!(data_type, DataType::Utf8 | DataType::LargeUtf8);
                if wide {
                    strings::<i64>(&offsets, &values, utf8)?;
                } else {
                    strings::<i32>(&offsets, &values, utf8)?;
                }
                return self.put_together(builder.add_buffer(offsets).add_buffer(values));
            }
            (Shape::Views, Detail::Views(extents)) => {
                let views = self.buffer("views")?;
                let lens = self.lens.as_slice();
                let data = extents.iter().map(|_| self.buffer("data")).collect::<Result<Vec<_>, _>>()?;
                let views = rebase::views(&views, extents, lens, nulls.as_ref())?;
                valid::views(views.as_chunks().0, &data, *data_type == DataType::Utf8View)?;
                return self.put_together(builder.add_buffer(views).add_buffers(data));
            }
            (Shape::List { wide, item }, Detail::Base(base)) => {
                let offsets = self.offsets(wide, *base)?;
                let items = self.child(item)?;
                if wide {
                    valid::offsets(&ScalarBuffer::<i64>::from(offsets.clone()), items.len())?;
                } else {
                    valid::offsets(&ScalarBuffer::<i32>::from(offsets.clone()), items.len())?;
                }
                required(item, &items).within(item.name())?;
                return self.put_together(builder.add_buffer(offsets).add_child_data(items));
            }
            (Shape::Dictionary { align, values, .. }, Detail::None | Detail::SameValues) => {
                let keys = rebase::aligned(&self.buffer("keys")?, align);
                let values = self.dictionary(values, node.detail == Detail::SameValues).within("values")?;
                if let DataType::Dictionary(key, _) = data_type {
                    keys_within(key, &keys, values.len(), nulls.as_ref())?;
                }
                return self.put_together(builder.add_buffer(keys).add_child_data(values));
            }
            (Shape::Null, Detail::None) => {}
            (Shape::Bits, Detail::Bits { first }) => {
                let (values, offset) = self.booleans(node, *first, nulls.as_ref())?;
                builder = builder.offset(offset).add_buffer(values);
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

    /// The values of a dictionary.
    fn dictionary(&mut self, data_type: &DataType, same: bool) -> Result<ArrayData, LayoutError> {
        if !is_lent_once(data_type) {
            return self.array(data_type);
        }
        let number = self.dictionaries;
        self.dictionaries += 1;
        if same {
            let assemble = self.assemble;
            let kept = self.kept.again(number, |valid| assemble.assemble(ValidArray(valid)))?;
            let kept = kept.filter(|values| values.data_type() == data_type);
            return Ok(kept.ok_or(LayoutProblem::NoDictionary)?);
        }
        let values = self.array(data_type)?;
        self.kept.keep(number, &values)?;
        Ok(values)
    }

    fn put_together(&self, valid: ArrayDataBuilder) -> Result<ArrayData, LayoutError> {
        Ok(self.assemble.assemble(ValidArray(valid))?)
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

fn strings<O: OffsetSizeTrait>(offsets: &Buffer, values: &Buffer, utf8: bool) -> Result<(), LayoutError> {
    let offsets = ScalarBuffer::<O>::from(offsets.clone());
    valid::offsets(&offsets, values.len())?;
    Ok(if utf8 { valid::strings(&offsets, values) } else { Ok(()) }?)
}

/// Whether keys of a dictionary, or those that are not null, are keys of one of so many values.
fn keys_within(key: &DataType, keys: &Buffer, limit: usize, nulls: Option<&NullBuffer>) -> Result<(), LayoutError> {
    macro_rules! within {
        // What is negative is large without its sign.
        ($key:ty, $unsigned:ty) => {{
            let keys = ScalarBuffer::<$key>::from(keys.clone());
            match limit.checked_sub(1) {
                Some(last) => {
                    let last = <$unsigned>::try_from(last).unwrap_or(<$unsigned>::MAX);
                    valid::keys(&keys, nulls, |key| key as $unsigned > last)
                }
                None => valid::keys(&keys, nulls, |_| true),
            }
        }};
    }
    Ok(match key {
        DataType::Int8 => within!(i8, u8),
        DataType::Int16 => within!(i16, u16),
        DataType::Int32 => within!(i32, u32),
        DataType::Int64 => within!(i64, u64),
        DataType::UInt8 => within!(u8, u8),
        DataType::UInt16 => within!(u16, u16),
        DataType::UInt32 => within!(u32, u32),
        _ => within!(u64, u64),
    }?)
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
