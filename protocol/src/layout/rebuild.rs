//! The borrower's side, after the bytes have been read: makes validated arrays over them.

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

/// The validated parts of an array. Only this module makes them.
#[derive(Debug)]
pub struct ValidArray(ArrayDataBuilder);

impl ValidArray {
    /// The array's parts. Their `build` succeeds: [`ArrayData::validate_data`] would accept them.
    #[must_use]
    pub fn into_builder(self) -> ArrayDataBuilder {
        self.0
    }
}

/// Makes arrays of validated parts.
///
/// Safe code can make arrays only by a validation of each string, as [`ValidatingAssembler`] does. Code that may use
/// unsafe functions can avoid that work.
pub trait Assemble: fmt::Debug + Send + Sync {
    /// Makes the array.
    ///
    /// # Errors
    /// Arrow found an error after all. This is a defect: please report it.
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError>;
}

/// Makes arrays with Arrow's own validation, which repeats that of this module.
#[derive(Clone, Copy, Debug)]
pub struct ValidatingAssembler;

impl Assemble for ValidatingAssembler {
    fn assemble(&self, array: ValidArray) -> Result<ArrayData, ArrowError> {
        array.into_builder().build()
    }
}

/// Makes a batch over its lent buffers, and validates everything that safe use of its arrays relies on.
///
/// The batch has the schema of the plan against which the descriptor was checked. The arrays share the memory of
/// `buffers`. Only these are copied: offsets and views of slices (views only if they were not
/// [rebased](CheckedDescriptor::rebases) in place), and buffers that are not aligned for their type. Buffers that lie
/// in a slab according to [`CheckedDescriptor::layout`] are aligned.
///
/// # Errors
/// The length of a buffer is not that in the descriptor, or its bytes do not make a valid array.
pub fn rebuild(descriptor: &CheckedDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    rebuild_with(descriptor, buffers, &ValidatingAssembler)
}

/// As [`rebuild`], with another way to make arrays of validated parts.
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

/// As [`rebuild_with`], for the batches of one stream in order: a batch may use dictionaries of the previous one.
///
/// # Errors
/// As [`rebuild`]. The stream cannot continue after an error, because dictionaries may be missing.
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
        // `RecordBatch::try_new` checks this too, but not with an error of this crate.
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
    /// The dictionaries of earlier batches, unless the batch is rebuilt alone.
    kept: Option<&'a mut KeptDictionaries>,
}

/// The parts of an array: its own buffers and its children.
struct Parts<'a> {
    of: &'a NodeDescriptor,
    nulls: Option<NullBuffer>,
    buffers: Vec<Buffer>,
    children: Vec<ArrayData>,
    /// The array's offset into the buffers, in elements.
    offset: usize,
}

/// Whether an array's values have been validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validated {
    /// This module has validated them: the parts are a [`ValidArray`].
    Here,
    /// Arrow has to validate them.
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
                // Arrow checks this for lists, but neither for list views nor for runs. Under other parents, nulls of
                // the parent may mask those of the child; Arrow checks these cases.
                required(&child.field, &data).within(child.field.name())?;
            }
            children.push(data);
        }
        Ok(children)
    }

    /// The values of a dictionary that several batches of a stream can share.
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
    /// Makes offsets count from the start of the lent range, and validates the values of some types as a whole. The
    /// other types are left to Arrow's own validation.
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

/// Makes offsets count from the start of the lent range, for types whose values are left to Arrow. Returns the array's
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

/// Makes bits the values of a boolean array. Returns the bit offset of the first value.
fn booleans(buffer: &mut Buffer, of: &NodeDescriptor, nulls: Option<&NullBuffer>) -> Result<usize, LayoutError> {
    let values = bits("values", buffer.clone(), of.detail.first_bit(), of.len)?;
    // Arrow's validation expects the validity's buffer to be long enough for the offset of the values, although the
    // validity has its own offset. If it is too short, the values are moved to offset 0. This costs one bit per row,
    // and is rare.
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

/// The bits of a buffer that `check` found to be long enough.
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

/// Checks that each key of a dictionary, other than those of nulls, is less than `limit`, the number of values.
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
                    // Without its sign, a negative key is larger than every key that is not negative.
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
