//! Peers that break the rules of the socket: strangers, wrong secrets, files that could kill a reader, floods.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketType,
};
use thallus_fabric::memory::{PoolLimits, SlabPool, StagingArena};
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, ReadFailure, ReadToken, RegionId, RemoteRange};
use thallus_fabric_shm::{ShmFabric, ShmOptions};

const HELLO: u8 = 1;
const REGION: u8 = 3;
/// The seals that a region must have.
const SEALED: SealFlags = SealFlags::SHRINK.union(SealFlags::FUTURE_WRITE);
const IMPORTED: RegionId = RegionId(1);

fn fabric() -> Arc<dyn Fabric> {
    Arc::new(ShmFabric::new(ShmOptions::default()).unwrap())
}

fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// Lets the runtime see which sockets are ready.
async fn turn() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

/// Polls an endpoint a few times, and returns its failure if it has one.
fn poll(endpoint: &mut dyn Endpoint, completions: &mut Vec<Completion>) -> Option<FabricError> {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..8 {
        if let Poll::Ready(Err(error)) = endpoint.poll(&mut cx, completions) {
            return Some(error);
        }
    }
    None
}

/// The name and the secret in an address blob: see `fabric-shm/src/address.rs`.
fn parts(blob: &[u8]) -> (String, Vec<u8>) {
    let name = u64::from_be_bytes(blob[40..48].try_into().unwrap());
    (format!("thallus-{name:016x}"), blob[48..64].to_vec())
}

/// A peer of this test's own making.
struct Hostile(OwnedFd);

impl Hostile {
    fn dial(name: &str) -> Hostile {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        Hostile(socket)
    }

    fn send(&self, tag: u8, rest: &[u8], file: Option<BorrowedFd<'_>>) -> bool {
        let message = [&[tag][..], rest].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = file.as_slice();
        assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(&self.0, &[IoSlice::new(&message)], &mut control, flags).is_ok()
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut message = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT;
        let received = rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(&mut message)], &mut control, flags);
        let bytes = received.ok()?.bytes;
        (bytes > 0).then(|| message[..bytes].to_vec())
    }
}

/// An address blob with another name and secret: nothing listens there.
fn made_up(own: &[u8]) -> Vec<u8> {
    let mut blob = own.to_vec();
    blob[40..64].fill(7);
    blob
}

/// An endpoint whose peer the test plays: it dials, and is accepted.
fn accepted() -> (Box<dyn Endpoint>, Hostile, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let mut options = ShmOptions::default();
    // With a socket of its own by path, an endpoint waits for a peer that it cannot dial.
    options.directory = Some(directory.path().to_owned());
    let fabric = ShmFabric::new(options).unwrap();
    let mut endpoint = fabric.endpoint().unwrap();
    let (name, secret) = parts(&endpoint.address());
    let peer = made_up(&endpoint.address()[..64]);
    endpoint.connect(&peer).unwrap();
    let hostile = Hostile::dial(&name);
    assert!(hostile.send(HELLO, &secret, None));
    assert_eq!(poll(&mut *endpoint, &mut Vec::new()), None);
    assert_eq!(hostile.receive().unwrap()[1..], [7; 16], "the endpoint shows its peer's secret");
    (endpoint, hostile, peer)
}

/// A key of the made-up peer.
fn key(peer: &[u8], number: u64, base: u64, len: u64) -> Vec<u8> {
    let numbers = [number, base, len].map(u64::to_le_bytes);
    [b"SHMK", &peer[40..48], numbers.as_flattened()].concat()
}

fn region(number: u64, len: u64) -> Vec<u8> {
    [number, len].map(u64::to_le_bytes).as_flattened().to_vec()
}

fn file(len: u64, seals: SealFlags) -> OwnedFd {
    let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, len).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

#[test]
fn strangers_neither_learn_anything_nor_keep_the_peer_out() {
    block_on(async {
        let fabric = fabric();
        let content = vec![5; 4096];
        let arena = StagingArena::new(Arc::clone(&fabric), PoolLimits::default());
        let lent = arena.stage(&[&content]).unwrap();
        let (mut lender, mut borrower) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
        let (name, secret) = parts(&lender.address());
        let silent = Hostile::dial(&name);
        let wrong = Hostile::dial(&name);
        assert!(wrong.send(HELLO, &[0; 16], None));
        let short = Hostile::dial(&name);
        assert!(short.send(HELLO, &secret[..15], None));
        let early = Hostile::dial(&name);
        assert!(early.send(REGION, &region(1, 4096), Some(file(4096, SEALED).as_fd())));
        borrower.connect(&lender.address()).unwrap();
        lender.connect(&borrower.address()).unwrap();
        let memory = lent[0].memory();
        let key = lender.expose(memory, 0..memory.len()).unwrap();
        borrower.import(IMPORTED, memory.address(), memory.len() as u64, &key).unwrap();
        let slab = SlabPool::new(Arc::clone(&fabric), PoolLimits::default()).take(4096).unwrap();
        let from = RemoteRange { region: IMPORTED, address: lent[0].address(), len: 4096 };
        borrower.post_read(ReadToken(1), from, slab.range(0, 4096).unwrap()).unwrap();
        let mut completions = Vec::new();
        for _ in 0..100 {
            assert_eq!(poll(&mut *lender, &mut Vec::new()), None);
            assert_eq!(poll(&mut *borrower, &mut completions), None);
        }
        assert_eq!(completions, [Completion { token: ReadToken(1), result: Ok(()) }]);
        assert_eq!(slab.into_buffer().unwrap().as_slice(), content);
        for stranger in [silent, wrong, short, early] {
            assert_eq!(stranger.receive(), None);
        }
    });
}

#[test]
fn a_region_that_could_raise_a_signal_or_is_shorter_than_said_is_not_mapped() {
    block_on(async {
        let sealed = SEALED;
        for (file, len) in [
            (file(4096, SealFlags::empty()), 4096),
            (file(4096, sealed), 8192),
            (file(8192, sealed), 4096),
            (tempfile::tempfile().unwrap().into(), 4096),
        ] {
            let (mut endpoint, hostile, peer) = accepted();
            assert!(hostile.send(REGION, &region(1, len), Some(file.as_fd())));
            let refused = endpoint.import(IMPORTED, 0x1000, len, &key(&peer, 1, 0x1000, len));
            let is_refused = matches!(refused, Err(FabricError::RemoteKey { .. } | FabricError::EndpointDown { .. }));
            assert!(is_refused, "{refused:?}");
            endpoint.close();
        }
    });
}

#[test]
fn a_key_that_says_more_than_its_region_has_fails_its_reads_only() {
    block_on(async {
        let (mut endpoint, hostile, peer) = accepted();
        // The key comes first, the region later, and shorter.
        endpoint.import(IMPORTED, 0, 1 << 30, &key(&peer, 1, 0, 1 << 30)).unwrap();
        let fabric = fabric();
        let slab = SlabPool::new(Arc::clone(&fabric), PoolLimits::default()).take(8192).unwrap();
        let from = |address| RemoteRange { region: IMPORTED, address, len: 4096 };
        endpoint.post_read(ReadToken(1), from(1 << 20), slab.range(0, 4096).unwrap()).unwrap();
        endpoint.post_read(ReadToken(2), from(0), slab.range(4096, 4096).unwrap()).unwrap();
        assert!(hostile.send(REGION, &region(1, 4096), Some(file(4096, SEALED).as_fd())));
        let mut completions = Vec::new();
        assert_eq!(poll(&mut *endpoint, &mut completions), None);
        completions.sort_by_key(|completion| completion.token);
        let results: Vec<_> = completions.into_iter().map(|completion| completion.result).collect();
        assert_eq!(results, [Err(ReadFailure::RemoteAccess), Ok(())]);
    });
}

#[test]
fn a_flood_of_regions_and_nonsense_end_the_endpoint_with_a_reason() {
    block_on(async {
        let (mut endpoint, hostile, _) = accepted();
        let file = file(4096, SEALED);
        let mut failure = None;
        for number in 0..10_000 {
            if !hostile.send(REGION, &region(number, 4096), Some(file.as_fd())) || number % 64 == 0 {
                turn().await;
                failure = poll(&mut *endpoint, &mut Vec::new());
            }
            if failure.is_some() {
                break;
            }
        }
        assert!(failure.is_some_and(|failure| failure.to_string().contains("more than 512 regions")));

        for (tag, rest) in [(9, vec![0; 16]), (REGION, vec![0; 3]), (HELLO, vec![0; 16]), (4, vec![]), (3, vec![0; 60])]
        {
            let (mut endpoint, hostile, _) = accepted();
            assert!(hostile.send(tag, &rest, None));
            turn().await;
            let failure = poll(&mut *endpoint, &mut Vec::new());
            assert!(failure.is_some(), "tag {tag} with {} bytes was accepted", rest.len());
        }
    });
}
