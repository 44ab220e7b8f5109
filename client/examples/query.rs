//! Runs a query, looks at each batch as it comes, and says how the result travelled.
//!
//!     cargo run --example query -- thallus://localhost 'SELECT 1 AS one'

use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use thallus_client::Client;

const SQL: &str = "SELECT value, value * 2 AS twice FROM generate_series(1, 1000000)";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("usage: query URL [SQL]")?;
    let sql = args.next().unwrap_or_else(|| SQL.to_owned());

    let client = Client::connect(url.as_str()).await?;
    println!("connected to {}, carried by {}", client.connection().server, client.connection().carrier);

    let mut result = client.query(&sql).await?;
    println!("columns: {}", result.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", "));
    let mut rows = 0;
    while let Some(batch) = result.try_next().await? {
        // An ordinary Arrow batch, over the memory that it was read into: that goes back when the batch is dropped.
        if rows == 0 && batch.num_rows() > 0 {
            let options = FormatOptions::default();
            let cells = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
            let cells: Vec<String> =
                cells.map(|cell| Ok(cell?.value(0).to_string())).collect::<arrow::error::Result<_>>()?;
            println!("first row: {}", cells.join(", "));
        }
        rows += batch.num_rows();
    }
    println!("{rows} rows\n{}", result.report());
    client.close().await;
    Ok(())
}
