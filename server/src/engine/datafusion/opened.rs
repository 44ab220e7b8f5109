//! A table whose files were looked at, and its files as DataFusion sees them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arrow_schema::{FieldRef, Fields, Schema, SchemaRef};
use datafusion::common::Statistics;
use datafusion::common::config::TableParquetOptions;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::error::DataFusionError;
use datafusion::object_store::ObjectMeta;
use datafusion::object_store::path::Path as StorePath;

use super::database::StoredFile;
use super::files::Inspected;
use super::parquet_chunks::KnownChunks;
use crate::catalog::{CatalogError, DataFile, Stamp, TableSpec};

/// A table whose files were looked at.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) spec: Arc<TableSpec>,
    /// The columns of the files, without those of the directories' names.
    pub(super) file_schema: SchemaRef,
    pub(super) partition_fields: Vec<FieldRef>,
    pub(super) files: Vec<Arc<Inspected>>,
    /// Files that were skipped when the table was opened, and why.
    pub(super) skipped: Vec<CatalogError>,
    /// Statistics of Parquet files, by path, once a query has needed them.
    pub(super) statistics: Mutex<BTreeMap<PathBuf, Arc<Statistics>>>,
    /// The places of the column chunks of Parquet files.
    pub(super) chunks: Arc<KnownChunks>,
    /// The files of the database, which stay for as long as a query may read them.
    pub(super) _kept: Vec<Arc<StoredFile>>,
}

impl Opened {
    /// Refuses files that have changed since they were looked at.
    pub(super) fn check_unchanged(&self) -> Result<(), CatalogError> {
        for file in &self.files {
            let path = &file.file.path;
            let table = || self.spec.name.clone();
            let now = Stamp::of(path).map_err(|e| CatalogError::of_io(Some(&table()), path, e))?;
            if now != file.file.stamp {
                return Err(CatalogError::Changed { table: table(), path: path.clone() });
            }
        }
        Ok(())
    }

    /// The columns of the table.
    pub(super) fn schema(&self) -> SchemaRef {
        let fields: Vec<FieldRef> =
            self.file_schema.fields().iter().chain(&self.partition_fields).map(Arc::clone).collect();
        Arc::new(Schema::new_with_metadata(Fields::from(fields), self.file_schema.metadata().clone()))
    }
}

/// Parquet as this server reads it: INT96, which some writers use for timestamps, in microseconds, so that the years 1
/// to 9999 fit; the metadata of the schema is kept. `prunes`: row groups and pages are skipped by their extremes.
pub(super) fn parquet_format(prunes: bool) -> ParquetFormat {
    let mut options = TableParquetOptions::default();
    options.global.coerce_int96 = Some("us".to_owned());
    options.global.skip_metadata = false;
    options.global.pruning = prunes;
    options.global.enable_page_index = prunes;
    ParquetFormat::default().with_options(options)
}

/// A file, as DataFusion's store describes it.
pub(super) fn object_meta(file: &DataFile) -> Result<ObjectMeta, DataFusionError> {
    let location = StorePath::from_absolute_path(&file.path)
        .map_err(|e| DataFusionError::Internal(format!("{}: no path of a store: {e}", file.path.display())))?;
    let (seconds, nanos) = file.stamp.modified();
    let nanos = u32::try_from(nanos).unwrap_or(0);
    Ok(ObjectMeta {
        location,
        last_modified: chrono::DateTime::from_timestamp(seconds, nanos).unwrap_or_default(),
        size: file.stamp.len,
        e_tag: None,
        version: None,
    })
}
