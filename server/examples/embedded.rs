//! An engine of your own, embedded: one process serves it and queries it. It needs no query engine and no tables:
//!
//!     cargo run -p thallus-server --no-default-features --example embedded
//!
//! Built with the features `ucx` or `verbs` of both libraries its results are read one-sidedly.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Client, ConnectOptions};
use thallus_server::config::FabricConfig;
use thallus_server::engine::{Engine, EngineError, QueryRequest, QueryStream, TableInfo};
use thallus_server::{Server, Settings, fabrics};
use tokio::net::TcpListener;

/// Rows of a batch, unless the client asks for others.
const BATCH_ROWS: usize = 65_536;

/// Its language has one statement, a number: how far to count.
#[derive(Debug)]
struct Counter {
    schema: SchemaRef,
}

#[async_trait]
impl Engine for Counter {
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError> {
        let count: usize = query
            .sql
            .trim()
            .parse()
            .map_err(|_| EngineError::Syntax { message: format!("{:?} is no number to count to", query.sql) })?;
        let schema = Arc::clone(&self.schema);
        let size = query.batch_rows.unwrap_or(BATCH_ROWS);
        // Lazy: a batch is made when the client has room for it, and dropping the stream cancels the query.
        let batches = futures::stream::iter((0..count).step_by(size)).map(move |first| {
            let numbers = Int64Array::from_iter_values((first..count.min(first + size)).map(|n| n as i64 + 1));
            RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(numbers)])
                .map_err(|error| EngineError::Execution { message: error.to_string() })
        });
        Ok(QueryStream { schema: Arc::clone(&self.schema), batches: batches.boxed() })
    }

    fn tables(&self) -> Vec<TableInfo> {
        Vec::new()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Counter { schema: Arc::new(Schema::new(vec![Field::new("number", DataType::Int64, false)])) };
    // The fabrics that work on this host. Without one, results travel inline.
    let fabrics = fabrics::open(&FabricConfig::default())?;
    let settings = Settings { name: "counter".into(), ..Settings::default() };
    let server = Server::new(Arc::new(engine), fabrics, settings);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let serving = {
        let server = server.clone();
        tokio::spawn(async move { server.serve(listener).await })
    };

    let client = Client::connect_with(ConnectOptions::new("127.0.0.1").with_port(port)).await?;
    let mut result = client.query("1000000").await?;
    let mut sum = 0;
    while let Some(batch) = result.try_next().await? {
        sum += batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
    }
    assert_eq!(sum, 1_000_000 * 1_000_001 / 2);
    println!("sum {sum}\n{}", result.report());
    let refused = client.query("a million").await.map(drop).expect_err("no number");
    println!("refused: {refused}");

    // In good order: connections end, then the server.
    client.close().await;
    server.drain();
    serving.await??;
    Ok(())
}
