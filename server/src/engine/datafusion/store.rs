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
