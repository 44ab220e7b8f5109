//! Both connection machines, under arbitrary interleavings and faults, against the invariants of the design.
//!
//! A failure prints the operations that led to it, and proptest keeps its seed in `tests/regressions/`: run the test
//! again to reproduce it, or set `PROPTEST_CASES` for more cases than the default.

mod pair;

use std::time::Duration;

use pair::lender::Plane;
use pair::script::{Batch, Ending, Knobs, Script, arb_knobs, arb_script, plain};
use pair::{Op, Pair, config, open};
use proptest::prelude::*;
use thallus_protocol::StreamError;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::{Delivery, ExecuteOptions, Fencing, ProcessId};

fn arb_execute() -> impl Strategy<Value = Op> {
    let mapped = Just(Delivery::Mapped(ProcessId { pid: 7, started: 4711 }));
    let delivery =
        prop_oneof![3 => Just(Delivery::Auto), 2 => Just(Delivery::Lent), 1 => Just(Delivery::Inline), 2 => mapped];
    let credit = prop_oneof![Just(0), Just(300_u64), Just(1000), Just(5000), Just(20_000), Just(1 << 30)];
    let deadline = prop_oneof![12 => Just(None), 1 => (0..5000_u64).prop_map(Some)];
    let lazy = prop::bool::weighted(0.4);
    (0..4_usize, delivery, credit, deadline, lazy).prop_map(|(script, delivery, credit, deadline_ms, lazy)| {
        // One or the other: a driver sees to that.
        let lazy = lazy && !matches!(delivery, Delivery::Mapped(_));
        Op::Execute {
            script,
            options: ExecuteOptions { delivery, credit, deadline_ms, lazy, ..ExecuteOptions::default() },
        }
    })
}

fn arb_ask() -> impl Strategy<Value = Op> {
    let part = (0..2_usize, 0..5000_u64, 0..3000_u64);
    (0..8_usize, prop::collection::vec(part, 0..3)).prop_map(|(k, parts)| Op::Ask(k, parts))
}

/// What a connection lives on.
fn arb_progress() -> impl Strategy<Value = Op> {
    let bytes = || prop_oneof![3 => Just(usize::MAX), 1 => 1..200_usize, 1 => 200..5000_usize];
    prop_oneof![
        8 => bytes().prop_map(Op::ToServer),
        8 => bytes().prop_map(Op::ToClient),
        6 => (0..4_usize).prop_map(Op::Engine),
        10 => (0..8_usize).prop_map(Op::Read),
        3 => (0..4_usize).prop_map(Op::Take),
        4 => arb_ask(),
        2 => (0..8_usize).prop_map(Op::GiveUp),
        2 => Just(Op::AnswerServer),
        2 => Just(Op::AnswerClient),
        3 => arb_execute(),
        1 => Just(Op::Ping),
    ]
}

fn arb_fault() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..6000_u64).prop_map(|ms| Op::Advance(Duration::from_millis(ms))),
        6 => (0..6_usize).prop_map(Op::Cancel),
        1 => (0..6_usize).prop_map(Op::Reject),
        3 => (0..8_usize).prop_map(Op::ReadFails),
        1 => (0..8_usize).prop_map(Op::NoMemory),
        1 => Just(Op::Blackhole),
        1 => Just(Op::ServerFabricFails),
        1 => Just(Op::ClientFabricFails),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(to_server, to_client)| Op::Silence { to_server, to_client }),
        1 => any::<bool>().prop_map(|lose| Op::Cut { lose }),
        1 => Just(Op::ServerHearsCut),
        1 => Just(Op::ClientHearsCut),
        1 => Just(Op::Drain),
        1 => Just(Op::ServerCloses),
        1 => Just(Op::ClientCloses),
        1 => Just(Op::LongSql),
    ]
}

fn run(knobs: Knobs, scripts: Vec<Script>, ops: Vec<Op>) {
    let mut pair = Pair::new(knobs, scripts);
    for op in ops {
        pair.apply(op);
    }
    pair.finish();
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    prop::collection::vec(arb_script(), 1..4)
}

proptest! {
    #![proptest_config(config(3000, "tests/regressions/machines.txt"))]

    /// Whatever happens, in whatever order, from the first byte on.
    #[test]
    fn invariants_hold_under_faults(
        knobs in arb_knobs(),
        scripts in scripts(),
        opened in prop::bool::weighted(0.8),
        ops in prop::collection::vec(prop_oneof![9 => arb_progress(), 1 => arb_fault()], 0..150),
    ) {
        let begin = if opened { open() } else { Vec::new() };
        run(knobs, scripts, begin.into_iter().chain(ops).collect());
    }

    /// Without a fault every stream ends well, and no timer is ever needed for it.
    #[test]
    fn nothing_is_ever_stuck(
        knobs in arb_knobs(),
        scripts in scripts(),
        ops in prop::collection::vec(arb_progress(), 0..100),
    ) {
        let scripts = scripts.into_iter().map(|script| match script.ending {
            Ending::Stall => Script { ending: Ending::Finish, ..script },
            Ending::Finish | Ending::Fail => script,
        });
        let ops = ops.into_iter().map(|op| match op {
            Op::Execute { script, options } => {
                Op::Execute { script, options: ExecuteOptions { deadline_ms: None, ..options } }
            }
            other => other,
        });
        run(knobs, scripts.collect(), ops.collect());
    }

    /// Leases run out while they are being read, and their memory is another's at once.
    #[test]
    fn a_reused_lease_is_never_delivered(
        scripts in scripts(),
        max_leases in 1..4_u32,
        ops in prop::collection::vec(
            prop_oneof![
                30 => arb_progress(),
                30 => (0..2_usize).prop_map(Op::Read),
                4 => (1000..4000_u64).prop_map(|ms| Op::Advance(Duration::from_millis(ms))),
                1 => Just(Op::ServerHearsCut),
            ],
            0..150,
        ),
    ) {
        let knobs = Knobs { fencing: Fencing::LeaseWord, max_leases, ..plain() };
        // The server hears at once, the client not yet: it goes on reading memory that is another's.
        let ops = ops.into_iter().flat_map(|op| match op {
            Op::ServerHearsCut => vec![Op::Cut { lose: false }, op],
            other => vec![other],
        });
        run(knobs, scripts, open().into_iter().chain(ops).collect());
    }
}

fn finite(batches: Vec<Batch>) -> Script {
    Script { batches, ending: Ending::Finish }
}

fn execute(script: usize, credit: u64) -> Op {
    let options = ExecuteOptions { delivery: Delivery::Lent, credit, ..ExecuteOptions::default() };
    Op::Execute { script, options }
}

/// Held-back grants of less than a quarter of the window once kept a batch of more than three quarters waiting forever.
#[test]
fn a_batch_nearly_as_large_as_the_window_comes_through() {
    for bytes in [1200, 1243, 1244, 1245, 1487, 1488, 1700, 1743, 1744, 1745, 3000] {
        // The first costs 257, less than a quarter of the window.
        let script = finite(vec![Batch::Inline { bytes: 1 }, Batch::Inline { bytes }]);
        run(plain(), vec![script], [open(), vec![execute(0, 2000)]].concat());
    }
}

/// Leases are numbered as they are handed over, and go out as credit lets them.
#[test]
fn leases_may_come_out_of_order() {
    let rows = |rows| Batch::Lent { rows, own_region: false };
    let (slow, fast) = (finite(vec![rows(50), rows(50)]), finite(vec![rows(10); 4]));
    run(plain(), vec![slow, fast], [open(), vec![execute(0, 1200), execute(1, 100_000)]].concat());
}

/// A small loan that is always there must not keep a large one waiting forever.
#[test]
fn a_large_loan_does_not_starve() {
    let knobs = Knobs { max_loan_bytes: 6000, ..plain() };
    let large = finite(vec![Batch::Lent { rows: 350, own_region: false }]);
    let small = finite(vec![Batch::Lent { rows: 20, own_region: false }; 400]);
    let mut pair = Pair::new(knobs, vec![small, large]);
    let all = usize::MAX;
    for op in [open(), vec![execute(0, 1 << 20), Op::ToServer(all), Op::Engine(0)]].concat() {
        pair.apply(op);
    }
    for _ in 0..8 {
        pair.apply(Op::Engine(0));
    }
    pair.apply(execute(1, 1 << 20));
    for _ in 0..100 {
        for op in [Op::ToServer(all), Op::Engine(0), Op::Engine(1), Op::ToClient(all), Op::Take(0), Op::Take(1)] {
            pair.apply(op);
        }
        // A few reads a turn, so that something is always on loan.
        for _ in 0..3 {
            pair.apply(Op::Read(0));
        }
    }
    let ended: Vec<_> = pair.client.apps.values().map(|app| (app.over.is_some(), app.next)).collect();
    assert!(ended[1].0, "the large one waits: {ended:?}");
    assert!(!ended[0].0, "the small ones are done, which proves nothing: {ended:?}");
    pair.finish();
}

/// The client says that the data plane works while the server's end of it dies: results travel inline, no more.
#[test]
fn a_fabric_up_that_crosses_a_failure() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 3])]);
    for op in [Op::ToServer(all), Op::ToClient(all), Op::ServerFabricFails, Op::ToServer(all), execute(0, 1 << 20)] {
        pair.apply(op);
    }
    assert_eq!(pair.client.plane, Plane::Open, "the client has said so, and has not heard");
    let well = pair.streams_end();
    assert_eq!(well, [true]);
    pair.finish();
}

/// A batch is read, its lease runs out, and its memory is lent again, before the lease word is looked at.
#[test]
fn a_lease_that_ran_out_is_found_out() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }])]);
    let run = [execute(0, 1 << 20), Op::ToServer(all), Op::Engine(0), Op::Engine(0), Op::ToClient(all)];
    for op in open().into_iter().chain(run) {
        pair.apply(op);
    }
    assert_eq!(pair.client.machine.outstanding_reads(), 1);
    pair.apply(Op::Advance(pair::LEASE_TIMEOUT));
    assert_eq!(pair.server.machine.open_leases(), 0);
    for _ in 0..5 {
        pair.apply(Op::Read(0));
    }
    let over = pair.client.apps.values().next().and_then(|app| app.over.clone());
    assert!(matches!(over, Some(Err(StreamError::LeaseLost { seq: 0 }))), "{over:?}");
    pair.finish();
}

/// The leases once ended with the streams: what the client was told then was that a lease was lost, not that the server ended.
#[test]
fn a_drain_that_ends_streams_says_so_before_it_ends_leases() {
    let script = Script { batches: vec![Batch::Lent { rows: 8, own_region: false }; 3], ending: Ending::Stall };
    let mut pair = Pair::new(plain(), vec![script]);
    let all = usize::MAX;
    // Up to the drain's last moment, with what keeps the connection alive, and only then batches.
    let second = [Op::Advance(Duration::from_secs(1)), Op::ToServer(all), Op::ToClient(all), Op::ToServer(all)];
    let seconds = pair::DRAIN_TIMEOUT.as_secs() as usize - 1;
    let seconds = std::iter::repeat_n(second, seconds).flatten().collect();
    let options = ExecuteOptions {
        delivery: Delivery::Lent,
        credit: 1 << 20,
        deadline_ms: Some(100_000),
        ..ExecuteOptions::default()
    };
    let begin = vec![Op::Execute { script: 0, options }, Op::ToServer(all), Op::Drain];
    for op in [open(), begin, seconds, vec![Op::Engine(0); 3], vec![Op::ToClient(all)]].concat() {
        pair.apply(op);
    }
    assert!(pair.client.machine.outstanding_reads() > 0 && pair.server.machine.open_leases() > 0);
    pair.apply(Op::Advance(Duration::from_secs(1)));
    assert!(pair.server.machine.open_leases() > 0, "they stand while the client reads");
    for _ in 0..100 {
        pair.apply(Op::Read(0));
    }
    pair.apply(Op::ToClient(usize::MAX));
    let app = pair.client.apps.values().next().unwrap();
    assert!(
        matches!(&app.over, Some(Err(StreamError::Remote { code: StreamCode::ShuttingDown, .. }))),
        "{:?}",
        app.over
    );
    pair.apply(Op::ToServer(usize::MAX));
    assert_eq!(pair.server.machine.open_leases(), 0, "all were released");
    pair.finish();
}

/// What has been read goes back though another read hangs: its lease would run out before that read is given up.
#[test]
fn a_read_that_hangs_holds_no_other_lease_back() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 2])]);
    let lent = [vec![Op::ToServer(all)], vec![Op::Engine(0); 3], vec![Op::ToClient(all)]].concat();
    for op in [open(), vec![execute(0, 1 << 20)], lent].concat() {
        pair.apply(op);
    }
    assert_eq!((pair.client.machine.outstanding_reads(), pair.server.machine.open_leases()), (2, 2));
    while pair.client.machine.outstanding_reads() > 1 {
        pair.apply(Op::Read(0));
    }
    let released_after = |pair: &mut Pair, ms| {
        pair.apply(Op::Advance(Duration::from_millis(ms)));
        pair.apply(Op::ToServer(all));
        2 - pair.server.machine.open_leases()
    };
    assert_eq!(released_after(&mut pair, 1), 0, "several go together");
    assert_eq!(released_after(&mut pair, 1), 1);
    assert_eq!(pair.client.machine.outstanding_reads(), 1, "it hangs still");
    let well = pair.streams_end();
    assert_eq!(well, [true]);
    pair.finish();
}

/// A connection that is gone answers too: nobody waits for a query that it will never run.
#[test]
fn a_query_after_the_close_is_answered() {
    let mut pair = Pair::new(plain(), vec![finite(vec![])]);
    for op in [open(), vec![Op::Cut { lose: false }, Op::ClientHearsCut, execute(0, 1000)]].concat() {
        pair.apply(op);
    }
    assert!(pair.client.closed.is_some());
    let over = pair.client.apps.values().next().and_then(|app| app.over.clone());
    assert!(matches!(over, Some(Err(StreamError::Connection(_)))), "{over:?}");
    pair.finish();
}
