//! Uploads to tables of the database.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use thallus_protocol::inline::encode_schema;
use tokio::runtime::Handle;

use super::super::error::of_join;
use super::super::files::check_names;
use super::super::tables::Tables;
use super::create::{Mode, Stored, prepare, store};
use super::error::{changed_meanwhile, invalid, unsupported};
use super::fit::Fit;
use super::holds::format_of;
use super::name::Name;
use super::rows::RowsIn;
use super::{Database, names};
use crate::catalog::Format;
use crate::engine::{EngineError, IngestRequest, Ingestion};

/// A running upload.
struct Upload {
    database: Arc<Database>,
    handle: Handle,
    name: Name,
    mode: Mode,
    /// The columns of the upload.
    upload: SchemaRef,
    /// The columns of the table.
    schema: SchemaRef,
    fit: Fit,
    file: RowsIn,
    rows: u64,
}

/// Begins an upload.
pub(in super::super) async fn begin(
    database: &Arc<Database>,
    tables: &Tables,
    handle: &Handle,
    request: IngestRequest,
) -> Result<Box<dyn Ingestion>, EngineError> {
    if request.temporary {
        return Err(unsupported("temporary tables; every table of this server's database lasts"));
    }
    let name = names::of_upload(&request.table, &request.defaults)?;
    let mode = Mode::from(request.mode);
    check_columns(&request.schema)?;
    let snapshot = database.snapshot();
    let known = prepare(&snapshot, tables, &name, mode).await?;
    let schema = known.unwrap_or_else(|| Arc::clone(&request.schema));
    let fit = Fit::new(&request.schema, &schema, &name)?;
    let file = RowsIn::new(handle.clone(), Arc::clone(&database.disk), name.clone(), Arc::clone(&schema));
    let (database, handle) = (Arc::clone(database), handle.clone());
    Ok(Box::new(Upload { database, handle, name, mode, upload: request.schema, schema, fit, file, rows: 0 }))
}

/// Refuses columns that no table can have.
pub(super) fn check_columns(schema: &SchemaRef) -> Result<(), EngineError> {
    if schema.fields().is_empty() {
        return Err(invalid("a table has at least one column"));
    }
    check_names(schema).map_err(invalid)?;
    super::format::check_schema(schema).map_err(|e| unsupported(format!("a table with these columns: {e}")))?;
    match format_of(schema) {
        Format::Parquet => Ok(()),
        _ => encode_schema(schema).map(|_| ()).map_err(|e| unsupported(format!("a table with these columns: {e}"))),
    }
}

#[async_trait]
impl Ingestion for Upload {
    async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        let types = |schema: &SchemaRef| schema.fields().iter().map(|f| f.data_type().clone()).collect::<Vec<_>>();
        if batch.schema_ref() != &self.upload && types(batch.schema_ref()) != types(&self.upload) {
            return Err(invalid(format!("a batch for table '{}' has other columns than the upload", self.name)));
        }
        let rows = batch.num_rows() as u64;
        let adapted = self.fit.adapt(&batch)?;
        self.file.push(adapted).await?;
        self.rows += rows;
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64, EngineError> {
        let Upload { database, handle, name, mode, schema, file, rows, .. } = *self;
        let file = file.finish().await?.map(Arc::new);
        let commit = move || {
            let stored = database.commit(|draft| match store(draft, &name, &schema, file, mode)? {
                Stored::Misfit => Err(changed_meanwhile(&name)),
                Stored::Done | Stored::Kept => Ok(rows),
            })?;
            tracing::debug!(table = %name, rows, "an upload was stored");
            Ok(stored)
        };
        handle.spawn_blocking(commit).await.unwrap_or_else(|e| Err(of_join(e)))
    }
}
