//! Mapped results: the arrays are right for as long as they are held, whatever happens, and the server keeps what they
//! lie in exactly as long.

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
        .on("q", Script::synthetic(5, ROWS))
        .on("many", Script::synthetic(40, ROWS))
        .on("waits", Script::synthetic(2, ROWS).hang())
        .on("small", Script::synthetic(1, 3))
}

fn assert_right(batches: &[RecordBatch]) {
    for (number, batch) in batches.iter().enumerate() {
        assert!(*batch == synthetic_batch(number as u64, ROWS), "batch {number} is not what it was");
    }
}

async fn next(result: &mut ResultStream) -> RecordBatch {
    within("a batch", result.next()).await.expect("a batch").expect("a good one")
}

/// Waits until nothing is on loan, as far as the server knows.
async fn nothing_on_loan(world: &World) {
    within("the loans to come back", async {
        while world.server.bytes_on_loan() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[test]
fn what_is_mapped_is_on_loan_until_the_last_array_is_dropped() {
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

        // Memory that comes free is used again, and what is held is not among it.
        let column = batches[3].column(1).slice(17, 100);
        let held = batches[1].clone();
        drop((batches, result));
        for _ in 0..3 {
            let copied: Vec<_> = client.query("many").await.unwrap().try_collect().await.unwrap();
            assert_right(&copied);
        }
        assert_eq!(held, synthetic_batch(1, ROWS));
        assert_eq!(&column, &synthetic_batch(3, ROWS).column(1).slice(17, 100));
        let some = world.server.bytes_on_loan();
        assert!(some > 0 && some < all, "{some} of {all} bytes on loan");
        drop(held);
        // The connection is there for as long as an array is.
        drop(client);
        assert_eq!(&column, &synthetic_batch(3, ROWS).column(1).slice(17, 100));
        assert_eq!(world.server.connections(), 1);
        drop(column);
        nothing_on_loan(&world).await;
        world.is_at_rest().await;
    });
}

#[test]
fn what_is_mapped_outlives_a_stream_that_is_dropped_or_fails() {
    block_on(async {
        let world = World::mapping(engine(), |_| {});
        let client = world.client().await;
        for deadline in [None, Some(Duration::from_millis(300))] {
            let mut result = client.query_with("waits", mapped().with_deadline(deadline)).await.unwrap();
            let batches = [next(&mut result).await, next(&mut result).await];
            if deadline.is_some() {
                let error = within("the deadline", result.next()).await.unwrap().unwrap_err();
                // Either end's clock.
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
fn what_is_mapped_and_nobody_looks_at_goes_back() {
    block_on(async {
        let world = World::mapping(engine(), |_| {});
        let client = world.client().await;
        let result = client.query_with("q", mapped()).await.unwrap();
        let _arrived = client.query("q").await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        drop(result);
        drop(_arrived);
        nothing_on_loan(&world).await;
        let small: Vec<_> = client.query_with("small", mapped()).await.unwrap().try_collect().await.unwrap();
        assert_eq!((small, world.server.bytes_on_loan()), (vec![synthetic_batch(0, 3)], 0), "small ones come inline");
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn partitions_are_mapped_each_over_its_connection() {
    block_on(async {
        let parts = (0..3).map(|_| Script::synthetic(5, ROWS)).collect();
        let world = World::mapping(ScriptedEngine::new().on_partitioned("q", Vec::new(), parts), |_| {});
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

/// What the server is told of the client's process, after it was there: nothing, and then that it is gone.
static ENDS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn when_the_connection_is_cut_the_server_keeps_what_is_mapped_until_the_process_is_gone() {
    block_on(async {
        let world = World::mapping(engine(), |settings| {
            settings.presence = |_| [Presence::There, Presence::Unknown, Presence::Gone][ENDS.load(Ordering::Relaxed)];
        });
        let client = world.client().await;
        let batches: Vec<_> = client.query_with("q", mapped()).await.unwrap().try_collect().await.unwrap();
        let all = world.server.bytes_on_loan();
        // The server's task for it ends where it stands.
        world.cut();
        let error = within("the client to notice", client.query("q")).await.map(drop).unwrap_err();
        assert!(matches!(error, ClientError::ServerGone { .. }), "{error:?}");
        drop(client);
        // Closed by the client with arrays left.
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
            assert_eq!(world.server.bytes_on_loan(), 2 * all, "the process is there, or may be, and may look");
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
fn who_keeps_everything_gets_the_rest_inline() {
    block_on(async {
        let world = World::mapping(engine(), |settings| settings.limits.max_loan_bytes = 12 << 20);
        let client = world.client().await;
        let mut result = client.query_with("many", mapped()).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        assert_right(&batches);
        let report = result.report();
        assert_eq!(report.batches_mapped + report.batches_inline, 40, "{report}");
        assert!(report.batches_mapped > 2 && report.batches_inline > 2, "{report}");
        // And who does not, nothing.
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
fn a_batch_that_never_finds_room_ends_its_stream_and_says_why() {
    block_on(async {
        let large = Script::batches([ROWS, 4 * ROWS].map(|rows| synthetic_batch(0, rows)));
        let world = World::mapping(ScriptedEngine::new().on("grows", large), |settings| {
            settings.limits.max_loan_bytes = 11_000_000;
            settings.lease_timeout = Duration::from_millis(300);
        });
        let client = world.client().await;
        let result = client.query_with("grows", mapped()).await.unwrap();
        let error = within("the server to give up", result.try_collect::<Vec<_>>()).await;
        match error {
            Err(ClientError::Query { kind: StreamCode::ResourcesExhausted, message }) => {
                assert!(message.contains("1 batches of it mapped"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        drop(client);
        world.is_at_rest().await;
    });
}

#[test]
fn it_is_refused_in_words_unless_all_is_as_it_must_be() {
    block_on(async {
        let refusal = async |world: &World| {
            let client = world.client().await;
            let error = client.query_with("q", mapped()).await.map(drop).unwrap_err();
            // The connection goes on.
            let copied: Vec<_> = client.query("q").await.unwrap().try_collect().await.unwrap();
            assert_right(&copied);
            error
        };
        let said = |error: &ClientError, what: &str| {
            let refused = matches!(error, ClientError::Query { kind: StreamCode::MappingRefused, .. });
            assert!(refused && error.to_string().contains(what), "{error:?}");
        };
        said(&refusal(&World::over(engine(), Some(Fencing::LeaseWord))).await, "start it with --allow-mapped");
        said(
            &refusal(&World::mapping(engine(), |settings| settings.presence = |_| Presence::Gone)).await,
            "does not see",
        );
        let device = World::over_with(engine(), Some(Fencing::Revocation), |settings| settings.allow_mapped = true);
        said(&refusal(&device).await, "fabric sim maps no memory");
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
            let world = World::mapping(ScriptedEngine::new().on("q", Script::batches(batches)), |_| {});
            // Whatever their size.
            let client = world.client_with(|options| options.with_lend_from(LendFrom::Bytes(0))).await;
            let different = match client.query_with("q", mapped()).await {
                Ok(result) => {
                    let got: Vec<_> = result.try_collect().await.unwrap();
                    assert_eq!(got.len(), sent.len());
                    got.iter().zip(&sent).filter_map(|(got, sent)| same_batch(got, sent).err()).collect()
                }
                // What Arrow IPC has no schema for is refused in words.
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
