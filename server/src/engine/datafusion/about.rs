//! The schema `server`: the tables that are served, and the files that were skipped, as tables. `thallus tables` shows
//! them. Reading them opens no file.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::TableType;

use super::database::Database;
use super::opened::Opened;
use super::paths::Directories;
use super::tables::Tables;

const TABLES: &str = "tables";
const SKIPPED: &str = "skipped";

/// The schema.
#[derive(Debug)]
pub(super) struct About {
    pub(super) tables: Arc<Tables>,
    pub(super) directories: Arc<Directories>,
    pub(super) database: Option<Arc<Database>>,
}

/// A row of the table of tables.
struct Row {
    name: String,
    format: &'static str,
    columns: u64,
    files: u64,
    bytes: u64,
}

impl Row {
    fn of_files(opened: &Arc<Opened>) -> Self {
        Row {
            name: opened.spec.name.clone(),
            format: opened.spec.format.as_str(),
            columns: opened.schema().fields().len() as u64,
            files: opened.files.len() as u64,
            bytes: opened.files.iter().map(|file| file.file.stamp.len).sum(),
        }
    }
}

impl About {
    /// The tables by name. One of the database hides one of the files.
    fn rows(&self) -> Vec<Row> {
        let mut rows: BTreeMap<String, Row> =
            self.tables.all().iter().map(|opened| (opened.spec.name.clone(), Row::of_files(opened))).collect();
        let snapshot = self.database.as_ref().map(|database| database.snapshot());
        for (name, table) in snapshot.iter().flat_map(|snapshot| snapshot.tables()) {
            let (name, format) = (name.to_string(), table.format.as_str());
            let (columns, files) = (table.schema.fields().len() as u64, table.files.len() as u64);
            rows.insert(name.clone(), Row { name, format, columns, files, bytes: table.bytes() });
        }
        rows.into_values().collect()
    }

    fn served(&self) -> Result<RecordBatch> {
        let served = self.rows();
        let names: StringArray = served.iter().map(|row| Some(row.name.as_str())).collect();
        let formats: StringArray = served.iter().map(|row| Some(row.format)).collect();
        let number = |of: fn(&Row) -> u64| -> ArrayRef { Arc::new(served.iter().map(of).collect::<UInt64Array>()) };
        Ok(RecordBatch::try_from_iter([
            ("name", Arc::new(names) as ArrayRef),
            ("format", Arc::new(formats)),
            ("columns", number(|row| row.columns)),
            ("files", number(|row| row.files)),
            ("bytes", number(|row| row.bytes)),
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
