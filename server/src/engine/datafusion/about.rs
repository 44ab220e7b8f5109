//! The schema `server`: the tables that are served, and the files that were skipped, as tables. `thallus tables` shows
//! them. Reading them opens no file.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::TableType;

use super::paths::Directories;
use super::tables::Tables;

/// Name of the schema.
pub(super) const SCHEMA: &str = "server";
const TABLES: &str = "tables";
const SKIPPED: &str = "skipped";

/// The schema.
#[derive(Debug)]
pub(super) struct About {
    pub(super) tables: Arc<Tables>,
    pub(super) directories: Arc<Directories>,
}

impl About {
    fn served(&self) -> Result<RecordBatch> {
        let served = self.tables.all();
        let names: StringArray = served.iter().map(|opened| Some(opened.spec.name.as_str())).collect();
        let formats: StringArray = served.iter().map(|opened| Some(opened.spec.format.as_str())).collect();
        let number = |of: fn(&super::tables::Opened) -> usize| -> ArrayRef {
            Arc::new(served.iter().map(|opened| Some(of(opened) as u64)).collect::<UInt64Array>())
        };
        Ok(RecordBatch::try_from_iter([
            ("name", Arc::new(names) as ArrayRef),
            ("format", Arc::new(formats)),
            ("columns", number(|opened| opened.schema().fields().len())),
            ("files", number(|opened| opened.files.len())),
            ("bytes", number(|opened| opened.files.iter().map(|file| file.file.stamp.len as usize).sum())),
        ])?)
    }

    fn skipped(&self) -> Result<RecordBatch> {
        let rows = self.tables.skipped(|error| {
            let (table, path, reason) = error.parts();
            let path = self.directories.relative(&path.display().to_string()).into_owned();
            (table.map(str::to_owned), path, self.directories.relative(&reason).into_owned())
        });
        let tables: StringArray = rows.iter().map(|(table, _, _)| table.as_deref()).collect();
        let files: StringArray = rows.iter().map(|(_, file, _)| Some(file.as_str())).collect();
        let reasons: StringArray = rows.iter().map(|(_, _, reason)| Some(reason.as_str())).collect();
        Ok(RecordBatch::try_from_iter_with_nullable([
            ("table", Arc::new(tables) as ArrayRef, true),
            ("file", Arc::new(files), false),
            ("reason", Arc::new(reasons), false),
        ])?)
    }
}

#[async_trait]
impl SchemaProvider for About {
    fn table_names(&self) -> Vec<String> {
        vec![SKIPPED.to_owned(), TABLES.to_owned()]
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let batch = match name {
            TABLES => self.served()?,
            SKIPPED => self.skipped()?,
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        [TABLES, SKIPPED].contains(&name)
    }
}
