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

struct Checked {
    inner: Box<dyn AsyncFileReader + Send>,
    /// Places of the column chunks in the file, in order and without overlap, once they are known.
    chunks: Option<Vec<Range<u64>>>,
}

impl Checked {
    async fn chunks(&mut self) -> ParquetResult<&[Range<u64>]> {
        if self.chunks.is_none() {
            self.chunks = Some(places(&*self.inner.get_metadata(None).await?)?);
        }
        Ok(self.chunks.as_deref().unwrap_or_default())
    }
}

/// The places of the column chunks of a file.
fn places(metadata: &ParquetMetaData) -> ParquetResult<Vec<Range<u64>>> {
    let mut places = Vec::new();
    for chunk in metadata.row_groups().iter().flat_map(|group| group.columns()) {
        let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let (start, length) = (u64::try_from(start), u64::try_from(chunk.compressed_size()));
        let place = start.ok().zip(length.ok()).and_then(|(start, length)| Some(start..start.checked_add(length)?));
        places.push(place.ok_or_else(|| {
            let column = chunk.column_path();
            ParquetError::General(format!("column {column} has a negative place or size in the file"))
        })?);
    }
    Ok(merged(places))
}

/// The places in order, as one where they overlap, which they do only in a file that is not right.
fn merged(mut places: Vec<Range<u64>>) -> Vec<Range<u64>> {
    places.sort_unstable_by_key(|place| place.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(places.len());
    for place in places {
        match merged.last_mut().filter(|last| place.start < last.end) {
            Some(last) => last.end = last.end.max(place.end),
            None => merged.push(place),
        }
    }
    merged
}

/// Whether the bytes at `range` are pages of a column chunk, and not a Bloom filter.
fn are_pages(chunks: &[Range<u64>], range: &Range<u64>) -> bool {
    let after = chunks.partition_point(|chunk| chunk.start <= range.start);
    after.checked_sub(1).is_some_and(|index| range.start < chunks[index].end)
}

fn check(chunks: &[Range<u64>], ranges: &[Range<u64>], parts: &[Bytes]) -> ParquetResult<()> {
    for (range, bytes) in ranges.iter().zip(parts) {
        if are_pages(chunks, range) {
            files::check_pages(bytes).map_err(ParquetError::General)?;
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
        self.inner.get_metadata(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_told_from_the_rest_of_the_file() {
        let chunks = merged(vec![20..30, 4..10, 10..10, 22..24]);
        for inside in [4..10, 6..8, 20..25, 29..30] {
            assert!(are_pages(&chunks, &inside), "{inside:?}");
        }
        for outside in [0..4, 12..20, 30..40] {
            assert!(!are_pages(&chunks, &outside), "{outside:?}");
        }
    }
}
