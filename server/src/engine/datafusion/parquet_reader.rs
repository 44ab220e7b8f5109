//! Reads parts of Parquet files, and checks pages before they are decoded.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::error::Result;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::basic::Compression;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::ParquetMetaData;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::files;

/// Readers that check what they read.
pub(super) struct CheckedFactory {
    inner: CachedParquetFileReaderFactory,
}

impl CheckedFactory {
    pub(super) fn new(inner: CachedParquetFileReaderFactory) -> Self {
        CheckedFactory { inner }
    }
}

impl fmt::Debug for CheckedFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckedFactory").finish_non_exhaustive()
    }
}

impl ParquetFileReaderFactory for CheckedFactory {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let inner = self.inner.create_reader(partition, file, metadata_size_hint, metrics)?;
        Ok(Box::new(Checked { inner, chunks: None }))
    }
}

/// A column chunk.
#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    /// Its place in the file.
    place: Range<u64>,
    /// A page becomes at most as many times as large when it is decompressed.
    ratio: u64,
}

/// How many times as large a page becomes at most. Only of those that the reader of `parquet` believes, since it fills
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

struct Checked {
    inner: Box<dyn AsyncFileReader + Send>,
    /// The column chunks in the order of the file and without overlap, once they are known.
    chunks: Option<Vec<Chunk>>,
}

impl Checked {
    async fn chunks(&mut self) -> ParquetResult<&[Chunk]> {
        if self.chunks.is_none() {
            self.get_metadata(None).await?;
        }
        Ok(self.chunks.as_deref().unwrap_or_default())
    }
}

/// The column chunks of a file.
fn chunks(metadata: &ParquetMetaData) -> ParquetResult<Vec<Chunk>> {
    let mut chunks = Vec::new();
    for chunk in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let (start, length) = (u64::try_from(start), u64::try_from(chunk.compressed_size()));
        let place = start.ok().zip(length.ok()).and_then(|(start, length)| Some(start..start.checked_add(length)?));
        let place = place.ok_or_else(|| {
            let column = chunk.column_path();
            ParquetError::General(format!("column {column} has a negative place or size in the file"))
        })?;
        chunks.push(Chunk { place, ratio: ratio(chunk.compression()) });
    }
    Ok(merged(chunks))
}

/// The chunks in order, as one where they overlap, which they do only in a file that is not right.
fn merged(mut chunks: Vec<Chunk>) -> Vec<Chunk> {
    chunks.sort_unstable_by_key(|chunk| chunk.place.start);
    let mut merged: Vec<Chunk> = Vec::with_capacity(chunks.len());
    for Chunk { place, ratio } in chunks {
        match merged.last_mut().filter(|last| place.start < last.place.end) {
            Some(last) => {
                last.place.end = last.place.end.max(place.end);
                last.ratio = last.ratio.min(ratio);
            }
            None => merged.push(Chunk { place, ratio }),
        }
    }
    merged
}

/// The chunk with the byte at `at`. Other bytes are not pages, but those of a Bloom filter.
fn chunk_at(chunks: &[Chunk], at: u64) -> Option<&Chunk> {
    let after = chunks.partition_point(|chunk| chunk.place.start <= at);
    chunks.get(after.checked_sub(1)?).filter(|chunk| at < chunk.place.end)
}

fn check(chunks: &[Chunk], ranges: &[Range<u64>], parts: &[Bytes]) -> ParquetResult<()> {
    for (range, bytes) in ranges.iter().zip(parts) {
        if let Some(chunk) = chunk_at(chunks, range.start) {
            files::check_pages(bytes, chunk.ratio).map_err(ParquetError::General)?;
        }
    }
    Ok(())
}

impl AsyncFileReader for Checked {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            let bytes = self.inner.get_bytes(range.clone()).await?;
            check(self.chunks().await?, &[range], std::slice::from_ref(&bytes))?;
            Ok(bytes)
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move {
            let parts = self.inner.get_byte_ranges(ranges.clone()).await?;
            check(self.chunks().await?, &ranges, &parts)?;
            Ok(parts)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let metadata = self.inner.get_metadata(options).await?;
            self.chunks = Some(chunks(&metadata)?);
            Ok(metadata)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_told_from_the_rest_of_the_file() {
        let chunk = |place, ratio| Chunk { place, ratio };
        let chunks = merged(vec![chunk(20..30, 256), chunk(4..10, 1), chunk(10..10, 1), chunk(22..24, 32)]);
        let ratio = |at| chunk_at(&chunks, at).map(|chunk| chunk.ratio);
        for (at, expected) in [(4, Some(1)), (9, Some(1)), (20, Some(32)), (29, Some(32))] {
            assert_eq!(ratio(at), expected, "{at}");
        }
        for at in [0, 3, 10, 12, 19, 30, 40] {
            assert_eq!(ratio(at), None, "{at}");
        }
    }
}
