use std::sync::{Mutex, MutexGuard};
use std::task::Waker;

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use bytes::Bytes;
use thallus_fabric::memory::PoolLimits;
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{Fabric, MapsPeer, PresenceProbe, Transport};
use thallus_fabric_sim::{SimNetwork, SimOptions};
use thallus_protocol::layout::{LayoutLimits, Plan, check, describe};

use super::*;

fn place(region: u32, address: u64, len: u64) -> RemoteRange {
    RemoteRange { region: RegionId(region), address, len }
}

#[test]
fn neighbours_on_both_sides_are_read_at_once() {
    let offsets = [(0, 128), (128, 64), (192, 10), (256, 64), (320, 64), (384, 64)];
    let ranges = offsets.map(|(offset, len)| Range { offset, len });
    let places = [
        (0, place(1, 1000, 128)),
        (1, place(1, 1128, 64)),
        (2, place(1, 1192, 10)),
        // Adjacent in the slab only, and in another region.
        (3, place(1, 1202, 64)),
        (4, place(2, 1266, 64)),
        (5, place(2, 1330, 64)),
    ];
    let expected = [(place(1, 1000, 202), 0), (place(1, 1202, 64), 256), (place(2, 1266, 128), 320)];
    assert_eq!(runs(&ranges, &places), expected);
    // The highest possible addresses.
    let last = [(0, place(1, u64::MAX - 128, 128)), (1, place(1, 0, 64))];
    assert_eq!(runs(&ranges, &last).len(), 2);
}

/// Reads whose completions the test holds back.
#[derive(Debug, Default)]
struct Held {
    posted: VecDeque<(ReadToken, LocalRange)>,
    ended: Vec<Completion>,
}

/// An endpoint whose reads complete when the test calls `complete`.
#[derive(Clone, Debug, Default)]
struct Slow(Arc<Mutex<Held>>);

impl Slow {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap()
    }

    /// Bytes in flight.
    fn in_flight(&self) -> u64 {
        self.held().posted.iter().map(|(_, into)| into.len() as u64).sum()
    }

    /// Completes the reads that were posted first.
    fn complete(&self, reads: usize) {
        let held = &mut *self.held();
        let ended = held.posted.drain(..reads);
        held.ended.extend(ended.map(|(token, _)| Completion { token, result: Ok(()) }));
    }

    /// Completes the read of a lease word.
    fn complete_word(&self) {
        let held = &mut *self.held();
        let at = held.posted.iter().position(|(_, into)| into.len() == 8).expect("a word is being read");
        let word = held.posted.remove(at);
        held.ended.extend(word.map(|(token, _)| Completion { token, result: Ok(()) }));
    }
}

impl Endpoint for Slow {
    fn address(&self) -> Bytes {
        Bytes::new()
    }

    fn connect(&mut self, _peer: &[u8]) -> Result<(), FabricError> {
        Ok(())
    }

    fn transport(&self) -> Option<Transport> {
        None
    }

    fn expose(
        &mut self,
        _memory: &Arc<RegisteredMemory>,
        _range: std::ops::Range<usize>,
    ) -> Result<Bytes, FabricError> {
        Err(FabricError::Misuse("this endpoint lends nothing"))
    }

    fn revoke(&mut self, _key: &Bytes) {}

    fn import(&mut self, _region: RegionId, _base: u64, _len: u64, _key: &[u8]) -> Result<(), FabricError> {
        Ok(())
    }

    fn forget(&mut self, _region: RegionId) {}

    fn post_read(&mut self, token: ReadToken, _from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        self.held().posted.push_back((token, into));
        Ok(())
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        None
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        None
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        None
    }

    fn poll(&mut self, _cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        completions.append(&mut self.held().ended);
        if completions.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn close(&mut self) {}

    fn is_closed(&self) -> bool {
        false
    }
}

const MIB: u64 = 1 << 20;
const PIECE: u64 = 256 << 10;

/// Connections over the same memory, each with a slow endpoint.
fn connections(count: usize) -> Vec<(Reads, Slow)> {
    let fabric: Arc<dyn Fabric> = SimNetwork::new(1, SimOptions::default()).host();
    let pools = Pools::over(&fabric, PoolLimits::default());
    let connection = |_| {
        let slow = Slow::default();
        (Reads::new(Box::new(slow.clone()), pools.clone(), PIECE, 256), slow)
    };
    (0..count).map(connection).collect()
}

/// Requests a batch of one MiB in one buffer, with its lease word after it.
fn ask(reads: &mut Reads, read: u64) {
    let column = Arc::new(Int64Array::from_iter_values(0..1 << 17)) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("column", column)]).unwrap();
    let plan = Plan::new(&batch.schema()).unwrap();
    let (descriptor, _) = describe(&plan, &batch).unwrap();
    let layout = check(&plan, descriptor, &LayoutLimits::default()).unwrap().layout().clone();
    reads.read_batch(ReadBatch {
        read: ReadId(read),
        stream: StreamId(1),
        layout,
        places: vec![(0, place(1, 4096 * read, MIB))],
        lease_word: Some(place(0, 8 * read, 8)),
    });
}

/// Polls as a driver does that is woken for every event. Returns the batches that were read.
fn drive(reads: &mut Reads) -> Vec<ReadId> {
    let mut done = Vec::new();
    for _ in 0..64 {
        reads.bell.ring();
        let _more = reads.poll(&mut Context::from_waker(Waker::noop()), &mut done);
    }
    let read = |done| match done {
        Done::Batch { read, stream: StreamId(1), result: Ok(Some(0)), .. } => read,
        other => panic!("{other:?}"),
    };
    done.into_iter().map(read).collect()
}

#[test]
fn a_single_connection_has_a_few_batches_in_flight() {
    let mut connections = connections(1);
    let (reads, slow) = &mut connections[0];
    (0..16).for_each(|read| ask(reads, read));
    assert_eq!(drive(reads), []);
    assert_eq!(slow.in_flight(), MAX_IN_FLIGHT);
    slow.complete(4);
    assert_eq!(drive(reads), []);
    assert_eq!(slow.in_flight(), MAX_IN_FLIGHT + 8, "the lease word is read ahead of queued batches");
    slow.complete_word();
    assert_eq!(drive(reads), [ReadId(0)]);
    assert_eq!(slow.in_flight(), MAX_IN_FLIGHT, "more follows");
}

#[test]
fn with_many_connections_each_reads_one_batch_at_a_time() {
    let mut connections = connections(8);
    for (reads, _) in &mut connections {
        (0..16).for_each(|read| ask(reads, read));
        drive(reads);
    }
    let in_flight: Vec<_> = connections.iter().map(|(_, slow)| slow.in_flight() / MIB).collect();
    assert_eq!(in_flight, [4, 4, 1, 1, 1, 1, 1, 1]);
    let (reads, slow) = &mut connections[7];
    assert!(reads.is_at_read_limit());
    slow.complete(3);
    assert_eq!(drive(reads), []);
    assert_eq!(slow.in_flight(), PIECE, "the rest of the batch, and no other batch");
    // The word is read although other connections have reached the limit: a batch waits for it.
    slow.complete(1);
    assert_eq!(drive(reads), []);
    slow.complete_word();
    assert_eq!(drive(reads), [ReadId(0)]);
    assert_eq!(slow.in_flight(), MIB, "the next batch");
}

#[test]
fn reads_of_an_endpoint_that_was_given_up_do_not_count_for_other_connections() {
    let mut connections = connections(3);
    for (reads, slow) in &mut connections[..2] {
        (0..16).for_each(|read| ask(reads, read));
        drive(reads);
        assert_eq!(slow.in_flight(), MAX_IN_FLIGHT);
    }
    let [(first, slow), (second, _), (third, _)] = &mut connections[..] else { unreachable!() };
    assert!(third.is_at_read_limit());
    first.close();
    let failed = first.give_up();
    assert!(failed.iter().all(|done| matches!(done, Done::Batch { result: Err(_), .. })), "{failed:?}");
    assert_eq!(failed.len(), 16);
    assert!(!third.is_at_read_limit());
    // The reads of the first connection complete late.
    slow.complete(16);
    assert_eq!(drive(first), []);
    assert_eq!(second.in_flight_of_all.load(Ordering::Relaxed), MAX_IN_FLIGHT, "the bytes of the second connection");
    drop(connections.remove(1));
    assert_eq!(connections[1].0.in_flight_of_all.load(Ordering::Relaxed), 0);
}
