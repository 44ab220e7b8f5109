//! A table as it was when a query was planned.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError};

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DFSchema, ScalarValue, Statistics, project_schema};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::listing::helpers::expr_applicable_for_cols;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::FutureExt;

use super::error;
use super::files::{Inspected, OwnSource};
use super::opened::{Opened, object_meta, parquet_format};
use super::parquet_columns::ExactColumns;
use super::parquet_reader::CheckedFactory;
use crate::catalog::{CatalogError, Format};

/// The provider of a table's rows.
#[derive(Debug)]
pub(super) struct FilesTable {
    pub(super) opened: Arc<Opened>,
    schema: SchemaRef,
}

impl FilesTable {
    pub(super) fn new(opened: Arc<Opened>) -> Self {
        let schema = opened.schema();
        FilesTable { opened, schema }
    }

    fn partition_names(&self) -> Vec<&str> {
        self.opened.partition_fields.iter().map(|field| field.name().as_str()).collect()
    }

    fn is_by_partition(&self, filter: &Expr) -> bool {
        let names = self.partition_names();
        !names.is_empty() && expr_applicable_for_cols(&names, filter)
    }

    /// Parquet, read with checks. As `ParquetFormat::create_physical_plan` does it, which sets a reader of its own.
    fn parquet_source(&self, state: &dyn Session, format: &ParquetFormat, table: TableSchema) -> Result<ParquetSource> {
        let environment = state.runtime_env();
        let store = environment.object_store(super::store::url())?;
        let cache = environment.cache_manager.get_file_metadata_cache();
        let factory =
            CheckedFactory::new(CachedParquetFileReaderFactory::new(store, cache), Arc::clone(&self.opened.chunks));
        Ok(ParquetSource::new(table)
            .with_table_parquet_options(format.options().clone())
            .with_parquet_file_reader_factory(Arc::new(factory)))
    }

    /// The values of the columns of the directories' names.
    fn partition_values(&self, file: &Inspected) -> Result<Vec<ScalarValue>> {
        let fields = self.opened.partition_fields.iter();
        let value = |(field, text): (&Arc<arrow_schema::Field>, &Option<String>)| match text {
            None => ScalarValue::try_from(field.data_type()),
            Some(text) => ScalarValue::Utf8(Some(text.clone())).cast_to(field.data_type()),
        };
        fields.zip(&file.file.partition).map(value).collect()
    }

    /// The files whose partitions satisfy the filters.
    fn pruned(&self, state: &dyn Session, filters: &[Expr]) -> Result<Vec<(Arc<Inspected>, Vec<ScalarValue>)>> {
        let mut files = Vec::new();
        for file in &self.opened.files {
            files.push((Arc::clone(file), self.partition_values(file)?));
        }
        let partition_schema = Arc::new(Schema::new(self.opened.partition_fields.clone()));
        for filter in filters.iter().filter(|filter| self.is_by_partition(filter)) {
            if files.is_empty() {
                break;
            }
            let filter =
                state.create_physical_expr(filter.clone(), &DFSchema::try_from(Arc::clone(&partition_schema))?)?;
            let columns: Vec<ArrayRef> = (0..partition_schema.fields().len())
                .map(|column| ScalarValue::iter_to_array(files.iter().map(|(_, values)| values[column].clone())))
                .collect::<Result<_>>()?;
            let options = RecordBatchOptions::new().with_row_count(Some(files.len()));
            let batch = RecordBatch::try_new_with_options(Arc::clone(&partition_schema), columns, &options)?;
            let kept = filter.evaluate(&batch)?.into_array(files.len())?;
            let Some(kept) = kept.as_any().downcast_ref::<BooleanArray>() else { continue };
            let mut keep = kept.iter();
            files.retain(|_| keep.next().flatten() == Some(true));
        }
        Ok(files)
    }

    async fn partitioned(
        &self,
        state: &dyn Session,
        file: Arc<Inspected>,
        values: Vec<ScalarValue>,
    ) -> Result<PartitionedFile> {
        let meta = object_meta(&file.file)?;
        let statistics = match self.opened.spec.format {
            Format::Parquet => Some(self.statistics(state, &file).await?),
            _ => None,
        };
        // DataFusion takes the value of a directory's name for one of a row, as the least or greatest of its column. It
        // is none if it is NULL, or if the file has no rows.
        let has_no_value = values.iter().any(ScalarValue::is_null)
            || statistics.as_ref().is_some_and(|statistics| statistics.num_rows == Precision::Exact(0));
        let part = PartitionedFile::new_from_meta(meta).with_partition_values(values).with_extension(file);
        Ok(match statistics {
            Some(statistics) if has_no_value => {
                let columns = vec![ColumnStatistics::new_unknown(); self.schema.fields().len()];
                let statistics = Statistics { column_statistics: columns, ..Statistics::clone(&statistics) };
                PartitionedFile { statistics: Some(Arc::new(statistics)), ..part }
            }
            Some(statistics) => part.with_statistics(statistics),
            None => part,
        })
    }

    /// Statistics of a Parquet file, for planning. They never decide a value of a result: DataFusion answers
    /// `min(CAST(x AS int))` from the extremes of the text `x` (its issue 25221), and extremes leave NaN out (15812).
    /// So only the numbers of rows and of NULLs are exact.
    async fn statistics(&self, state: &dyn Session, file: &Inspected) -> Result<Arc<Statistics>> {
        let path = &file.file.path;
        let cache = || self.opened.statistics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache().get(path) {
            return Ok(Arc::clone(known));
        }
        let store = state.runtime_env().object_store(super::store::url())?;
        let meta = object_meta(&file.file)?;
        let table = Arc::clone(&self.opened.file_schema);
        // Extremes of another length than their type's make the reader panic.
        let format = parquet_format(true);
        let read = AssertUnwindSafe(format.infer_stats(state, &store, Arc::clone(&table), &meta)).catch_unwind().await;
        let mut statistics = read.unwrap_or_else(|panic| {
            let (table, path) = (self.opened.spec.name.clone(), path.clone());
            let reason = format!("its statistics contradict its types{}", error::about_data(&*panic));
            Err(DataFusionError::External(Box::new(CatalogError::Corrupt {
                table,
                path,
                format: Format::Parquet.as_str(),
                reason,
            })))
        })?;
        for (column, field) in statistics.column_statistics.iter_mut().zip(table.fields()) {
            let is_same =
                file.schema.field_with_name(field.name()).is_ok_and(|own| own.data_type() == field.data_type());
            let null_count = column.null_count;
            *column = if is_same && !field.data_type().is_floating() {
                column.clone().to_inexact()
            } else {
                ColumnStatistics::new_unknown()
            };
            if is_same {
                column.null_count = null_count;
            }
        }
        let statistics = Arc::new(statistics);
        cache().insert(path.clone(), Arc::clone(&statistics));
        Ok(statistics)
    }
}

#[async_trait]
impl TableProvider for FilesTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let support = |filter: &&Expr| {
            if self.is_by_partition(filter) {
                return TableProviderFilterPushDown::Exact;
            }
            match self.opened.spec.format {
                Format::Parquet => TableProviderFilterPushDown::Inexact,
                _ => TableProviderFilterPushDown::Unsupported,
            }
        };
        Ok(filters.iter().map(support).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut parts = Vec::new();
        let pruned = self.pruned(state, filters)?;
        for (file, values) in pruned {
            parts.push(self.partitioned(state, file, values).await?);
        }
        if parts.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(&self.schema, projection)?)));
        }
        let opened = &self.opened;
        let table_schema = TableSchema::builder(Arc::clone(&opened.file_schema))
            .with_table_partition_cols(opened.partition_fields.clone())
            .build();
        let is_parquet = opened.spec.format == Format::Parquet;
        // The extremes of a row group leave NaN out, which is greater than every number: a filter by a float must not
        // skip a row group (DataFusion issue 15812).
        let by_float = filters.iter().any(|filter| {
            filter.column_refs().iter().any(|column| {
                self.schema.field_with_name(&column.name).is_ok_and(|field| field.data_type().is_floating())
            })
        });
        let format = parquet_format(!by_float);
        let source: Arc<dyn FileSource> = match is_parquet {
            true => Arc::new(self.parquet_source(state, &format, table_schema)?),
            false => Arc::new(OwnSource::new(Arc::clone(&opened.spec), table_schema, &opened.files)),
        };
        let groups = FileGroup::new(parts).split_files(state.config().target_partitions());
        let (groups, statistics) = match is_parquet {
            true => datafusion_datasource::compute_all_files_statistics(groups, Arc::clone(&self.schema), true, false)?,
            false => (groups, Statistics::new_unknown(&self.schema)),
        };
        let config = FileScanConfigBuilder::new(super::store::url(), source)
            .with_expr_adapter(is_parquet.then(|| Arc::new(ExactColumns::new(Arc::clone(opened))) as _))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}
