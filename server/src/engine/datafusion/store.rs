//! The only access of queries to files: read-only, and only to the tables' own paths.
//!
//! Statements that write are already refused before they are planned; this is a second check. The store also
//! distinguishes a removed or emptied file from an empty table, unlike the plain local store: there, the listing of a
//! missing path is empty, DataFusion skips files without bytes, and a query would return no rows.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::object_store::local::LocalFileSystem;
use datafusion::object_store::path::Path;
use datafusion::object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use crate::catalog::is_hidden;

/// The location of a table's files.
#[derive(Clone, Debug)]
pub(super) struct Root {
    /// The file, or the directory of the files.
    pub(super) path: Path,
    /// Suffix of the files if their format has no file without bytes; `None` if the format has (CSV, JSON).
    pub(super) never_empty: Option<String>,
}

impl Root {
    /// Refuses an emptied file of the table.
    fn not_emptied(&self, file: ObjectMeta) -> Result<ObjectMeta> {
        match &self.never_empty {
            Some(suffix) if file.size == 0 && file.location.as_ref().ends_with(suffix.as_str()) => {
                Err(Error::Precondition { path: file.location.to_string(), source: "it is empty now".into() })
            }
            _ => Ok(file),
        }
    }
}

#[derive(Debug)]
pub(super) struct ReadOnlyStore {
    files: LocalFileSystem,
    /// The tables. Other paths are refused.
    roots: Vec<Root>,
}

impl ReadOnlyStore {
    pub(super) fn new(roots: Vec<Root>) -> Self {
        ReadOnlyStore { files: LocalFileSystem::new(), roots }
    }

    /// The table of a path: the path is the table's, or below it.
    fn root_of(&self, path: &Path) -> Result<&Root> {
        self.roots
            .iter()
            .find(|root| path.prefix_matches(&root.path))
            .ok_or_else(|| Error::PermissionDenied { path: path.to_string(), source: "it belongs to no table".into() })
    }

    fn list_table(&self, prefix: Option<&Path>) -> Result<BoxStream<'static, Result<ObjectMeta>>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let root = self.root_of(&prefix)?.clone();
        std::fs::metadata(self.files.path_to_filesystem(&prefix)?).map_err(|e| not_readable(&prefix, e))?;
        let files = self.files.list(Some(&prefix)).try_filter_map(move |file| {
            let below = file.location.prefix_match(&root.path);
            let hidden = below.is_some_and(|mut parts| parts.any(|part| is_hidden(part.as_ref())));
            let visible = if hidden { Ok(None) } else { root.not_emptied(file).map(Some) };
            futures::future::ready(visible)
        });
        Ok(files.boxed())
    }
}

impl fmt::Display for ReadOnlyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the files of the tables, read-only")
    }
}

fn not_readable(path: &Path, error: std::io::Error) -> Error {
    let path = path.to_string();
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { path, source: error.into() },
        std::io::ErrorKind::PermissionDenied => Error::PermissionDenied { path, source: error.into() },
        _ => Error::Generic { store: "local", source: error.into() },
    }
}

fn refused<T>() -> Result<T> {
    Err(Error::NotSupported { source: "the server's tables are read-only".into() })
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
        let root = self.root_of(location)?;
        let got = self.files.get_opts(location, options).await?;
        root.not_emptied(got.meta.clone())?;
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.root_of(location)?;
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations.and_then(|_| futures::future::ready(refused())).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_table(prefix).unwrap_or_else(|e| stream::once(futures::future::ready(Err(e))).boxed())
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.root_of(prefix.unwrap_or(&Path::default()))?;
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        refused()
    }

    async fn rename_opts(&self, _: &Path, _: &Path, _: RenameOptions) -> Result<()> {
        refused()
    }
}
