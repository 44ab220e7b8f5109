//! The data files of a table, looked at before they are read.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::execution::session_state::SessionState;

use super::super::files::Inspected;
use super::super::opened::Opened;
use super::super::tables;
use super::Database;
use super::name::Name;
use super::snapshot::StoredTable;
use super::stored_file::StoredFile;
use crate::catalog::{CatalogError, Compression, DataFile, Format, Policy, Stamp, TableSpec};
use crate::config::TableConfig;

impl Database {
    /// The table for queries. Its files are looked at once.
    pub(super) async fn opened(
        &self,
        state: &SessionState,
        name: &Name,
        table: &StoredTable,
    ) -> Result<Arc<Opened>, CatalogError> {
        let opened = table.opened.get_or_try_init(async || self.open_files(state, name, table).await.map(Arc::new));
        opened.await.map(Arc::clone)
    }

    async fn open_files(&self, state: &SessionState, name: &Name, table: &StoredTable) -> Result<Opened, CatalogError> {
        let data = self.disk.data();
        let files = table.files.iter().map(|file| data_file(name, file)).collect::<Result<Vec<_>, _>>()?;
        let spec = Arc::new(TableSpec {
            name: name.to_string(),
            path: data.to_owned(),
            is_directory: true,
            format: table.format,
            files,
            partition_columns: Vec::new(),
            config: TableConfig::at(data),
            policy: Policy::Strict,
        });
        let known = |file: &DataFile| {
            let before = table.before.as_ref()?;
            before.files.iter().find(|known| known.file == *file).map(Arc::clone)
        };
        let mut inspected = Vec::with_capacity(spec.files.len());
        for file in &spec.files {
            inspected.push(match known(file) {
                Some(known) => known,
                None => Arc::new(self.look(state, &spec, table, file.clone()).await?),
            });
        }
        let before = table.before.as_ref();
        let statistics = before.map(|before| before.statistics.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Ok(Opened {
            spec,
            file_schema: Arc::clone(&table.schema),
            partition_fields: Vec::new(),
            files: inspected,
            skipped: Vec::new(),
            statistics: Mutex::new(statistics.unwrap_or_default()),
            chunks: before.map(|before| Arc::clone(&before.chunks)).unwrap_or_default(),
            _kept: table.files.clone(),
        })
    }

    async fn look(
        &self,
        state: &SessionState,
        spec: &Arc<TableSpec>,
        table: &StoredTable,
        file: DataFile,
    ) -> Result<Inspected, CatalogError> {
        let found = tables::look(state, spec, file).await?;
        // DataFusion reads text of Parquet as views, unless the table has another type.
        Ok(match table.format {
            Format::Parquet => Inspected::whole(found.file, Arc::clone(&table.schema)),
            _ => found,
        })
    }
}

fn data_file(table: &Name, file: &StoredFile) -> Result<DataFile, CatalogError> {
    let path = file.path();
    let stamp = Stamp::of(&path).map_err(|e| CatalogError::of_io(Some(&table.to_string()), &path, e))?;
    if stamp.len != file.bytes {
        let (len, expected) = (stamp.len, file.bytes);
        let reason = format!("it has {len} bytes, and was written with {expected}");
        let format = if file.name.ends_with(".parquet") { Format::Parquet } else { Format::Arrow };
        return Err(CatalogError::Corrupt { table: table.to_string(), path, format: format.as_str(), reason });
    }
    Ok(DataFile { path, compression: Compression::None, delimiter: b',', partition: Vec::new(), stamp })
}
