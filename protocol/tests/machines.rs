//! Checks the invariants of both connection machines under arbitrary interleavings and faults.
//!
//! A failure prints the operations that led to it, and proptest stores its seed in `tests/regressions/`. Run the test
//! again to reproduce it. Set `PROPTEST_CASES` for more cases than the default.

mod pair;

use std::time::Duration;

use pair::end::Plane;
use pair::script::{Batch, Ending, Knobs, Script, arb_knobs, arb_script, plain};
use pair::{Op, Pair, config, open};
use proptest::prelude::*;
use thallus_protocol::StreamError;
use thallus_protocol::client::UploadOptions;
use thallus_protocol::codes::{CancelReason, StreamCode};
use thallus_protocol::message::{Access, Failure, Fencing, LendFrom, OpenOptions, ProcessId};

fn arb_lend_from() -> impl Strategy<Value = LendFrom> {
    prop_oneof![
        3 => Just(LendFrom::Auto),
        2 => Just(LendFrom::Bytes(0)),
        1 => Just(LendFrom::Never),
        1 => (0..3000_u64).prop_map(LendFrom::Bytes),
    ]
}

fn arb_execute() -> impl Strategy<Value = Op> {
    let access = prop_oneof![
        2 => Just(Access::Read),
        2 => Just(Access::OnDemand),
        1 => Just(Access::Map(ProcessId { pid: 7, started: 4711 })),
    ];
    let credit = prop_oneof![Just(0), Just(300_u64), Just(1000), Just(5000), Just(20_000), Just(1 << 30)];
    let deadline = prop_oneof![12 => Just(None), 1 => (0..5000_u64).prop_map(Some)];
    (0..4_usize, arb_lend_from(), access, credit, deadline).prop_map(
        |(script, lend_from, access, credit, deadline_ms)| Op::Execute {
            script,
            options: OpenOptions { lend_from, access, credit, deadline_ms, ..OpenOptions::default() },
        },
    )
}

fn arb_upload() -> impl Strategy<Value = Op> {
    let deadline = prop_oneof![12 => Just(None), 1 => (0..5000_u64).prop_map(Some)];
    (0..4_usize, arb_lend_from(), deadline).prop_map(|(script, lend_from, deadline)| {
        let deadline = deadline.map(Duration::from_millis);
        Op::Upload { script, options: UploadOptions { lend_from, deadline, ..UploadOptions::default() } }
    })
}

fn arb_read_part() -> impl Strategy<Value = Op> {
    let part = (0..2_usize, 0..5000_u64, 0..3000_u64);
    (0..8_usize, prop::collection::vec(part, 0..3)).prop_map(|(k, parts)| Op::ReadPart(k, parts))
}

/// Operations of a connection without faults.
fn arb_progress() -> impl Strategy<Value = Op> {
    let bytes = || prop_oneof![3 => Just(usize::MAX), 1 => 1..200_usize, 1 => 200..5000_usize];
    prop_oneof![
        8 => bytes().prop_map(Op::ToServer),
        8 => bytes().prop_map(Op::ToClient),
        6 => (0..4_usize).prop_map(Op::Engine),
        10 => (0..8_usize).prop_map(Op::Read),
        3 => (0..4_usize).prop_map(Op::Take),
        4 => arb_read_part(),
        2 => (0..8_usize).prop_map(Op::ReleaseBatch),
        2 => Just(Op::AnswerServer),
        2 => Just(Op::AnswerClient),
        2 => arb_execute(),
        2 => arb_upload(),
        4 => (0..4_usize).prop_map(Op::Sink),
        1 => Just(Op::Ping),
    ]
}

fn arb_fault() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..6000_u64).prop_map(|ms| Op::Advance(Duration::from_millis(ms))),
        5 => (0..6_usize).prop_map(Op::Cancel),
        2 => (0..6_usize).prop_map(Op::Refuse),
        2 => (0..6_usize).prop_map(Op::Withdraw),
        1 => (0..6_usize).prop_map(Op::Reject),
        3 => (0..8_usize).prop_map(Op::ReadFails),
        1 => (0..8_usize).prop_map(Op::NoMemory),
        1 => Just(Op::Blackhole),
        2 => any::<bool>().prop_map(|at_server| Op::ExposureFails { at_server }),
        1 => Just(Op::ServerFabricFails),
        1 => Just(Op::ClientFabricFails),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(to_server, to_client)| Op::Silence { to_server, to_client }),
        1 => any::<bool>().prop_map(|lose| Op::Cut { lose }),
        1 => Just(Op::ServerNoticesCut),
        1 => Just(Op::ClientNoticesCut),
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

    /// Any operations in any order, from the first byte on.
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

    /// Without a fault every stream ends without an error, and needs no timer for it.
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
                Op::Execute { script, options: OpenOptions { deadline_ms: None, ..options } }
            }
            Op::Upload { script, options } => {
                Op::Upload { script, options: UploadOptions { deadline: None, ..options } }
            }
            other => other,
        });
        run(knobs, scripts.collect(), ops.collect());
    }

    /// Leases expire while their memory is being read, and the lender reuses the memory immediately.
    #[test]
    fn a_reused_lease_is_never_delivered(
        scripts in scripts(),
        max_leases in 1..4_u32,
        ops in prop::collection::vec(
            prop_oneof![
                30 => arb_progress(),
                30 => (0..2_usize).prop_map(Op::Read),
                4 => (1000..4000_u64).prop_map(|ms| Op::Advance(Duration::from_millis(ms))),
                1 => Just(Op::ServerNoticesCut),
            ],
            0..150,
        ),
    ) {
        let knobs = Knobs { fencing: Fencing::LeaseWord, max_leases, ..plain() };
        // The server notices the cut first, so the client continues to read memory that is lent to another stream.
        let ops = ops.into_iter().flat_map(|op| match op {
            Op::ServerNoticesCut => vec![Op::Cut { lose: false }, op],
            other => vec![other],
        });
        run(knobs, scripts, open().into_iter().chain(ops).collect());
    }
}

fn finite(batches: Vec<Batch>) -> Script {
    Script { batches, ending: Ending::Finish }
}

fn execute(script: usize, credit: u64) -> Op {
    let options = OpenOptions { lend_from: LendFrom::Bytes(0), credit, ..OpenOptions::default() };
    Op::Execute { script, options }
}

/// Regression: held-back grants of less than a quarter of the window blocked a batch of more than three quarters
/// forever.
#[test]
fn a_batch_nearly_as_large_as_the_window_is_delivered() {
    for bytes in [1200, 1243, 1244, 1245, 1487, 1488, 1700, 1743, 1744, 1745, 3000] {
        // The first batch costs 257 bytes, less than a quarter of the window.
        let script = finite(vec![Batch::Inline { bytes: 1 }, Batch::Inline { bytes }]);
        run(plain(), vec![script], [open(), vec![execute(0, 2000)]].concat());
    }
}

/// Leases are numbered when the engine hands over a batch, and announced when credit allows.
#[test]
fn leases_may_be_announced_out_of_order() {
    let rows = |rows| Batch::Lent { rows, own_region: false };
    let (slow, fast) = (finite(vec![rows(50), rows(50)]), finite(vec![rows(10); 4]));
    run(plain(), vec![slow, fast], [open(), vec![execute(0, 1200), execute(1, 100_000)]].concat());
}

/// A continuous sequence of small loans must not block a large loan forever.
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
        // Few reads in each turn, so that some batch is always on loan.
        for _ in 0..3 {
            pair.apply(Op::Read(0));
        }
    }
    let ended: Vec<_> = pair.client.borrow.apps.values().map(|app| (app.over.is_some(), app.next)).collect();
    assert!(ended[1].0, "the large batch waits: {ended:?}");
    assert!(!ended[0].0, "the small batches ended too early for this test: {ended:?}");
    pair.finish();
}

/// The client reports a working data plane while the server's endpoint fails. From then on results travel inline.
#[test]
fn a_fabric_up_that_crosses_a_failure() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 3])]);
    for op in [Op::ToServer(all), Op::ToClient(all), Op::ServerFabricFails, Op::ToServer(all), execute(0, 1 << 20)] {
        pair.apply(op);
    }
    assert_eq!(pair.client.plane, Plane::Open, "the client has not received the failure yet");
    let well = pair.streams_end();
    assert_eq!(well, [true]);
    pair.finish();
}

/// The failure tells the borrower to repeat the request, so the repeated request must not meet the same fault. Loans of
/// the other direction go on.
#[test]
fn a_request_succeeds_inline_after_memory_could_not_be_opened() {
    for own_region in [false, true] {
        let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region }; 3])]);
        for op in [open(), vec![Op::ExposureFails { at_server: true }, execute(0, 1 << 20)]].concat() {
            pair.apply(op);
        }
        assert_eq!(pair.streams_end(), [false]);
        let over = pair.client.borrow.apps.values().next().and_then(|app| app.over.clone());
        let Some(Err(StreamError::Remote(failure))) = over else { panic!("{over:?}") };
        assert_eq!(failure.code, StreamCode::DataPlaneLost);
        assert!(failure.message.contains("no memory windows are left; run the request again"), "{failure:?}");
        let leases = pair.server.lend.ends.len();
        pair.apply(execute(0, 1 << 20));
        pair.apply(upload(0));
        assert_eq!(pair.streams_end(), [false, true]);
        assert_eq!(pair.server.lend.ends.len(), leases, "the repeated request was lent");
        assert_eq!(pair.client.lend.ends.len() + pair.client.lend.leases_held(), 3, "the upload was not lent");
        pair.finish();
    }
}

#[test]
fn an_upload_succeeds_inline_after_memory_could_not_be_opened() {
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: true }; 3])]);
    for op in [open(), vec![Op::ExposureFails { at_server: false }, upload(0)]].concat() {
        pair.apply(op);
    }
    pair.streams_end();
    let leases = pair.client.lend.ends.len();
    pair.apply(upload(0));
    pair.apply(execute(0, 1 << 20));
    assert_eq!(pair.streams_end(), [true], "results are still lent");
    assert!(!pair.server.lend.ends.is_empty());
    assert_eq!(pair.client.lend.ends.len(), leases, "the repeated upload was lent");
    let answers: Vec<_> = pair.client.uploads.values().map(|answer| answer.clone().map(|answer| answer.ok())).collect();
    assert_eq!(answers, [Some(None), Some(Some(3))]);
    pair.finish();
}

/// A server that has stopped lending still has to notice that the client's memory is gone.
#[test]
fn a_fabric_that_fails_after_memory_could_not_be_opened_is_lost_in_both_directions() {
    for failing in [Op::ServerFabricFails, Op::ClientFabricFails] {
        let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 3])]);
        for op in [open(), vec![Op::ExposureFails { at_server: true }, execute(0, 1 << 20)]].concat() {
            pair.apply(op);
        }
        pair.streams_end();
        pair.apply(failing);
        for op in [Op::ToServer(usize::MAX), Op::ToClient(usize::MAX)] {
            pair.apply(op);
        }
        assert_eq!(pair.server.machine.borrower().path_name(), "down");
        pair.apply(upload(0));
        pair.streams_end();
        assert_eq!(pair.client.uploads.values().next(), Some(&Some(Ok(3))));
        assert!(pair.client.lend.ends.is_empty(), "the upload was lent");
        pair.finish();
    }
}

/// A batch is read, and its lease expires before the lease word is read.
#[test]
fn an_expired_lease_is_detected() {
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
    let over = pair.client.borrow.apps.values().next().and_then(|app| app.over.clone());
    assert!(matches!(over, Some(Err(StreamError::LeaseLost { seq: 0 }))), "{over:?}");
    pair.finish();
}

/// Regression: the leases ended with the streams, so the client reported a lost lease instead of the shutdown.
#[test]
fn a_drain_reports_the_end_of_streams_before_it_ends_leases() {
    let script = Script { batches: vec![Batch::Lent { rows: 8, own_region: false }; 3], ending: Ending::Stall };
    let mut pair = Pair::new(plain(), vec![script]);
    let all = usize::MAX;
    // Up to the last second of the drain, with keepalive messages. Only then the engine yields batches.
    let second = [Op::Advance(Duration::from_secs(1)), Op::ToServer(all), Op::ToClient(all), Op::ToServer(all)];
    let seconds = pair::DRAIN_TIMEOUT.as_secs() as usize - 1;
    let seconds = std::iter::repeat_n(second, seconds).flatten().collect();
    let options = OpenOptions {
        lend_from: LendFrom::Bytes(0),
        credit: 1 << 20,
        deadline_ms: Some(100_000),
        ..OpenOptions::default()
    };
    let begin = vec![Op::Execute { script: 0, options }, Op::ToServer(all), Op::Drain];
    for op in [open(), begin, seconds, vec![Op::Engine(0); 3], vec![Op::ToClient(all)]].concat() {
        pair.apply(op);
    }
    assert!(pair.client.machine.outstanding_reads() > 0 && pair.server.machine.open_leases() > 0);
    pair.apply(Op::Advance(Duration::from_secs(1)));
    assert!(pair.server.machine.open_leases() > 0, "leases stay open while the client reads");
    for _ in 0..100 {
        pair.apply(Op::Read(0));
    }
    pair.apply(Op::ToClient(usize::MAX));
    let app = pair.client.borrow.apps.values().next().unwrap();
    assert!(
        matches!(&app.over, Some(Err(StreamError::Remote(Failure { code: StreamCode::ShuttingDown, .. })))),
        "{:?}",
        app.over
    );
    pair.apply(Op::ToServer(usize::MAX));
    assert_eq!(pair.server.machine.open_leases(), 0, "leases are still open");
    pair.finish();
}

/// A completed batch is released although another read hangs. Otherwise its lease would expire before that read times
/// out.
#[test]
fn a_hanging_read_does_not_delay_other_releases() {
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
    assert_eq!(released_after(&mut pair, 1), 0, "releases are held back to be sent together");
    assert_eq!(released_after(&mut pair, 1), 1);
    assert_eq!(pair.client.machine.outstanding_reads(), 1, "the other read still hangs");
    let well = pair.streams_end();
    assert_eq!(well, [true]);
    pair.finish();
}

/// A closed connection fails new queries immediately.
#[test]
fn a_query_after_the_close_is_answered() {
    let mut pair = Pair::new(plain(), vec![finite(vec![])]);
    for op in [open(), vec![Op::Cut { lose: false }, Op::ClientNoticesCut, execute(0, 1000)]].concat() {
        pair.apply(op);
    }
    assert!(pair.client.closed.is_some());
    let over = pair.client.borrow.apps.values().next().and_then(|app| app.over.clone());
    assert!(matches!(over, Some(Err(StreamError::Connection(_)))), "{over:?}");
    pair.finish();
}

fn upload(script: usize) -> Op {
    let options = UploadOptions { lend_from: LendFrom::Bytes(0), ..UploadOptions::default() };
    Op::Upload { script, options }
}

/// Runs an upload until the server has all its batches and the client waits for the answer.
fn uploaded(pair: &mut Pair) {
    let all = usize::MAX;
    for op in [open(), vec![upload(0)]].concat() {
        pair.apply(op);
    }
    for _ in 0..30 {
        for op in [Op::ToServer(all), Op::Engine(0), Op::ToClient(all), Op::Read(0), Op::Take(0)] {
            pair.apply(op);
        }
        if pair.server.borrow.apps.values().any(|app| app.over.is_none() && !app.accepted) {
            pair.apply(Op::Sink(0));
        }
    }
    assert!(pair.server.borrow.apps.values().all(|app| app.over == Some(Ok(()))), "{:?}", pair.server.borrow.apps);
}

#[test]
fn an_upload_is_lent_by_the_client_and_complete_once_it_is_answered() {
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: true }; 4])]);
    uploaded(&mut pair);
    assert_eq!(pair.client.lend.ends.len() + pair.client.lend.leases_held(), 4, "not all batches were lent");
    assert_eq!(pair.client.uploads.values().next(), Some(&None), "complete before the engine's answer");
    pair.apply(Op::Sink(0));
    pair.apply(Op::ToClient(usize::MAX));
    assert_eq!(pair.client.uploads.values().next(), Some(&Some(Ok(4))));
    pair.finish();
}

#[test]
fn an_upload_goes_inline_where_the_server_cannot_read() {
    let knobs = Knobs { client_lends: false, ..plain() };
    let mut pair = Pair::new(knobs, vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 4])]);
    uploaded(&mut pair);
    assert_eq!(pair.client.lend.ends.len(), 0);
    pair.apply(Op::Sink(0));
    pair.finish();
}

/// The client sends no batch of an upload before the engine has accepted it.
#[test]
fn an_upload_that_is_refused_at_once_sends_no_batch() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Inline { bytes: 10 }; 4])]);
    for op in [open(), vec![upload(0), Op::Engine(0), Op::Engine(0), Op::ToServer(all), Op::Refuse(0)]].concat() {
        pair.apply(op);
    }
    pair.apply(Op::ToClient(all));
    let answer = pair.client.uploads.values().next().cloned().flatten();
    assert!(
        matches!(&answer, Some(Err(StreamError::Remote(Failure { code: StreamCode::Execution, .. })))),
        "{answer:?}"
    );
    pair.apply(Op::ToServer(all));
    assert_eq!(pair.server.borrow.apps.values().next().map(|app| app.next), Some(0));
    pair.finish();
}

/// The client may withdraw an upload after the engine has received its end.
#[test]
fn an_upload_that_is_withdrawn_after_its_end_is_not_taken() {
    for late in [false, true] {
        let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Inline { bytes: 10 }; 2])]);
        uploaded(&mut pair);
        if late {
            pair.apply(Op::Sink(0));
        }
        pair.apply(Op::Withdraw(0));
        pair.apply(Op::ToServer(usize::MAX));
        let app = pair.server.borrow.apps.values().next().unwrap();
        assert_eq!((app.withdrawn, app.answered.is_some()), (!late, late), "an earlier answer stays valid");
        pair.finish();
    }
}

/// The end of the upload has been announced, but its batches are still being read.
#[test]
fn an_upload_that_is_withdrawn_while_its_batches_are_read_is_not_taken() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 2])]);
    let begin = vec![upload(0), Op::ToServer(all), Op::Sink(0), Op::ToClient(all)];
    for op in [open(), begin, vec![Op::Engine(0); 4], vec![Op::ToServer(all)]].concat() {
        pair.apply(op);
    }
    assert!(pair.server.borrow.apps.values().all(|app| app.over.is_none()), "the batches have already been read");
    pair.apply(Op::Withdraw(0));
    pair.apply(Op::ToServer(all));
    let app = pair.server.borrow.apps.values().next().unwrap();
    assert!(matches!(app.over, Some(Err(StreamError::Remote(_)))), "{app:?}");
    pair.finish();
}

#[test]
fn a_batch_of_an_upload_that_cannot_be_read_fails_it_at_both_ends() {
    let all = usize::MAX;
    let mut pair = Pair::new(plain(), vec![finite(vec![Batch::Lent { rows: 10, own_region: false }; 4])]);
    let begin = vec![upload(0), Op::ToServer(all), Op::Sink(0), Op::ToClient(all), Op::Engine(0), Op::Engine(0)];
    for op in [open(), begin, vec![Op::ToServer(all), Op::ReadFails(0)]].concat() {
        pair.apply(op);
    }
    for _ in 0..5 {
        pair.apply(Op::Read(0));
    }
    pair.apply(Op::ToClient(all));
    let answer = pair.client.uploads.values().next().cloned().flatten();
    assert!(
        matches!(&answer, Some(Err(StreamError::Remote(Failure { code: StreamCode::ReadFailed, .. })))),
        "{answer:?}"
    );
    pair.finish();
}

/// A shutdown also fails uploads with `ShuttingDown`.
#[test]
fn a_drain_that_is_over_refuses_uploads() {
    let script = Script { batches: vec![Batch::Inline { bytes: 10 }; 2], ending: Ending::Stall };
    let mut pair = Pair::new(plain(), vec![script]);
    let all = usize::MAX;
    let options = UploadOptions { deadline: Some(Duration::from_secs(100)), ..UploadOptions::default() };
    let begin = vec![Op::Upload { script: 0, options }, Op::ToServer(all), Op::Sink(0), Op::Drain];
    for op in [open(), begin].concat() {
        pair.apply(op);
    }
    for _ in 0..pair::DRAIN_TIMEOUT.as_secs() {
        for op in [Op::Advance(Duration::from_secs(1)), Op::ToServer(all), Op::ToClient(all), Op::ToServer(all)] {
            pair.apply(op);
        }
    }
    let answer = pair.client.uploads.values().next().cloned().flatten();
    let code = StreamCode::ShuttingDown;
    assert!(matches!(&answer, Some(Err(StreamError::Remote(failure))) if failure.code == code), "{answer:?}");
    pair.finish();
}

/// Both directions use the same slots of lease words and the same numbers of regions at the same time.
#[test]
fn a_result_and_an_upload_do_not_mix_up_their_leases() {
    let rows = finite(vec![Batch::Lent { rows: 10, own_region: true }; 6]);
    for fencing in [Fencing::LeaseWord, Fencing::Revocation] {
        let ops = [open(), vec![execute(0, 100_000), upload(0), execute(0, 800), upload(0)]].concat();
        run(Knobs { fencing, ..plain() }, vec![rows.clone()], ops);
    }
}

/// The failure of a cancelled stream contains the reason as a code, not as text.
#[test]
fn the_reason_of_a_cancel_is_a_code() {
    let failure = Failure::cancelled(CancelReason::Dropped);
    assert_eq!((failure.code, failure.cancel), (StreamCode::Cancelled, Some(CancelReason::Dropped)));
}
