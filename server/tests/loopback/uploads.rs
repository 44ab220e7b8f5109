//! Uploads with the real client and server, into a table that keeps its batches.

use std::time::Duration;

use arrow::error::ArrowError;
use arrow_array::RecordBatch;
use futures::{Stream, StreamExt, stream};
use proptest::prelude::*;
use thallus_client::{Client, ClientError, LendFrom, StreamCode, UploadOptions, UploadReport};
use thallus_fabric::Fencing;
use thallus_protocol_testing::{arb_batches, same_batch};
use thallus_scripted_engine::{Script, ScriptedEngine, SinkScript, synthetic_batch, synthetic_schema};
use thallus_server::engine::EngineError;

use crate::world::{World, block_on, within};

const TABLE: &str = "numbers";

fn taking(sink: SinkScript) -> ScriptedEngine {
    ScriptedEngine::new().with_sink(TABLE, sink).with_query("q", Script::synthetic(5, 20_000))
}

fn batches(count: u64, rows: usize) -> impl Stream<Item = Result<RecordBatch, ArrowError>> + Unpin {
    stream::iter((0..count).map(move |number| Ok(synthetic_batch(number, rows))))
}

async fn upload(client: &Client, count: u64, rows: usize, lend_from: LendFrom) -> Result<UploadReport, ClientError> {
    let options = UploadOptions::new().with_lend_from(lend_from);
    client.upload_with(TABLE, synthetic_schema(), batches(count, rows), options).await
}

/// Waits until the client lends. The server proves the reverse path in the background.
async fn lends(client: &Client) {
    within("the reverse path", async {
        while upload(client, 1, 20_000, LendFrom::Bytes(0)).await.unwrap().batches_lent == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[test]
fn an_upload_is_read_from_the_clients_memory_or_comes_inline() {
    block_on(async {
        for fencing in [Some(Fencing::LeaseWord), Some(Fencing::Revocation), None] {
            let world = World::over(taking(SinkScript::new()), fencing);
            let client = world.client().await;
            if fencing.is_some() {
                lends(&client).await;
            }
            let before = world.engine.uploads(TABLE).len();
            for lend_from in [LendFrom::Bytes(0), LendFrom::Never, LendFrom::Auto] {
                let report = upload(&client, 7, 3000, lend_from).await.unwrap();
                assert_eq!((report.rows, report.batches_lent + report.batches_inline), (21_000, 7));
                let lent = fencing.is_some() && lend_from != LendFrom::Never;
                assert_eq!(report.batches_lent > 0, lent, "{fencing:?} {lend_from:?} {report:?}");
            }
            let expected: Vec<_> = (0..7).map(|number| synthetic_batch(number, 3000)).collect();
            assert_eq!(world.engine.take_uploads(TABLE)[before..], vec![expected; 3]);
            drop(client);
            world.is_at_rest().await;
        }
    });
}

#[test]
fn results_and_uploads_share_a_connection() {
    block_on(async {
        let world = World::over(taking(SinkScript::new()), Some(Fencing::LeaseWord));
        let client = world.client().await;
        lends(&client).await;
        let query = async || {
            let result = client.query("q").await.unwrap();
            result.map(|batch| batch.unwrap().num_rows()).collect::<Vec<_>>().await
        };
        let up = async || upload(&client, 20, 5000, LendFrom::Bytes(0)).await.unwrap().rows;
        let (first, rows, second, more) = futures::join!(query(), up(), query(), up());
        assert_eq!((rows, more), (100_000, 100_000));
        assert_eq!((first, second), (vec![20_000; 5], vec![20_000; 5]));
        drop((client, world.engine.take_uploads(TABLE)));
        world.is_at_rest().await;
    });
}

#[test]
fn an_engine_that_fails_or_takes_no_uploads_returns_an_error() {
    block_on(async {
        let broken = || EngineError::Execution { message: "the disk is full".into() };
        for (sink, at_once) in [
            (SinkScript::new().refuse(broken()), true),
            (SinkScript::new().fail_at(3, broken()), false),
            (SinkScript::new().fail_at(u64::MAX, broken()), false),
        ] {
            let world = World::over(taking(sink), Some(Fencing::LeaseWord));
            let client = world.client().await;
            let failure = upload(&client, 9, 1000, LendFrom::Auto).await.unwrap_err();
            let execution = matches!(&failure, ClientError::Query { kind: StreamCode::Execution, .. });
            assert!(execution && failure.to_string().contains("the disk is full"), "{failure:?} {at_once}");
            let unknown = client.upload("no such", synthetic_schema(), batches(1, 1)).await.unwrap_err();
            assert!(matches!(unknown, ClientError::Query { kind: StreamCode::UnknownTable, .. }), "{unknown:?}");
            let rows: Vec<_> = client.query("q").await.unwrap().collect().await;
            assert_eq!(rows.len(), 5, "the connection is still usable");
            assert_eq!(world.engine.uploads(TABLE).len(), 0);
            drop(client);
            world.is_at_rest().await;
        }
    });
}

#[test]
fn a_source_that_fails_and_an_upload_that_is_dropped_leave_nothing() {
    block_on(async {
        let world = World::over(taking(SinkScript::new().pace(Duration::from_millis(5))), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let fails = batches(3, 1000).chain(stream::iter([Err(ArrowError::ComputeError("no more".into()))]));
        let failure = client.upload(TABLE, synthetic_schema(), fails.boxed()).await.unwrap_err();
        assert!(
            matches!(&failure, ClientError::Source { source } if source.to_string().contains("no more")),
            "{failure}"
        );
        let endless = upload(&client, u64::MAX, 20_000, LendFrom::Bytes(0));
        let dropped = tokio::time::timeout(Duration::from_millis(100), endless).await;
        assert!(dropped.is_err(), "{dropped:?}");
        within("the engine to end the upload", async {
            while world.engine.running() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        assert_eq!(world.engine.uploads(TABLE).len(), 0);
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_deadline_ends_an_upload_at_any_point() {
    block_on(async {
        let slow = SinkScript::new().pace(Duration::from_secs(30));
        let world = World::over(taking(slow), None);
        let client = world.client().await;
        let options = UploadOptions::new().with_deadline(Some(Duration::from_millis(150)));
        // The deadline expires while the engine takes a batch, or while it takes the end.
        for count in [2, 0] {
            let late = client.upload_with(TABLE, synthetic_schema(), batches(count, 10), options.clone()).await;
            assert!(
                matches!(&late, Err(ClientError::Timeout { .. }))
                    || matches!(&late, Err(ClientError::Query { kind: StreamCode::DeadlineExceeded, .. })),
                "{late:?}"
            );
        }
        assert_eq!(world.engine.uploads(TABLE).len(), 0);
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_server_that_is_cut_off_ends_uploads() {
    block_on(async {
        // With a pace, because paused time does not pass while batches come without end.
        let sink = SinkScript::new().pace(Duration::from_millis(5));
        let world = World::over(taking(sink), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let endless = upload(&client, u64::MAX, 20_000, LendFrom::Bytes(0));
        let cut = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.cut();
        };
        let (ended, ()) = within("the upload to end", async { futures::join!(endless, cut) }).await;
        assert!(matches!(ended, Err(ClientError::ConnectionLost { .. } | ClientError::Query { .. })), "{ended:?}");
        assert_eq!(world.engine.uploads(TABLE).len(), 0);
        drop(client);
        world.is_at_rest().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_batches_survive_the_way_up(batches in arb_batches(3), way in 0_usize..3) {
        let (fencing, lend_from) = [
            (Some(Fencing::LeaseWord), LendFrom::Bytes(0)),
            (Some(Fencing::Revocation), LendFrom::Bytes(0)),
            (None, LendFrom::Never),
        ][way];
        let (uploaded, kept, different) = block_on(async {
            let world = World::over(taking(SinkScript::new()), fencing);
            let client = world.client().await;
            let schema = batches[0].schema();
            let sent = stream::iter(batches.clone().into_iter().map(Ok));
            let options = UploadOptions::new().with_lend_from(lend_from);
            let uploaded = client.upload_with(TABLE, schema, sent, options).await;
            let taken = world.engine.take_uploads(TABLE).concat();
            let pairs = taken.iter().zip(&batches);
            let different: Vec<_> = pairs.filter_map(|(got, sent)| same_batch(got, sent).err()).collect();
            let kept = taken.len();
            drop((client, taken));
            world.is_at_rest().await;
            (uploaded, kept, different)
        });
        match uploaded {
            Ok(_) => prop_assert_eq!((kept, different), (batches.len(), Vec::<String>::new())),
            Err(ClientError::Query { kind: StreamCode::Unencodable, .. }) => prop_assert_eq!(kept, 0),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}
