//! Reads parts of Parquet files, and checks pages before they are decoded.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::error::Result;
use datafusion::object_store::path::Path;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::parquet::errors::{ParquetError, Result as ParquetResult};
use datafusion::parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::files;
use super::parquet_chunks::{Chunk, KnownChunks, chunk_at, names_page_indexes};

/// Readers that check what they read.
pub(super) struct CheckedFactory {
    inner: CachedParquetFileReaderFactory,
    known: Arc<KnownChunks>,
}

impl CheckedFactory {
    /// `known` outlives the factory, which is made for one query.
    pub(super) fn new(inner: CachedParquetFileReaderFactory, known: Arc<KnownChunks>) -> Self {
        CheckedFactory { inner, known }
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
        let (known, path) = (Arc::clone(&self.known), file.object_meta.location.clone());
        let inner = self.inner.create_reader(partition, file, metadata_size_hint, metrics)?;
        Ok(Box::new(Checked { inner, known, path, chunks: None }))
    }
}

struct Checked {
    inner: Box<dyn AsyncFileReader + Send>,
    known: Arc<KnownChunks>,
    path: Path,
    /// The column chunks of the file, once the metadata was read.
    chunks: Option<Arc<[Chunk]>>,
}

impl Checked {
    async fn chunks(&mut self) -> ParquetResult<Arc<[Chunk]>> {
        if self.chunks.is_none() {
            self.get_metadata(None).await?;
        }
        Ok(self.chunks.clone().unwrap_or_default())
    }

    /// The metadata, with the indexes of pages if the file has them. DataFusion would read them later, without this
    /// reader, and read pages at places that were never checked.
    async fn metadata(&mut self, options: Option<&ArrowReaderOptions>) -> ParquetResult<Arc<ParquetMetaData>> {
        let metadata = self.inner.get_metadata(options).await?;
        let has_indexes = metadata.offset_index().is_some() && metadata.column_index().is_some();
        if has_indexes || !names_page_indexes(&metadata) {
            return Ok(metadata);
        }
        let options = options.cloned().unwrap_or_default().with_page_index_policy(PageIndexPolicy::Optional);
        self.inner.get_metadata(Some(&options)).await
    }
}

/// Checks the pages of the chunk that the range begins in: one after the other, as the reader of `parquet` takes them
/// without an index, and each at its place in the index.
fn check_range(chunk: &Chunk, range: &Range<u64>, bytes: &[u8]) -> std::result::Result<(), String> {
    files::check_pages(bytes, chunk.ratio)?;
    let within = |at: u64| usize::try_from(at - range.start).map_or(bytes.len(), |at| at.min(bytes.len()));
    let first = chunk.pages.partition_point(|page| page.start < range.start);
    for page in chunk.pages[first..].iter().take_while(|page| page.start < range.end) {
        files::check_page(&bytes[within(page.start)..within(page.end)], chunk.ratio)?;
    }
    Ok(())
}

fn check(chunks: &[Chunk], ranges: &[Range<u64>], parts: &[Bytes]) -> ParquetResult<()> {
    for (range, bytes) in ranges.iter().zip(parts) {
        if let Some(chunk) = chunk_at(chunks, range.start) {
            check_range(chunk, range, bytes).map_err(ParquetError::General)?;
        }
    }
    Ok(())
}

/// Refuses ranges that do not begin in a column chunk: their pages are not checked.
fn check_places(chunks: &[Chunk], ranges: &[Range<u64>]) -> ParquetResult<()> {
    match ranges.iter().find(|range| !range.is_empty() && chunk_at(chunks, range.start).is_none()) {
        Some(range) => Err(ParquetError::General(format!("a page at bytes {range:?} is in no column"))),
        None => Ok(()),
    }
}

impl AsyncFileReader for Checked {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move {
            let bytes = self.inner.get_bytes(range.clone()).await?;
            check(&self.chunks().await?, &[range], std::slice::from_ref(&bytes))?;
            Ok(bytes)
        }
        .boxed()
    }

    /// Pages; indexes and Bloom filters are read by `get_bytes`.
    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move {
            let chunks = self.chunks().await?;
            check_places(&chunks, &ranges)?;
            let parts = self.inner.get_byte_ranges(ranges.clone()).await?;
            check(&chunks, &ranges, &parts)?;
            Ok(parts)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let metadata = self.metadata(options).await?;
            self.chunks = Some(self.known.of(&self.path, &metadata)?);
            Ok(metadata)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of three bytes, or one that says that it becomes 2^31 - 1 bytes large.
    fn page(is_bad: bool) -> Vec<u8> {
        let size: &[u8] = if is_bad { &[0xfe, 0xff, 0xff, 0xff, 0x0f] } else { &[6] };
        [&[0x15, 0, 0x15], size, &[0x15, 6, 0], &[0xff; 3]].concat()
    }

    #[test]
    fn pages_are_checked_at_their_places_in_the_index() {
        // A page that has another one in its bytes.
        let bad = page(true);
        let size = bad.len() as u8;
        let outer = [&[0x15, 0, 0x15, size * 2, 0x15, size * 2, 0], &bad[..]].concat();
        let bytes = Bytes::from([page(false), outer].concat());
        let (first, end) = (page(false).len() as u64, bytes.len() as u64);
        let place = 100..100 + end;
        let inner = 100 + end - bad.len() as u64;
        let chunk = |pages| Chunk { place: place.clone(), ratio: 32, pages };
        let checked = |pages| check(&[chunk(pages)], std::slice::from_ref(&place), std::slice::from_ref(&bytes));
        assert!(checked(vec![]).is_ok());
        assert!(checked(vec![100..100 + first, 100 + first..100 + end]).is_ok());
        assert!(checked(vec![100..100 + first, inner..100 + end]).is_err());
        assert!(checked(vec![100..100 + first, inner..500]).is_err());
    }

    #[test]
    fn pages_are_in_a_column() {
        let chunks = [Chunk { place: 4..10, ratio: 1, pages: Vec::new() }];
        assert!(check_places(&chunks, &[4..6, 9..10, 20..20]).is_ok());
        for bad in [0..4, 10..12, 20..21] {
            assert!(check_places(&chunks, &[4..6, bad]).is_err());
        }
    }
}
