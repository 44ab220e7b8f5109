//! Cases of teardown, orderly and not.

use thallus_protocol::RegionId;

use super::DEADLINE;
use super::bench::{Bench, Connection, Side, drive, pattern};
use crate::memory::{LeaseWords, Slab};
use crate::{FabricError, Fencing, ReadToken};

const REGION: RegionId = RegionId(7);
const PIECE: usize = 256 << 10;
const READS: u64 = 16;

/// Posts [`READS`] reads of [`PIECE`] bytes each, all from the same address.
fn post_reads(connection: &mut Connection, bench: &Bench, address: u64) -> Slab {
    let slab = bench.slab(PIECE * READS as usize);
    for token in 0..READS {
        let into = slab.range(token as usize * PIECE, PIECE).expect("within its slab");
        connection.post(token, REGION, address, into).expect("within its region");
    }
    slab
}

fn closed(sides: &mut [&mut Side]) -> bool {
    sides.iter().all(|side| side.endpoint.is_closed())
}

/// An endpoint is closed with reads outstanding: each read ends exactly once, then the endpoint is closed, then the
/// memory is free.
pub fn closing_ends_each_read_once(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(1, PIECE));
        for polls_before in [0, 1, 3] {
            let mut connection = bench.connect();
            connection.share(REGION, lent.memory());
            let slab = post_reads(&mut connection, bench, lent.address());
            let mut left = polls_before;
            let some_polls = |_: &mut [&mut Side]| {
                left -= 1;
                left < 0
            };
            assert!(drive(&mut [&mut connection.lender, &mut connection.borrower], some_polls).await);
            connection.borrower.close();
            connection.borrower.close();
            let both = &mut [&mut connection.lender, &mut connection.borrower];
            let in_time = drive(both, |sides| sides[1].endpoint.is_closed()).await;
            assert!(in_time, "{}: not closed in {DEADLINE:?}: {connection:?}", bench.name());
            let ended: Vec<_> = (0..READS).map(|token| connection.borrower.result(token).is_some()).collect();
            assert_eq!(ended, [true; READS as usize], "{}: closed with reads outstanding", bench.name());
            assert_eq!(connection.borrower.done.len(), READS as usize, "{}", bench.name());
            assert!(slab.into_buffer().is_ok(), "{}: the memory of a completed read was kept", bench.name());
            connection.close().await;
        }
    });
}

/// A closed endpoint stays closed.
pub fn a_closed_endpoint_takes_no_reads(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(1, 64));
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        assert!(connection.read(bench, REGION, lent.address(), 64).await.is_ok(), "{}", bench.name());
        connection.borrower.close();
        let slab = bench.slab(64);
        for _ in 0..2 {
            let into = slab.range(0, 64).expect("the range of a refused read is dropped");
            let refused = connection.post(1, REGION, lent.address(), into);
            assert!(matches!(refused, Err(FabricError::EndpointDown { .. })), "{}: {refused:?}", bench.name());
            let both = &mut [&mut connection.lender, &mut connection.borrower];
            assert!(drive(both, |sides| sides[1].endpoint.is_closed()).await, "{}", bench.name());
        }
        assert!(connection.borrower.result(1).is_none(), "{}: a refused read completed", bench.name());
        connection.close().await;
    });
}

/// A closed endpoint gives no keys and imports none. Calls that need no connection have no effect.
pub fn a_closed_endpoint_opens_and_takes_in_nothing(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(1, 64));
        let (memory, len) = (lent.memory(), lent.memory().len());
        let mut connection = bench.connect();
        let key = connection.lender.endpoint.expose(memory, 0..len).expect("it can be lent");
        connection.lender.close();
        connection.borrower.close();
        let both = &mut [&mut connection.lender, &mut connection.borrower];
        assert!(drive(both, closed).await, "{}", bench.name());
        let exposed = connection.lender.endpoint.expose(memory, 0..len);
        assert!(matches!(exposed, Err(FabricError::EndpointDown { .. })), "{}: {exposed:?}", bench.name());
        let imported = connection.borrower.endpoint.import(REGION, memory.address(), len as u64, &key);
        assert!(matches!(imported, Err(FabricError::EndpointDown { .. })), "{}: {imported:?}", bench.name());
        let connected = connection.borrower.endpoint.connect(&connection.lender.endpoint.address());
        assert!(matches!(connected, Err(FabricError::EndpointDown { .. })), "{}: {connected:?}", bench.name());
        connection.lender.endpoint.revoke(&key);
        connection.borrower.endpoint.forget(REGION);
        assert!(connection.lender.endpoint.is_closed() && connection.borrower.endpoint.is_closed(), "{}", bench.name());
        connection.close().await;
    });
}

/// An endpoint can be closed whether or not it was ever connected.
pub fn closing_an_idle_endpoint_closes_it(bench: &Bench) {
    bench.block_on(async {
        bench.connect().close().await;
        let mut alone = Side::new(bench.lender.endpoint().expect("an endpoint"));
        assert!(!alone.endpoint.is_closed(), "{}", bench.name());
        alone.close();
        assert!(drive(&mut [&mut alone], closed).await, "{}", bench.name());
        // One end closes first, and the other end later.
        let mut connection = bench.connect();
        connection.lender.close();
        let both = &mut [&mut connection.lender, &mut connection.borrower];
        assert!(drive(both, |sides| sides[0].endpoint.is_closed()).await, "{}", bench.name());
        connection.close().await;
    });
}

/// The lender ends its leases, in the way of its fabric's fencing, and reuses the memory. A borrower never accepts the
/// new bytes as the old ones.
pub fn a_revoked_lease_is_noticed(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(1, PIECE);
        let lent = bench.lend(&content);
        let words = LeaseWords::new(&*bench.lender, 1).expect("memory for a word");
        let word_at = words.address(0).expect("a slot");
        words.open(0, 42).expect("a slot");
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        connection.share(RegionId(8), words.memory());
        let bytes = connection.read(bench, REGION, lent.address(), PIECE).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == content), "{}", bench.name());
        let address = lent.address();
        match bench.lender.capabilities().fencing {
            Fencing::Revocation => {
                connection.lender.close();
                let both = &mut [&mut connection.lender, &mut connection.borrower];
                assert!(drive(both, |sides| sides[0].endpoint.is_closed()).await, "{}", bench.name());
                drop(lent);
                let reused = bench.lend(&pattern(2, PIECE));
                assert_eq!(reused.address(), address, "the arena recycles the slab");
                // A closed endpoint has cut its peer off: every read posted from now on fails, at once or later.
                let slab = bench.slab(PIECE);
                let into = slab.range(0, PIECE).expect("within its slab");
                if connection.post(1, REGION, address, into).is_ok() {
                    let results = connection.finish([1]).await;
                    assert!(results[0].is_err(), "{}: a read came through after the teardown", bench.name());
                }
            }
            Fencing::LeaseWord => {
                assert_eq!(words.revoke(0), Ok(true));
                drop(lent);
                let reused = bench.lend(&pattern(2, PIECE));
                assert_eq!(reused.address(), address, "the arena recycles the slab");
                let late = connection.read(bench, REGION, address, PIECE).await;
                let word = connection.read(bench, RegionId(8), word_at, 8).await;
                let word = word.unwrap_or_else(|error| panic!("{}: {error}", bench.name()));
                assert_eq!(word.as_slice(), LeaseWords::REVOKED.to_ne_bytes(), "{}: {late:?}", bench.name());
            }
        }
        connection.close().await;
    });
}

/// The lender's endpoint and memory are dropped while the borrower's reads are outstanding. Every read ends in bounded
/// time. Under revocation, no read posted afterwards brings bytes. Where a peer cannot be cut off, old memory may still
/// be readable; then the lease word, or the control connection, reveals the end.
pub fn reads_end_though_the_peer_is_gone(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(1, PIECE));
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let address = lent.address();
        let slab = post_reads(&mut connection, bench, address);
        let Connection { name, mut lender, mut borrower } = connection;
        lender.close();
        assert!(drive(&mut [&mut lender], closed).await, "{name}: the lender's teardown");
        drop((lender, lent));

        let all = |sides: &mut [&mut Side]| (0..READS).all(|token| sides[0].result(token).is_some());
        assert!(drive(&mut [&mut borrower], all).await, "{name}: reads outlived their peer: {borrower:?}");
        assert!(slab.into_buffer().is_ok(), "{name}: the memory of a completed read was kept");

        let late = bench.slab(PIECE);
        let into = late.range(0, PIECE).expect("within its slab");
        let from = thallus_protocol::RemoteRange { region: REGION, address, len: PIECE as u64 };
        if borrower.endpoint.post_read(ReadToken(READS), from, into).is_ok() {
            let ended = |sides: &mut [&mut Side]| sides[0].result(READS).is_some();
            assert!(drive(&mut [&mut borrower], ended).await, "{name}: a late read never ended: {borrower:?}");
            let late = borrower.result(READS).expect("it ended");
            let refused = late.is_err() || bench.lender.capabilities().fencing == Fencing::LeaseWord;
            assert!(refused, "{name}: a read came through after the teardown");
        }
        borrower.close();
        assert!(drive(&mut [&mut borrower], closed).await, "{name}: {borrower:?}");
    });
}
