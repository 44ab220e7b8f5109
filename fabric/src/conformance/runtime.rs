//! Cases of threads and polling.

use std::sync::mpsc;
use std::time::Duration;

use thallus_protocol::RegionId;

use super::bench::{Bench, Connection, Side, drive, pattern, runtime};

const REGION: RegionId = RegionId(7);
const LEN: usize = 100_003;

async fn read_some(connection: &mut Connection, bench: &Bench, seed: u8, rounds: usize) {
    let lent = bench.lend(&pattern(seed, LEN));
    connection.share(REGION, lent.memory());
    for round in 0..rounds {
        let bytes = connection.read(bench, REGION, lent.address(), LEN).await;
        let good = bytes.is_ok_and(|bytes| bytes.as_slice() == pattern(seed, LEN));
        assert!(good, "{}: connection {seed}, round {round}", bench.name());
    }
    connection.borrower.endpoint.forget(REGION);
}

/// Two connections, each on a thread and in a runtime of its own, do not disturb each other.
pub fn two_connections_work_at_once(bench: &Bench) {
    std::thread::scope(|scope| {
        for seed in [1, 2] {
            scope.spawn(move || {
                bench.block_on(async {
                    let mut connection = bench.connect();
                    read_some(&mut connection, bench, seed, 30).await;
                    connection.close().await;
                });
            });
        }
    });
}

/// An endpoint can be polled by different threads, one after another.
pub fn an_endpoint_moves_between_threads(bench: &Bench) {
    let runtime = runtime();
    let mut connection = runtime.block_on(async { bench.connect() });
    let mut runtime = runtime;
    for seed in 0..4 {
        (runtime, connection) = std::thread::scope(|scope| {
            let moved = scope.spawn(move || {
                runtime.block_on(read_some(&mut connection, bench, seed, 3));
                (runtime, connection)
            });
            moved.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
    }
    runtime.block_on(connection.close());
}

/// Lender and borrower run on different threads. The lender only has to be polled when it is woken.
pub fn the_two_ends_may_be_driven_by_different_threads(bench: &Bench) {
    let lent = bench.lend(&pattern(3, LEN));
    let (to_borrower, from_lender) = mpsc::channel();
    let (to_lender, from_borrower) = mpsc::channel::<bytes::Bytes>();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let name = bench.name();
    std::thread::scope(|scope| {
        let (lent, name) = (&lent, &name);
        scope.spawn(move || {
            bench.block_on(async {
                let mut side = Side::new(bench.lender.endpoint().expect("an endpoint"));
                let key = side.endpoint.expose(lent.memory(), 0..lent.memory().len()).expect("it can be lent");
                // Connected first: the borrower may finish and close as soon as it has the address and the key.
                side.endpoint.connect(&from_borrower.recv().expect("the borrower's address")).expect("its address");
                to_borrower.send((side.endpoint.address(), key)).expect("the borrower listens");
                let mut sides = [&mut side];
                tokio::select! {
                    _ = drive(&mut sides, |_| false) => {}
                    _ = &mut stopped => {}
                }
                side.close();
                let closed = drive(&mut [&mut side], |sides| sides[0].endpoint.is_closed()).await;
                assert!(closed, "{name}: the lender's teardown");
            });
        });
        scope.spawn(move || {
            bench.block_on(async {
                let mut side = Side::new(bench.borrower.endpoint().expect("an endpoint"));
                to_lender.send(side.endpoint.address()).expect("the lender listens");
                let (address, key) = from_lender.recv().expect("the lender's address");
                side.endpoint.connect(&address).expect("its address");
                let (base, len) = (lent.memory().address(), lent.memory().len() as u64);
                side.endpoint.import(REGION, base, len, &key).expect("its key");
                for token in 0..20 {
                    let slab = bench.slab(LEN);
                    let into = slab.range(0, LEN).expect("within its slab");
                    let from =
                        thallus_protocol::RemoteRange { region: REGION, address: lent.address(), len: LEN as u64 };
                    side.endpoint.post_read(crate::ReadToken(token), from, into).expect("within its region");
                    let ended = drive(&mut [&mut side], |sides| sides[0].result(token).is_some()).await;
                    assert!(ended, "{name}: read {token}: {side:?}");
                    assert_eq!(side.result(token), Some(&Ok(())), "{name}");
                    let bytes = slab.into_buffer().expect("it completed");
                    assert!(bytes.as_slice() == pattern(3, LEN), "{name}: read {token}: wrong bytes");
                }
                drop(stop);
                side.close();
                let closed = drive(&mut [&mut side], |sides| sides[0].endpoint.is_closed()).await;
                assert!(closed, "{name}: the borrower's teardown");
            });
        });
    });
}

/// An idle endpoint wakes no task.
pub fn an_idle_endpoint_does_not_spin(bench: &Bench) {
    /// Transports have keepalives and have to finish their wire-up. A spinning endpoint is polled many thousand times.
    const FEW: usize = 50;
    bench.block_on(async {
        let mut connection = bench.connect();
        read_some(&mut connection, bench, 1, 1).await;
        // The remaining work of the reads is allowed to finish first.
        let quiet = Duration::from_millis(100);
        for settle in [true, false] {
            let (lender, borrower) = (&mut connection.lender, &mut connection.borrower);
            (lender.polls, borrower.polls) = (0, 0);
            let mut both = [lender, borrower];
            let idle = drive(&mut both, |_| false);
            assert!(tokio::time::timeout(quiet, idle).await.is_err(), "{}", bench.name());
            let polls = connection.lender.polls.max(connection.borrower.polls);
            assert!(settle || polls <= FEW, "{}: polled {polls} times in {quiet:?}", bench.name());
        }
        connection.close().await;
    });
}
