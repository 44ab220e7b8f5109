//! Arrays of any type, from a seed.

use std::sync::Arc;

use arrow_array::builder::{BinaryViewBuilder, StringViewBuilder};
use arrow_array::{Array, ArrayRef, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, Field, UnionFields, UnionMode};

use super::dice::Dice;

/// An array of `len` elements for a field, cut from a longer one, with nulls if the field is nullable.
///
/// # Panics
/// If the field's type is one that arrays cannot have.
pub fn array(field: &Field, len: usize, dice: &mut Dice) -> ArrayRef {
    let (before, after) = (dice.padding(), dice.padding());
    let whole = build(field.data_type(), field.is_nullable(), before + len + after, dice);
    whole.slice(before, len)
}

fn nulls(nullable: bool, len: usize, dice: &mut Dice) -> Option<NullBuffer> {
    if !nullable || dice.one_in(3) {
        return None;
    }
    let first = dice.below(9);
    // The buffer is longer than necessary, because arrow's validation of a boolean child adds the offset of the values
    // to that of the nulls.
    let bits = Buffer::from_vec(dice.bytes((first + len).div_ceil(8) + 2));
    Some(NullBuffer::new(BooleanBuffer::new(bits, first, len)))
}

fn build(data_type: &DataType, nullable: bool, len: usize, dice: &mut Dice) -> ArrayRef {
    use DataType::*;
    let data = ArrayData::builder(data_type.clone()).len(len);
    let data = match data_type {
        Null => data,
        Boolean => {
            let (values, nulls) = (Buffer::from_vec(dice.bytes((len + 5).div_ceil(8))), nulls(nullable, len, dice));
            return Arc::new(arrow_array::BooleanArray::new(BooleanBuffer::new(values, dice.below(6), len), nulls));
        }
        Utf8 => bytes::<i32>(data, true, nulls(nullable, len, dice), len, dice),
        Binary => bytes::<i32>(data, false, nulls(nullable, len, dice), len, dice),
        LargeUtf8 => bytes::<i64>(data, true, nulls(nullable, len, dice), len, dice),
        LargeBinary => bytes::<i64>(data, false, nulls(nullable, len, dice), len, dice),
        Utf8View | BinaryView => return views(data_type, nullable, len, dice),
        List(item) | Map(item, _) => {
            let (offsets, total) = offsets::<i32>(len, dice);
            let items = array(item, total + dice.below(3), dice).to_data();
            data.add_buffer(offsets).add_child_data(items).nulls(nulls(nullable, len, dice))
        }
        LargeList(item) => {
            let (offsets, total) = offsets::<i64>(len, dice);
            let items = array(item, total + dice.below(3), dice).to_data();
            data.add_buffer(offsets).add_child_data(items).nulls(nulls(nullable, len, dice))
        }
        ListView(item) | LargeListView(item) => {
            let items = len / 2 + dice.below(20);
            let ranges: Vec<(usize, usize)> = (0..len).map(|_| range(items, dice)).collect();
            let (offsets, sizes) = if matches!(data_type, ListView(_)) {
                (numbers::<i32>(ranges.iter().map(|r| r.0)), numbers::<i32>(ranges.iter().map(|r| r.1)))
            } else {
                (numbers::<i64>(ranges.iter().map(|r| r.0)), numbers::<i64>(ranges.iter().map(|r| r.1)))
            };
            let items = array(item, items, dice).to_data();
            data.add_buffer(offsets).add_buffer(sizes).add_child_data(items).nulls(nulls(nullable, len, dice))
        }
        FixedSizeList(item, size) => {
            let items = array(item, len * *size as usize, dice).to_data();
            data.add_child_data(items).nulls(nulls(nullable, len, dice))
        }
        Struct(fields) => {
            let children = fields.iter().map(|field| array(field, len, dice).to_data()).collect();
            data.child_data(children).nulls(nulls(nullable, len, dice))
        }
        Union(fields, mode) => union(fields, *mode, data, len, dice),
        Dictionary(key, values) => {
            let count = 1 + dice.below(5);
            let width = key.primitive_width().expect("keys are integers");
            let keys: Vec<u8> =
                (0..len).flat_map(|_| dice.below(count).to_le_bytes().into_iter().take(width)).collect();
            let values = array(&Field::new("values", values.as_ref().clone(), nullable), count, dice).to_data();
            data.add_buffer(Buffer::from_slice_ref(keys)).add_child_data(values).nulls(nulls(nullable, len, dice))
        }
        RunEndEncoded(ends, values) => {
            let mut run_ends = Vec::new();
            while run_ends.last().copied().unwrap_or(0) < len {
                run_ends.push(run_ends.last().copied().unwrap_or(0) + 1 + dice.below(4));
            }
            let count = run_ends.len();
            let buffer = match ends.data_type() {
                Int16 => numbers::<i16>(run_ends.into_iter()),
                Int32 => numbers::<i32>(run_ends.into_iter()),
                _ => numbers::<i64>(run_ends.into_iter()),
            };
            let ends = ArrayData::builder(ends.data_type().clone()).len(count).add_buffer(buffer);
            data.add_child_data(ends.build().expect("valid")).add_child_data(array(values, count, dice).to_data())
        }
        fixed => {
            let width = match fixed {
                FixedSizeBinary(width) => *width as usize,
                primitive => primitive.primitive_width().expect("all others are primitive"),
            };
            let values = Buffer::from_slice_ref(dice.bytes(len * width));
            data.add_buffer(values).nulls(nulls(nullable, len, dice))
        }
    };
    make_array(data.build().expect("generated arrays are valid"))
}

type Builder = arrow_data::ArrayDataBuilder;

trait Number: arrow_buffer::ArrowNativeType {}
impl Number for i16 {}
impl Number for i32 {}
impl Number for i64 {}

fn numbers<T: Number>(numbers: impl Iterator<Item = usize>) -> Buffer {
    Buffer::from_vec(numbers.map(|number| T::from_usize(number).expect("small")).collect::<Vec<T>>())
}

fn offsets<T: Number>(len: usize, dice: &mut Dice) -> (Buffer, usize) {
    let mut end = dice.below(3);
    let ends: Vec<usize> = (0..=len)
        .map(|index| {
            end += if index == 0 || dice.one_in(3) { 0 } else { dice.below(4) };
            end
        })
        .collect();
    (numbers::<T>(ends.into_iter()), end)
}

/// Offset and size of a list view. An empty one may have any offset within the items.
fn range(items: usize, dice: &mut Dice) -> (usize, usize) {
    let offset = dice.below(items + 1);
    (offset, dice.below((items - offset).min(4) + 1))
}

fn text(dice: &mut Dice) -> String {
    const LETTERS: [&str; 8] = ["a", "Z", " ", "ä", "€", "\u{0}", "🦀", "longer than a view holds inline"];
    (0..dice.below(4)).map(|_| LETTERS[dice.below(8)]).collect()
}

fn bytes<T: Number>(data: Builder, utf8: bool, nulls: Option<NullBuffer>, len: usize, dice: &mut Dice) -> Builder {
    let mut values = if utf8 { text(dice).into_bytes() } else { dice.bytes(3) };
    let mut ends = vec![values.len()];
    for _ in 0..len {
        // Null elements have bytes too. This is allowed, and the bytes must be preserved.
        if utf8 {
            values.extend(text(dice).into_bytes());
        } else {
            let len = dice.below(20);
            values.extend(dice.bytes(len));
        }
        ends.push(values.len());
    }
    data.add_buffer(numbers::<T>(ends.into_iter())).add_buffer(Buffer::from_vec(values)).nulls(nulls)
}

/// Views as scans, filters, joins and sorts leave them. They point into shared data buffers, of which they reference a
/// part, several parts, or nothing; some strings are parts of other strings. The views of nulls point somewhere, too.
///
/// # Panics
/// If `data_type` is not a type of views.
pub fn shared_views(data_type: &DataType, nullable: bool, len: usize, dice: &mut Dice) -> ArrayRef {
    // Some strings are far apart, so that they are not lent as one extent.
    let data: Vec<Vec<u8>> = (0..1 + dice.below(3))
        .map(|_| {
            let word = ["plain letters only. ", "Ä and € and 🦀. "][dice.below(2)];
            word.repeat(1 + dice.below(5000)).into_bytes()
        })
        .collect();
    let nulls = nulls(nullable, len, dice);
    let mut view = |_| {
        let buffer = dice.below(data.len());
        let bytes = &data[buffer];
        let begins = |at: &usize| bytes.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
        // Most strings come from a few places: equal strings, or strings close to each other.
        let near = if dice.one_in(3) { bytes.len() } else { 50 };
        let start = (dice.below(near.min(bytes.len()))..).find(begins).expect("the end at least");
        let end = (start + dice.below(40)..).find(begins).expect("the end at least").min(bytes.len());
        let string = &bytes[start..end];
        match string.first_chunk() {
            Some(prefix) if string.len() > 12 => {
                let (length, prefix) = (string.len() as u32, u32::from_le_bytes(*prefix));
                arrow_data::ByteView { length, prefix, buffer_index: buffer as u32, offset: start as u32 }.as_u128()
            }
            _ => {
                let mut inline = [0; 16];
                inline[0] = string.len() as u8;
                inline[4..4 + string.len()].copy_from_slice(string);
                u128::from_le_bytes(inline)
            }
        }
    };
    let views: Vec<u128> = (0..len).map(&mut view).collect();
    let array = ArrayData::builder(data_type.clone()).len(len).add_buffer(Buffer::from_vec(views));
    let array = array.add_buffers(data.into_iter().map(Buffer::from_vec)).nulls(nulls);
    make_array(array.build().expect("generated views are valid"))
}

fn views(data_type: &DataType, nullable: bool, len: usize, dice: &mut Dice) -> ArrayRef {
    if dice.one_in(4) {
        return shared_views(data_type, nullable, len, dice);
    }
    // Small blocks give several data buffers, of which a slice uses few.
    let valid: Vec<bool> = (0..len).map(|_| !nullable || !dice.one_in(4)).collect();
    if *data_type == DataType::Utf8View {
        let mut builder = StringViewBuilder::new().with_fixed_block_size(64);
        valid.iter().for_each(|valid| builder.append_option(valid.then(|| text(dice))));
        Arc::new(builder.finish())
    } else {
        let mut builder = BinaryViewBuilder::new().with_fixed_block_size(64);
        for valid in valid {
            let len = dice.below(24);
            builder.append_option(valid.then(|| dice.bytes(len)));
        }
        Arc::new(builder.finish())
    }
}

fn union(fields: &UnionFields, mode: UnionMode, data: Builder, len: usize, dice: &mut Dice) -> Builder {
    let variants: Vec<_> = fields.iter().collect();
    let rows: Vec<usize> = (0..len).map(|_| dice.below(variants.len())).collect();
    let ids: Vec<i8> = rows.iter().map(|row| variants[*row].0).collect();
    let data = data.add_buffer(Buffer::from_vec(ids));
    if mode == UnionMode::Sparse {
        return data.child_data(variants.iter().map(|(_, field)| array(field, len, dice).to_data()).collect());
    }
    let lens: Vec<usize> = variants.iter().map(|_| 1 + dice.below(len + 1)).collect();
    let offsets = numbers::<i32>(rows.iter().map(|row| dice.below(lens[*row])).collect::<Vec<_>>().into_iter());
    let children = variants.iter().zip(lens).map(|((_, field), len)| array(field, len, dice).to_data()).collect();
    data.add_buffer(offsets).child_data(children)
}
