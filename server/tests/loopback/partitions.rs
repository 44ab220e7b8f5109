//! Results in partitions: all partitions or one error, and no effect of requests from other clients.

use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use thallus_client::{ClientError, QueryOptions, ResultStream, SortKey, StreamCode};
use thallus_fabric::Fencing;
use thallus_protocol::GroupId;
use thallus_protocol::message::{OpenOptions, Partition};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch, synthetic_schema};
use thallus_server::config::{ServerConfig, Span};
use thallus_server::engine::EngineError;

use crate::raw::Raw;
use crate::world::{World, block_on, in_parallel, within};

/// A sort order by `id` only.
fn by_id(descending: bool) -> Vec<SortKey> {
    vec![SortKey { column: 0, descending, nulls_first: false }]
}

/// Three partitions: with large batches, with small batches, and without batches.
fn uneven() -> Vec<Script> {
    vec![
        Script::new(synthetic_schema()).generate(4, |n| synthetic_batch(n, 20_000)),
        Script::new(synthetic_schema()).generate(30, |n| synthetic_batch(1000 + n, 7)),
        Script::new(synthetic_schema()),
    ]
}

fn three() -> QueryOptions {
    QueryOptions::default().with_partitions(Some(3))
}

fn ids(batches: &[RecordBatch]) -> Vec<i64> {
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

async fn failure(mut result: ResultStream) -> ClientError {
    within("the result to fail", async {
        loop {
            match result.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    assert!(result.next().await.is_none(), "a result continues after an error");
                    assert!(!result.report().complete);
                    return error;
                }
                None => panic!("the result ended without an error"),
            }
        }
    })
    .await
}

fn code(error: &ClientError) -> StreamCode {
    match error {
        ClientError::Query { kind, .. } => *kind,
        other => panic!("not the server's error: {other}"),
    }
}

#[test]
fn all_partitions_come_over_connections_that_are_kept() {
    block_on(async {
        for fencing in [Some(Fencing::LeaseWord), Some(Fencing::Revocation), None] {
            let world = World::over(ScriptedEngine::new().with_partitioned_query("q", Vec::new(), uneven()), fencing);
            let client = world.client_of_many().await;
            for round in 1..=3 {
                let mut result = client.query_with("q", three()).await.unwrap();
                let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
                let mut got = ids(&batches);
                got.sort_unstable();
                let expected: Vec<_> = (0..80_000).chain(7000..7210).collect::<Vec<i64>>();
                let mut expected = expected;
                expected.sort_unstable();
                assert_eq!(got, expected);
                let report = result.report();
                assert_eq!((report.complete, report.rows, report.bytes_copied), (true, 80_210, 0), "{report}");
                let rows: Vec<_> = report.partitions.iter().map(|part| (part.rows, part.complete)).collect();
                assert_eq!(rows, [(80_000, true), (210, true), (0, true)], "{report}");
                assert_eq!(report.batches_lent, if fencing.is_some() { 4 } else { 0 }, "{report}");
                assert_eq!((world.engine.started(), world.server.connections()), (3 * round, 3));
            }
            client.close().await;
            world.is_at_rest().await;
        }
    });
}

#[test]
fn partitions_of_a_sorted_result_are_merged_to_its_order() {
    block_on(async {
        let part = |ids: fn(u64) -> u64| {
            // Batches of one row each.
            (0..500).map(move |n| synthetic_batch(ids(n), 1)).collect::<Vec<_>>()
        };
        let ascending = vec![
            Script::batches(part(|n| 3 * n)),
            Script::batches(part(|n| 3 * n + 1)),
            Script::batches(part(|n| 3 * n + 2)),
        ];
        let descending = vec![
            Script::batches(part(|n| 5000 - 2 * n)),
            Script::batches(part(|n| 5000 - 2 * n)),
            // One large batch whose rows all come before those of the other partitions.
            Script::batches([synthetic_batch(3, 3000)].map(|batch| reversed(&batch))),
        ];
        let engine = ScriptedEngine::new()
            .with_partitioned_query("up", by_id(false), ascending)
            .with_partitioned_query("down", by_id(true), descending);
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client_of_many().await;

        let up: Vec<_> = client.query_with("up", three()).await.unwrap().try_collect().await.unwrap();
        let whole = concat_batches(&synthetic_schema(), &up).unwrap();
        let expected: Vec<_> = (0..1500).map(|n| synthetic_batch(n, 1)).collect();
        assert_eq!(whole, concat_batches(&synthetic_schema(), &expected).unwrap());
        assert!(up.len() < 1500, "rows of several batches are merged into one batch");

        let mut result = client.query_with("down", three()).await.unwrap();
        let down: Vec<_> = result.by_ref().try_collect().await.unwrap();
        assert!(ids(&down).is_sorted_by(|a, b| a >= b));
        assert_eq!(ids(&down).len(), 4000);
        assert!(result.report().bytes_copied > 0, "{}", result.report());

        let few = three().with_batch_rows(Some(10));
        let batches: Vec<_> = client.query_with("up", few).await.unwrap().try_collect().await.unwrap();
        assert!(batches.iter().all(|batch| batch.num_rows() <= 10));
        assert_eq!(ids(&batches), (0..1500).collect::<Vec<_>>());

        let mut result = client.query_with("up", three().with_unordered(true)).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        assert_eq!((batches.len(), result.report().bytes_copied), (1500, 0));
        drop((whole, up, down, batches, result));
        client.close().await;
        world.is_at_rest().await;
    });
}

fn reversed(batch: &RecordBatch) -> RecordBatch {
    let rows: Vec<_> = (0..batch.num_rows() as u64).rev().collect();
    arrow::compute::take_record_batch(batch, &arrow::array::UInt64Array::from(rows)).unwrap()
}

#[test]
fn each_partition_can_be_a_stream_of_its_own() {
    block_on(async {
        let world = World::over(
            ScriptedEngine::new().with_partitioned_query("q", by_id(false), uneven()),
            Some(Fencing::LeaseWord),
        );
        let client = world.client_of_many().await;
        let parts = client.query_partitions("q", 3).await.unwrap();
        let parts = join_all(parts.into_iter().map(|part| {
            tokio::spawn(async move {
                assert_eq!(part.order(), by_id(false));
                part.try_collect::<Vec<_>>().await.unwrap()
            })
        }));
        let parts: Vec<_> = parts.await.into_iter().map(Result::unwrap).collect();
        assert_eq!(parts[0], (0..4).map(|n| synthetic_batch(n, 20_000)).collect::<Vec<_>>());
        assert_eq!(parts[1], (1000..1030).map(|n| synthetic_batch(n, 7)).collect::<Vec<_>>());
        assert_eq!(parts[2], []);
        drop(parts);
        client.close().await;
        world.is_at_rest().await;
    });
}

#[test]
fn an_undivided_result_and_a_single_connection_work_as_well() {
    block_on(async {
        let world = World::over(
            ScriptedEngine::new().with_query("whole", Script::synthetic(5, 10)).with_partitioned_query(
                "q",
                Vec::new(),
                uneven(),
            ),
            None,
        );
        for client in [world.client_of_many().await, world.client().await] {
            let batches: Vec<_> = client.query_with("whole", three()).await.unwrap().try_collect().await.unwrap();
            assert_eq!(ids(&batches), (0..50).collect::<Vec<_>>());
            let batches: Vec<_> = client.query_with("q", three()).await.unwrap().try_collect().await.unwrap();
            assert_eq!(ids(&batches).len(), 80_210);
            client.close().await;
        }
        world.is_at_rest().await;
    });
}

#[test]
fn an_error_of_one_partition_is_the_error_of_all() {
    block_on(async {
        let broken = EngineError::Execution { message: "the third batch is bad".into() };
        let parts = vec![
            Script::synthetic(1, 10).hang(),
            Script::synthetic(2, 10).fail(broken.clone()),
            Script::synthetic(u64::MAX, 20_000),
        ];
        let engine = ScriptedEngine::new()
            .with_partitioned_query("breaks", Vec::new(), parts)
            .with_query("refused", Script::refuse(broken))
            .with_query("fine", Script::synthetic(1, 1));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client_of_many().await;
        // The error may arrive before all partitions have begun.
        let mut errors = match client.query_with("breaks", three()).await {
            Ok(result) => vec![failure(result).await],
            Err(error) => vec![error],
        };
        match client.query_partitions("breaks", 3).await {
            Ok(parts) => errors.extend(join_all(parts.into_iter().map(failure)).await),
            Err(error) => errors.push(error),
        }
        for error in errors {
            assert_eq!(code(&error), StreamCode::Execution, "{error}");
            assert!(error.to_string().contains("the third batch is bad"), "{error}");
        }
        let refused = client.query_with("refused", three()).await.unwrap_err();
        assert_eq!(code(&refused), StreamCode::Execution, "{refused}");
        let rest: Vec<_> = client.query_with("fine", three()).await.unwrap().try_collect().await.unwrap();
        assert_eq!(rest, [synthetic_batch(0, 1)], "the connections are still usable");
        drop((rest, client));
        world.is_at_rest().await;
    });
}

fn endless() -> ScriptedEngine {
    let parts = (0..3).map(|_| Script::synthetic(u64::MAX, 20_000)).collect();
    ScriptedEngine::new()
        .with_partitioned_query("endless", by_id(false), parts)
        .with_query("fine", Script::synthetic(1, 1))
}

#[test]
fn a_dropped_result_stops_all_partitions() {
    block_on(async {
        for options in [three(), three().with_unordered(true)] {
            let world = World::over(endless(), Some(Fencing::LeaseWord));
            let client = world.client_of_many().await;
            let mut result = client.query_with("endless", options).await.unwrap();
            for _ in 0..10 {
                result.next().await.unwrap().unwrap();
            }
            assert_eq!((world.engine.running(), world.server.partitioned_queries()), (3, 1));
            drop(result);
            within("all partitions to stop", async {
                while world.engine.running() > 0 || world.server.partitioned_queries() > 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
            .await;
            let rest: Vec<_> = client.query_with("fine", three()).await.unwrap().try_collect().await.unwrap();
            assert_eq!(rest.len(), 1);
            drop((rest, client));
            world.is_at_rest().await;
        }
    });
}

/// Paused time does not pass while an engine yields batches without end, and the deadline would never come.
#[test]
fn a_dropped_partition_ends_the_others() {
    in_parallel(async {
        let world = World::over(endless(), Some(Fencing::LeaseWord));
        let client = world.client_of_many().await;
        let mut parts = client.query_partitions("endless", 3).await.unwrap();
        parts[0].next().await.unwrap().unwrap();
        drop(parts.remove(1));
        for error in join_all(parts.into_iter().map(failure)).await {
            assert_eq!(code(&error), StreamCode::PartitionLost, "{error}");
            assert!(error.to_string().contains("partition 1 of 3"), "{error}");
        }
        // An error of one partition is the error of all.
        let options = three().with_deadline(Some(Duration::from_millis(200)));
        let error = failure(client.query_with("endless", options).await.unwrap()).await;
        let late = matches!(
            error,
            ClientError::Timeout { .. } | ClientError::Query { kind: StreamCode::DeadlineExceeded, .. }
        );
        assert!(late, "{error}");
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_lost_connection_is_one_error_and_the_others_stay_usable() {
    block_on(async {
        for lost in 1..3 {
            let world = World::over(endless(), Some(Fencing::LeaseWord));
            let client = world.client_of_many().await;
            let mut result = client.query_with("endless", three()).await.unwrap();
            result.next().await.unwrap().unwrap();
            world.cut_one(lost);
            let error = failure(result).await;
            // The first visible error is the lost connection, the server's message on another connection, or a failed
            // read.
            let known = matches!(
                error,
                ClientError::ConnectionLost { .. }
                    | ClientError::Read { .. }
                    | ClientError::Query { kind: StreamCode::PartitionLost, .. }
            );
            assert!(known, "{error:?}");
            within("all partitions to stop", async {
                while world.engine.running() > 0 || world.server.partitioned_queries() > 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
            .await;
            // As soon as the client notices the lost connection, it opens another.
            let rest = within("a new connection", async {
                loop {
                    match client.query_with("fine", three()).await {
                        Ok(result) => return result.try_collect::<Vec<_>>().await.unwrap(),
                        Err(ClientError::ConnectionLost { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                        Err(other) => panic!("{other}"),
                    }
                }
            })
            .await;
            assert_eq!((rest.len(), world.server.connections()), (1, 3));
            drop((rest, client));
            world.is_at_rest().await;
        }
    });
}

#[test]
fn too_many_partitions_are_refused_with_a_message() {
    block_on(async {
        let mut config = ServerConfig::default();
        config.limits.max_partitions = 2;
        config.limits.max_connections = 4;
        let world = World::configured(endless(), config);
        let client = world.client_of_many().await;
        let error = client.query_with("endless", three()).await.unwrap_err();
        assert_eq!(code(&error), StreamCode::PartitionInvalid, "{error}");
        assert!(error.to_string().contains("1 to 2"), "{error}");
        let error = client.query_partitions("endless", 5).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { .. }), "no connection is left: {error}");
        for senseless in [0, 1025, u32::MAX] {
            let error = client.query_partitions("endless", senseless).await.unwrap_err();
            assert!(error.to_string().contains("1 to 1024"), "{error}");
        }
        drop(client);
        world.is_at_rest().await;
    });
}

fn part(group: u8, index: u32, count: u32) -> Partition {
    Partition { group: GroupId([group; 16]), index, count }
}

#[test]
fn a_mismatched_request_is_refused_without_harm_to_the_group() {
    block_on(async {
        let parts = vec![Script::synthetic(2, 5), Script::synthetic(3, 5)];
        let world = World::over(ScriptedEngine::new().with_partitioned_query("q", Vec::new(), parts), None);
        let (mut honest, mut other_client) = (Raw::new(&world).await, Raw::new(&world).await);
        let first = honest.open_part("q", part(1, 0, 2)).await;
        within("the first request to arrive", async {
            while world.server.partitioned_queries() == 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        let other = OpenOptions { credit: 1 << 20, batch_rows: Some(1), ..OpenOptions::default() };
        for (sql, options, words) in [
            ("q", OpenOptions { partition: Some(part(1, 0, 2)), ..other.clone() }, "or other options"),
            (
                "another",
                OpenOptions { partition: Some(part(1, 1, 2)), batch_rows: None, ..other.clone() },
                "another query",
            ),
            (
                "q",
                OpenOptions { partition: Some(part(1, 0, 2)), batch_rows: None, ..other.clone() },
                "requested before",
            ),
            ("q", OpenOptions { partition: Some(part(1, 1, 3)), ..other.clone() }, "the others are of 2"),
            ("q", OpenOptions { partition: Some(part(1, 2, 2)), ..other.clone() }, "counted from 0"),
            ("q", OpenOptions { partition: Some(part(2, 0, 0)), ..other.clone() }, "1 to 64"),
            ("q", OpenOptions { partition: Some(part(2, 0, u32::MAX)), ..other.clone() }, "1 to 64"),
        ] {
            let stream = other_client.open(sql, options).await;
            let (code, message) = other_client.begun(stream).await.unwrap_err();
            assert_eq!(code, StreamCode::PartitionInvalid, "{message}");
            assert!(message.contains(words), "{message}");
        }
        let second = honest.open_part("q", part(1, 1, 2)).await;
        let mut rows = Vec::new();
        for stream in [first, second] {
            rows.push(honest.ended(stream).await);
        }
        assert_eq!(rows, [Ok(10), Ok(15)]);
        assert_eq!(world.engine.started(), 2, "the query ran once, in two partitions");
        drop((honest, other_client));
        world.is_at_rest().await;
    });
}

#[test]
fn missing_partitions_fail_the_requested_ones() {
    block_on(async {
        let mut config = ServerConfig::default();
        config.timeouts.rendezvous = Span(Duration::from_millis(300));
        let world = World::configured(endless(), config);
        let mut raw = Raw::new(&world).await;
        let two = [raw.open_part("endless", part(1, 0, 3)).await, raw.open_part("endless", part(1, 2, 3)).await];
        for stream in two {
            let (code, message) = raw.begun(stream).await.unwrap_err();
            assert_eq!(code, StreamCode::PartitionMissing, "{message}");
            assert!(message.contains("2 of 3"), "{message}");
        }
        within("nothing to be left", async {
            while world.engine.running() > 0 || world.server.partitioned_queries() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        drop(raw);
        world.is_at_rest().await;
    });
}

#[test]
fn a_late_request_for_a_failed_group_gets_the_cause_and_starts_nothing() {
    block_on(async {
        let world = World::over(endless(), None);
        let mut raw = Raw::new(&world).await;
        let first = raw.open_part("endless", part(1, 0, 3)).await;
        raw.cancel(first).await;
        let (code, _) = raw.begun(first).await.unwrap_err();
        assert_eq!(code, StreamCode::Cancelled);
        let started = world.engine.started();
        let late = raw.open_part("endless", part(1, 1, 3)).await;
        let (code, message) = raw.begun(late).await.unwrap_err();
        assert_eq!(code, StreamCode::PartitionLost, "{message}");
        assert!(message.contains("partition 0 of 3"), "{message}");
        assert_eq!(world.engine.started(), started);
        drop(raw);
        world.is_at_rest().await;
    });
}

#[test]
fn groups_are_bounded_and_failed_ones_do_not_count() {
    block_on(async {
        let mut config = ServerConfig::default();
        config.limits.max_partitioned_queries = 2;
        let world = World::configured(endless(), config);
        let mut raw = Raw::new(&world).await;
        for group in 10..20 {
            let stream = raw.open_part("endless", part(group, 0, 3)).await;
            raw.cancel(stream).await;
            assert_eq!(raw.begun(stream).await.unwrap_err().0, StreamCode::Cancelled);
        }
        let waiting = [raw.open_part("endless", part(1, 0, 3)).await, raw.open_part("endless", part(2, 0, 3)).await];
        let mut running = Vec::new();
        for index in 0..3 {
            running.push(raw.open_part("endless", part(3, index, 3)).await);
        }
        // Those that miss members make room, the oldest first.
        let (code, message) = raw.begun(waiting[0]).await.unwrap_err();
        assert_eq!(code, StreamCode::PartitionMissing, "{message}");
        assert!(message.contains("1 of 3") && message.contains("limit of 2 queries in partitions"), "{message}");
        for index in 0..3 {
            running.push(raw.open_part("endless", part(4, index, 3)).await);
        }
        assert_eq!(raw.begun(waiting[1]).await.unwrap_err().0, StreamCode::PartitionMissing);
        for stream in &running {
            raw.begun(*stream).await.unwrap();
        }
        let refused = raw.open_part("endless", part(5, 0, 3)).await;
        let (code, message) = raw.begun(refused).await.unwrap_err();
        assert_eq!(code, StreamCode::TooManyStreams, "{message}");
        assert!(message.contains("2 queries in partitions"), "{message}");
        let again = raw.open_part("endless", part(4, 1, 3)).await;
        let (code, message) = raw.begun(again).await.unwrap_err();
        assert_eq!(code, StreamCode::PartitionInvalid, "{message}");
        assert!(message.contains("requested before"), "{message}");
        drop(raw);
        world.is_at_rest().await;
    });
}
