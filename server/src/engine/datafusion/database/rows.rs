//! Rows on their way into a data file: one batch is written while the next one is made.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::super::error::of_join;
use super::disk::Disk;
use super::holds::format_of;
use super::name::Name;
use super::stored_file::StoredFile;
use super::table_file::TableFile;
use crate::engine::EngineError;

/// The end that takes rows. Dropping it discards them.
pub(super) struct RowsIn {
    handle: Handle,
    /// `None` after an error.
    file: Option<Progress>,
}

enum Progress {
    Idle(TableFile),
    /// A thread that may block writes a batch.
    Writing(JoinHandle<Result<TableFile, EngineError>>),
}

impl Progress {
    async fn idle(self) -> Result<TableFile, EngineError> {
        match self {
            Progress::Idle(file) => Ok(file),
            Progress::Writing(task) => task.await.unwrap_or_else(|e| Err(of_join(e))),
        }
    }
}

impl RowsIn {
    pub(super) fn new(handle: Handle, disk: Arc<Disk>, table: Name, schema: SchemaRef) -> Self {
        let format = format_of(&schema);
        RowsIn { handle, file: Some(Progress::Idle(TableFile::new(disk, table, schema, format))) }
    }

    /// Takes a batch with the columns of the table. It is written later: its error is that of the next call.
    pub(super) async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        let mut file = self.idle().await?;
        // One step a batch: an upload whose client is slow holds no thread.
        let task = self.handle.spawn_blocking(move || file.write(&batch).map(|()| file));
        self.file = Some(Progress::Writing(task));
        Ok(())
    }

    /// Completes the file. `None`: there were no rows.
    pub(super) async fn finish(mut self) -> Result<Option<StoredFile>, EngineError> {
        let file = self.idle().await?;
        self.handle.spawn_blocking(move || file.finish()).await.unwrap_or_else(|e| Err(of_join(e)))
    }

    async fn idle(&mut self) -> Result<TableFile, EngineError> {
        let over = || EngineError::Internal { message: "rows were added to a table after an error".to_owned() };
        self.file.take().ok_or_else(over)?.idle().await
    }
}
