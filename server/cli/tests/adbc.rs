//! The program over real databases, with clients that connect to its process.
#![cfg(feature = "adbc")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use futures::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;
use thallus_client::{Client, ClientError, Depth, IngestMode, ObjectsRequest, QueryOptions, StreamCode, UploadOptions};

/// Longest time until a process or a statement has ended.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server's process over a database. Dropping it kills the process.
struct Server {
    process: Child,
    url: String,
    /// Held for its drop.
    _directory: TempDir,
}

impl Server {
    /// Starts a server over an empty file, with the driver in the variable.
    fn start(driver: &str, more: &[&str]) -> Self {
        let driver = std::env::var(driver).unwrap_or_else(|_| panic!("{driver} is not set: run scripts/engines.sh"));
        let directory = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_thallus-server"))
            .args(["--listen", "127.0.0.1:0", "--adbc-driver", &driver, "--uri"])
            .arg(directory.path().join("test.db"))
            .args(more)
            .env_remove("THALLUS_CONFIG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut lines = String::new();
        let address = loop {
            let begin = lines.len();
            assert!(log.read_line(&mut lines).unwrap() > 0, "the server has ended: {lines}");
            if let Some((_, address)) = lines[begin..].split_once("listening address=") {
                break address.trim().to_owned();
            }
        };
        // The server must not wait for a reader of its log.
        std::thread::spawn(move || log.lines().for_each(drop));
        Server { process, url: format!("thallus://{address}"), _directory: directory }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.url).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

async fn number(client: &Client, sql: &str) -> i64 {
    let batches: Vec<RecordBatch> = client.query(sql).await.unwrap().try_collect().await.unwrap();
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

async fn error(client: &Client, sql: &str) -> StreamCode {
    let ended = match client.query(sql).await {
        Ok(result) => result.try_collect::<Vec<_>>().await,
        Err(error) => Err(error),
    };
    ended.unwrap_err().code().unwrap()
}

fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringArray = numbers.clone().map(|n| (n % 3 > 0).then(|| format!("text {n}"))).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("a", Arc::new(Int64Array::from_iter_values(numbers))), ("b", Arc::new(texts))];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, values)| (name, values, true))).unwrap()
}

async fn upload(
    client: &Client,
    mode: IngestMode,
    batches: Vec<Result<RecordBatch, ArrowError>>,
) -> Result<u64, ClientError> {
    let options = UploadOptions::new().with_mode(mode);
    let report = client.upload_with("t", rows(0..1).schema(), stream::iter(batches), options).await?;
    Ok(report.rows)
}

async fn everything(driver: &str) {
    let server = Server::start(driver, &[]);
    let client = server.client().await;
    assert!(["duckdb", "SQLite"].contains(&client.vendor().name.as_str()));
    let many: Vec<_> = (0..20).map(|n| Ok(rows(n * 10_000..(n + 1) * 10_000))).collect();
    assert_eq!(upload(&client, IngestMode::Create, many).await.unwrap(), 200_000);
    let back: Vec<RecordBatch> = client.query("SELECT * FROM t ORDER BY a").await.unwrap().try_collect().await.unwrap();
    let whole = arrow::compute::concat_batches(&back[0].schema(), &back).unwrap();
    assert_eq!(whole.columns(), rows(0..200_000).columns());

    let broken = vec![Ok(rows(0..1000)), Err(ArrowError::ComputeError("the source fails".into()))];
    upload(&client, IngestMode::Replace, broken).await.unwrap_err();
    assert_eq!(number(&client, "SELECT count(*) FROM t").await, 200_000);
    let code = upload(&client, IngestMode::Create, vec![Ok(rows(0..1))]).await.unwrap_err().code();
    assert_eq!(code, Some(StreamCode::AlreadyExists));

    assert_eq!(client.execute("DELETE FROM t WHERE a >= 100").await.unwrap(), Some(199_900));
    assert_eq!(client.execute("CREATE TABLE k (a BIGINT PRIMARY KEY)").await.unwrap(), Some(0));
    let mark = if driver.ends_with("SQLITE") { "?" } else { "$1" };
    let parameters = rows(0..50).project(&[0]).unwrap();
    let options = QueryOptions::new().with_parameters(Some(parameters));
    let inserted = client.execute_with(&format!("INSERT INTO k VALUES ({mark})"), options).await.unwrap();
    assert_eq!(inserted, Some(50));
    for (sql, code) in [
        ("SELEC 1", StreamCode::Syntax),
        ("SELECT * FROM nope", StreamCode::UnknownTable),
        ("INSERT INTO k VALUES (1)", StreamCode::Constraint),
        ("CREATE TABLE k (a BIGINT)", StreamCode::AlreadyExists),
        ("BEGIN", StreamCode::Unsupported),
    ] {
        assert_eq!(error(&client, sql).await, code, "{sql}");
    }
    // SQLite's driver also lists indexes.
    let kinds = Some(vec!["table".to_owned()]);
    let request = ObjectsRequest { depth: Depth::Columns, kinds, ..ObjectsRequest::default() };
    let objects = client.objects(&request).await.unwrap();
    let tables: Vec<_> = objects.into_iter().filter_map(|object| object.table).collect();
    assert_eq!(tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["k", "t"]);
    assert_eq!(tables[1].columns.as_ref().unwrap().fields().len(), 2);

    let clients = futures::future::join_all((0..4).map(|_| server.client())).await;
    let sums = (0..20).map(|n| number(&clients[n % 4], "SELECT CAST(sum(a) AS BIGINT) FROM t"));
    assert_eq!(futures::future::join_all(sums).await, [4950; 20]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn duckdb() {
    everything("THALLUS_TEST_DUCKDB").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn sqlite() {
    everything("THALLUS_TEST_SQLITE").await;
}

/// With one connection, the next query runs only after the work of a cancelled one has ended.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn a_cancelled_query_ends_at_the_database() {
    let server = Server::start("THALLUS_TEST_DUCKDB", &["--adbc-max-connections", "1"]);
    let client = server.client().await;
    let began = Instant::now();
    let endless = client.query("SELECT sum(a.i * b.i % 7) FROM range(10000000) a(i), range(10000000) b(i)");
    assert!(tokio::time::timeout(Duration::from_millis(500), endless).await.is_err(), "the query is too short");
    assert_eq!(number(&client, "SELECT 1::BIGINT").await, 1);
    let mut rows = client.query("SELECT a.i FROM range(10000000) a(i), range(10000000) b(i)").await.unwrap();
    assert!(rows.next().await.unwrap().unwrap().num_rows() > 0);
    drop(rows);
    assert_eq!(number(&client, "SELECT 1::BIGINT").await, 1);
    // A client that disappears.
    let lost = server.client().await;
    let _running = lost.query("SELECT a.i FROM range(10000000) a(i), range(10000000) b(i)").await.unwrap();
    lost.close().await;
    assert_eq!(number(&client, "SELECT 1::BIGINT").await, 1);
    assert!(began.elapsed() < PATIENCE);
}

/// The documented way to keep clients away from the files of the server's host.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn duckdb_without_access_to_files() {
    let server = Server::start("THALLUS_TEST_DUCKDB", &["--adbc-option", "enable_external_access=false"]);
    let client = server.client().await;
    for sql in [
        "SELECT * FROM read_text('/etc/hostname')",
        "SET enable_external_access = true",
        "ATTACH '/tmp/other.duckdb'",
        "COPY (SELECT 1) TO '/tmp/thallus-must-not-exist'",
    ] {
        let code = error(&client, sql).await;
        assert!(matches!(code, StreamCode::Plan | StreamCode::Execution), "{sql}: {code}");
    }
    assert_eq!(upload(&client, IngestMode::Create, vec![Ok(rows(0..1000))]).await.unwrap(), 1000);
}
