//! Mapped batches, step by step: the duration of their loans, and the fate of streams that wait meanwhile. When a batch
//! is given up, the harness checks that its memory did not change while it was mapped.

mod pair;

use std::time::Duration;

use pair::borrow::App;
use pair::script::{Batch, Ending, Knobs, Script, plain};
use pair::{LEASE_TIMEOUT, MOMENT, Op, Pair, open};
use thallus_protocol::client::{ClientCommand, ClientInput};
use thallus_protocol::message::{Access, Fencing, LendFrom, OpenOptions, ProcessId};
use thallus_protocol::{LeaseEnd, LeaseId, StreamId};

const ALL: usize = usize::MAX;
const STREAM: StreamId = StreamId(1);

/// A mapped stream of batches with these numbers of rows. The application has received as many as possible.
fn begun(knobs: Knobs, rows: &[u64], ending: Ending) -> Pair {
    let batches = rows.iter().map(|&rows| Batch::Lent { rows, own_region: false }).collect();
    let mut pair = Pair::new(knobs, vec![Script { batches, ending }]);
    let options = OpenOptions {
        lend_from: LendFrom::Bytes(0),
        access: Access::Map(ProcessId { pid: 7, started: 4711 }),
        credit: 3000,
        ..OpenOptions::default()
    };
    for op in open().into_iter().chain([Op::Execute { script: 0, options }]) {
        pair.apply(op);
    }
    for _ in 0..4 * rows.len() + 8 {
        turn(&mut pair);
    }
    pair
}

/// All steps that need no fault, with an application that consumes each batch.
fn turn(pair: &mut Pair) {
    for op in [Op::ToServer(ALL), Op::Engine(0), Op::ToClient(ALL), Op::Read(0), Op::Read(0), Op::Read(0), Op::Take(0)]
    {
        pair.apply(op);
    }
}

/// Does the same as [`turn`], after the time for which releases are held back.
fn later(pair: &mut Pair) {
    pair.apply(Op::Advance(MOMENT));
    turn(pair);
}

fn app(pair: &Pair) -> &App {
    &pair.client.borrow.apps[&STREAM]
}

#[test]
fn a_mapped_batch_is_on_loan_until_it_is_given_up_and_no_timeout_applies() {
    for fencing in [Fencing::LeaseWord, Fencing::Revocation] {
        let mut pair = begun(Knobs { fencing, ..plain() }, &[10, 10], Ending::Finish);
        assert_eq!((app(&pair).mapped.len(), &app(&pair).over), (2, &Some(Ok(()))), "the stream has ended");
        // In steps, so that both ends exchange keepalive messages.
        for _ in 0..20 {
            pair.apply(Op::Advance(LEASE_TIMEOUT / 10));
            turn(&mut pair);
        }
        assert_eq!(pair.server.machine.open_leases(), 2, "{fencing:?}");
        pair.apply(Op::GiveUp(0));
        later(&mut pair);
        assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), Some(&LeaseEnd::Released));
        assert_eq!(pair.server.machine.open_leases(), 1);
        pair.finish();
    }
}

#[test]
fn a_mapped_batch_stays_on_loan_when_its_stream_is_cancelled() {
    let mut pair = begun(plain(), &[10, 10], Ending::Stall);
    assert_eq!(app(&pair).mapped.len(), 2);
    pair.apply(Op::Cancel(0));
    turn(&mut pair);
    assert!(app(&pair).over.is_some());
    assert_eq!((pair.server.machine.open_streams(), pair.server.machine.open_leases()), (0, 2));
    pair.apply(Op::GiveUp(1));
    later(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 1);
    pair.finish();
}

#[test]
fn few_releases_wait_for_the_next_message_and_many_are_sent_at_once() {
    let mut pair = begun(Knobs { max_leases: 20, ..plain() }, &[10; 12], Ending::Finish);
    let open = |pair: &Pair| pair.server.machine.open_leases();
    assert_eq!((app(&pair).mapped.len(), open(&pair)), (12, 12));
    for given_up in 1..9 {
        pair.apply(Op::GiveUp(0));
        turn(&mut pair);
        assert_eq!(open(&pair), if given_up < 8 { 12 } else { 4 }, "{given_up}");
    }
    pair.apply(Op::GiveUp(0));
    turn(&mut pair);
    assert_eq!(open(&pair), 4, "one release alone is not sent");
    pair.apply(Op::Execute { script: 0, options: OpenOptions::default() });
    pair.apply(Op::ToServer(ALL));
    assert_eq!(open(&pair), 3, "the release is sent with another message");
    pair.finish();
}

/// The lender keeps a mapped batch until it is released, even after the connection has closed.
#[test]
fn held_back_releases_are_sent_before_the_connection_is_closed() {
    let mut pair = begun(plain(), &[10; 3], Ending::Stall);
    pair.apply(Op::GiveUp(0));
    turn(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 3);
    pair.client(ClientInput::Command(ClientCommand::Close));
    pair.apply(Op::ToServer(ALL));
    assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), Some(&LeaseEnd::Released));
    pair.finish();
}

/// The lender is short of room if its credit allows more than its room.
#[test]
fn each_release_is_sent_at_once_when_the_lender_is_short_of_room() {
    for (max_loan_bytes, at_once) in [(4000, 1), (3 * 1280 + 3000, 0)] {
        let mut pair = begun(Knobs { max_loan_bytes, ..plain() }, &[80; 3], Ending::Stall);
        assert_eq!(pair.server.machine.open_leases(), 3);
        pair.apply(Op::GiveUp(0));
        turn(&mut pair);
        assert_eq!(3 - pair.server.machine.open_leases(), at_once, "{max_loan_bytes}");
        pair.finish();
    }
}

#[test]
fn a_draining_server_does_not_wait_for_mapped_batches() {
    let mut pair = begun(plain(), &[10], Ending::Finish);
    pair.apply(Op::Drain);
    for op in [Op::AnswerServer, Op::ToClient(ALL), Op::AnswerClient] {
        pair.apply(op);
    }
    assert!(pair.server.closed.is_some());
    assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), Some(&LeaseEnd::TornDown));
    // `finish` checks and gives up the mapped batch after the close.
    pair.finish();
}

#[test]
fn a_borrower_that_keeps_all_batches_gets_the_rest_inline() {
    // Each batch takes 1280 bytes, so there is room for three.
    let knobs = Knobs { max_loan_bytes: 4000, ..plain() };
    let pair = begun(knobs, &[80; 6], Ending::Finish);
    assert_eq!((app(&pair).next, app(&pair).mapped.len(), &app(&pair).over), (6, 3, &Some(Ok(()))));
    pair.finish();
}

#[test]
fn held_back_credit_does_not_block_a_borrower_that_keeps_a_large_batch() {
    // The first batch fills the room. The second uses too little of the window for a grant, and leaves less credit than
    // a batch like the first costs.
    let knobs = Knobs { max_loan_bytes: 4000, ..plain() };
    let pair = begun(knobs, &[240, 10, 10], Ending::Finish);
    assert_eq!((app(&pair).next, app(&pair).mapped.len(), &app(&pair).over), (3, 1, &Some(Ok(()))));
    pair.finish();
}

/// The lender has requested credit for the last batch, and now waits for credit for a batch of the largest size. It
/// must request that too: otherwise the borrower holds back less than a quarter of the window, and both ends wait.
#[test]
fn the_lender_requests_credit_for_the_next_batch_even_if_the_last_one_had_to_wait() {
    // Batches of 3200 and 128 bytes: after both there is no room for another one of 3200 bytes.
    let knobs = Knobs { max_loan_bytes: 2 * 3200 + 127, ..plain() };
    let pair = begun(knobs, &[200, 8], Ending::Finish);
    assert_eq!((app(&pair).mapped.len(), &app(&pair).over), (2, &Some(Ok(()))), "the stream has ended");
    pair.finish();
}

#[test]
fn a_stream_that_waits_too_long_for_room_fails() {
    let knobs = Knobs { max_loan_bytes: 4000, ..plain() };
    let mut pair = begun(knobs, &[40, 240], Ending::Finish);
    assert_eq!((app(&pair).next, &app(&pair).over), (1, &None), "the second batch waits for room");
    for _ in 0..20 {
        pair.apply(Op::Advance(Duration::from_millis(100).max(LEASE_TIMEOUT / 15)));
        turn(&mut pair);
    }
    let over = format!("{:?}", app(&pair).over);
    assert!(over.contains("ResourcesExhausted") && over.contains("mapped batches: 1"), "{over}");
    assert_eq!(app(&pair).mapped.len(), 1, "the first batch stays mapped");
    pair.finish();
}
