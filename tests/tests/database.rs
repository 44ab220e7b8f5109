//! Kills of a server with a database, in the middle of uploads and statements that change it.
//!
//! After each kill every change is there as a whole or not at all, every confirmed change is there, and `data/` has the
//! files that the catalog names. `THALLUS_TEST_SEED` sets the moments, `THALLUS_TEST_KILLS` the number of kills of the
//! long run: `cargo test --release --workspace --test database -- --ignored --nocapture`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use futures::{StreamExt, TryStreamExt, stream};
use tempfile::TempDir;
use thallus_client::{Client, ClientError, IngestMode, UploadOptions};
use thallus_protocol::random::SplitMix64;
use thallus_tests::server::TestServer;
use thallus_tests::{block_on, fabric};

/// Kills of the short run, and of the long run unless `THALLUS_TEST_KILLS` sets another number.
const SHORT: u64 = 20;
const LONG: u64 = 200;
/// Longest time from the start of the changes to the kill.
const MOST: Duration = Duration::from_millis(400);
const UPLOAD_BATCHES: i64 = 10;
const BATCH_ROWS: i64 = 2000;
const STATEMENT_ROWS: i64 = 20_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A time below [`MOST`] that depends on the seed and the round alone.
fn moment(seed: u64, round: u64) -> Duration {
    MOST.mul_f64((SplitMix64::nth(seed, round) >> 11) as f64 / (1_u64 << 53) as f64)
}

fn batch(mark: i64, part: i64) -> RecordBatch {
    let ids = part * BATCH_ROWS..(part + 1) * BATCH_ROWS;
    let texts: StringArray = ids.clone().map(|id| Some(format!("row {id} of upload {mark}"))).collect();
    let marks = Int64Array::from_value(mark, BATCH_ROWS as usize);
    let columns: [(&str, ArrayRef); 3] =
        [("mark", Arc::new(marks)), ("id", Arc::new(Int64Array::from_iter_values(ids))), ("text", Arc::new(texts))];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// Changes that the server has confirmed.
#[derive(Clone, Debug, Default)]
struct Confirmed {
    uploads: Vec<i64>,
    inserts: Vec<i64>,
    /// The newest content of the table that is replaced.
    replaced: Option<i64>,
}

async fn upload(client: &Client, mark: i64, mode: IngestMode) -> Result<(), ClientError> {
    let batches = stream::iter((0..UPLOAD_BATCHES).map(|part| Ok(batch(mark, part))));
    let options = UploadOptions::new().with_mode(mode);
    client.upload_with("uploads", batch(0, 0).schema(), batches, options).await.map(|_| ())
}

/// Uploads until the server dies. Every third one is given up in the middle.
async fn uploads(url: &str, first: i64, confirmed: &mut Vec<i64>) {
    let Ok(client) = Client::connect(url).await else { return };
    for mark in first.. {
        if mark % 3 == 0 {
            let begun = upload(&client, mark, IngestMode::CreateAppend);
            // Its future is dropped after a few polls, and the upload with it.
            let few = async {
                for _ in 0..mark % 40 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { biased; ended = begun => if ended.is_err() { return }, () = few => {} }
        } else if upload(&client, mark, IngestMode::CreateAppend).await.is_err() {
            return;
        } else {
            confirmed.push(mark);
        }
    }
}

/// Statements until the server dies.
async fn statements(url: &str, first: i64, confirmed: &mut Confirmed) {
    let Ok(client) = Client::connect(url).await else { return };
    let rows = |mark: i64| format!("SELECT {mark} AS mark, value AS id FROM generate_series(1, {STATEMENT_ROWS})");
    for mark in first.. {
        let replace = format!("CREATE OR REPLACE TABLE replaced AS {}", rows(mark));
        if client.execute(&replace).await.is_err() {
            return;
        }
        confirmed.replaced = Some(mark);
        if client.execute(&format!("INSERT INTO inserts {}", rows(mark))).await.is_err() {
            return;
        }
        confirmed.inserts.push(mark);
        let name = format!("passing_{}", mark % 2);
        for sql in [
            format!("CREATE TABLE {name} AS {}", rows(mark)),
            format!("DELETE FROM {name} WHERE id % 2 = 0"),
            format!("CREATE OR REPLACE VIEW seen AS SELECT mark, id FROM {name}"),
            format!("DROP TABLE IF EXISTS passing_{}", (mark + 1) % 2),
        ] {
            if let Err(error) = client.execute(&sql).await
                && error.code().is_none()
            {
                return;
            }
        }
    }
}

/// Rows by mark.
async fn counts(client: &Client, table: &str) -> BTreeMap<i64, i64> {
    let sql = format!("SELECT mark, count(*), count(DISTINCT id) FROM {table} GROUP BY mark");
    let batches: Vec<RecordBatch> = match client.query(&sql).await {
        Ok(result) => result.try_collect().await.unwrap_or_else(|e| panic!("{table}: {e}")),
        Err(error) if error.to_string().contains("not found") => Vec::new(),
        Err(error) => panic!("{table}: {error}"),
    };
    let rows = batches.iter().flat_map(|batch| {
        let of = |column: usize| batch.column(column).as_primitive::<Int64Type>().clone();
        let (marks, counts, distinct) = (of(0), of(1), of(2));
        assert_eq!(counts, distinct, "{table}");
        (0..marks.len()).map(move |row| (marks.value(row), counts.value(row)))
    });
    rows.collect()
}

async fn check(url: &str, database: &Path, confirmed: &Confirmed) {
    let client = Client::connect(url).await.unwrap();
    let whole = |counts: &BTreeMap<i64, i64>, rows: i64| counts.values().all(|count| *count == rows);
    let uploads = counts(&client, "uploads").await;
    assert!(whole(&uploads, UPLOAD_BATCHES * BATCH_ROWS), "{uploads:?}");
    let lost: Vec<_> = confirmed.uploads.iter().filter(|mark| !uploads.contains_key(mark)).collect();
    assert!(lost.is_empty(), "lost uploads: {lost:?}");
    let inserts = counts(&client, "inserts").await;
    assert!(whole(&inserts, STATEMENT_ROWS), "{inserts:?}");
    let lost: Vec<_> = confirmed.inserts.iter().filter(|mark| !inserts.contains_key(mark)).collect();
    assert!(lost.is_empty(), "lost inserts: {lost:?}");
    let replaced = counts(&client, "replaced").await;
    let newest = replaced.keys().next_back().copied();
    assert!(replaced.len() <= 1 && whole(&replaced, STATEMENT_ROWS) && newest >= confirmed.replaced, "{replaced:?}");
    for table in ["passing_0", "passing_1"] {
        let passing = counts(&client, table).await;
        let is_whole = whole(&passing, STATEMENT_ROWS) || whole(&passing, STATEMENT_ROWS / 2);
        assert!(passing.len() <= 1 && is_whole, "{table}: {passing:?}");
    }
    client.close().await;
    assert_eq!(files(database), named(database));
}

/// Names of the data files, sorted.
fn files(database: &Path) -> Vec<String> {
    let entries = fs::read_dir(database.join("data")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Names of the data files in the catalog, sorted.
fn named(database: &Path) -> Vec<String> {
    let catalog: serde_json::Value = serde_json::from_slice(&fs::read(database.join("catalog.json")).unwrap()).unwrap();
    let schemas = catalog["catalog"]["schemas"].as_object().unwrap().values();
    let tables = schemas.flat_map(|schema| schema["tables"].as_object().unwrap().values());
    let files = tables.flat_map(|table| table["files"].as_array().unwrap());
    let mut names: Vec<_> = files.map(|file| file["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn start(database: &Path) -> TestServer {
    TestServer::start(["--fabric", &fabric(), "--database", database.to_str().unwrap()])
}

fn kills(rounds: u64) {
    let seed = setting("THALLUS_TEST_SEED", 1);
    println!("THALLUS_TEST_SEED={seed}");
    let scratch = TempDir::new().unwrap();
    let database = scratch.path().join("db");
    let mut confirmed = Confirmed::default();
    for round in 0..rounds {
        let mut server = start(&database);
        let url = server.url("");
        block_on(async {
            check(&url, &database, &confirmed).await;
            let client = Client::connect(&url).await.unwrap();
            let create = "CREATE TABLE IF NOT EXISTS inserts (mark BIGINT, id BIGINT)";
            client.execute(create).await.unwrap();
            if round % 10 == 9 {
                // The checks read all rows of all rounds.
                client.execute("TRUNCATE TABLE inserts").await.unwrap();
                let uploads = client.execute("DROP TABLE IF EXISTS uploads").await;
                uploads.unwrap();
                confirmed = Confirmed { replaced: confirmed.replaced, ..Confirmed::default() };
            }
            client.close().await;
            let first = 1000 * (round as i64 + 1);
            let Confirmed { uploads: uploaded, .. } = &mut confirmed.clone();
            let mut changed = confirmed.clone();
            tokio::join!(
                async {
                    tokio::time::sleep(moment(seed, round)).await;
                    server.process().kill();
                },
                uploads(&url, first, uploaded),
                statements(&url, first, &mut changed),
            );
            confirmed = Confirmed { uploads: uploaded.clone(), ..changed };
        });
    }
    let server = start(&database);
    block_on(check(&server.url(""), &database, &confirmed));
    let (uploads, inserts) = (confirmed.uploads.len(), confirmed.inserts.len());
    println!(
        "{rounds} kills; {uploads} uploads and {inserts} inserts of the last rounds were confirmed, and are there"
    );
    server.stop();
}

#[test]
fn a_killed_server_has_all_of_a_change_or_nothing() {
    kills(SHORT);
}

#[test]
#[ignore = "takes minutes"]
fn a_server_that_is_killed_often_has_all_of_a_change_or_nothing() {
    kills(setting("THALLUS_TEST_KILLS", LONG));
}

#[test]
fn a_second_server_is_refused() {
    let scratch = TempDir::new().unwrap();
    let database = scratch.path().join("db");
    let server = start(&database);
    let log = TestServer::start_error(&["--fabric", "none", "--database", database.to_str().unwrap()]);
    assert!(log.contains("is in use by another server") && log.contains(&server.id().to_string()), "{log}");
    server.stop();
    start(&database).stop();
}

#[test]
fn an_upload_of_a_client_that_dies_leaves_nothing() {
    let scratch = TempDir::new().unwrap();
    let database = scratch.path().join("db");
    let server = start(&database);
    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        let (sender, receiver) = futures::channel::mpsc::unbounded();
        for part in 0..UPLOAD_BATCHES {
            sender.unbounded_send(Ok(batch(1, part))).unwrap();
        }
        let options = UploadOptions::new().with_mode(IngestMode::Create);
        let schema = batch(0, 0).schema();
        // The stream of batches never ends.
        let upload = client.upload_with("uploads", schema, receiver, options);
        let written = async {
            while files(&database).is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! { ended = upload => panic!("{ended:?}"), () = written => {} }
        drop((client, sender));
        while !files(&database).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let client = Client::connect(&server.url("")).await.unwrap();
        let mut tables = client.query("SELECT * FROM server.tables").await.unwrap();
        assert!(tables.next().await.is_none());
        client.close().await;
    });
    server.stop();
}
