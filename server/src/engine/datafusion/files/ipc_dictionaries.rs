//! The dictionaries of an Arrow file, and what arrays take in memory.

use std::collections::{HashMap, HashSet};

use arrow_array::{Array, ArrayRef};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_ipc::MetadataVersion;
use arrow_ipc::reader::read_dictionary;
use arrow_schema::{ArrowError, DataType, Field, Fields, SchemaRef};

use super::error::ReadError;
use super::ipc_limits::IpcLimits;
use super::ipc_schema;

pub(super) struct Dictionaries {
    types: HashMap<i64, DataType>,
    /// Those of the columns that are read.
    needed: HashSet<i64>,
    values: HashMap<i64, ArrayRef>,
    /// Bytes of each in memory.
    sizes: HashMap<i64, u64>,
    size: u64,
    /// In a file a dictionary may grow, but not change: its batches can be read in any order.
    is_file: bool,
    seen: HashSet<i64>,
}

impl Dictionaries {
    pub(super) fn new(all: &Fields, read: &Fields, is_file: bool) -> Result<Self, ReadError> {
        Ok(Dictionaries {
            types: ipc_schema::dictionaries(all)?,
            needed: ipc_schema::dictionaries(read)?.into_keys().collect(),
            values: HashMap::new(),
            sizes: HashMap::new(),
            size: 0,
            is_file,
            seen: HashSet::new(),
        })
    }

    pub(super) fn values(&self) -> &HashMap<i64, ArrayRef> {
        &self.values
    }

    /// The values of a dictionary, as a column.
    pub(super) fn field(&self, id: i64) -> Result<Field, ReadError> {
        let values = self.types.get(&id);
        let values = values.ok_or_else(|| ReadError::invalid(format!("no column has the dictionary {id}")))?;
        Ok(Field::new(format!("dictionary {id}"), values.clone(), true))
    }

    /// Adds a batch, which is checked already. Those of columns that are not read are not decoded.
    pub(super) fn add(
        &mut self,
        batch: arrow_ipc::DictionaryBatch<'_>,
        version: MetadataVersion,
        body: &Buffer,
        schema: &SchemaRef,
        limits: &IpcLimits,
    ) -> Result<(), ReadError> {
        let id = batch.id();
        if !batch.isDelta() && !self.seen.insert(id) && self.is_file {
            return Err(ReadError::invalid(format!("dictionary {id} is replaced, which a file must not do")));
        }
        if !self.needed.contains(&id) {
            return Ok(());
        }
        read_dictionary(body, batch, schema, &mut self.values, &version).map_err(inconsistent)?;
        let size = self.values.get(&id).map_or(0, |values| memory(std::slice::from_ref(values)));
        let replaced = self.sizes.insert(id, size).unwrap_or(0);
        self.size = self.size.saturating_sub(replaced).saturating_add(size);
        check_size(self.size, limits)
    }
}

#[allow(clippy::needless_pass_by_value)] // For map_err.
pub(super) fn inconsistent(error: ArrowError) -> ReadError {
    ReadError::invalid(format!("the batch is not consistent: {error}"))
}

pub(super) fn check_size(bytes: u64, limits: &IpcLimits) -> Result<(), ReadError> {
    let max = limits.max_batch_bytes;
    if bytes > max {
        return Err(ReadError::invalid(format!("a batch takes {bytes} bytes in memory; the limit is {max} bytes")));
    }
    Ok(())
}

/// Bytes of the columns' buffers. One that several share is counted once, and without the body that it is a part of.
pub(super) fn memory(columns: &[ArrayRef]) -> u64 {
    fn add(data: &ArrayData, seen: &mut HashSet<(usize, usize)>, bytes: &mut u64) {
        for buffer in data.buffers().iter().chain(data.nulls().map(|nulls| nulls.buffer())) {
            if seen.insert((buffer.as_ptr().addr(), buffer.len())) {
                *bytes += buffer.len() as u64;
            }
        }
        data.child_data().iter().for_each(|child| add(child, seen, bytes));
    }
    let mut seen = HashSet::new();
    let mut bytes = 0;
    columns.iter().for_each(|column| add(&column.to_data(), &mut seen, &mut bytes));
    bytes
}
