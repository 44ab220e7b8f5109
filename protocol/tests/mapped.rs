//! Mapped batches, step by step: how long they stay on loan, and what becomes of those who wait meanwhile. That what is
//! mapped does not change while it is looked at, whatever happens, is looked at by the harness when it is given up.

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

/// A mapped stream of batches of so many rows, as many of them with the application as can be.
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

/// Everything that goes on by itself, with an application that takes what comes.
fn turn(pair: &mut Pair) {
    for op in [Op::ToServer(ALL), Op::Engine(0), Op::ToClient(ALL), Op::Read(0), Op::Read(0), Op::Read(0), Op::Take(0)]
    {
        pair.apply(op);
    }
}

/// As [`turn`], once releases are not held back any more.
fn later(pair: &mut Pair) {
    pair.apply(Op::Advance(MOMENT));
    turn(pair);
}

fn app(pair: &Pair) -> &App {
    &pair.client.borrow.apps[&STREAM]
}

#[test]
fn it_is_on_loan_until_it_is_given_up_and_no_timeout_applies() {
    for fencing in [Fencing::LeaseWord, Fencing::Revocation] {
        let mut pair = begun(Knobs { fencing, ..plain() }, &[10, 10], Ending::Finish);
        assert_eq!((app(&pair).mapped.len(), &app(&pair).over), (2, &Some(Ok(()))), "the stream is whole");
        // In steps, so that both ends are heard of.
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
fn it_stays_on_loan_when_its_stream_is_cancelled() {
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
fn few_go_back_with_the_next_message_and_many_at_once() {
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
    assert_eq!(open(&pair), 4, "it is not worth a message");
    pair.apply(Op::Execute { script: 0, options: OpenOptions::default() });
    pair.apply(Op::ToServer(ALL));
    assert_eq!(open(&pair), 3, "another message takes it along");
    pair.finish();
}

/// The lender keeps what is mapped until it is given back, whatever has become of the connection.
#[test]
fn what_is_held_back_goes_before_the_connection_is_closed() {
    let mut pair = begun(plain(), &[10; 3], Ending::Stall);
    pair.apply(Op::GiveUp(0));
    turn(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 3);
    pair.client(ClientInput::Command(ClientCommand::Close));
    pair.apply(Op::ToServer(ALL));
    assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), Some(&LeaseEnd::Released));
    pair.finish();
}

/// While the lender may lend more, by its credit, than it has room for.
#[test]
fn where_room_is_short_each_goes_back_at_once() {
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
fn a_server_that_drains_does_not_wait_for_it() {
    let mut pair = begun(plain(), &[10], Ending::Finish);
    pair.apply(Op::Drain);
    for op in [Op::AnswerServer, Op::ToClient(ALL), Op::AnswerClient] {
        pair.apply(op);
    }
    assert!(pair.server.closed.is_some());
    assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), Some(&LeaseEnd::TornDown));
    // And it can be looked at, and given up, when all is over.
    pair.finish();
}

#[test]
fn who_keeps_all_gets_the_rest_inline() {
    // Each takes 1280 bytes: there is room for three.
    let knobs = Knobs { max_loan_bytes: 4000, ..plain() };
    let pair = begun(knobs, &[80; 6], Ending::Finish);
    assert_eq!((app(&pair).next, app(&pair).mapped.len(), &app(&pair).over), (6, 3, &Some(Ok(()))));
    pair.finish();
}

#[test]
fn credit_that_is_held_back_does_not_hold_up_who_keeps_a_large_batch() {
    // The first fills the room. What the second takes of the window is less than is worth a grant, and leaves less than
    // a batch like the first would cost.
    let knobs = Knobs { max_loan_bytes: 4000, ..plain() };
    let pair = begun(knobs, &[240, 10, 10], Ending::Finish);
    assert_eq!((app(&pair).next, app(&pair).mapped.len(), &app(&pair).over), (3, 1, &Some(Ok(()))));
    pair.finish();
}

/// The lender has said what the last batch needed, and waits for what the largest would: it has to say that, too, for
/// less than a quarter of the window is held back otherwise, and the borrower waits for more.
#[test]
fn what_the_next_batch_needs_is_said_though_the_last_one_had_to_wait() {
    // Of 3200 bytes and of 128: after both there is no room for another of the first kind.
    let knobs = Knobs { max_loan_bytes: 2 * 3200 + 127, ..plain() };
    let pair = begun(knobs, &[200, 8], Ending::Finish);
    assert_eq!((app(&pair).mapped.len(), &app(&pair).over), (2, &Some(Ok(()))), "the stream is whole");
    pair.finish();
}

#[test]
fn who_waits_for_room_that_never_comes_is_told() {
    let knobs = Knobs { max_loan_bytes: 4000, ..plain() };
    let mut pair = begun(knobs, &[40, 240], Ending::Finish);
    assert_eq!((app(&pair).next, &app(&pair).over), (1, &None), "the second waits for room");
    for _ in 0..20 {
        pair.apply(Op::Advance(Duration::from_millis(100).max(LEASE_TIMEOUT / 15)));
        turn(&mut pair);
    }
    let over = format!("{:?}", app(&pair).over);
    assert!(over.contains("ResourcesExhausted") && over.contains("mapped batches: 1"), "{over}");
    assert_eq!(app(&pair).mapped.len(), 1, "and what it has stays");
    pair.finish();
}
