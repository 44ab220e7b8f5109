//! The only access of queries to files: read-only, and only to the tables' own paths.
//!
//! Statements that write are already refused before they are planned; this is a second check.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::path::Path;
use datafusion::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

/// The address of the store in plans.
pub(super) fn url() -> ObjectStoreUrl {
    ObjectStoreUrl::local_filesystem()
}

#[derive(Debug)]
pub(super) struct ReadOnlyStore {
    files: LocalFileSystem,
    /// The tables and the data directories. Other paths are refused.
    roots: Vec<Path>,
}

impl ReadOnlyStore {
    pub(super) fn new(roots: Vec<Path>) -> Self {
        ReadOnlyStore { files: LocalFileSystem::new(), roots }
    }

    /// Refuses a path that is neither a table's nor below one.
    fn check(&self, path: &Path) -> Result<()> {
        if self.roots.iter().any(|root| path.prefix_matches(root)) {
            return Ok(());
        }
        Err(Error::PermissionDenied { path: path.to_string(), source: "it belongs to no table".into() })
    }
}

impl fmt::Display for ReadOnlyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the files of the tables, read-only")
    }
}

fn refused<T>() -> Result<T> {
    Err(Error::NotSupported { source: "the server only reads the files of its tables".into() })
}

/// Refuses ranges that a file of `len` bytes cannot have. They come from the metadata of a Parquet file, and the store
/// allocates a range, filled with zeros, before it reads. Ranges of one request do not overlap in a file that is right.
fn check_ranges(ranges: &[Range<u64>], len: u64) -> Result<()> {
    let mut total = 0_u64;
    for range in ranges {
        let bytes = range.end.checked_sub(range.start).filter(|_| range.end <= len);
        total = match bytes.and_then(|bytes| total.checked_add(bytes)).filter(|total| *total <= len) {
            Some(total) => total,
            None => {
                let (start, end) = (range.start, range.end);
                let reason = format!(
                    "its metadata is not consistent: a part at bytes {start} to {end} does not fit in the file, which \
                     has {len} bytes"
                );
                return Err(Error::Generic { store: "file", source: reason.into() });
            }
        };
    }
    Ok(())
}

#[async_trait]
impl ObjectStore for ReadOnlyStore {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        refused()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        refused()
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.check(location)?;
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.check(location)?;
        // The length costs one more request of the operating system, and one hand-over to a thread that may block, per
        // row group and query. The stamp of the table's file has it too, but this store does not know the tables, and
        // the metadata of a file is read without the reader that knows the stamp.
        let head = GetOptions { head: true, ..GetOptions::default() };
        check_ranges(ranges, self.files.get_opts(location, head).await?.meta.size)?;
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations.and_then(|_| futures::future::ready(refused())).boxed()
    }

    // The files of a table are found without the store.
    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        stream::once(futures::future::ready(refused())).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        refused()
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        refused()
    }

    async fn rename_opts(&self, _: &Path, _: &Path, _: RenameOptions) -> Result<()> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_to_fit_in_the_file() {
        assert!(check_ranges(&[], 0).is_ok());
        assert!(check_ranges(&[0..4, 4..10, 10..10], 10).is_ok());
        let beyond = u64::from(u32::MAX)..1 << 33;
        let backwards = Range { start: 5, end: 4 };
        for ranges in [[0..11, 0..0], [beyond, 0..0], [backwards, 0..0], [0..10, 0..1], [0..u64::MAX, 0..u64::MAX]] {
            assert!(check_ranges(&ranges, 10).is_err(), "{ranges:?}");
        }
    }
}
