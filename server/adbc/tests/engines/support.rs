//! Databases with real drivers, each in a directory of its own. `scripts/engines.sh` fetches the drivers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use futures::TryStreamExt;
use tempfile::TempDir;
use thallus_adbc_engine::{AdbcConfig, AdbcEngine};
use thallus_server::engine::{Engine, EngineError, IngestMode, IngestRequest, QueryRequest};

/// A kind of database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Duckdb,
    Sqlite,
    Postgresql,
}

/// An engine over an empty database.
pub(crate) struct Fixture {
    pub(crate) kind: Kind,
    pub(crate) engine: Arc<AdbcEngine>,
    /// Held for its drop.
    _directory: TempDir,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/engines.sh"))
}

/// A database of its own on the test's PostgreSQL server.
async fn new_postgresql_database() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let server = variable("THALLUS_TEST_POSTGRESQL_URI");
    let name = format!("t{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let driver = AdbcConfig::new(variable("THALLUS_TEST_POSTGRESQL"));
    let config = AdbcConfig { uri: Some(format!("{server}/postgres")), ..driver };
    let maintenance = AdbcEngine::open(&config).unwrap();
    maintenance.execute(QueryRequest::new(format!("CREATE DATABASE {name}"))).await.unwrap();
    format!("{server}/{name}")
}

impl Fixture {
    pub(crate) async fn new(kind: Kind) -> Self {
        Self::with(kind, |_| ()).await
    }

    /// An engine whose configuration is changed by `change`.
    pub(crate) async fn with(kind: Kind, change: impl FnOnce(&mut AdbcConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name).display().to_string();
        let (driver, uri) = match kind {
            Kind::Duckdb => ("THALLUS_TEST_DUCKDB", file("test.duckdb")),
            Kind::Sqlite => ("THALLUS_TEST_SQLITE", file("test.sqlite")),
            Kind::Postgresql => ("THALLUS_TEST_POSTGRESQL", new_postgresql_database().await),
        };
        let mut config = AdbcConfig { uri: Some(uri), ..AdbcConfig::new(variable(driver)) };
        change(&mut config);
        let engine = Arc::new(AdbcEngine::open(&config).unwrap());
        Fixture { kind, engine, _directory: directory }
    }

    /// The database's way to write a parameter.
    pub(crate) fn parameter(&self, number: usize) -> String {
        match self.kind {
            Kind::Sqlite => "?".to_owned(),
            Kind::Duckdb | Kind::Postgresql => format!("${number}"),
        }
    }

    pub(crate) async fn batches(&self, query: QueryRequest) -> Result<Vec<RecordBatch>, EngineError> {
        let stream = self.engine.execute(query).await?;
        let schema = Arc::clone(&stream.schema);
        let batches: Vec<RecordBatch> = stream.batches.try_collect().await?;
        assert!(batches.iter().all(|batch| batch.schema() == schema && batch.num_rows() > 0));
        Ok(batches)
    }

    /// The rows of a query as text, each with `|` between its values.
    pub(crate) async fn rows_of(&self, query: QueryRequest) -> Result<Vec<String>, EngineError> {
        let batches = self.batches(query).await?;
        let row = |batch: &RecordBatch, row: usize| {
            let values = batch.columns().iter().map(|column| match column.is_valid(row) {
                true => array_value_to_string(column, row).unwrap(),
                false => "NULL".to_owned(),
            });
            values.collect::<Vec<_>>().join("|")
        };
        Ok(batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |index| row(batch, index))).collect())
    }

    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        self.rows_of(QueryRequest::new(sql)).await.unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// Runs a change, and returns its number of rows.
    pub(crate) async fn change(&self, sql: &str) -> u64 {
        self.rows(sql).await[0].parse().unwrap()
    }

    pub(crate) async fn error(&self, sql: &str) -> EngineError {
        match self.rows_of(QueryRequest::new(sql)).await {
            Ok(rows) => panic!("{sql} has no error: {rows:?}"),
            Err(error) => error,
        }
    }

    /// Runs a statement with rows of parameters.
    pub(crate) async fn with_parameters(&self, sql: &str, rows: RecordBatch) -> Result<Vec<String>, EngineError> {
        self.rows_of(QueryRequest { parameters: Some(rows), ..QueryRequest::new(sql) }).await
    }

    /// Uploads batches to a table.
    pub(crate) async fn upload(
        &self,
        table: &str,
        mode: IngestMode,
        batches: &[RecordBatch],
    ) -> Result<u64, EngineError> {
        let mut request = IngestRequest::new(table, batches[0].schema());
        request.mode = mode;
        let mut ingestion = self.engine.ingest(request).await?;
        for batch in batches {
            ingestion.push(batch.clone()).await?;
        }
        ingestion.finish().await
    }
}

/// Runs each check on every kind of database.
macro_rules! on_every_database {
    ($($check:ident,)*) => {
        on_every_database!(duckdb Duckdb: $($check,)*);
        on_every_database!(sqlite Sqlite: $($check,)*);
        on_every_database!(postgresql Postgresql: $($check,)*);
    };
    ($module:ident $kind:ident: $($check:ident,)*) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread")]
            #[ignore = "needs drivers: run scripts/engines.sh"]
            async fn $check() {
                super::$check(crate::support::Fixture::new(crate::support::Kind::$kind).await).await;
            })*
        }
    };
}
pub(crate) use on_every_database;
