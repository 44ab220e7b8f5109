//! Kills at every step of a change, failing disks, and snapshots that outlive their tables.

use futures::StreamExt;

use super::*;
use crate::engine::EngineErrorKind as Kind;

/// The changes whose steps are cut. Before each, `t` has the ids 0 to 4.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Append,
    Replace,
    Create,
    Sql(&'static str),
}

const CUTS: [Cut; 9] = [
    Cut::Append,
    Cut::Replace,
    Cut::Create,
    Cut::Sql("INSERT INTO t SELECT id + 10, name FROM t"),
    Cut::Sql("CREATE TABLE u AS SELECT * FROM t"),
    Cut::Sql("DELETE FROM t WHERE id > 2"),
    Cut::Sql("UPDATE t SET name = 'x' WHERE id > 2"),
    Cut::Sql("DROP TABLE t"),
    Cut::Sql("CREATE VIEW w AS SELECT * FROM t"),
];

impl Cut {
    async fn run(self, fixture: &Fixture) -> Result<u64, EngineError> {
        match self {
            Cut::Append => fixture.ingest("t", IngestMode::Append, &[rows(5..8), rows(8..9)]).await,
            Cut::Replace => fixture.ingest("t", IngestMode::Replace, &[rows(5..8)]).await,
            Cut::Create => fixture.ingest("u", IngestMode::Create, &[rows(5..8)]).await,
            Cut::Sql(sql) => fixture.change(sql).await,
        }
    }
}

async fn prepared() -> Fixture {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..5)]).await.unwrap();
    fixture
}

/// All names and rows of the database.
async fn content(fixture: &Fixture) -> Vec<String> {
    let mut content = Vec::new();
    for table in ["t", "u", "w"] {
        let rows = fixture.query(&format!("SELECT * FROM {table} ORDER BY id")).await;
        let rows = rows.map(|batches| arrow_cast_text(&batches)).unwrap_or_else(|e| e.kind_name());
        content.push(format!("{table}: {rows}"));
    }
    content
}

fn arrow_cast_text(batches: &[RecordBatch]) -> String {
    let rows = batches.iter().flat_map(|batch| {
        let ids = column(batch, 0);
        let names = arrow_cast::cast(batch.column(1), &arrow_schema::DataType::Utf8).unwrap();
        let names = names.as_any().downcast_ref::<StringArray>().unwrap().clone();
        ids.into_iter().enumerate().map(move |(row, id)| {
            let name = if arrow_array::Array::is_null(&names, row) { "NULL" } else { names.value(row) };
            format!("{id} {name}")
        })
    });
    rows.collect::<Vec<_>>().join(", ")
}

impl EngineError {
    fn kind_name(&self) -> String {
        format!("{:?}", self.kind())
    }
}

/// The data files that the catalog names, sorted.
fn named(fixture: &Fixture) -> Vec<String> {
    let snapshot = fixture.database().snapshot();
    let mut names: Vec<String> =
        snapshot.tables().flat_map(|(_, table)| &table.files).map(|file| file.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_kill_after_any_step_leaves_the_old_or_the_new_state() {
    for cut in CUTS {
        let (mut outcomes, mut steps) = (Vec::new(), 0);
        let fixture = prepared().await;
        let old = content(&fixture).await;
        let before = fixture.database().disk.faults.plan().log.len();
        cut.run(&fixture).await.unwrap();
        let new = content(&fixture).await;
        let all = fixture.database().disk.faults.plan().log[before..].to_vec();
        assert_ne!(old, new, "{cut:?}");
        while steps <= all.len() {
            let fixture = prepared().await;
            {
                let mut plan = fixture.database().disk.faults.plan();
                plan.killed_after = Some(plan.log.len() + steps);
            }
            let done = cut.run(&fixture).await;
            let fixture = fixture.reopened().await;
            let found = content(&fixture).await;
            assert!(found == old || found == new, "{cut:?} after {:?}: {found:?}", &all[..steps]);
            // A change that was confirmed is there.
            assert!(found == new || done.is_err(), "{cut:?} after {:?}", &all[..steps]);
            assert_eq!(fixture.files(), named(&fixture), "{cut:?} after {:?}", &all[..steps]);
            outcomes.push(found == new);
            steps += 1;
        }
        // Old up to one step, and new from there on.
        assert!(outcomes.is_sorted() && !outcomes[0] && outcomes[outcomes.len() - 1], "{cut:?}: {outcomes:?} {all:?}");
    }
}

#[tokio::test]
async fn files_are_durable_before_a_catalog_names_them() {
    let fixture = prepared().await;
    let before = fixture.database().disk.faults.plan().log.len();
    Cut::Replace.run(&fixture).await.unwrap();
    let expected = [
        "create a data file",
        "sync a data file",
        "sync data/",
        "create catalog.json.tmp",
        "write catalog.json.tmp",
        "sync catalog.json.tmp",
        "rename catalog.json.tmp",
        "sync the directory",
        "remove a data file",
    ];
    assert_eq!(fixture.database().disk.faults.plan().log[before..], expected);
}

#[tokio::test]
async fn a_failing_disk_leaves_the_old_state_and_the_server_goes_on() {
    for step in [
        "create a data file",
        "sync a data file",
        "sync data/",
        "create catalog.json.tmp",
        "write catalog.json.tmp",
        "sync catalog.json.tmp",
        "rename catalog.json.tmp",
    ] {
        let fixture = prepared().await;
        let (old, files) = (content(&fixture).await, fixture.files());
        fixture.database().disk.faults.plan().failing = Some(step);
        let error = Cut::Append.run(&fixture).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Execution, "{step}: {error}");
        fixture.database().disk.faults.plan().failing = None;
        assert_eq!((content(&fixture).await, fixture.files()), (old, files), "{step}");
        assert_eq!(Cut::Append.run(&fixture).await, Ok(4), "{step}");
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_leaves_nothing() {
    let fixture = prepared().await;
    let (old, files) = (content(&fixture).await, fixture.files());
    for room in [0, 3, 5000] {
        fixture.database().disk.faults.plan().room = Some(room);
        let error = fixture.ingest("t", IngestMode::Append, &[rows(0..100_000)]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Execution);
        assert!(error.message().contains("no storage space") && error.message().contains("'t'"), "{error}");
        let error = fixture.change("CREATE TABLE u AS SELECT value AS id FROM generate_series(1, 100000)").await;
        assert_eq!(error.unwrap_err().kind(), Kind::Execution);
        assert_eq!((content(&fixture).await, fixture.files()), (old.clone(), files.clone()), "{room}");
    }
}

#[tokio::test]
async fn after_a_commit_of_unknown_fate_there_are_no_more() {
    let fixture = prepared().await;
    fixture.database().disk.faults.plan().failing = Some("sync the directory");
    let error = Cut::Replace.run(&fixture).await.unwrap_err();
    assert!(error.message().contains("unknown"), "{error}");
    fixture.database().disk.faults.plan().failing = None;
    assert!(Cut::Append.run(&fixture).await.is_err());
    // The files of both catalogs are there.
    assert_eq!(fixture.files().len(), 2);
    assert_eq!(fixture.numbers("SELECT id FROM t").await, [5, 6, 7]);
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers("SELECT id FROM t").await, [5, 6, 7]);
    assert_eq!((Cut::Append.run(&fixture).await, fixture.files().len()), (Ok(4), 2));
}

#[tokio::test]
async fn a_reader_stays_on_its_snapshot_and_its_files_go_with_it() {
    for change in ["DROP TABLE t", "CREATE OR REPLACE TABLE t AS SELECT 1 AS id", "DELETE FROM t WHERE id > 0"] {
        let fixture = Fixture::new().await;
        let batches: Vec<RecordBatch> = (0..200).map(|part| rows(part * 1000..(part + 1) * 1000)).collect();
        fixture.ingest("t", IngestMode::Create, &batches).await.unwrap();
        let file = fixture.files()[0].clone();
        let request = QueryRequest { batch_rows: Some(1000), ..QueryRequest::new("SELECT id FROM t") };
        let mut reader = fixture.engine.execute(request).await.unwrap().batches;
        let mut ids = column(&reader.next().await.unwrap().unwrap(), 0);
        fixture.change(change).await.unwrap();
        assert!(fixture.files().contains(&file), "{change}");
        while let Some(batch) = reader.next().await {
            ids.extend(column(&batch.unwrap(), 0));
        }
        assert!(ids.into_iter().eq(0..200_000), "{change}");
        drop(reader);
        // The tasks of the query end a moment after its rows.
        while fixture.engine.alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(!fixture.files().contains(&file), "{change}");
    }
}

#[tokio::test]
async fn a_cancelled_statement_leaves_the_old_state() {
    let fixture = prepared().await;
    let (old, files) = (content(&fixture).await, fixture.files());
    let endless = "INSERT INTO t SELECT value AS id, 'x' AS name FROM generate_series(1, 1000000000000)";
    let running = fixture.engine.execute(QueryRequest::new(endless));
    let mut running = Box::pin(running);
    // Until it has created its file.
    while fixture.files().len() == files.len() {
        assert!(futures::poll!(&mut running).is_pending());
        tokio::task::yield_now().await;
    }
    drop(running);
    while fixture.engine.alive_tasks() > 0 || fixture.files() != files {
        tokio::task::yield_now().await;
    }
    assert_eq!(content(&fixture).await, old);
}
