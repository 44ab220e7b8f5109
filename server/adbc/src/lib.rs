//! An engine for the Thallus server: any database that has an ADBC driver.
//!
//! The driver is a shared library, which runs in the server's process. Its results reach clients as those of every
//! engine do: `docs/ENGINES.md` has the drivers that were tried.
//!
//! ```no_run
//! # use thallus_adbc_engine::{AdbcConfig, AdbcEngine};
//! let config = AdbcConfig { uri: Some("sales.db".to_owned()), ..AdbcConfig::new("duckdb") };
//! let engine = AdbcEngine::open(&config)?;
//! # Ok::<(), thallus_adbc_engine::OpenError>(())
//! ```

#![forbid(unsafe_code)]

mod batches;
mod config;
mod describe;
mod error;
mod ingest;
mod objects;
mod parameters;
mod pool;
mod query;
mod text;
mod vendor;
mod work;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thallus_server::engine::{
    CatalogObject, Description, Engine, EngineError, IngestRequest, Ingestion, ObjectsRequest, QueryRequest,
    QueryStream, TableInfo, Vendor,
};

pub use config::AdbcConfig;
pub use error::{DriverError, OpenError};

use pool::Pool;

/// An engine that passes statements to an ADBC driver.
///
/// - Each statement runs alone, with a connection of its own while it runs. A connection is used again only after
///   statements that leave nothing behind in it.
/// - Parameters are written as the database writes them. `$name` is matched by name, all others by position.
/// - The rows of a changing statement with `RETURNING` are part of the statement: it is done when they have been read.
pub struct AdbcEngine {
    pool: Arc<Pool>,
    tables: Vec<TableInfo>,
}

impl AdbcEngine {
    /// Loads the driver and opens the database. It blocks.
    ///
    /// The driver's code runs in this process, so only the operator may choose it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(config: &AdbcConfig) -> Result<Self, OpenError> {
        let pool = Arc::new(Pool::open(config)?);
        let tables = pool.with_idle(objects::tables).unwrap_or_default();
        Ok(AdbcEngine { pool, tables })
    }
}

impl fmt::Debug for AdbcEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdbcEngine").field("vendor", self.pool.vendor()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Engine for AdbcEngine {
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError> {
        query::execute(&self.pool, query).await
    }

    async fn describe(&self, query: QueryRequest) -> Result<Description, EngineError> {
        describe::describe(&self.pool, query).await
    }

    async fn objects(&self, request: ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
        objects::list(&self.pool, request).await
    }

    fn vendor(&self) -> Vendor {
        self.pool.vendor().clone()
    }

    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        ingest::begin(&self.pool, request).await
    }

    /// The tables at the start of the server.
    fn tables(&self) -> Vec<TableInfo> {
        self.tables.clone()
    }
}
