//! Lazy results: requested parts are correct, nothing else is read, and held batches are always released.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use thallus_client::{Client, ClientError, LazyBatch, LazyOptions, LazyStream, LendFrom, StreamCode};
use thallus_fabric::Fencing;
use thallus_protocol_testing::{arb_batches, same_batch};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};
use thallus_server::engine::EngineError;

use crate::world::{World, block_on, within};

const FENCINGS: [Fencing; 2] = [Fencing::LeaseWord, Fencing::Revocation];

/// A batch of `rows` rows, with fifty columns of numbers and one of names.
fn wide(number: u64, rows: usize) -> RecordBatch {
    let first = number as i64 * rows as i64;
    let numbers = |column: i64| (0..rows as i64).map(|row| (first + row) * 100 + column).collect::<Int64Array>();
    let names: StringArray = (0..rows as i64).map(|row| Some(format!("row {:08}", first + row))).collect();
    let columns = (0..50).map(|column| (format!("c{column}"), Arc::new(numbers(column)) as ArrayRef));
    RecordBatch::try_from_iter(columns.chain([("name".to_owned(), Arc::new(names) as ArrayRef)])).unwrap()
}

fn wide_script(batches: u64, rows: usize) -> Script {
    Script::new(wide(0, 1).schema()).generate(batches, move |number| wide(number, rows))
}

async fn next(result: &mut LazyStream) -> LazyBatch {
    within("a lazy batch", result.next()).await.expect("a batch").expect("no error")
}

/// The only batch of a result. Waits for the end, because a result dropped before its end is cancelled with its
/// batches.
async fn only(mut result: LazyStream) -> LazyBatch {
    let batch = next(&mut result).await;
    assert!(within("the end", result.next()).await.is_none());
    batch
}

#[test]
fn only_requested_columns_and_rows_are_read() {
    for fencing in FENCINGS {
        block_on(async {
            let world = World::over(ScriptedEngine::new().on("wide", wide_script(4, 10_000)), Some(fencing));
            let client = world.client().await;
            let mut result = client.query_lazy("wide").await.unwrap();
            let mut number = 0;
            while let Some(batch) = result.try_next().await.unwrap() {
                let sent = wide(number, 10_000);
                assert_eq!((batch.num_rows(), batch.schema(), batch.is_here()), (10_000, sent.schema(), false));
                assert_eq!(batch.column_bytes()[7], 80_000);
                assert_eq!(batch.columns(&[7]).await.unwrap(), sent.project(&[7]).unwrap());
                // Repeated reads of fewer rows, in another order and at the same time.
                let (first, second) =
                    tokio::join!(batch.columns_in(&[50, 3], 500..600), batch.columns_in(&[0], 9_999..10_000));
                assert_eq!(first.unwrap(), sent.project(&[50, 3]).unwrap().slice(500, 100));
                assert_eq!(second.unwrap(), sent.project(&[0]).unwrap().slice(9_999, 1));
                assert_eq!(batch.columns(&[]).await.unwrap().num_rows(), 10_000);
                number += 1;
            }
            let report = result.report();
            assert_eq!((report.rows, report.batches_lent, report.complete), (40_000, 4, true), "{report}");
            let lazy = report.lazy.unwrap();
            // Bytes of 10 000 numbers; of 100 numbers, 100 names of 12 letters and 101 offsets; of one number.
            assert_eq!(lazy.bytes_read, 4 * (80_000 + 800 + 1200 + 101 * 4 + 8));
            // Bytes of fifty columns of numbers; of the names and their offsets.
            assert_eq!(lazy.bytes_offered, 4 * (50 * 80_000 + 120_000 + 40_004));
            assert_eq!((lazy.asks, report.bytes_lent), (16, lazy.bytes_read));
            assert!(lazy.saved() > 0.97, "{report}");
            drop((result, client));
            world.is_at_rest().await;
        });
    }
}

fn arb_selection() -> impl Strategy<Value = (Vec<prop::sample::Index>, [prop::sample::Index; 2])> {
    (prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<[prop::sample::Index; 2]>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_part_of_any_batch_survives_every_way(
        batches in arb_batches(3),
        way in 0_usize..3,
        asks in prop::collection::vec(arb_selection(), 1..4),
    ) {
        let (fencing, lend_from) = [
            (Some(Fencing::LeaseWord), LendFrom::Bytes(0)),
            (Some(Fencing::Revocation), LendFrom::Bytes(0)),
            (None, LendFrom::Never),
        ][way];
        let sent: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect();
        let compared = block_on(async {
            let world = World::over(ScriptedEngine::new().on("q", Script::batches(batches)), fencing);
            let client = world.client().await;
            let options = LazyOptions::default().with_lend_from(lend_from);
            let compared = match client.query_lazy_with("q", options).await {
                Ok(result) => compare(result, &sent, &asks).await,
                Err(error) => Err(error),
            };
            drop(client);
            world.is_at_rest().await;
            compared
        });
        match compared {
            Ok(different) => prop_assert_eq!(different, Vec::<String>::new()),
            // Types that Arrow IPC does not support are refused with a message.
            Err(ClientError::Query { kind: StreamCode::Unencodable, .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// Reads the same parts of every batch, and returns the differences from the sent batches.
async fn compare(
    result: LazyStream,
    sent: &[RecordBatch],
    asks: &[(Vec<prop::sample::Index>, [prop::sample::Index; 2])],
) -> Result<Vec<String>, ClientError> {
    // Collects all batches first: they stay readable after the end.
    let batches: Vec<LazyBatch> = result.try_collect().await?;
    let mut different = Vec::new();
    if batches.len() != sent.len() {
        different.push(format!("{} batches of {}", batches.len(), sent.len()));
    }
    for (batch, sent) in batches.iter().zip(sent) {
        for (columns, ends) in asks {
            let of = sent.num_columns();
            let columns: Vec<_> = columns.iter().filter(|_| of > 0).map(|index| index.index(of)).collect();
            let mut ends = ends.map(|index| index.index(sent.num_rows() + 1));
            ends.sort_unstable();
            let Range { start, end } = ends[0]..ends[1];
            let part = sent.project(&columns).unwrap().slice(start, end - start);
            different.extend(same_batch(&batch.columns_in(&columns, start..end).await?, &part).err());
        }
        different.extend(same_batch(&batch.read_all().await?, sent).err());
    }
    Ok(different)
}

#[test]
fn small_batches_are_local_already() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().on("q", Script::synthetic(2, 10)), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let mut result = client.query_lazy("q").await.unwrap();
        let batch = next(&mut result).await;
        assert!(batch.is_here());
        assert_eq!(
            batch.columns_in(&[1, 0], 3..5).await.unwrap(),
            synthetic_batch(0, 10).project(&[1, 0]).unwrap().slice(3, 2)
        );
        assert!(batch.column_bytes().iter().all(|bytes| *bytes > 0));
        next(&mut result).await;
        assert!(result.next().await.is_none());
        let report = result.report();
        assert_eq!((report.batches_inline, report.lazy.unwrap().bytes_offered), (2, 0), "{report}");
    });
}

#[test]
fn a_column_or_row_out_of_range_is_an_error() {
    block_on(async {
        for (rows, here) in [(10, true), (20_000, false)] {
            let world =
                World::over(ScriptedEngine::new().on("q", Script::synthetic(1, rows)), Some(Fencing::LeaseWord));
            let client = world.client().await;
            let batch = only(client.query_lazy("q").await.unwrap()).await;
            assert_eq!(batch.is_here(), here);
            let count = batch.schema().fields().len();
            let refused = batch.columns(&[0, count]).await.unwrap_err();
            assert!(
                matches!(refused, ClientError::OutOfRange { what: "column", got, .. } if got == count),
                "{refused}"
            );
            let refused = batch.columns_in(&[0], 0..rows + 1).await.unwrap_err();
            assert!(matches!(refused, ClientError::OutOfRange { what: "row", .. }), "{refused}");
        }
    });
}

/// An engine with a result that never ends.
fn waits() -> ScriptedEngine {
    let script = wide_script(2, 10_000).hang();
    ScriptedEngine::new().on("waits", script).on("next", Script::synthetic(1, 10))
}

/// Waits until no query runs, and checks that the connection is still usable.
async fn still_works(world: &World, client: &Client) {
    within("the query to stop", async {
        while world.engine.running() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    let rest: Vec<_> = client.query("next").await.unwrap().try_collect().await.unwrap();
    assert_eq!(rest, [synthetic_batch(0, 10)], "the connection is still usable");
}

#[test]
fn held_batches_of_a_dropped_result_cannot_be_read() {
    block_on(async {
        let world = World::over(waits(), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let mut result = client.query_lazy("waits").await.unwrap();
        let batch = next(&mut result).await;
        batch.columns(&[0]).await.unwrap();
        drop(result);
        let error = batch.columns(&[0]).await.unwrap_err();
        assert!(matches!(error, ClientError::Cancelled), "{error:?}");
        still_works(&world, &client).await;
        drop((batch, client));
        world.is_at_rest().await;
    });
}

#[test]
fn held_batches_outlive_the_end_of_their_result_and_the_client() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().on("wide", wide_script(3, 10_000)), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let batches: Vec<_> = client.query_lazy("wide").await.unwrap().try_collect().await.unwrap();
        drop(client);
        for (number, batch) in batches.iter().enumerate() {
            assert_eq!(batch.read_all().await.unwrap(), wide(number as u64, 10_000));
        }
        drop(batches);
        world.is_at_rest().await;
    });
}

#[test]
fn an_unread_result_releases_its_loans_when_it_is_dropped() {
    block_on(async {
        let world = World::over(
            ScriptedEngine::new().on("wide", wide_script(3, 10_000)).on("next", Script::synthetic(1, 10)),
            Some(Fencing::LeaseWord),
        );
        let client = world.client().await;
        let result = client.query_lazy("wide").await.unwrap();
        // Every batch has arrived, and none has been taken from the result.
        still_works(&world, &client).await;
        client.ping().await.unwrap();
        drop(result);
        within("the loans to be released", async {
            while world.server.bytes_on_loan() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_reader_that_holds_its_window_gets_no_batch_until_it_drops_one() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().on("wide", wide_script(20, 10_000)), Some(Fencing::LeaseWord));
        let client = world.client().await;
        // A window for two batches of about 4.2 million bytes.
        let options = LazyOptions::default().with_window(Some(10_000_000));
        let mut result = client.query_lazy_with("wide", options).await.unwrap();
        let mut held = vec![next(&mut result).await, next(&mut result).await];
        let third = tokio::time::timeout(Duration::from_millis(200), result.next()).await;
        assert!(third.is_err(), "a third batch in a window for two: {third:?}");
        held.remove(0);
        held.push(next(&mut result).await);
        assert_eq!(held[1].columns(&[0]).await.unwrap(), wide(2, 10_000).project(&[0]).unwrap());
        drop(held);
        let mut seen = 3;
        while let Some(batch) = result.try_next().await.unwrap() {
            assert_eq!(batch.num_rows(), 10_000);
            seen += 1;
        }
        assert_eq!(seen, 20);
    });
}

#[test]
fn a_reader_that_holds_batches_for_too_long_gets_an_error_with_the_cause() {
    block_on(async {
        let engine = ScriptedEngine::new().on("wide", wide_script(20, 10_000));
        let world = World::impatient(engine, Duration::from_millis(400));
        let client = world.client().await;
        let options = LazyOptions::default().with_window(Some(10_000_000));
        let result = client.query_lazy_with("wide", options).await.unwrap();
        let error = within("the server to revoke its loans", result.try_collect::<Vec<_>>()).await.unwrap_err();
        assert!(matches!(error, ClientError::LeaseExpired { .. }), "{error:?}");
        assert!(error.to_string().contains("2 batches of this lazy result are held"), "{error}");
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_deadline_ends_the_wait_for_room_and_the_held_batches() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().on("wide", wide_script(20, 10_000)), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let options =
            LazyOptions::default().with_window(Some(10_000_000)).with_deadline(Some(Duration::from_millis(600)));
        let mut result = client.query_lazy_with("wide", options).await.unwrap();
        let mut held = Vec::new();
        let late = within("the deadline", async {
            loop {
                match result.next().await {
                    Some(Ok(batch)) => held.push(batch),
                    Some(Err(error)) => break error,
                    None => panic!("the whole result fits a window for two batches"),
                }
            }
        })
        .await;
        let is_late = |error: &ClientError| {
            matches!(error, ClientError::Timeout { .. } | ClientError::Query { kind: StreamCode::DeadlineExceeded, .. })
        };
        assert!(is_late(&late), "{late:?}");
        let lost = held[0].columns(&[0]).await.unwrap_err();
        assert!(is_late(&lost), "{lost:?}");
        drop((held, result, client));
        world.is_at_rest().await;
    });
}

#[test]
fn a_server_that_is_cut_off_between_two_reads() {
    for fencing in FENCINGS {
        block_on(async {
            let world = World::over(ScriptedEngine::new().on("wide", wide_script(2, 10_000)), Some(fencing));
            let client = world.client().await;
            let batches: Vec<_> = client.query_lazy("wide").await.unwrap().try_collect().await.unwrap();
            batches[0].columns(&[0]).await.unwrap();
            world.cut();
            let lost = within("a read to fail", async {
                loop {
                    // Until the client notices the cut, it may still read memory that the server has not revoked.
                    match batches[1].columns(&[0]).await {
                        Ok(got) => assert_eq!(got, wide(1, 10_000).project(&[0]).unwrap()),
                        Err(error) => break error,
                    }
                }
            })
            .await;
            assert!(matches!(lost, ClientError::ServerGone { .. } | ClientError::Read { .. }), "{lost:?}");
            assert!(batches[0].columns(&[0]).await.is_err());
            drop((batches, client));
            world.is_at_rest().await;
        });
    }
}

#[test]
fn an_engine_failure_also_fails_the_held_batches() {
    block_on(async {
        let error = EngineError::Execution { message: "the third batch is bad".into() };
        let world = World::over(
            ScriptedEngine::new().on("breaks", wide_script(2, 10_000).fail(error)),
            Some(Fencing::LeaseWord),
        );
        let client = world.client().await;
        let mut result = client.query_lazy("breaks").await.unwrap();
        let mut held = Vec::new();
        let failure = loop {
            match result.next().await {
                Some(Ok(batch)) => held.push(batch),
                Some(Err(error)) => break error,
                None => panic!("the result ended without an error"),
            }
        };
        assert!(failure.to_string().contains("the third batch is bad"), "{failure}");
        let lost = held[0].columns(&[0]).await.unwrap_err();
        assert!(lost.to_string().contains("the third batch is bad"), "{lost}");
        drop((held, result, client));
        world.is_at_rest().await;
    });
}

#[test]
fn dropped_reads_do_no_harm() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().on("wide", wide_script(1, 10_000)), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let batch = only(client.query_lazy("wide").await.unwrap()).await;
        for _ in 0..20 {
            let (dropped, columns) = (batch.columns(&[0, 50]), batch.columns(&[1]));
            // The first read begins, and is dropped before it completes.
            tokio::select! { biased; _ = dropped => {} () = std::future::ready(()) => {} }
            assert_eq!(columns.await.unwrap(), wide(0, 10_000).project(&[1]).unwrap());
        }
        drop((batch, client));
        world.is_at_rest().await;
    });
}

#[test]
fn closing_the_client_fails_the_held_batches() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().on("wide", wide_script(1, 10_000)), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let batches: Vec<_> = client.query_lazy("wide").await.unwrap().try_collect().await.unwrap();
        client.close().await;
        let error = batches[0].read_all().await.unwrap_err();
        assert!(matches!(error, ClientError::Cancelled | ClientError::ServerGone { .. }), "{error:?}");
        world.is_at_rest().await;
    });
}
