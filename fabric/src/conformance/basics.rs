//! Cases of a connection between two correct ends.

use std::collections::BTreeSet;

use arrow_buffer::Buffer;
use thallus_protocol::RegionId;

use super::bench::{Bench, Side, drive, pattern};
use crate::memory::LeaseWords;
use crate::{FabricError, ReadToken};

const REGION: RegionId = RegionId(7);

/// Both ends have an address blob of at most 64 KiB, connect by the peer's blob, and then report their transport.
pub fn addresses_are_exchanged(bench: &Bench) {
    bench.block_on(async {
        let connection = bench.connect();
        for side in [&connection.lender, &connection.borrower] {
            let address = side.endpoint.address();
            assert!((1..=64 << 10).contains(&address.len()), "{}: {} bytes", bench.name(), address.len());
            assert_eq!(side.endpoint.address(), address, "{}: the address changed", bench.name());
            let transport = side.endpoint.transport();
            assert!(transport.is_some_and(|transport| !transport.name.is_empty()), "{}", bench.name());
            assert!(!side.endpoint.is_closed());
        }
        let unconnected = bench.lender.endpoint().expect("one more endpoint");
        assert!(unconnected.transport().is_none(), "{}: a transport before connecting", bench.name());
        let mut side = Side::new(unconnected);
        side.close();
        assert!(drive(&mut [&mut side], |sides| sides[0].endpoint.is_closed()).await);
        connection.close().await;
    });
}

/// Reads of every size at which a fabric may change its protocol bring their bytes.
pub fn a_read_of_every_size_brings_its_bytes(bench: &Bench) {
    bench.block_on(async {
        let mut connection = bench.connect();
        let sizes = [1, 7, 8, 63, 64, 65, 4095, 4096, 65_537, (1 << 20) + 3, 8 << 20];
        for (at, len) in sizes.into_iter().enumerate() {
            let content = pattern(at as u8, len);
            let lent = bench.lend(&content);
            let region = RegionId(at as u32);
            connection.share(region, lent.memory());
            let bytes = connection.read(bench, region, lent.address(), len).await;
            let bytes = bytes.unwrap_or_else(|error| panic!("{}: {len} bytes: {error}", bench.name()));
            assert!(bytes.as_slice() == content, "{}: wrong bytes in a read of {len}", bench.name());
            connection.borrower.endpoint.forget(region);
        }
        connection.close().await;
    });
}

/// Reads at odd offsets of both ends change no byte around the target.
pub fn a_read_at_any_offset_brings_its_bytes_and_no_others(bench: &Bench) {
    bench.block_on(async {
        const GUARD: usize = 64;
        let content = pattern(3, 300_000);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let places = [(1, 3, 5), (3, 1, 4096), (63, 64, 65), (4095, 1, 2), (8, 9, 70_001), (299_999, 7, 1)];
        for (token, (from, to, len)) in (0..).zip(places) {
            let mut slab = bench.slab(to + len + 2 * GUARD);
            slab.copy_in(0, &vec![0xA5; slab.len()]).expect("no read is outstanding");
            let into = slab.range(GUARD + to, len).expect("within its slab");
            connection.post(token, REGION, lent.address() + from as u64, into).expect("within its region");
            let result = connection.finish([token]).await.remove(0);
            assert_eq!(result, Ok(()), "{}: {from} to {to}, {len} bytes", bench.name());
            let bytes = slab.into_buffer().expect("the read has completed");
            let (before, rest) = bytes.split_at(GUARD + to);
            let (read, after) = rest.split_at(len);
            assert!(read == &content[from..from + len], "{}: {from} to {to}, {len} bytes: wrong", bench.name());
            assert!(before.iter().chain(after).all(|&byte| byte == 0xA5), "{}: wrote around {to}+{len}", bench.name());
        }
        connection.close().await;
    });
}

/// The maximum number of outstanding reads, repeatedly.
pub fn many_reads_complete_each_once(bench: &Bench) {
    bench.block_on(async {
        const PIECE: usize = 10_007;
        const READS: u64 = 200;
        let content = pattern(4, PIECE * READS as usize);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(content.len());
        let limit = bench.borrower.capabilities().max_outstanding_reads.min(64) as u64;
        let mut next = 0;
        while next < READS {
            let tokens = next..(next + limit).min(READS);
            next = tokens.end;
            for token in tokens.clone() {
                let offset = token as usize * PIECE;
                let into = slab.range(offset, PIECE).expect("within its slab");
                let posted = connection.post(token, REGION, lent.address() + offset as u64, into);
                posted.unwrap_or_else(|error| panic!("{}: read {token}: {error}", bench.name()));
            }
            let results = connection.finish(tokens).await;
            assert!(results.iter().all(Result::is_ok), "{}: {results:?}", bench.name());
        }
        let seen: BTreeSet<ReadToken> = connection.borrower.done.iter().map(|completion| completion.token).collect();
        assert_eq!((seen.len(), connection.borrower.done.len()), (READS as usize, READS as usize), "{}", bench.name());
        assert!(slab.into_buffer().expect("all reads completed").as_slice() == content, "{}", bench.name());
        connection.close().await;
    });
}

/// One read above the limit is a typed error; all others complete.
pub fn too_many_reads_are_refused(bench: &Bench) {
    bench.block_on(async {
        let limit = bench.borrower.capabilities().max_outstanding_reads;
        assert!(limit > 0, "{}", bench.name());
        if limit > 1 << 16 {
            // No table of operations is that long, and the test would take too long.
            return;
        }
        let lent = bench.lend(&pattern(5, limit + 1));
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(limit + 1);
        // Reads that complete at once on posting are outstanding until they are polled.
        for token in 0..limit {
            let into = slab.range(token, 1).expect("within its slab");
            let posted = connection.post(token as u64, REGION, lent.address() + token as u64, into);
            posted.unwrap_or_else(|error| panic!("{}: read {token} of {limit}: {error}", bench.name()));
        }
        let into = slab.range(limit, 1).expect("within its slab");
        let refused = connection.post(limit as u64, REGION, lent.address(), into);
        assert_eq!(refused, Err(FabricError::TooManyReads { limit }), "{}", bench.name());
        let results = connection.finish(0..limit as u64).await;
        assert!(results.iter().all(Result::is_ok), "{}: {results:?}", bench.name());
        assert_eq!(connection.borrower.done.len(), limit, "{}: the refused read completed", bench.name());
        connection.close().await;
    });
}

/// A token names a read only while it is outstanding.
pub fn a_token_can_be_used_again_once_it_completed(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(6, 64));
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(64);
        for round in 0..3 {
            let into = slab.range(0, 64).unwrap_or_else(|error| panic!("{}: round {round}: {error}", bench.name()));
            connection.post(1, REGION, lent.address(), into).expect("the token is free");
            assert_eq!(connection.finish([1]).await, [Ok(())], "{}: round {round}", bench.name());
            connection.borrower.done.clear();
        }
        connection.close().await;
    });
}

/// Buffers that another part of the program allocated, of any alignment, and slices of such buffers.
pub fn foreign_memory_is_read_where_it_lies(bench: &Bench) {
    bench.block_on(async {
        let mut connection = bench.connect();
        for (at, (offset, len)) in [(0, 100_000), (1, 3), (13, 77_777)].into_iter().enumerate() {
            let buffer = Buffer::from_vec(pattern(at as u8, offset + len)).slice(offset);
            let Some(memory) = bench.register(buffer.clone()) else { return connection.close().await };
            assert_eq!((memory.address(), memory.len()), (buffer.as_ptr() as u64, len), "{}", bench.name());
            let region = RegionId(at as u32);
            connection.share(region, &memory);
            let bytes = connection.read(bench, region, memory.address(), len).await;
            let bytes = bytes.unwrap_or_else(|error| panic!("{}: {len} bytes at {offset}: {error}", bench.name()));
            assert!(bytes == buffer, "{}: wrong bytes, {len} at {offset}", bench.name());
        }
        connection.close().await;
    });
}

/// An id is free after its region was forgotten.
pub fn a_region_can_be_forgotten_and_imported_again(bench: &Bench) {
    bench.block_on(async {
        let lent = [bench.lend(&pattern(8, 1000)), bench.lend(&pattern(9, 1000))];
        let mut connection = bench.connect();
        for (round, lent) in lent.iter().cycle().take(6).enumerate() {
            connection.share(REGION, lent.memory());
            let bytes = connection.read(bench, REGION, lent.address(), 1000).await;
            let expected = pattern(8 + (round % 2) as u8, 1000);
            assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == expected), "{}: round {round}", bench.name());
            connection.borrower.endpoint.forget(REGION);
            let slab = bench.slab(8);
            let into = slab.range(0, 8).expect("within its slab");
            let refused = connection.post(99, REGION, lent.address(), into);
            assert!(matches!(refused, Err(FabricError::OutsideRegion { .. })), "{}: {refused:?}", bench.name());
        }
        connection.borrower.endpoint.forget(RegionId(12345));
        connection.close().await;
    });
}

/// Reads of a region complete although the region is forgotten while they are outstanding.
pub fn reads_of_a_forgotten_region_complete(bench: &Bench) {
    bench.block_on(async {
        const PIECE: usize = 256 << 10;
        const READS: u64 = 16;
        let content = pattern(10, PIECE * READS as usize);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(content.len());
        for token in 0..READS {
            let offset = token as usize * PIECE;
            let into = slab.range(offset, PIECE).expect("within its slab");
            connection.post(token, REGION, lent.address() + offset as u64, into).expect("within its region");
        }
        connection.borrower.endpoint.forget(REGION);
        let results = connection.finish(0..READS).await;
        assert!(results.iter().all(Result::is_ok), "{}: {results:?}", bench.name());
        assert!(slab.into_buffer().expect("all completed").as_slice() == content, "{}", bench.name());
        connection.close().await;
    });
}

/// A read of a lease word returns the whole word that the lender last wrote, also after its revocation.
pub fn a_lease_word_is_seen_as_it_changes(bench: &Bench) {
    bench.block_on(async {
        let words = LeaseWords::new(&*bench.lender, 10).unwrap_or_else(|error| panic!("{}: {error}", bench.name()));
        let mut connection = bench.connect();
        connection.share(REGION, words.memory());
        let address = words.address(9).expect("a slot");
        for value in [1, u64::MAX, 0x0123_4567_89AB_CDEF] {
            words.open(9, value).expect("the slot is free");
            for expected in [value, LeaseWords::REVOKED] {
                let word = connection.read(bench, REGION, address, 8).await;
                let word = word.unwrap_or_else(|error| panic!("{}: {error}", bench.name()));
                assert_eq!(word.as_slice(), expected.to_ne_bytes(), "{}: {expected:#x}", bench.name());
                words.revoke(9).expect("a slot");
            }
        }
        connection.close().await;
    });
}

/// Each end can be lender and borrower at the same time.
pub fn both_ends_can_lend_at_once(bench: &Bench) {
    bench.block_on(async {
        // In the reverse direction, the borrower's host lends and the lender's host reads.
        let reverse = Bench::new("both_ends_can_lend_at_once", bench.borrower.clone(), bench.lender.clone());
        let lent = [bench.lend(&pattern(11, 50_000)), reverse.lend(&pattern(12, 50_000))];
        let mut connection = bench.connect();
        connection.share(REGION, lent[0].memory());
        std::mem::swap(&mut connection.lender, &mut connection.borrower);
        connection.share(REGION, lent[1].memory());
        for round in 0..4 {
            let (bench, lent, seed) = if round % 2 == 0 { (&reverse, &lent[1], 12) } else { (bench, &lent[0], 11) };
            let bytes = connection.read(bench, REGION, lent.address(), 50_000).await;
            assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == pattern(seed, 50_000)), "{}: {round}", bench.name());
            std::mem::swap(&mut connection.lender, &mut connection.borrower);
        }
        connection.close().await;
    });
}

/// A second call of `connect` is an error, and the connection stays usable.
pub fn an_endpoint_connects_once(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(13, 64);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        let mut other = Side::new(bench.lender.endpoint().expect("an endpoint"));
        for address in [connection.lender.endpoint.address(), other.endpoint.address()] {
            let again = connection.borrower.endpoint.connect(&address);
            assert!(matches!(again, Err(FabricError::Misuse(_))), "{}: {again:?}", bench.name());
        }
        connection.share(REGION, lent.memory());
        let bytes = connection.read(bench, REGION, lent.address(), 64).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == content), "{}", bench.name());
        other.close();
        assert!(drive(&mut [&mut other], |sides| sides[0].endpoint.is_closed()).await, "{}", bench.name());
        connection.close().await;
    });
}

/// A read may be as long as the capabilities allow, and no longer.
pub fn a_read_longer_than_the_longest_is_refused(bench: &Bench) {
    /// More memory than a test should use. With a longer limit, no caller has to split its reads.
    const MOST: u64 = 16 << 20;
    bench.block_on(async {
        let longest = bench.borrower.capabilities().max_read;
        assert!(longest > 0, "{}", bench.name());
        if longest > MOST {
            return;
        }
        let longest = longest as usize;
        let content = pattern(14, longest + 1);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(longest + 1);
        let into = slab.range(0, longest + 1).expect("within its slab");
        let refused = connection.post(1, REGION, lent.address(), into);
        assert!(matches!(refused, Err(FabricError::Misuse(_))), "{}: {refused:?}", bench.name());
        let into = slab.range(0, longest).expect("the range of a refused read is dropped");
        connection.post(2, REGION, lent.address(), into).expect("as long as is allowed");
        assert_eq!(connection.finish([2]).await, [Ok(())], "{}", bench.name());
        let bytes = slab.into_buffer().expect("it completed");
        assert!(bytes[..longest] == content[..longest], "{}", bench.name());
        connection.close().await;
    });
}

/// An import under an id that is in use is refused, and the region of that id is unchanged.
pub fn a_region_id_is_imported_once(bench: &Bench) {
    bench.block_on(async {
        let lent = [bench.lend(&pattern(15, 64)), bench.lend(&pattern(16, 64))];
        let mut connection = bench.connect();
        connection.share(REGION, lent[0].memory());
        let memory = lent[1].memory();
        let key = connection.lender.endpoint.expose(memory, 0..memory.len()).expect("it can be lent");
        let again = connection.borrower.endpoint.import(REGION, memory.address(), memory.len() as u64, &key);
        assert!(matches!(again, Err(FabricError::Misuse(_))), "{}: {again:?}", bench.name());
        let bytes = connection.read(bench, REGION, lent[0].address(), 64).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == pattern(15, 64)), "{}", bench.name());
        connection.close().await;
    });
}
