//! Batches on demand, step by step: when parts are read, when leases and credit are returned, and the answers to reads
//! after a lease, a stream, a server or a data plane was lost.

mod pair;

use std::time::Duration;

use pair::borrow::App;
use pair::script::{Batch, Ending, Knobs, Script, plain};
use pair::{MOMENT, Op, Pair, open};
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::ClientCommand;
use thallus_protocol::layout::Piece;
use thallus_protocol::message::{Access, Fencing, LendFrom, OpenOptions};
use thallus_protocol::{ApiMisuse, ConnectionError, LeaseEnd, LeaseId, PartId, StreamError, StreamId};

const ALL: usize = usize::MAX;
const STREAM: StreamId = StreamId(1);

fn execute(credit: u64, deadline_ms: Option<u64>) -> Op {
    let options = OpenOptions {
        lend_from: LendFrom::Bytes(0),
        credit,
        deadline_ms,
        access: Access::OnDemand,
        ..OpenOptions::default()
    };
    Op::Execute { script: 0, options }
}

/// A lazy stream of batches of ten rows. The client has received as many as fit its window.
fn begun(knobs: Knobs, batches: usize, ending: Ending, credit: u64, deadline_ms: Option<u64>) -> Pair {
    let script = Script { batches: vec![Batch::Lent { rows: 10, own_region: false }; batches], ending };
    let mut pair = Pair::new(knobs, vec![script]);
    for op in open().into_iter().chain([execute(credit, deadline_ms)]) {
        pair.apply(op);
    }
    for _ in 0..batches + 2 {
        turn(&mut pair);
    }
    pair
}

/// All steps except reads and requests for parts.
fn turn(pair: &mut Pair) {
    for op in [Op::ToServer(ALL), Op::Engine(0), Op::ToClient(ALL)] {
        pair.apply(op);
    }
}

/// Does the same as [`turn`], after the time for which releases are held back.
fn later(pair: &mut Pair) {
    pair.apply(Op::Advance(MOMENT));
    turn(pair);
}

fn read_part() -> Op {
    // Rows 2 to 5 of the second column.
    Op::ReadPart(0, vec![(1, 16, 24)])
}

/// Completes all reads.
fn read(pair: &mut Pair) {
    for _ in 0..20 {
        pair.apply(Op::Read(0));
    }
}

fn app(pair: &Pair) -> &App {
    &pair.client.borrow.apps[&STREAM]
}

#[test]
fn nothing_is_read_before_a_request_and_the_lease_ends_with_the_batch() {
    let mut pair = begun(plain(), 1, Ending::Finish, 1 << 20, None);
    assert_eq!((pair.client.machine.outstanding_reads(), pair.server.machine.open_leases()), (0, 1));
    assert_eq!(app(&pair).over, Some(Ok(())), "the stream has ended, and its batch is held");
    for count in 1..4 {
        pair.apply(read_part());
        assert_eq!(pair.client.machine.outstanding_reads(), 1);
        read(&mut pair);
        assert_eq!(app(&pair).answers, vec![Ok(()); count]);
        turn(&mut pair);
        assert_eq!(pair.server.machine.open_leases(), 1);
    }
    pair.apply(Op::GiveUp(0));
    later(&mut pair);
    assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), Some(&LeaseEnd::Released));
    pair.finish();
}

#[test]
fn a_batch_given_up_during_a_read_is_released_after_the_read() {
    let mut pair = begun(plain(), 1, Ending::Finish, 1 << 20, None);
    pair.apply(read_part());
    pair.apply(Op::GiveUp(0));
    assert_eq!(app(&pair).answers, [Err(StreamError::Cancelled)]);
    turn(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 1, "the memory of the batch is still being read");
    read(&mut pair);
    later(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 0);
    pair.finish();
}

#[test]
fn a_lease_lost_after_its_batch_was_given_up_fails_nothing() {
    let mut pair = begun(plain(), 2, Ending::Stall, 1 << 20, Some(100_000));
    for op in [read_part(), Op::Read(0), Op::GiveUp(0), Op::Advance(pair::LEASE_TIMEOUT)] {
        pair.apply(op);
    }
    read(&mut pair);
    assert_eq!((&app(&pair).over, &app(&pair).answers[..]), (&None, &[Err(StreamError::Cancelled)][..]));
    pair.finish();
}

#[test]
fn a_borrower_that_holds_its_window_gets_no_batch_until_it_gives_one_up() {
    // Each batch costs 2 * 128 + 256 bytes.
    let mut pair = begun(plain(), 5, Ending::Finish, 1100, None);
    for _ in 0..10 {
        turn(&mut pair);
    }
    assert_eq!((app(&pair).next, app(&pair).held.len()), (2, 2));
    pair.apply(Op::GiveUp(0));
    for _ in 0..3 {
        turn(&mut pair);
    }
    assert_eq!((app(&pair).next, app(&pair).held.len()), (3, 2));
    pair.finish();
}

/// A borrower that holds its whole window does not wait forever for the next batch: the server revokes its leases.
#[test]
fn a_borrower_that_holds_its_batches_for_too_long_gets_an_error() {
    let mut pair = begun(plain(), 5, Ending::Finish, 1100, None);
    pair.apply(Op::Advance(pair::LEASE_TIMEOUT));
    turn(&mut pair);
    let over = format!("{:?}", app(&pair).over);
    assert!(over.contains("LeaseExpired"), "{over}");
    pair.apply(read_part());
    assert!(format!("{:?}", app(&pair).answers).contains("LeaseExpired"));
    pair.finish();
}

#[test]
fn a_lease_revoked_between_two_reads_is_detected() {
    for whole in [true, false] {
        let ending = if whole { Ending::Finish } else { Ending::Stall };
        let mut pair = begun(plain(), 2, ending, 1 << 20, Some(100_000));
        pair.apply(read_part());
        read(&mut pair);
        // The client is not notified before its next read.
        pair.apply(Op::Advance(pair::LEASE_TIMEOUT));
        assert_eq!(pair.server.machine.open_leases(), 0);
        pair.apply(read_part());
        read(&mut pair);
        assert_eq!(app(&pair).answers, [Ok(()), Err(StreamError::LeaseLost { seq: 0 })]);
        let over = &app(&pair).over;
        assert_eq!(over.as_ref().map(Result::is_ok), Some(whole), "a stream that has ended stays ended: {over:?}");
        pair.finish();
    }
}

#[test]
fn a_region_that_was_retired_with_the_lease_is_no_misbehaviour() {
    let script = Script { batches: vec![Batch::Lent { rows: 10, own_region: true }], ending: Ending::Finish };
    let mut pair = Pair::new(plain(), vec![script]);
    for op in open().into_iter().chain([execute(1 << 20, None)]) {
        pair.apply(op);
    }
    for _ in 0..3 {
        turn(&mut pair);
    }
    pair.apply(Op::Advance(pair::LEASE_TIMEOUT));
    pair.apply(Op::ToClient(ALL));
    pair.apply(read_part());
    assert_eq!(app(&pair).answers, [Err(StreamError::LeaseLost { seq: 0 })]);
    assert_eq!(pair.client.machine.outstanding_reads(), 0, "no read was posted");
    assert_eq!(pair.finish()[1], ConnectionError::Closed);
}

#[test]
fn a_server_that_dies_between_two_reads_or_during_one() {
    for during in [false, true] {
        for fencing in [Fencing::LeaseWord, Fencing::Revocation] {
            let mut pair = begun(Knobs { fencing, ..plain() }, 2, Ending::Finish, 1 << 20, None);
            pair.apply(read_part());
            if !during {
                read(&mut pair);
            }
            pair.apply(Op::Cut { lose: true });
            pair.apply(Op::ClientNoticesCut);
            pair.apply(read_part());
            let lost = |answer: &Result<(), _>| matches!(answer, Err(StreamError::Connection(_)));
            let answers = &app(&pair).answers;
            assert_eq!((lost(&answers[0]), lost(&answers[1])), (during, true), "{answers:?}");
            // Later reads of held batches also fail.
            pair.apply(Op::AnswerClient);
            assert!(pair.client.closed.is_some());
            pair.apply(read_part());
            assert!(lost(&app(&pair).answers[2]));
            pair.finish();
        }
    }
}

#[test]
fn a_cancelled_stream_loses_its_held_batches() {
    let mut pair = begun(plain(), 5, Ending::Finish, 1100, None);
    pair.apply(read_part());
    pair.apply(Op::Cancel(0));
    pair.apply(read_part());
    assert_eq!(app(&pair).answers, vec![Err(StreamError::Cancelled); 2]);
    turn(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 1, "only the lease of the batch that is being read is open");
    read(&mut pair);
    later(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 0, "leases are open, although the stream was cancelled");
    pair.finish();
}

#[test]
fn a_failed_data_plane_loses_all_held_batches() {
    let mut pair = begun(plain(), 2, Ending::Finish, 1 << 20, None);
    pair.apply(Op::ClientFabricFails);
    pair.apply(read_part());
    assert!(matches!(&app(&pair).answers[..], [Err(StreamError::Read { seq: 0, .. })]), "{:?}", app(&pair).answers);
    for _ in 0..2 {
        turn(&mut pair);
    }
    assert_eq!(pair.server.machine.open_leases(), 0);
    pair.finish();
}

#[test]
fn a_failed_read_ends_the_stream_and_lack_of_memory_only_the_part() {
    let mut pair = begun(plain(), 5, Ending::Finish, 1100, None);
    pair.apply(read_part());
    pair.apply(Op::NoMemory(0));
    assert!(matches!(&app(&pair).answers[..], [Err(StreamError::OutOfMemory { .. })]));
    pair.apply(read_part());
    read(&mut pair);
    assert_eq!(app(&pair).answers[1], Ok(()), "the batch is still readable");
    pair.apply(read_part());
    for _ in 0..2 {
        pair.apply(Op::ReadFails(0));
    }
    assert!(matches!(&app(&pair).answers[2], Err(StreamError::Read { .. })));
    assert!(matches!(&app(&pair).over, Some(Err(StreamError::Read { .. }))), "{:?}", app(&pair).over);
    pair.finish();
}

#[test]
fn the_deadline_of_a_stream_also_applies_to_its_held_batches() {
    let mut pair = begun(plain(), 1, Ending::Finish, 1 << 20, Some(2000));
    assert_eq!(app(&pair).over, Some(Ok(())));
    pair.apply(Op::Advance(Duration::from_millis(1999)));
    pair.apply(read_part());
    pair.apply(Op::Advance(Duration::from_millis(1)));
    pair.apply(read_part());
    let late = Err(StreamError::DeadlineExceeded(Duration::from_secs(2)));
    assert_eq!(app(&pair).answers, vec![late; 2]);
    assert_eq!(app(&pair).over, Some(Ok(())), "the stream had ended, and its result does not change");
    read(&mut pair);
    later(&mut pair);
    assert_eq!(pair.server.machine.open_leases(), 0);
    pair.finish();
}

#[test]
fn a_batch_that_is_rejected_is_lost() {
    let mut pair = begun(plain(), 1, Ending::Finish, 1 << 20, None);
    pair.apply(Op::Reject(0));
    pair.apply(read_part());
    assert!(matches!(&app(&pair).answers[..], [Err(StreamError::InvalidBatch { .. })]), "{:?}", app(&pair).answers);
    pair.finish();
}

#[test]
fn misuse() {
    let (seq, part) = (0, PartId(7));
    let piece = |buffer, offset, len| BorrowerCommand::ReadPart {
        stream: STREAM,
        seq,
        part,
        pieces: vec![Piece { buffer, offset, len }],
    };
    let outside = ApiMisuse::OutsideBatch { stream: STREAM, seq };
    let unknown = ApiMisuse::UnknownBatch { stream: STREAM, seq: 3 };
    let cases = [
        (piece(2, 0, 8), outside.clone()),
        (piece(0, 80, 1), outside.clone()),
        (piece(0, u64::MAX, 8), outside.clone()),
        (piece(0, 8, u64::MAX), outside),
        (BorrowerCommand::ReadPart { stream: STREAM, seq: 3, part, pieces: vec![] }, unknown.clone()),
        (BorrowerCommand::GiveUp { stream: STREAM, seq: 3 }, unknown),
    ];
    for (command, misuse) in cases {
        let mut pair = begun(plain(), 1, Ending::Finish, 1 << 20, None);
        assert_eq!(pair.misuse_client(ClientCommand::Borrower(command)), Err(misuse.clone()));
        assert_eq!(pair.finish()[1], ConnectionError::Misuse(misuse));
    }
    let mut pair = begun(plain(), 1, Ending::Finish, 1 << 20, None);
    pair.apply(Op::ReadPart(0, vec![(0, 0, 8)]));
    let again = BorrowerCommand::ReadPart { stream: STREAM, seq, part: PartId(1), pieces: vec![] };
    assert_eq!(pair.misuse_client(ClientCommand::Borrower(again)), Err(ApiMisuse::PartReused(PartId(1))));
    pair.finish();
}
