//! Thallus with an engine that holds its tables in memory.

use std::sync::Arc;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use thallus_server::Server;
use thallus_server::engine::{Engine, EngineError, QueryRequest, QueryStream, TableInfo};
use tokio::net::TcpListener;

use crate::query::Query;
use crate::tables::Tables;
use crate::wiring;

pub(super) async fn serve(listener: TcpListener) -> Result<(), String> {
    let (fabrics, settings) = wiring::server()?;
    Server::new(Arc::new(MemoryEngine::default()), fabrics, settings).serve(listener).await.map_err(|e| e.to_string())
}

/// Answers queries of `crate::query` from tables in memory.
#[derive(Debug, Default)]
pub struct MemoryEngine(Tables);

#[async_trait]
impl Engine for MemoryEngine {
    async fn execute(&self, request: QueryRequest) -> Result<QueryStream, EngineError> {
        let query: Query = request.sql.parse().map_err(|message| EngineError::Syntax { message })?;
        let table = self.0.get(&query.table).map_err(|message| EngineError::Plan { message })?;
        let batches = stream::iter(table.run(&query)).map_err(|e| EngineError::Execution { message: e.to_string() });
        Ok(QueryStream { schema: Arc::clone(&table.schema), batches: batches.boxed() })
    }

    fn tables(&self) -> Vec<TableInfo> {
        Vec::new()
    }
}
