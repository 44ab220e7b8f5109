//! From a table's files to a table that DataFusion can scan.

use std::path::Path as FsPath;
use std::sync::Arc;

use arrow_schema::{DataType, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use url::Url;

use super::OpenError;
use super::store::Root;
use crate::catalog::{CatalogError, Compression, Format, TableSpec};

/// The location of a table, as a path of the object store.
pub(super) fn root(spec: &TableSpec) -> Result<Root, OpenError> {
    let may_be_empty = matches!(spec.format, Format::Csv | Format::Json) && spec.compression == Compression::None;
    Ok(Root {
        path: url_of(&spec.path, spec.is_directory)?.prefix().clone(),
        never_empty: (!may_be_empty).then(|| spec.suffix.clone()),
    })
}

// Not by `ListingTableUrl::parse`: `*`, `?` and `[` in a configured path are literal.
fn url_of(path: &FsPath, is_directory: bool) -> Result<ListingTableUrl, OpenError> {
    let url = if is_directory { Url::from_directory_path(path) } else { Url::from_file_path(path) };
    url.ok()
        .and_then(|url| ListingTableUrl::try_new(url, None).ok())
        .ok_or_else(|| OpenError::Internal(format!("{} cannot be written as a URL", path.display())))
}

/// Reads the schema of every file of a table, and makes a table of the files.
pub(super) async fn open(state: &SessionState, spec: &TableSpec) -> Result<Arc<dyn TableProvider>, OpenError> {
    let url = url_of(&spec.path, spec.is_directory)?;
    let partition_columns = spec.partition_columns.iter().map(|name| (name.clone(), DataType::Utf8)).collect();
    let options = ListingOptions::new(format(spec))
        .with_file_extension(spec.suffix.clone())
        .with_table_partition_cols(partition_columns);
    let schema = match options.infer_schema(state, &url).await {
        Ok(schema) => schema,
        Err(e) => return Err(culprit(state, spec, &options, e).await?.into()),
    };
    check_columns(spec, &schema)?;
    let config = ListingTableConfig::new(url).with_listing_options(options).with_schema(schema);
    let table = ListingTable::try_new(config).map_err(|e| OpenError::Internal(e.strip_backtrace()))?;
    let statistics = state.runtime_env().cache_manager.get_file_statistic_cache();
    Ok(Arc::new(table.with_cache(statistics)))
}

fn format(spec: &TableSpec) -> Arc<dyn FileFormat> {
    let compression = match spec.compression {
        Compression::None => FileCompressionType::UNCOMPRESSED,
        Compression::Gzip => FileCompressionType::GZIP,
        Compression::Bzip2 => FileCompressionType::BZIP2,
        Compression::Xz => FileCompressionType::XZ,
        Compression::Zstd => FileCompressionType::ZSTD,
    };
    match spec.format {
        Format::Parquet => Arc::new(ParquetFormat::default()),
        Format::Csv => Arc::new(
            CsvFormat::default()
                .with_has_header(spec.header)
                .with_delimiter(spec.delimiter)
                .with_newlines_in_values(spec.quoted_newlines)
                .with_file_compression_type(compression),
        ),
        Format::Json => Arc::new(JsonFormat::default().with_file_compression_type(compression)),
        Format::Arrow => Arc::new(ArrowFormat),
    }
}

/// The file that could not be read, because DataFusion's error does not name it.
async fn culprit(
    state: &SessionState,
    spec: &TableSpec,
    options: &ListingOptions,
    error: DataFusionError,
) -> Result<CatalogError, OpenError> {
    for file in &spec.files {
        if let Err(e) = options.infer_schema(state, &url_of(file, false)?).await {
            return Ok(CatalogError::Corrupt {
                table: spec.name.clone(),
                path: file.clone(),
                format: spec.format.as_str(),
                reason: e.strip_backtrace(),
            });
        }
    }
    // Each file by itself is valid.
    Ok(CatalogError::SchemaMismatch {
        table: spec.name.clone(),
        path: spec.path.clone(),
        reason: error.strip_backtrace(),
    })
}

fn check_columns(spec: &TableSpec, schema: &SchemaRef) -> Result<(), CatalogError> {
    if schema.fields().is_empty() && spec.partition_columns.is_empty() {
        return Err(CatalogError::NoColumns { table: spec.name.clone(), path: spec.path.clone() });
    }
    match spec.partition_columns.iter().find(|column| schema.column_with_name(column).is_some()) {
        Some(column) => Err(CatalogError::SchemaMismatch {
            table: spec.name.clone(),
            path: spec.path.clone(),
            reason: format!("`{column}` is a column of both the files and the directories' names"),
        }),
        None => Ok(()),
    }
}
