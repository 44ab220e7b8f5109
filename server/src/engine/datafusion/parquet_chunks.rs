//! The places of a Parquet file's column chunks and pages.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use datafusion::object_store::path::Path;
use datafusion::parquet::basic::Compression;
use datafusion::parquet::errors::{ParquetError, Result};
use datafusion::parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use datafusion::parquet::file::page_index::offset_index::PageLocation;

/// A column chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Its place in the file.
    pub(super) place: Range<u64>,
    /// A page becomes at most as many times as large when it is decompressed.
    pub(super) ratio: u64,
    /// The places of its pages in the offset index, by their starts; none without one.
    pub(super) pages: Vec<Range<u64>>,
}

/// The column chunks of files, as long as their metadata is in use: a query opens a file once in each partition.
#[derive(Default)]
pub(super) struct KnownChunks {
    by_path: Mutex<BTreeMap<Path, Known>>,
}

/// The column chunks of a file with this metadata.
type Known = (Weak<ParquetMetaData>, Arc<[Chunk]>);

impl fmt::Debug for KnownChunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownChunks").finish_non_exhaustive()
    }
}

impl KnownChunks {
    /// The column chunks of the file with this metadata, in the order of the file and without overlap.
    pub(super) fn of(&self, path: &Path, metadata: &Arc<ParquetMetaData>) -> Result<Arc<[Chunk]>> {
        // A panic leaves the map as it was.
        let lock = || self.by_path.lock().unwrap_or_else(PoisonError::into_inner);
        // An address is not used again as long as there is a weak reference.
        if let Some((known, chunks)) = lock().get(path)
            && Weak::as_ptr(known) == Arc::as_ptr(metadata)
        {
            return Ok(Arc::clone(chunks));
        }
        let chunks: Arc<[Chunk]> = chunks(metadata)?.into();
        lock().insert(path.clone(), (Arc::downgrade(metadata), Arc::clone(&chunks)));
        Ok(chunks)
    }
}

/// Returns whether a column chunk says that it has an index of its pages.
pub(super) fn names_page_indexes(metadata: &ParquetMetaData) -> bool {
    let mut chunks = metadata.row_groups().iter().flat_map(|group| group.columns());
    chunks.any(|chunk| chunk.offset_index_offset().is_some() || chunk.column_index_offset().is_some())
}

/// The size of a page divided by its size in the file, at most. Only of those that the reader of `parquet` believes,
/// since it fills
/// as many bytes with zeros as a page is said to become; the others grow with what is decompressed.
fn ratio(compression: Compression) -> u64 {
    match compression {
        // 64 bytes from three.
        Compression::SNAPPY => 32,
        // 255 from one.
        Compression::LZ4 | Compression::LZ4_RAW => 256,
        _ => u64::MAX,
    }
}

/// The column chunks of a file.
fn chunks(metadata: &ParquetMetaData) -> Result<Vec<Chunk>> {
    let mut chunks = Vec::new();
    for (group, row_group) in metadata.row_groups().iter().enumerate() {
        let index = metadata.offset_index().and_then(|index| index.get(group));
        for (column, chunk) in row_group.columns().iter().enumerate() {
            let index = index.and_then(|index| index.get(column));
            let locations = index.map(|index| index.page_locations().as_slice()).unwrap_or_default();
            chunks.push(located(chunk, locations)?);
        }
    }
    Ok(merged(chunks))
}

fn located(chunk: &ColumnChunkMetaData, locations: &[PageLocation]) -> Result<Chunk> {
    let column = chunk.column_path();
    let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
    let place = place(start, chunk.compressed_size());
    let place = place
        .ok_or_else(|| ParquetError::General(format!("column {column} has a negative place or size in the file")))?;
    let pages = pages(&place, locations)
        .ok_or_else(|| ParquetError::General(format!("column {column} has a page outside of bytes {place:?}")))?;
    Ok(Chunk { place, ratio: ratio(chunk.compression()), pages })
}

fn place(start: i64, length: i64) -> Option<Range<u64>> {
    let (start, length) = (u64::try_from(start).ok()?, u64::try_from(length).ok()?);
    Some(start..start.checked_add(length)?)
}

/// The places of the pages of an offset index; `None` if one is not in the chunk. The reader of `parquet` takes them
/// from anywhere in the file.
fn pages(chunk: &Range<u64>, locations: &[PageLocation]) -> Option<Vec<Range<u64>>> {
    let page = |location: &PageLocation| {
        let page = place(location.offset, location.compressed_page_size.into())?;
        (chunk.start <= page.start && page.end <= chunk.end).then_some(page)
    };
    locations.iter().map(page).collect()
}

/// The chunks in order, as one where they overlap, which they do only in a file that is not right.
fn merged(mut chunks: Vec<Chunk>) -> Vec<Chunk> {
    chunks.sort_unstable_by_key(|chunk| chunk.place.start);
    let mut merged: Vec<Chunk> = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        match merged.last_mut().filter(|last| chunk.place.start < last.place.end) {
            Some(last) => {
                last.place.end = last.place.end.max(chunk.place.end);
                last.ratio = last.ratio.min(chunk.ratio);
                last.pages.extend(chunk.pages);
            }
            None => merged.push(chunk),
        }
    }
    merged.iter_mut().for_each(|chunk| chunk.pages.sort_unstable_by_key(|page| page.start));
    merged
}

/// The chunk with the byte at `at`. Other bytes are not pages, but those of a Bloom filter.
pub(super) fn chunk_at(chunks: &[Chunk], at: u64) -> Option<&Chunk> {
    let after = chunks.partition_point(|chunk| chunk.place.start <= at);
    chunks.get(after.checked_sub(1)?).filter(|chunk| at < chunk.place.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_told_from_the_rest_of_the_file() {
        let chunk = |place, ratio| Chunk { place, ratio, pages: Vec::new() };
        let chunks = merged(vec![chunk(20..30, 256), chunk(4..10, 1), chunk(10..10, 1), chunk(22..24, 32)]);
        let ratio = |at| chunk_at(&chunks, at).map(|chunk| chunk.ratio);
        for (at, expected) in [(4, Some(1)), (9, Some(1)), (20, Some(32)), (29, Some(32))] {
            assert_eq!(ratio(at), expected, "{at}");
        }
        for at in [0, 3, 10, 12, 19, 30, 40] {
            assert_eq!(ratio(at), None, "{at}");
        }
    }

    #[test]
    fn chunks_that_overlap_keep_their_pages() {
        let chunk = |place: Range<u64>, page| Chunk { place, ratio: 1, pages: vec![page] };
        let chunks = merged(vec![chunk(4..10, 8..10), chunk(6..12, 7..9)]);
        assert_eq!(chunks, [Chunk { place: 4..12, ratio: 1, pages: vec![7..9, 8..10] }]);
    }

    #[test]
    fn pages_lie_in_their_chunk() {
        let at = |offset, compressed_page_size| PageLocation { offset, compressed_page_size, first_row_index: 0 };
        assert_eq!(pages(&(10..20), &[]), Some(vec![]));
        assert_eq!(pages(&(10..20), &[at(10, 4), at(14, 6)]), Some(vec![10..14, 14..20]));
        for bad in [at(9, 4), at(14, 7), at(20, 1), at(40, 1), at(-1, 4), at(12, -1), at(i64::MAX, 1)] {
            assert_eq!(pages(&(10..20), &[at(10, 4), bad]), None);
        }
    }
}
