//! Equality of batches by value. It is independent of Arrow's own equality, which is a part of the tested code.

use arrow_array::{Array, RecordBatch};
use arrow_data::{ArrayData, ByteView};
use arrow_schema::{DataType, UnionMode};

/// Whether two batches have the same content: schema with all metadata, number of rows, nulls, values.
///
/// Floating-point values are compared by their bits, so that a NaN equals itself. The layout of values (offsets,
/// dictionaries, runs, views) does not matter.
///
/// # Errors
/// The first difference.
pub fn same_batch(a: &RecordBatch, b: &RecordBatch) -> Result<(), String> {
    if a.schema() != b.schema() {
        return Err(format!("schemas differ:\n{:#?}\n{:#?}", a.schema(), b.schema()));
    }
    if a.num_rows() != b.num_rows() {
        return Err(format!("{} rows against {}", a.num_rows(), b.num_rows()));
    }
    for (index, field) in a.schema().fields().iter().enumerate() {
        same_array(a.column(index), b.column(index)).map_err(|e| format!("column {index} {:?}: {e}", field.name()))?;
    }
    Ok(())
}

/// Whether two arrays have the same type, nulls and values.
///
/// # Errors
/// The first difference.
pub fn same_array(a: &dyn Array, b: &dyn Array) -> Result<(), String> {
    if a.data_type() != b.data_type() || a.len() != b.len() {
        return Err(format!("{} of {} against {} of {}", a.len(), a.data_type(), b.len(), b.data_type()));
    }
    let (a, b) = (a.to_data(), b.to_data());
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for row in 0..a.len() {
        left.clear();
        right.clear();
        value(&a, row, &mut left);
        value(&b, row, &mut right);
        if left != right {
            return Err(format!("row {row} of {}: {left:02x?} against {right:02x?}", a.data_type()));
        }
    }
    Ok(())
}

/// Writes an element in a canonical form: two elements have the same form exactly if they are equal.
fn value(data: &ArrayData, row: usize, out: &mut Vec<u8>) {
    use DataType::*;
    if data.is_null(row) {
        return out.push(0);
    }
    out.push(1);
    let at = data.offset() + row;
    let child = |index: usize| &data.child_data()[index];
    match data.data_type() {
        Null => {}
        Boolean => out.push(u8::from(arrow_buffer::bit_util::get_bit(&data.buffers()[0], at))),
        Utf8 | Binary => blob(&data.buffers()[1][number(data, 0, 4, at)..number(data, 0, 4, at + 1)], out),
        LargeUtf8 | LargeBinary => blob(&data.buffers()[1][number(data, 0, 8, at)..number(data, 0, 8, at + 1)], out),
        Utf8View | BinaryView => {
            let bytes = &data.buffers()[0][at * 16..][..16];
            let view = ByteView::from(u128::from_le_bytes(bytes.try_into().expect("16 bytes")));
            let (len, start) = (view.length as usize, view.offset as usize);
            let long = || &data.buffers()[1 + view.buffer_index as usize][start..start + len];
            blob(if len <= 12 { &bytes[4..4 + len] } else { long() }, out);
        }
        List(_) | Map(_, _) => items(child(0), number(data, 0, 4, at), number(data, 0, 4, at + 1), out),
        LargeList(_) => items(child(0), number(data, 0, 8, at), number(data, 0, 8, at + 1), out),
        ListView(_) => {
            let start = number(data, 0, 4, at);
            items(child(0), start, start + number(data, 1, 4, at), out);
        }
        LargeListView(_) => {
            let start = number(data, 0, 8, at);
            items(child(0), start, start + number(data, 1, 8, at), out);
        }
        FixedSizeList(_, size) => items(child(0), at * *size as usize, (at + 1) * *size as usize, out),
        Struct(_) => data.child_data().iter().for_each(|child| value(child, at, out)),
        Union(fields, mode) => {
            let id = data.buffers()[0][at];
            out.push(id);
            let index = fields.iter().position(|(field, _)| field as u8 == id).expect("a known type id");
            value(child(index), if *mode == UnionMode::Sparse { at } else { number(data, 1, 4, at) }, out);
        }
        Dictionary(key, _) => value(child(0), number(data, 0, key.primitive_width().expect("integer"), at), out),
        RunEndEncoded(ends, _) => {
            let width = ends.data_type().primitive_width().expect("integer");
            let run_ends = child(0);
            let run = (0..run_ends.len()).find(|run| number(run_ends, 0, width, run_ends.offset() + run) > at);
            value(child(1), run.expect("a run for each row"), out);
        }
        FixedSizeBinary(width) => blob(&data.buffers()[0][at * *width as usize..][..*width as usize], out),
        primitive => {
            let width = primitive.primitive_width().expect("all others are primitive");
            out.extend_from_slice(&data.buffers()[0][at * width..][..width]);
        }
    }
}

fn number(data: &ArrayData, buffer: usize, width: usize, at: usize) -> usize {
    let mut bytes = [0; 8];
    bytes[..width].copy_from_slice(&data.buffers()[buffer][at * width..][..width]);
    u64::from_le_bytes(bytes) as usize
}

fn blob(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&bytes.len().to_le_bytes());
    out.extend_from_slice(bytes);
}

fn items(child: &ArrayData, start: usize, end: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(end - start).to_le_bytes());
    (start..end).for_each(|item| value(child, item, out));
}
