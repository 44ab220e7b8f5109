//! The batches of a file or a part of it, with errors that name the line of the file.

use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;

use super::error::ReadError;
use super::input;

/// Reads the records of a part, one batch after the other. Lines in its errors count from the part's first byte.
pub(super) trait PartReader {
    /// The next batch, or none at the end.
    fn batch(&mut self) -> Result<Option<RecordBatch>, ReadError>;
}

/// The batches of a [`PartReader`]. The first error is the last item.
pub(super) struct PartBatches<R> {
    path: PathBuf,
    /// The byte that the lines begin at or after.
    first: u64,
    reader: R,
    is_done: bool,
}

impl<R: PartReader> PartBatches<R> {
    /// The batches of the part of `path` that begins at byte `first`.
    pub(super) fn new(path: &Path, first: u64, reader: R) -> Self {
        Self { path: path.to_owned(), first, reader, is_done: false }
    }

    /// An error with the line of the file instead of that of the part.
    fn of_file(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::Invalid { line: Some(line), reason } if self.first > 0 => {
                // If the lines cannot be counted, none is named.
                let before = input::lines_before(&self.path, self.first).ok();
                ReadError::Invalid { line: before.map(|before| before + line), reason }
            }
            other => other,
        }
    }
}

impl<R: PartReader> Iterator for PartBatches<R> {
    type Item = Result<RecordBatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let batch = self.reader.batch();
        self.is_done = !matches!(batch, Ok(Some(_)));
        batch.map_err(|error| self.of_file(error)).transpose()
    }
}
