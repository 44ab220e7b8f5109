//! Reads a result on demand: the server announces each batch, and only the columns and rows that are asked for travel.
//!
//!     cargo run --example on_demand -- thallus://localhost 'SELECT * FROM lineitem'

use futures::TryStreamExt;
use thallus_client::Client;

const SQL: &str = "SELECT value, value * 2 AS twice, value * 3 AS thrice FROM generate_series(1, 1000000)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("usage: on_demand URL [SQL]")?;
    let sql = args.next().unwrap_or_else(|| SQL.to_owned());

    let client = Client::connect(url.as_str()).await?;
    let mut result = client.query_lazy(&sql).await?;
    let mut rows = 0;
    while let Some(batch) = result.try_next().await? {
        // Nothing of a lent batch has been read yet: its shape is known, its bytes lie in the server's memory.
        rows += batch.num_rows();
        let first = batch.columns(&[0]).await?;
        assert_eq!(first.num_rows(), batch.num_rows());
        // As often as you like: here the last column of the first ten rows.
        let last_column = batch.schema().fields().len() - 1;
        let few = batch.columns_in(&[last_column], 0..batch.num_rows().min(10)).await?;
        assert!(few.num_rows() <= 10);
        // The batch is on loan until it is dropped, as here. A program that keeps all of them gets no further batch.
    }
    let report = result.report();
    println!("{rows} rows\n{report}");
    if let Some(lazy) = report.lazy {
        println!("read {} of {} bytes: {:.0}% saved", lazy.bytes_read, lazy.bytes_offered, lazy.saved() * 100.0);
    }
    client.close().await;
    Ok(())
}
