//! The borrower's side, when the bytes are there: arrays over them, validated.

use std::fmt;

use arrow_array::{OffsetSizeTrait, RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow_data::{ArrayData, ArrayDataBuilder};
use arrow_schema::{ArrowError, Field};

use super::check::CheckedDescriptor;
use super::descriptor::{Detail, NodeDescriptor};
use super::dictionaries::KeptDictionaries;
use super::error::{LayoutError, LayoutProblem, Within};
use super::kind::{BufferLen, Kind};
use super::plan::Node;
use super::{rebase, valid};

/// The parts of an array, validated. Only this module makes them.
#[derive(Debug)]
pub struct ValidArray(ArrayDataBuilder);

impl ValidArray {
    /// The array's parts. `build` of these succeeds: [`ArrayData::validate_data`] would accept them.
    #[must_use]
    pub fn into_builder(self) -> ArrayDataBuilder {
        self.0
    }
}

/// Makes arrays of parts that are valid already.
///
/// Safe code can only make arrays by validating them, string by string, as [`ValidatingAssembler`] does. Code that may
/// use other means can save that.
pub trait Assemble: fmt::Debug + Send + Sync {
    /// Makes the array.
    ///
    /// # Errors
    /// Arrow found something wrong after all: a defect, please report it.
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError>;
}

/// Has Arrow validate once more.
#[derive(Clone, Copy, Debug)]
pub struct ValidatingAssembler;

impl Assemble for ValidatingAssembler {
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError> {
        array.into_builder().build()
    }
}

/// Makes a batch over the buffers that were lent for it, and validates whatever safe use of its arrays relies on.
///
/// The batch has the schema of the plan against which the descriptor was checked. The arrays share the memory of
/// `buffers`. Copied are only offsets and views of slices (views only if they were not
/// [rebased](CheckedDescriptor::rebases) where they lie), and buffers that are not aligned for their type. Buffers that
/// lie in a slab by [`CheckedDescriptor::layout`] are aligned.
///
/// # Errors
/// A buffer is not as long as described, or its bytes are not those of a valid array.
pub fn rebuild(descriptor: &CheckedDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    rebuild_with(descriptor, buffers, &ValidatingAssembler)
}

/// As [`rebuild`], but by other means to make arrays of parts that have been validated.
///
/// # Errors
/// As [`rebuild`].
pub fn rebuild_with(
    descriptor: &CheckedDescriptor,
    buffers: &[Buffer],
    assemble: &dyn Assemble,
) -> Result<RecordBatch, LayoutError> {
    batch(descriptor, buffers, None, assemble)
}

/// As [`rebuild_with`], for the batches of one stream in order, of which one may have dictionaries of the one before.
///
/// # Errors
/// As [`rebuild`]. The stream cannot go on: dictionaries may be missing.
pub fn rebuild_after(
    descriptor: &CheckedDescriptor,
    buffers: &[Buffer],
    kept: &mut KeptDictionaries,
    assemble: &dyn Assemble,
) -> Result<RecordBatch, LayoutError> {
    batch(descriptor, buffers, Some(kept), assemble)
}

fn batch(
    descriptor: &CheckedDescriptor,
    buffers: &[Buffer],
    kept: Option<&mut KeptDictionaries>,
    assemble: &dyn Assemble,
) -> Result<RecordBatch, LayoutError> {
    if let Some(extra) = buffers.len().checked_sub(descriptor.buffers.len()).filter(|extra| *extra > 0) {
        return Err(LayoutProblem::ExtraBuffers { extra }.into());
    }
    let (nodes, lens) = (descriptor.nodes.iter(), descriptor.buffers.iter());
    let mut borrower = Borrower { nodes, lens, buffers: buffers.iter(), assemble, kept };
    let plan = descriptor.plan();
    let mut columns = Vec::with_capacity(plan.columns().len());
    for node in plan.columns() {
        let data = borrower.array(node).within(node.field.name())?;
        // `RecordBatch::try_new` checks this too, but cannot say it as an error of ours.
        required(&node.field, &data).within(node.field.name())?;
        columns.push(make_array(data));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(count(descriptor.rows)?));
    Ok(RecordBatch::try_new_with_options(plan.schema().clone(), columns, &options)?)
}

struct Borrower<'a> {
    nodes: std::slice::Iter<'a, NodeDescriptor>,
    lens: std::slice::Iter<'a, u64>,
    buffers: std::slice::Iter<'a, Buffer>,
    assemble: &'a dyn Assemble,
    /// The dictionaries of the batches before, unless the batch stands alone.
    kept: Option<&'a mut KeptDictionaries>,
}

/// An array's parts, in its own buffers or in the children.
struct Parts<'a> {
    of: &'a NodeDescriptor,
    nulls: Option<NullBuffer>,
    buffers: Vec<Buffer>,
    children: Vec<ArrayData>,
    /// The array's offset into the buffers, in elements.
    offset: usize,
}

/// Who has validated an array's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validated {
    /// This module: the parts are a [`ValidArray`].
    Here,
    /// Arrow is to do it.
    NotYet,
}

impl Borrower<'_> {
    fn array(&mut self, node: &Node) -> Result<ArrayData, LayoutError> {
        let of = self.nodes.next().ok_or_else(|| LayoutProblem::MissingNode)?;
        let nulls = self.nulls(of)?;
        let buffers = self.own_buffers(node, of)?;
        let children = self.children(node, of)?;
        let mut parts = Parts { of, nulls, buffers, children, offset: 0 };
        let validated = parts.validate(node)?;
        let builder = ArrayData::builder(node.field.data_type().clone())
            .len(count(of.len)?)
            .offset(parts.offset)
            .nulls(parts.nulls)
            .buffers(parts.buffers)
            .child_data(parts.children);
        Ok(match validated {
            Validated::Here => self.assemble.assemble(ValidArray(builder))?,
            Validated::NotYet => builder.build()?,
        })
    }

    fn own_buffers(&mut self, node: &Node, of: &NodeDescriptor) -> Result<Vec<Buffer>, LayoutError> {
        let mut buffers = Vec::with_capacity(node.buffer_count(&of.detail));
        for rule in node.buffers() {
            let several = if rule.len == BufferLen::Extents { of.detail.extents().len() } else { 1 };
            for _ in 0..several {
                buffers.push(self.buffer(rule.what)?);
            }
        }
        Ok(buffers)
    }

    fn children(&mut self, node: &Node, of: &NodeDescriptor) -> Result<Vec<ArrayData>, LayoutError> {
        let mut children = Vec::with_capacity(node.children.len());
        for child in node.children.iter() {
            let data = match node.kind {
                Kind::Dictionary { number: Some(number), .. } => {
                    self.shared_values(child, number, matches!(of.detail, Detail::SameValues))
                }
                _ => self.array(child),
            };
            let data = data.within(child.field.name())?;
            if matches!(node.kind, Kind::List { .. } | Kind::ListView { .. } | Kind::Runs { .. }) {
                // Arrow checks this for lists, but neither for list views nor for runs. Nulls of other parents may mask
                // those of their children, which Arrow does check.
                required(&child.field, &data).within(child.field.name())?;
            }
            children.push(data);
        }
        Ok(children)
    }

    /// The values of a dictionary that batches of a stream can share.
    fn shared_values(&mut self, node: &Node, number: usize, same: bool) -> Result<ArrayData, LayoutError> {
        if same {
            let kept = self.kept.as_mut().ok_or_else(|| LayoutProblem::NoDictionary)?;
            let kept = kept.again(number, |valid| self.assemble.assemble(ValidArray(valid)))?;
            let kept = kept.filter(|values| values.data_type() == node.field.data_type());
            return Ok(kept.ok_or_else(|| LayoutProblem::NoDictionary)?);
        }
        let values = self.array(node)?;
        if let Some(kept) = &mut self.kept {
            kept.keep(number, &values)?;
        }
        Ok(values)
    }

    fn buffer(&mut self, what: &'static str) -> Result<Buffer, LayoutError> {
        let (len, buffer) =
            self.lens.next().zip(self.buffers.next()).ok_or_else(|| LayoutProblem::MissingBuffer { what })?;
        if buffer.len() as u64 != *len {
            return Err(LayoutProblem::Mismatch { what, expected: *len, got: buffer.len() as u64 }.into());
        }
        Ok(buffer.clone())
    }

    fn nulls(&mut self, of: &NodeDescriptor) -> Result<Option<NullBuffer>, LayoutError> {
        if of.nulls == 0 {
            return Ok(None);
        }
        let bitmap = self.buffer("validity")?;
        let nulls = NullBuffer::new(bits("validity", bitmap, of.null_bit, of.len)?);
        let counted = nulls.null_count() as u64;
        if counted != of.nulls {
            return Err(LayoutProblem::Mismatch { what: "number of nulls", expected: of.nulls, got: counted }.into());
        }
        Ok(Some(nulls))
    }
}

impl Parts<'_> {
    /// Makes offsets count from where the lent range begins, and validates the values of some types as a whole. Those
    /// of the others are left to Arrow's own validation.
    fn validate(&mut self, node: &Node) -> Result<Validated, LayoutError> {
        let (base, nulls) = (self.of.detail.base(), self.nulls.as_ref());
        match (&node.kind, &mut self.buffers[..], &self.children[..]) {
            (Kind::Fixed { align, .. }, [values], []) => rebase::align(values, *align),
            (Kind::Bytes { wide: false, utf8 }, [offsets, values], []) => strings::<i32>(offsets, values, base, *utf8)?,
            (Kind::Bytes { wide: true, utf8 }, [offsets, values], []) => strings::<i64>(offsets, values, base, *utf8)?,
            (Kind::Views { utf8 }, [views, data @ ..], []) => {
                rebase::views(views, self.of.detail.extents(), data, nulls);
                valid::views(views.as_chunks().0, data, *utf8)?;
            }
            (Kind::List { wide: false }, [offsets], [items]) => lists::<i32>(offsets, base, items)?,
            (Kind::List { wide: true }, [offsets], [items]) => lists::<i64>(offsets, base, items)?,
            (Kind::Dictionary { width, signed, .. }, [keys], [values]) => {
                rebase::align(keys, *width);
                keys_within((*width, *signed), keys, values.len(), nulls)?;
            }
            (kind, buffers, children) => {
                self.offset = left_to_arrow(kind, self.of, buffers, children, nulls)?;
                return Ok(Validated::NotYet);
            }
        }
        Ok(Validated::Here)
    }
}

/// Makes offsets of types whose values are left to Arrow count from where the lent range begins. Returns the array's
/// offset.
fn left_to_arrow(
    kind: &Kind,
    of: &NodeDescriptor,
    buffers: &mut [Buffer],
    children: &[ArrayData],
    nulls: Option<&NullBuffer>,
) -> Result<usize, LayoutError> {
    match (kind, buffers, children) {
        (Kind::Bits, [values], _) => return booleans(values, of, nulls),
        (Kind::ListView { wide: false }, [offsets, sizes], [items]) => {
            rebase::list_views::<i32>(offsets, sizes, of.detail.base(), items.len())?;
        }
        (Kind::ListView { wide: true }, [offsets, sizes], [items]) => {
            rebase::list_views::<i64>(offsets, sizes, of.detail.base(), items.len())?;
        }
        (Kind::DenseUnion(type_ids), [ids, offsets], _) => {
            rebase::union(ids, offsets, of.detail.union_bases(), type_ids)?;
        }
        (Kind::Runs { .. }, [], _) => return count(of.detail.run_offset()),
        // The other types have no offsets.
        _ => {}
    }
    Ok(0)
}

/// Makes bits a boolean array's values. Returns the bit offset at which they begin.
fn booleans(buffer: &mut Buffer, of: &NodeDescriptor, nulls: Option<&NullBuffer>) -> Result<usize, LayoutError> {
    let values = bits("values", buffer.clone(), of.detail.first_bit(), of.len)?;
    // Arrow's validation wants the validity's buffer to be as long as if it had the offset of the values, although
    // it has its own. Where it is not, values are moved to offset 0. They are one bit per row, and it is rare.
    let needed = (values.offset() + values.len()).div_ceil(8);
    if nulls.is_some_and(|nulls| nulls.validity().len() < needed) {
        let mut moved = MutableBuffer::from_len_zeroed(values.len().div_ceil(8));
        for at in values.set_indices() {
            arrow_buffer::bit_util::set_bit(&mut moved, at);
        }
        *buffer = moved.into();
        return Ok(0);
    }
    Ok(values.offset())
}

/// Bits as they lie in a buffer that `check` found to be long enough for them.
fn bits(what: &'static str, buffer: Buffer, first: u8, len: u64) -> Result<BooleanBuffer, LayoutError> {
    let len = count(len)?;
    let needed = len.checked_add(first.into()).ok_or_else(|| LayoutProblem::Overflow { what })?.div_ceil(8);
    if buffer.len() < needed {
        return Err(LayoutProblem::Mismatch { what, expected: needed as u64, got: buffer.len() as u64 }.into());
    }
    Ok(BooleanBuffer::new(buffer, first.into(), len))
}

fn strings<O: OffsetSizeTrait>(
    offsets: &mut Buffer,
    values: &Buffer,
    base: u64,
    utf8: bool,
) -> Result<(), LayoutError> {
    rebase::offsets::<O>(offsets, base)?;
    let offsets = ScalarBuffer::<O>::from(offsets.clone());
    valid::offsets(&offsets, values.len())?;
    Ok(if utf8 { valid::strings(&offsets, values) } else { Ok(()) }?)
}

fn lists<O: OffsetSizeTrait>(offsets: &mut Buffer, base: u64, items: &ArrayData) -> Result<(), LayoutError> {
    rebase::offsets::<O>(offsets, base)?;
    valid::offsets(&ScalarBuffer::<O>::from(offsets.clone()), items.len())?;
    Ok(())
}

/// Whether the keys of a dictionary, other than those of nulls, are keys of one of `limit` values.
fn keys_within(
    (width, signed): (usize, bool),
    keys: &Buffer,
    limit: usize,
    nulls: Option<&NullBuffer>,
) -> Result<(), LayoutError> {
    macro_rules! within {
        ($key:ty) => {{
            let keys = ScalarBuffer::<$key>::from(keys.clone());
            match limit.checked_sub(1) {
                Some(last) => {
                    // A negative key is large without its sign, and larger than every key that is not negative.
                    let largest = if signed { <$key>::MAX >> 1 } else { <$key>::MAX };
                    let last = <$key>::try_from(last).unwrap_or(largest).min(largest);
                    valid::keys(&keys, nulls, |key| key > last)
                }
                None => valid::keys(&keys, nulls, |_| true),
            }
        }};
    }
    Ok(match width {
        1 => within!(u8),
        2 => within!(u16),
        4 => within!(u32),
        _ => within!(u64),
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
