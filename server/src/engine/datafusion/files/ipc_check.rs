//! Checks of what an Arrow file says about a batch, before `arrow_ipc` believes it.
//!
//! `arrow_ipc` allocates and slices by the numbers in the file; a wrong one ends in a panic or in an allocation that
//! ends the process. Upstream regards files as trusted.

use std::vec::IntoIter;

use arrow_ipc::{CompressionType, FieldNode, MetadataVersion};
use arrow_schema::{DataType, Fields, UnionMode};

use super::error::ReadError;
use super::ipc_codec::decompressed_length;
use super::ipc_limits::IpcLimits;
use super::ipc_schema::{children, unsigned};

/// Checks the numbers of a record batch against its body and the limits: afterwards it can be decoded without an
/// allocation beyond the limits.
pub(super) fn batch(
    batch: arrow_ipc::RecordBatch<'_>,
    version: MetadataVersion,
    fields: &Fields,
    body: &[u8],
    limits: &IpcLimits,
) -> Result<(), ReadError> {
    let rows = unsigned(batch.length(), "number of rows")?;
    if rows > limits.max_rows as u64 {
        let max = limits.max_rows;
        return Err(ReadError::invalid(format!("a batch of {rows} rows is beyond the limit of {max} rows")));
    }
    let nodes: Vec<FieldNode> = batch.nodes().into_iter().flatten().copied().collect();
    let buffers: Vec<arrow_ipc::Buffer> = batch.buffers().into_iter().flatten().copied().collect();
    let variadic: Vec<i64> = batch.variadicBufferCounts().into_iter().flatten().collect();
    let mut walk = Walk {
        nodes: nodes.into_iter(),
        buffers: buffers.into_iter(),
        variadic: variadic.into_iter(),
        codec: batch.compression().map(|compression| compression.codec()),
        version,
        body,
        end: 0,
        bytes: 0,
        limits,
        column: "",
    };
    for field in fields {
        walk.column = field.name();
        walk.array(field.data_type(), Some(rows))?;
    }
    // Columns that the schema does not name: what was read before them may be theirs.
    if walk.nodes.len() > 0 || walk.buffers.len() > 0 || walk.variadic.len() > 0 {
        return Err(ReadError::invalid("the batch is not consistent: it has more buffers than its columns need"));
    }
    Ok(())
}

/// Walks over the nodes and buffers of a batch in the order of `arrow_ipc::reader::RecordBatchDecoder`.
struct Walk<'a> {
    nodes: IntoIter<FieldNode>,
    buffers: IntoIter<arrow_ipc::Buffer>,
    variadic: IntoIter<i64>,
    codec: Option<CompressionType>,
    version: MetadataVersion,
    body: &'a [u8],
    /// End of the last buffer.
    end: u64,
    /// Bytes that the batch takes in memory so far.
    bytes: u64,
    limits: &'a IpcLimits,
    column: &'a str,
}

impl Walk<'_> {
    fn array(&mut self, data_type: &DataType, rows: Option<u64>) -> Result<(), ReadError> {
        let (length, nulls) = self.node(data_type, rows)?;
        match data_type {
            DataType::Null | DataType::RunEndEncoded(..) => {}
            // Until version 4 unions had a validity of their own. It is ignored.
            DataType::Union(..) if self.version >= MetadataVersion::V5 => {}
            DataType::Union(..) => {
                self.buffer()?;
            }
            _ => {
                let validity = self.buffer()?;
                if nulls > 0 {
                    self.require(validity, length, 1)?;
                }
            }
        }
        match data_type {
            DataType::Null | DataType::Struct(_) | DataType::FixedSizeList(..) | DataType::RunEndEncoded(..) => {}
            DataType::Utf8 | DataType::Binary => {
                self.offsets(length, 32)?;
                self.buffer()?;
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                self.offsets(length, 64)?;
                self.buffer()?;
            }
            DataType::Utf8View | DataType::BinaryView => self.views(length)?,
            DataType::List(_) | DataType::Map(..) => self.offsets(length, 32)?,
            DataType::LargeList(_) => self.offsets(length, 64)?,
            DataType::ListView(_) => self.values(length, 32).and_then(|()| self.values(length, 32))?,
            DataType::LargeListView(_) => self.values(length, 64).and_then(|()| self.values(length, 64))?,
            DataType::Union(_, UnionMode::Sparse) => self.values(length, 8)?,
            DataType::Union(_, UnionMode::Dense) => self.values(length, 8).and_then(|()| self.values(length, 32))?,
            DataType::Boolean => self.values(length, 1)?,
            DataType::FixedSizeBinary(width) => self.values(length, u64::from(width.unsigned_abs()) * 8)?,
            DataType::Dictionary(keys, _) => self.values(length, keys.primitive_width().unwrap_or(0) as u64 * 8)?,
            other => self.values(length, other.primitive_width().unwrap_or(0) as u64 * 8)?,
        }
        let rows = matches!(data_type, DataType::Struct(_)).then_some(length);
        children(data_type).into_iter().try_for_each(|child| self.array(child.data_type(), rows))
    }

    /// Length and number of nulls of the next array, whose length must be `rows` if that is known.
    fn node(&mut self, data_type: &DataType, rows: Option<u64>) -> Result<(u64, u64), ReadError> {
        let node = self.nodes.next().ok_or_else(|| self.invalid("the batch does not contain it"))?;
        let (Ok(length), Ok(nulls)) = (u64::try_from(node.length()), u64::try_from(node.null_count())) else {
            return Err(self.invalid(format!("{} values, {} of them NULL", node.length(), node.null_count())));
        };
        if nulls > length {
            return Err(self.invalid(format!("{length} values, {nulls} of them NULL")));
        }
        if let Some(rows) = rows.filter(|rows| *rows != length) {
            return Err(self.invalid(format!("{length} values for {rows} rows")));
        }
        // Values without bytes in the file, such as those of a list of Null, are bounded by nothing else.
        if length > self.limits.max_rows as u64 && is_weightless(data_type) {
            self.charge(length)?;
        }
        Ok((length, nulls))
    }

    /// Length of the next buffer, decompressed.
    fn buffer(&mut self) -> Result<u64, ReadError> {
        let buffer = self.buffers.next().ok_or_else(|| self.invalid("the batch lacks a buffer of it"))?;
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        let content = range.and_then(|(start, length)| self.body.get(start..start.checked_add(length)?));
        let (Some((start, length)), Some(content)) = (range, content) else {
            return Err(self.invalid(format!(
                "a buffer of {} bytes at {} lies outside of the batch, which has {} bytes",
                buffer.length(),
                buffer.offset(),
                self.body.len()
            )));
        };
        if content.is_empty() {
            return Ok(0);
        }
        // Writers put one buffer behind the other. Shared bytes would be copied for each buffer.
        if (start as u64) < self.end {
            return Err(self.invalid("two buffers of the batch overlap"));
        }
        self.end = start as u64 + length as u64;
        let bytes = match self.codec {
            Some(codec) => decompressed_length(content, codec).map_err(|reason| self.invalid(reason))?,
            None => length as u64,
        };
        self.charge(bytes)?;
        Ok(bytes)
    }

    fn charge(&mut self, bytes: u64) -> Result<(), ReadError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.max_batch_bytes {
            let max = self.limits.max_batch_bytes;
            return Err(self.invalid(format!("the batch takes more than the limit of {max} bytes")));
        }
        Ok(())
    }

    fn values(&mut self, length: u64, bits: u64) -> Result<(), ReadError> {
        let bytes = self.buffer()?;
        self.require(bytes, length, bits)
    }

    /// The offsets of no values may be left out.
    fn offsets(&mut self, length: u64, bits: u64) -> Result<(), ReadError> {
        let bytes = self.buffer()?;
        self.require(bytes, if length == 0 { 0 } else { length.saturating_add(1) }, bits)
    }

    fn views(&mut self, length: u64) -> Result<(), ReadError> {
        self.values(length, 128)?;
        let count = self.variadic.next().ok_or_else(|| self.invalid("the number of its buffers is missing"))?;
        // Ends with the batch's buffers, whatever the count is.
        let count = u64::try_from(count).map_err(|_| self.invalid(format!("it has {count} buffers")))?;
        (0..count).try_for_each(|_| self.buffer().map(|_| ()))
    }

    fn require(&self, bytes: u64, length: u64, bits: u64) -> Result<(), ReadError> {
        if length.checked_mul(bits).is_some_and(|needed| needed.div_ceil(8) <= bytes) {
            return Ok(());
        }
        Err(self.invalid(format!("a buffer of {bytes} bytes is too short for {length} values")))
    }

    fn invalid(&self, reason: impl std::fmt::Display) -> ReadError {
        ReadError::invalid(format!("the batch is not consistent: column \"{}\": {reason}", self.column))
    }
}

/// Whether values of the type take no bytes, except perhaps for their validity.
fn is_weightless(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null | DataType::RunEndEncoded(..) | DataType::FixedSizeBinary(0) | DataType::FixedSizeList(_, 0) => {
            true
        }
        DataType::Struct(fields) => fields.is_empty(),
        _ => false,
    }
}
