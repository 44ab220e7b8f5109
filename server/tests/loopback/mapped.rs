//! Mapped results: the arrays stay correct as long as they are held, and the server keeps their memory exactly as long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow_array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use thallus_client::{Access, ClientError, LendFrom, QueryOptions, ResultStream, StreamCode};
use thallus_fabric::Fencing;
use thallus_fabric::process::Presence;
use thallus_protocol_testing::{arb_batches, same_batch};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};

use crate::world::{World, block_on, within};

const ROWS: usize = 20_000;

fn mapped() -> QueryOptions {
    QueryOptions::default().with_access(Access::Map)
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::new()
        .with_query("q", Script::synthetic(5, ROWS))
        .with_query("many", Script::synthetic(40, ROWS))
        .with_query("waits", Script::synthetic(2, ROWS).hang())
        .with_query("small", Script::synthetic(1, 3))
}

fn assert_right(batches: &[RecordBatch]) {
    for (number, batch) in batches.iter().enumerate() {
        assert!(*batch == synthetic_batch(number as u64, ROWS), "batch {number} has changed");
    }
}

async fn next(result: &mut ResultStream) -> RecordBatch {
    within("a batch", result.next()).await.expect("a batch").expect("no error")
}

/// Waits until the server has no bytes on loan.
async fn nothing_on_loan(world: &World) {
    within("the loans to be released", async {
        while world.server.bytes_on_loan() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[test]
fn a_mapped_batch_is_on_loan_until_its_last_array_is_dropped() {
    block_on(async {
        let world = World::mapping(engine(), |_| {});
        let client = world.client().await;
        let mut result = client.query_with("q", mapped()).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        assert_right(&batches);
        let report = result.report();
        assert_eq!((report.batches_mapped, report.batches_lent, report.batches_inline), (5, 0, 0), "{report}");
        assert!(report.bytes_mapped > 5 * ROWS as u64 * 8 && report.bytes_copied == 0 && report.complete, "{report}");
        let all = world.server.bytes_on_loan();
        assert!(all >= report.bytes_mapped, "{all} bytes on loan");

        // The server reuses released memory, but not the memory of held arrays.
        let column = batches[3].column(1).slice(17, 100);
        let held = batches[1].clone();
        drop((batches, result));
        for _ in 0..3 {
            let copied: Vec<_> = client.query("many").await.unwrap().try_collect().await.unwrap();
            assert_right(&copied);
        }
        assert_eq!(held, synthetic_batch(1, ROWS));
        assert_eq!(&column, &synthetic_batch(3, ROWS).column(1).slice(17, 100));
        // Releases are held back for up to 2 ms.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let some = world.server.bytes_on_loan();
        assert!(some > 0 && some < all, "{some} of {all} bytes on loan");
        drop(held);
        // The connection stays open as long as an array exists.
        drop(client);
        assert_eq!(&column, &synthetic_batch(3, ROWS).column(1).slice(17, 100));
        assert_eq!(world.server.connections(), 1);
        drop(column);
        nothing_on_loan(&world).await;
        world.is_at_rest().await;
    });
}

#[test]
fn mapped_batches_outlive_a_dropped_or_failed_stream() {
    block_on(async {
        let world = World::mapping(engine(), |_| {});
        let client = world.client().await;
        for deadline in [None, Some(Duration::from_millis(300))] {
            let mut result = client.query_with("waits", mapped().with_deadline(deadline)).await.unwrap();
            let batches = [next(&mut result).await, next(&mut result).await];
            if deadline.is_some() {
                let error = within("the deadline", result.next()).await.unwrap().unwrap_err();
                // The deadline may expire first at either end.
                let late = matches!(
                    error,
                    ClientError::Timeout { .. } | ClientError::Query { kind: StreamCode::DeadlineExceeded, .. }
                );
                assert!(late, "{error:?}");
            }
            drop(result);
            client.ping().await.unwrap();
            let copied: Vec<_> = client.query("many").await.unwrap().try_collect().await.unwrap();
            assert_right(&copied);
            assert_right(&batches);
        }
        drop(client);
        nothing_on_loan(&world).await;
        world.is_at_rest().await;
    });
}

#[test]
fn unread_mapped_batches_are_released() {
    block_on(async {
        let world = World::mapping(engine(), |_| {});
        let client = world.client().await;
        let result = client.query_with("q", mapped()).await.unwrap();
        let _arrived = client.query("q").await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        drop(result);
        drop(_arrived);
        nothing_on_loan(&world).await;
        let small: Vec<_> = client.query_with("small", mapped()).await.unwrap().try_collect().await.unwrap();
        assert_eq!((small, world.server.bytes_on_loan()), (vec![synthetic_batch(0, 3)], 0), "small batches are inline");
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn partitions_are_mapped_each_over_its_connection() {
    block_on(async {
        let parts = (0..3).map(|_| Script::synthetic(5, ROWS)).collect();
        let world = World::mapping(ScriptedEngine::new().with_partitioned_query("q", Vec::new(), parts), |_| {});
        for shared in [false, true] {
            let client = if shared { world.client().await } else { world.client_of_many().await };
            let options = mapped().with_partitions(Some(3));
            let mut held = Vec::new();
            for mut part in client.query_partitions_with("q", options.clone()).await.unwrap() {
                held.push(part.by_ref().try_collect::<Vec<_>>().await.unwrap());
                assert_eq!((part.report().batches_mapped, part.report().batches()), (5, 5), "{}", part.report());
            }
            let mut whole = client.query_with("q", options).await.unwrap();
            while let Some(batch) = whole.try_next().await.unwrap() {
                assert_eq!(batch.num_rows(), ROWS);
            }
            assert_eq!((whole.report().batches_mapped, whole.report().batches()), (15, 15), "{}", whole.report());
            drop((client, whole));
            held.iter().for_each(|batches| assert_right(batches));
            assert!(world.server.bytes_on_loan() > 0);
            drop(held);
            nothing_on_loan(&world).await;
            world.is_at_rest().await;
        }
    });
}

/// Index of the client process' state that the server sees: there, unknown, gone.
static ENDS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn after_a_cut_the_server_keeps_mapped_memory_until_the_client_process_is_gone() {
    block_on(async {
        let world = World::mapping(engine(), |settings| {
            settings.presence =
                |_| [Presence::Running, Presence::Unknown, Presence::Ended][ENDS.load(Ordering::Relaxed)];
        });
        let client = world.client().await;
        let batches: Vec<_> = client.query_with("q", mapped()).await.unwrap().try_collect().await.unwrap();
        let all = world.server.bytes_on_loan();
        // The server's task of the connection is aborted.
        world.cut();
        let error = within("the client to notice", client.query("q")).await.map(drop).unwrap_err();
        assert!(matches!(error, ClientError::ConnectionLost { .. }), "{error:?}");
        drop(client);
        // A client closes its connection while arrays are held.
        let closed = world.client().await;
        let others: Vec<_> = closed.query_with("q", mapped()).await.unwrap().try_collect().await.unwrap();
        closed.close().await;
        let third = world.client().await;
        for _ in 0..3 {
            assert_right(&third.query("many").await.unwrap().try_collect::<Vec<_>>().await.unwrap());
        }
        for ends in 0..2 {
            ENDS.store(ends, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(world.server.bytes_on_loan(), 2 * all, "a process that may exist may still read");
        }
        assert_right(&batches);
        assert_right(&others);
        drop((batches, others, third));
        ENDS.store(2, Ordering::Relaxed);
        nothing_on_loan(&world).await;
        world.is_at_rest().await;
    });
}

#[test]
fn a_client_that_keeps_all_batches_gets_the_rest_inline() {
    block_on(async {
        let world = World::mapping(engine(), |settings| settings.limits.max_loan_bytes = 12 << 20);
        let client = world.client().await;
        let mut result = client.query_with("many", mapped()).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        assert_right(&batches);
        let report = result.report();
        assert_eq!(report.batches_mapped + report.batches_inline, 40, "{report}");
        assert!(report.batches_mapped > 2 && report.batches_inline > 2, "{report}");
        // A client that drops its batches gets nothing inline.
        drop(batches);
        let mut result = client.query_with("many", mapped().with_window(Some(3 << 20))).await.unwrap();
        let mut number = 0;
        while let Some(batch) = result.try_next().await.unwrap() {
            assert_eq!(batch, synthetic_batch(number, ROWS));
            number += 1;
        }
        assert_eq!((number, result.report().batches_inline), (40, 0), "{}", result.report());
    });
}

#[test]
fn a_batch_that_never_finds_room_fails_its_stream_with_the_reason() {
    block_on(async {
        let large = Script::batches([ROWS, 4 * ROWS].map(|rows| synthetic_batch(0, rows)));
        let world = World::mapping(ScriptedEngine::new().with_query("grows", large), |settings| {
            settings.limits.max_loan_bytes = 11_000_000;
            settings.lease_timeout = Duration::from_millis(300);
        });
        let client = world.client().await;
        let result = client.query_with("grows", mapped()).await.unwrap();
        let error = within("the server to give up", result.try_collect::<Vec<_>>()).await;
        match error {
            Err(ClientError::Query { kind: StreamCode::ResourcesExhausted, message }) => {
                assert!(message.contains("mapped batches: 1"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn mapping_is_refused_with_a_reason_unless_all_conditions_hold() {
    block_on(async {
        let refusal = async |world: &World| {
            let client = world.client().await;
            let error = client.query_with("q", mapped()).await.map(drop).unwrap_err();
            // The connection is still usable.
            let copied: Vec<_> = client.query("q").await.unwrap().try_collect().await.unwrap();
            assert_right(&copied);
            error
        };
        let check = |error: &ClientError, what: &str| {
            let refused = matches!(error, ClientError::Query { kind: StreamCode::MappingRefused, .. });
            assert!(refused && error.to_string().contains(what), "{error:?}");
        };
        check(&refusal(&World::over(engine(), Some(Fencing::LeaseWord))).await, "start it with --allow-mapped");
        check(
            &refusal(&World::mapping(engine(), |settings| settings.presence = |_| Presence::Ended)).await,
            "does not see",
        );
        let forged = World::mapping(engine(), |settings| settings.is_peer = |_, _| false);
        check(&refusal(&forged).await, "does not see that process");
        let device = World::over_with(engine(), Some(Fencing::Revocation), |settings| settings.allow_mapped = true);
        check(&refusal(&device).await, "fabric sim maps no memory");
        let inline = World::over_with(engine(), None, |settings| settings.allow_mapped = true);
        let error = refusal(&inline).await;
        assert!(matches!(&error, ClientError::Mapping { message } if message.contains("inline")), "{error:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_batches_survive_being_mapped(batches in arb_batches(3)) {
        let sent: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect();
        let compared = block_on(async {
            let world = World::mapping(ScriptedEngine::new().with_query("q", Script::batches(batches)), |_| {});
            // Lends batches of any size.
            let client = world.client_with(|options| options.with_lend_from(LendFrom::Bytes(0))).await;
            let different = match client.query_with("q", mapped()).await {
                Ok(result) => {
                    let got: Vec<_> = result.try_collect().await.unwrap();
                    assert_eq!(got.len(), sent.len());
                    got.iter().zip(&sent).filter_map(|(got, sent)| same_batch(got, sent).err()).collect()
                }
                // Types that Arrow IPC does not support are refused with a message.
                Err(ClientError::Query { kind: StreamCode::Unencodable, .. }) => Vec::new(),
                Err(other) => panic!("{other}"),
            };
            drop(client);
            nothing_on_loan(&world).await;
            world.is_at_rest().await;
            different
        });
        prop_assert_eq!(compared, Vec::<String>::new());
    }
}
