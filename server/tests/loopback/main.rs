//! The real server and the real client in one process, with the simulated fabric and a pipe as control connection.

mod dictionaries;
mod hostile;
mod lazy;
mod mapped;
mod memory;
mod one_host;
#[cfg(feature = "ucx")]
mod over_ucx;
#[cfg(feature = "verbs")]
mod over_verbs;
mod partitions;
mod raw;
mod uploads;
mod world;

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use thallus_client::{ClientError, LendFrom, QueryOptions, StreamCode};
use thallus_fabric::Fencing;
use thallus_protocol_testing::{arb_batches, same_batch};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch, synthetic_schema};
use thallus_server::engine::EngineError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use world::{World, block_on, in_parallel, within};

#[test]
fn a_small_result_comes_inline_and_a_large_one_lent() {
    block_on(async {
        let engine = ScriptedEngine::new()
            .with_query("small", Script::synthetic(1, 3))
            .with_query("large", Script::synthetic(5, 20_000));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client().await;
        let mut small = client.query("small").await.unwrap();
        let batches: Vec<_> = small.by_ref().try_collect().await.unwrap();
        assert_eq!(batches, [synthetic_batch(0, 3)]);
        assert_eq!((small.report().batches_inline, small.report().batches_lent), (1, 0));

        let mut large = client.query("large").await.unwrap();
        let batches: Vec<_> = large.by_ref().try_collect().await.unwrap();
        let expected: Vec<_> = (0..5).map(|n| synthetic_batch(n, 20_000)).collect();
        assert_eq!(batches, expected);
        let report = large.report();
        assert_eq!((report.batches_inline, report.batches_lent, report.complete), (0, 5, true), "{report}");
        drop((batches, small, large, client));
        world.is_at_rest().await;
    });
}

/// Queries begin in the task of their connection. A panic or a blocked engine must affect only its own query.
#[test]
fn an_engine_that_panics_or_blocks_does_not_harm_the_connection() {
    in_parallel(async {
        let blocks = |number| {
            std::thread::sleep(Duration::from_millis(5));
            synthetic_batch(number, 7)
        };
        let engine = ScriptedEngine::new()
            .with_query("panics", Script::new(synthetic_schema()).generate(1, |_| panic!("as told")))
            .with_query("panics later", Script::synthetic(1, 3).generate(1, |_| panic!("as told")))
            .with_query("blocks", Script::new(synthetic_schema()).generate(5, blocks))
            .with_query(
                "sleeps",
                Script::new(synthetic_schema()).sleep(Duration::from_millis(2)).batch(synthetic_batch(0, 1)),
            )
            .with_query("none", Script::new(synthetic_schema()))
            .with_query("few", Script::synthetic(3, 3));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client().await;
        let rows = async |sql: &str| -> Result<usize, ClientError> {
            let batches: Vec<_> = client.query(sql).await?.try_collect().await?;
            Ok(batches.iter().map(arrow_array::RecordBatch::num_rows).sum())
        };
        // More rounds than the server spawns queries for, after a query has blocked its connection.
        for _ in 0..20 {
            for sql in ["panics", "panics later"] {
                let failed = rows(sql).await;
                assert!(matches!(failed, Err(ClientError::Query { kind: StreamCode::Internal, .. })), "{failed:?}");
            }
            for (sql, expected) in [("blocks", 35), ("sleeps", 1), ("none", 0), ("few", 9)] {
                assert_eq!(rows(sql).await.unwrap(), expected, "{sql}");
            }
            let together = futures::join!(rows("few"), rows("sleeps"), rows("blocks"), rows("panics"), rows("few"));
            assert!(matches!(together, (Ok(9), Ok(1), Ok(35), Err(_), Ok(9))), "{together:?}");
        }
        drop(client);
        world.is_at_rest().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_batches_survive_every_way(batches in arb_batches(3), way in 0_usize..3) {
        let (fencing, lend_from) = [
            (Some(Fencing::LeaseWord), LendFrom::Bytes(0)),
            (Some(Fencing::Revocation), LendFrom::Bytes(0)),
            (None, LendFrom::Never),
        ][way];
        let got = block_on(async {
            let engine = ScriptedEngine::new().with_query("q", Script::batches(batches.clone()));
            let world = World::over(engine, fencing);
            let client = world.client().await;
            let options = QueryOptions::default().with_lend_from(lend_from);
            let got = match client.query_with("q", options).await {
                Ok(result) => result.try_collect::<Vec<_>>().await,
                Err(error) => Err(error),
            };
            drop(client);
            world.is_at_rest().await;
            got
        });
        match got {
            Ok(got) => {
                // Engines yield no empty batches.
                let sent: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).collect();
                prop_assert_eq!(got.len(), sent.len());
                for (got, sent) in got.iter().zip(sent) {
                    prop_assert_eq!(same_batch(got, sent), Ok(()));
                }
            }
            // Types that Arrow IPC does not support are refused with a message.
            Err(ClientError::Query { kind: StreamCode::Unencodable, .. }) => {}
            Err(other) => prop_assert!(false, "{other}"),
        }
    }
}

#[test]
fn registrations_and_copies_are_counted_and_a_warm_server_registers_nothing() {
    block_on(async {
        // Small buffers are copied. This fabric registers each large buffer in place.
        let table: Vec<_> = (0..3).map(|n| synthetic_batch(n, 20_000)).collect();
        let engine = ScriptedEngine::new()
            .with_query("small", Script::synthetic(5, 250))
            .with_query("large", Script::synthetic(3, 20_000))
            .with_query("table", Script::batches(table.clone()));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client().await;
        let run = async |sql| {
            let before = world.server.registrations();
            let mut result =
                client.query_with(sql, QueryOptions::default().with_lend_from(LendFrom::Bytes(0))).await.unwrap();
            result.by_ref().try_collect::<Vec<_>>().await.unwrap();
            let report = result.report();
            let server = report.server.unwrap();
            assert_eq!(world.server.registrations() - before, server.registrations, "{report}");
            (report.registrations, server)
        };
        // The client allocated its first slab for the probe.
        let (_, cold) = run("small").await;
        assert!(cold.registrations > 0 && cold.regions > 0 && cold.bytes_copied > 0, "{cold:?}");
        for _ in 0..3 {
            let (by_client, warm) = run("small").await;
            assert_eq!((by_client, warm.registrations, warm.regions), (0, 0, 0), "{warm:?}");
            assert_eq!(warm.bytes_copied, cold.bytes_copied);
        }
        let (by_client, large) = run("large").await;
        assert!(by_client > 0, "{by_client}");
        // The values of `id`, `value` and `payload`, and the offsets of `payload`. Shorter buffers are copied.
        assert_eq!(large.registrations, 3 * 4, "{large:?}");
        assert!(large.regions >= large.registrations, "{large:?}");
        // Memory that is lent again is registered once. Of computed results only few registrations are kept.
        let (_, cold) = run("table").await;
        assert_eq!(cold.registrations, 3 * 4, "{cold:?}");
        for _ in 0..3 {
            run("large").await;
            let (_, warm) = run("table").await;
            assert_eq!((warm.registrations, warm.bytes_copied), (0, cold.bytes_copied), "{warm:?}");
        }
        drop(client);
        world.is_at_rest().await;
        let table: usize = table.iter().map(arrow_array::RecordBatch::get_array_memory_size).sum();
        assert!(
            world.server.idle_registered_bytes() < 3 * table,
            "{} bytes kept, {table} in the table",
            world.server.idle_registered_bytes()
        );
    });
}

#[test]
fn many_results_at_once_on_one_connection() {
    in_parallel(async {
        let mut engine = ScriptedEngine::new();
        for n in 0..40_u64 {
            engine = engine.with_query(format!("q{n}"), Script::synthetic(n % 7, 100 * n as usize + 1));
        }
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client().await;
        let client = &client;
        let results = (0..40_u64).map(|n| async move {
            let result = client.query(&format!("q{n}")).await.unwrap();
            let batches: Vec<_> = result.try_collect().await.unwrap();
            let expected: Vec<_> = (0..n % 7).map(|i| synthetic_batch(i, 100 * n as usize + 1)).collect();
            assert_eq!(batches, expected, "q{n}");
        });
        futures::future::join_all(results).await;
    });
}

#[test]
fn a_dropped_result_is_cancelled_at_the_server() {
    block_on(async {
        let engine = ScriptedEngine::new()
            .with_query("endless", Script::synthetic(u64::MAX, 20_000))
            .with_query("hangs", Script::synthetic(1, 10).hang())
            .with_query("next", Script::synthetic(1, 10));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client().await;
        for sql in ["endless", "hangs"] {
            let mut result = client.query(sql).await.unwrap();
            result.next().await.unwrap().unwrap();
            drop(result);
            within("the query to be cancelled", async {
                while world.engine.running() > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
        }
        let rest: Vec<_> = client.query("next").await.unwrap().try_collect().await.unwrap();
        assert_eq!(rest, [synthetic_batch(0, 10)], "the connection is still usable");
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_slow_reader_stops_the_engine_at_its_window() {
    block_on(async {
        let world = World::over(
            ScriptedEngine::new().with_query("endless", Script::synthetic(u64::MAX, 20_000)),
            Some(Fencing::LeaseWord),
        );
        let client = world.client().await;
        let options = QueryOptions::default().with_window(Some(4 << 20));
        let result = client.query_with("endless", options).await.unwrap();
        // The engine stops at the window, even on a slow machine, and not only after the whole result.
        let mut batches = u64::MAX;
        while std::mem::replace(&mut batches, world.engine.batches()) != world.engine.batches() {
            assert!(batches == u64::MAX || batches < 20, "{batches} batches of half a megabyte in a window of 4 MiB");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!(batches < 20, "{batches} batches of half a megabyte in a window of 4 MiB");
        drop(result);
    });
}

#[test]
fn an_error_in_the_middle_is_an_error_and_not_an_end() {
    block_on(async {
        let error = EngineError::Execution { message: "the third batch is bad".into() };
        let engine = ScriptedEngine::new().with_query("breaks", Script::synthetic(2, 20_000).fail(error));
        let world = World::over(engine, Some(Fencing::LeaseWord));
        let client = world.client().await;
        let mut result = client.query("breaks").await.unwrap();
        let mut rows = 0;
        let failure = loop {
            match result.next().await {
                Some(Ok(batch)) => rows += batch.num_rows(),
                Some(Err(error)) => break error,
                None => panic!("the result ended without an error after {rows} rows"),
            }
        };
        assert!(failure.to_string().contains("the third batch is bad"), "{failure}");
        assert!(matches!(failure, ClientError::Query { kind: StreamCode::Execution, .. }), "{failure:?}");
        assert!(result.next().await.is_none());
        assert!(!result.report().complete);
    });
}

#[test]
fn a_deadline_ends_a_query_that_hangs() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().with_query("hangs", Script::synthetic(1, 10).hang()), None);
        let client = world.client().await;
        let options = QueryOptions::default().with_deadline(Some(Duration::from_millis(200)));
        let result = client.query_with("hangs", options).await.unwrap();
        let failure = result.try_collect::<Vec<_>>().await.unwrap_err();
        assert!(matches!(
            failure,
            ClientError::Timeout { .. } | ClientError::Query { kind: StreamCode::DeadlineExceeded, .. }
        ));
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn a_batch_larger_than_the_window_still_comes_and_one_beyond_the_limit_is_cut() {
    block_on(async {
        let world = World::over(
            ScriptedEngine::new().with_query("big", Script::synthetic(3, 200_000)),
            Some(Fencing::LeaseWord),
        );
        let client = world.client().await;
        for lend_from in [LendFrom::Bytes(0), LendFrom::Never] {
            let options = QueryOptions::default().with_window(Some(100_000)).with_lend_from(lend_from);
            let batches: Vec<_> = client.query_with("big", options).await.unwrap().try_collect().await.unwrap();
            assert_eq!(batches.len(), 3);
        }
        let client = world.client_with(|options| options.with_max_batch(1 << 20).with_window(1 << 20)).await;
        for lend_from in [LendFrom::Bytes(0), LendFrom::Never] {
            let options = QueryOptions::default().with_lend_from(lend_from);
            let batches: Vec<_> = client.query_with("big", options).await.unwrap().try_collect().await.unwrap();
            assert!(batches.len() > 3, "{} batches", batches.len());
            assert_eq!(batches.iter().map(arrow_array::RecordBatch::num_rows).sum::<usize>(), 600_000);
        }
        // A single row cannot be cut.
        let client = world.client_with(|options| options.with_max_batch(1)).await;
        let failure = client.query("big").await.unwrap().try_collect::<Vec<_>>().await.unwrap_err();
        assert!(failure.to_string().contains("one row takes"), "{failure}");
    });
}

#[test]
fn a_server_cut_off_in_the_middle_ends_results_and_leaves_nothing_behind() {
    block_on(async {
        let world = World::over(
            ScriptedEngine::new().with_query("endless", Script::synthetic(u64::MAX, 20_000)),
            Some(Fencing::LeaseWord),
        );
        let client = world.client().await;
        let mut result = client.query("endless").await.unwrap();
        result.next().await.unwrap().unwrap();
        world.cut();
        let failure = within("the result to end", async {
            loop {
                match result.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("the result ended without an error after the cut"),
                }
            }
        })
        .await;
        // The client notices first either the lost connection or the missing endpoint during a read.
        assert!(matches!(failure, ClientError::ConnectionLost { .. } | ClientError::Read { .. }), "{failure:?}");
        world.is_at_rest().await;
    });
}

#[test]
fn a_draining_server_finishes_running_queries_and_refuses_new_ones() {
    block_on(async {
        let script = Script::synthetic(3, 20_000).sleep(Duration::from_millis(300)).batch(synthetic_batch(9, 5));
        let world = World::over(ScriptedEngine::new().with_query("slow", script), Some(Fencing::LeaseWord));
        let client = world.client().await;
        let running = client.query("slow").await.unwrap();
        world.server.drain();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = client.query("slow").await.unwrap_err();
        assert!(matches!(refused, ClientError::Query { kind: StreamCode::ShuttingDown, .. }), "{refused:?}");
        let rows: usize = running.map_ok(|batch| batch.num_rows()).try_collect::<Vec<_>>().await.unwrap().iter().sum();
        assert_eq!(rows, 60_005);
        world.is_at_rest().await;
    });
}

#[test]
fn one_connection_too_many_is_refused_with_a_message() {
    block_on(async {
        let world = World::limited(ScriptedEngine::new(), 2);
        let _first = world.client().await;
        let _second = world.client().await;
        let refused = world.try_client(|options| options).await.unwrap_err();
        assert!(
            matches!(&refused, ClientError::Refused { message } if message.contains("2 connections")),
            "{refused:?}"
        );
    });
}

#[test]
fn a_connection_that_sends_garbage_is_closed_and_others_are_served() {
    block_on(async {
        let world = World::over(ScriptedEngine::new().with_query("q", Script::synthetic(1, 10)), None);
        let client = world.client().await;
        for garbage in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"THALLUS\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", &[0xff; 4096]]
        {
            let mut connection = world.pipe();
            connection.write_all(garbage).await.unwrap();
            let mut answer = Vec::new();
            within("the server to close", connection.read_to_end(&mut answer)).await.unwrap();
            assert!(answer.starts_with(b"THALLUS\n"), "the answer does not begin with a preface");
        }
        let batches: Vec<_> = client.query("q").await.unwrap().try_collect().await.unwrap();
        assert_eq!(batches.len(), 1);
    });
}

#[test]
fn a_client_that_grants_much_and_never_reads_does_not_fill_the_server() {
    use thallus_protocol::codec::{FEATURES, FrameLimits, Preface, VERSIONS, encode};
    use thallus_protocol::message::{Extensions, Hello, Message, Open, OpenOptions, Request};

    block_on(async {
        let world = World::over(ScriptedEngine::new().with_query("endless", Script::synthetic(u64::MAX, 20_000)), None);
        let mut greedy = world.pipe();
        greedy.write_all(&Preface { versions: VERSIONS, features: FEATURES }.encode()).await.unwrap();
        let mut messages = vec![Message::Hello(Hello { name: "greedy".into(), ..Hello::default() })];
        for stream in 1..=4 {
            // The largest credit of one stream. Without a limit per connection, four streams could take a gigabyte.
            let options = OpenOptions { credit: 256 << 20, ..OpenOptions::default() };
            let (stream, request) = (thallus_protocol::StreamId(stream), Request::Sql("endless".into()));
            messages.push(Message::Open(Open { stream, request, options, extensions: Extensions::none() }));
        }
        for message in messages {
            let frame = encode(&message, bytes::Bytes::new(), FrameLimits::default()).unwrap();
            greedy.write_all(&frame.head).await.unwrap();
        }
        // The engine stops at the limit of the server's backlog: a few hundred batches of half a megabyte.
        let mut batches = u64::MAX;
        while std::mem::replace(&mut batches, world.engine.batches()) != world.engine.batches() || batches == 0 {
            assert!(batches == u64::MAX || batches < 400, "{batches} batches for a client that reads nothing");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
}
