//! Tests of a database through its engine, with access to the disk.

mod concurrency;
mod crashes;
mod modes;
mod statements;
mod types;
mod views;

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::SchemaRef;
use futures::TryStreamExt;
use tempfile::TempDir;

use super::super::{DataFusionEngine, OpenError};
use super::{Database, DatabaseError};
use crate::config::ServerConfig;
use crate::engine::{Engine, EngineError, IngestMode, IngestRequest, QueryRequest, is_change};

/// A database in a temporary directory.
struct Fixture {
    directory: TempDir,
    engine: DataFusionEngine,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = open(&directory.path().join("db")).await;
        Fixture { directory, engine }
    }

    /// The same directory after a restart of the server.
    async fn reopened(self) -> Self {
        let Fixture { directory, engine } = self;
        drop(engine);
        let engine = open_again(&directory.path().join("db")).await;
        Fixture { directory, engine }
    }

    /// The directory, once no engine has it open.
    async fn closed(self) -> TempDir {
        let Fixture { directory, engine } = self;
        drop(engine);
        let lock = std::fs::File::open(directory.path().join("db/lock")).unwrap();
        while lock.try_lock().is_err() {
            tokio::task::yield_now().await;
        }
        directory
    }

    fn database(&self) -> &Arc<Database> {
        self.engine.shared.database.as_ref().unwrap()
    }

    /// Names of the data files, sorted.
    fn files(&self) -> Vec<String> {
        files_of(&self.directory.path().join("db"))
    }

    async fn query(&self, sql: &str) -> Result<Vec<RecordBatch>, EngineError> {
        let stream = self.engine.execute(QueryRequest::new(sql)).await?;
        stream.batches.try_collect().await
    }

    /// The first column of the result, as numbers.
    async fn numbers(&self, sql: &str) -> Vec<i64> {
        let batches = self.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        batches.iter().flat_map(|batch| column(batch, 0)).collect()
    }

    /// The rows that a statement changes.
    async fn change(&self, sql: &str) -> Result<u64, EngineError> {
        let stream = self.engine.execute(QueryRequest::new(sql)).await?;
        assert!(is_change(&stream.schema), "{sql}");
        let batches: Vec<RecordBatch> = stream.batches.try_collect().await?;
        let [batch] = batches.as_slice() else { panic!("{sql}: {} batches", batches.len()) };
        assert_eq!((batch.num_rows(), batch.num_columns(), batch.schema().field(0).name().as_str()), (1, 1, "count"));
        Ok(arrow_array::cast::as_primitive_array::<arrow_array::types::UInt64Type>(batch.column(0)).value(0))
    }

    async fn ingest(&self, table: &str, mode: IngestMode, batches: &[RecordBatch]) -> Result<u64, EngineError> {
        self.ingest_as(table, mode, batches[0].schema(), batches).await
    }

    async fn ingest_as(
        &self,
        table: &str,
        mode: IngestMode,
        schema: SchemaRef,
        batches: &[RecordBatch],
    ) -> Result<u64, EngineError> {
        let request = IngestRequest { mode, ..IngestRequest::new(table, schema) };
        let mut ingestion = self.engine.ingest(request).await?;
        for batch in batches {
            ingestion.push(batch.clone()).await?;
        }
        ingestion.finish().await
    }
}

fn column(batch: &RecordBatch, index: usize) -> Vec<i64> {
    let numbers = arrow_cast::cast(batch.column(index), &arrow_schema::DataType::Int64).unwrap();
    arrow_array::cast::as_primitive_array::<arrow_array::types::Int64Type>(&numbers).values().to_vec()
}

async fn open(directory: &Path) -> DataFusionEngine {
    try_open(directory).await.unwrap()
}

/// Opens a directory that another engine of this process may still have open: its last tasks end after it.
async fn open_again(directory: &Path) -> DataFusionEngine {
    loop {
        match try_open(directory).await {
            Ok(engine) => return engine,
            Err(OpenError::Database(DatabaseError::Locked { .. })) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn try_open(directory: &Path) -> Result<DataFusionEngine, OpenError> {
    DataFusionEngine::open(&config(directory)).await
}

fn config(directory: &Path) -> ServerConfig {
    let mut config = ServerConfig { database: Some(directory.to_owned()), ..ServerConfig::default() };
    config.engine.memory_limit = Some(crate::config::ByteSize::mib(256));
    config.engine.partitions = Some(1);
    config
}

fn files_of(database: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(database.join("data")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Rows of a table `(id BIGINT NOT NULL, name TEXT)`.
fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let names: StringArray = ids.clone().map(|id| (id % 3 != 0).then(|| format!("name {id}"))).collect();
    let columns: [(&str, ArrayRef, bool); 2] =
        [("id", Arc::new(Int64Array::from_iter_values(ids)), false), ("name", Arc::new(names), true)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}
