//! Reads files of text and of Arrow IPC as one of DataFusion's sources.

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::{DataFusionError, Result};
use datafusion::object_store::ObjectStore;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::stream::{self, StreamExt};

use super::adapt::Adapter;
use super::error::{Batches, ReadError};
use super::inspect::{Division, Inspected, csv_options};
use super::ipc_limits::IPC_LIMITS;
use super::{csv, ipc, json};
use crate::catalog::{CatalogError, Format, TableSpec};
use crate::engine::slices;

/// The files of one table. Each file has an [`Inspected`] as extension.
#[derive(Clone)]
pub(in super::super) struct OwnSource {
    spec: Arc<TableSpec>,
    table_schema: TableSchema,
    projection: SplitProjection,
    batch_rows: usize,
    divisible: bool,
    metrics: ExecutionPlanMetricsSet,
}

impl OwnSource {
    /// A source of the files of `spec`. `divisible`: every file can be read in parts.
    pub(in super::super) fn new(spec: Arc<TableSpec>, table_schema: TableSchema, files: &[Arc<Inspected>]) -> Self {
        OwnSource {
            spec,
            projection: SplitProjection::unprojected(&table_schema),
            table_schema,
            batch_rows: 8192,
            divisible: files.iter().all(|file| file.can_be_divided()),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

impl FileSource for OwnSource {
    fn create_file_opener(&self, _: Arc<dyn ObjectStore>, _: &FileScanConfig, _: usize) -> Result<Arc<dyn FileOpener>> {
        let file_schema = self.table_schema.file_schema();
        let wanted = Arc::new(file_schema.project(&self.projection.file_indices)?);
        let opener = Opener {
            spec: Arc::clone(&self.spec),
            table: Arc::clone(file_schema),
            wanted,
            batch_rows: self.batch_rows,
        };
        let schema = self.projection.source.project_schema(self.table_schema.table_schema())?;
        let inner = ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), file_schema)?;
        Ok(Arc::new(ExactSchema { inner, schema: Arc::new(schema) }))
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_rows: usize) -> Arc<dyn FileSource> {
        Arc::new(OwnSource { batch_rows, ..self.clone() })
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        let merged = self.projection.source.try_merge(projection)?;
        let projection = SplitProjection::new(self.table_schema.file_schema(), &merged);
        Ok(Some(Arc::new(OwnSource { projection, ..self.clone() })))
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &str {
        self.spec.format.as_str()
    }

    fn supports_repartitioning(&self) -> bool {
        self.divisible
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        datafusion::physical_plan::apply_expression_roots(self.projection.source.iter(), f)
    }
}

impl fmt::Debug for OwnSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnSource").field("table", &self.spec.name).finish_non_exhaustive()
    }
}

/// Gives every batch the schema of the scan. In the projection's schema, a column of the directories' names may be NULL
/// only if it is NULL in this file. DataFusion's sorts with a limit take the schema of any batch for that of all.
struct ExactSchema {
    inner: Arc<dyn FileOpener>,
    schema: SchemaRef,
}

impl FileOpener for ExactSchema {
    fn open(&self, part: PartitionedFile) -> Result<FileOpenFuture> {
        let (opened, schema) = (self.inner.open(part)?, Arc::clone(&self.schema));
        Ok(Box::pin(async move {
            let batches = opened.await?;
            Ok(batches.map(move |batch| with_schema(&batch?, &schema)).boxed())
        }))
    }
}

fn with_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)?)
}

struct Opener {
    spec: Arc<TableSpec>,
    /// All columns of the table's files.
    table: SchemaRef,
    /// The columns to read.
    wanted: SchemaRef,
    batch_rows: usize,
}

impl FileOpener for Opener {
    fn open(&self, part: PartitionedFile) -> Result<FileOpenFuture> {
        let Some(file) = part.extension::<Arc<Inspected>>().map(Arc::clone) else {
            return Err(DataFusionError::Internal("a file that was not looked at".to_owned()));
        };
        let range = part.range.as_ref().map(|range| {
            let byte = |at: i64| u64::try_from(at).unwrap_or(0);
            byte(range.start)..byte(range.end)
        });
        let (spec, table, wanted) = (Arc::clone(&self.spec), Arc::clone(&self.table), Arc::clone(&self.wanted));
        let batch_rows = self.batch_rows;
        let reader = FileReader { spec: Arc::clone(&spec), file: Arc::clone(&file), batches: None };
        Ok(Box::pin(async move {
            let open = move |reader: &mut FileReader| {
                let part = Part { spec: &reader.spec, file: &reader.file, table: &table, wanted: &wanted };
                reader.batches = Some(part.read(batch_rows, range)?);
                Ok(())
            };
            let (reader, opened) = blocking(reader, open).await?;
            opened?;
            // One step a batch: a file whose rows are not wanted yet holds no thread.
            let batches = stream::try_unfold(reader, async |reader| {
                let (reader, next) = blocking(reader, |reader| reader.next()).await?;
                Ok(next?.map(|batch| (batch, reader)))
            });
            Ok(batches.boxed())
        }))
    }
}

/// A file that is being read.
struct FileReader {
    spec: Arc<TableSpec>,
    file: Arc<Inspected>,
    batches: Option<Batches>,
}

impl FileReader {
    fn next(&mut self) -> Result<Option<RecordBatch>, ReadError> {
        self.batches.as_mut().and_then(Iterator::next).transpose()
    }
}

/// Runs a step on a thread that may block. The second result is that of the step.
async fn blocking<T: Send + 'static>(
    mut reader: FileReader,
    step: impl FnOnce(&mut FileReader) -> Result<T, ReadError> + Send + 'static,
) -> Result<(FileReader, Result<T>)> {
    let stepped = tokio::task::spawn_blocking(move || {
        // Decoders are known to panic on inconsistent input.
        let done = catch_unwind(AssertUnwindSafe(|| step(&mut reader)))
            .unwrap_or_else(|_| Err(ReadError::invalid("its content contradicts itself")));
        let done = done.map_err(|e| {
            let (table, path) = (reader.spec.name.clone(), reader.file.file.path.clone());
            DataFusionError::External(Box::new(match e {
                ReadError::Io(source) => CatalogError::of_io(Some(&table), &path, source),
                ReadError::Invalid { .. } => {
                    CatalogError::Corrupt { table, path, format: reader.spec.format.as_str(), reason: e.to_string() }
                }
            }))
        });
        (reader, done)
    });
    stepped.await.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))
}

/// A file, or a part of it.
struct Part<'a> {
    spec: &'a TableSpec,
    file: &'a Inspected,
    table: &'a SchemaRef,
    wanted: &'a SchemaRef,
}

impl Part<'_> {
    fn read(&self, batch_rows: usize, range: Option<Range<u64>>) -> Result<Batches, ReadError> {
        let path = &self.file.file.path;
        match self.spec.format {
            Format::Csv => {
                let options = csv_options(self.spec, &self.file.file);
                let (indices, projected) = self.in_file();
                let batches = csv::read(path, &options, &self.as_in_table(), Some(&indices), batch_rows, range)?;
                self.adapted(batches, &projected(&self.as_in_table()))
            }
            Format::Json => {
                let options = json::JsonOptions { compression: self.file.file.compression };
                // Keys that the file lacks are NULL.
                json::read(path, &options, self.wanted, batch_rows, range)
            }
            Format::Arrow => {
                let (indices, projected) = self.in_file();
                let batches = self.batches(range);
                let batches = ipc::read(path, &self.file.schema, Some(&indices), batches, &IPC_LIMITS)?;
                let slices = batches.flat_map(move |batch| slices(batch, batch_rows.max(1)));
                self.adapted(Box::new(slices), &projected(&self.file.schema))
            }
            Format::Parquet => Err(ReadError::invalid("Parquet has a reader of its own")),
        }
    }

    /// The positions of the wanted columns that the file has, and a function to select them.
    fn in_file(&self) -> (Vec<usize>, impl Fn(&SchemaRef) -> SchemaRef + use<>) {
        let names = self.wanted.fields().iter();
        let indices: Vec<usize> = names.filter_map(|field| self.file.schema.index_of(field.name()).ok()).collect();
        let positions = indices.clone();
        let select = move |schema: &SchemaRef| {
            let fields: Vec<_> = positions.iter().map(|at| Arc::clone(&schema.fields()[*at])).collect();
            Arc::new(Schema::new(fields))
        };
        (indices, select)
    }

    /// The file's columns, with the types that they have in the table: text is parsed to those.
    fn as_in_table(&self) -> SchemaRef {
        let of_table = |field: &Arc<Field>| match self.table.field_with_name(field.name()) {
            Ok(in_table) => Arc::new(Field::new(field.name(), in_table.data_type().clone(), true)),
            Err(_) => Arc::clone(field),
        };
        Arc::new(Schema::new(self.file.schema.fields().iter().map(of_table).collect::<Vec<_>>()))
    }

    /// The record batches that a range of bytes stands for.
    fn batches(&self, range: Option<Range<u64>>) -> Option<Range<usize>> {
        let (Division::Batches(count), Some(range)) = (self.file.division, range) else { return None };
        let len = self.file.file.stamp.len.max(1);
        // Each batch belongs to the range with the byte at its share of the file.
        let first = |byte: u64| {
            let position = u128::from(byte.min(len)) * count as u128;
            usize::try_from(position.div_ceil(u128::from(len))).unwrap_or(count).min(count)
        };
        Some(first(range.start)..first(range.end))
    }

    fn adapted(&self, batches: Batches, read: &SchemaRef) -> Result<Batches, ReadError> {
        let adapter = Adapter::new(read, self.wanted)?;
        Ok(Box::new(batches.map(move |batch| adapter.adapt(&batch?))))
    }
}
