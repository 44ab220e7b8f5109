//! A child that was forked with an open endpoint: its use of the endpoint is an error, and the parent's goes on.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use thallus_fabric::memory::{PoolLimits, SlabPool, StagingArena};
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, ReadToken, RegionId, RemoteRange};
use thallus_fabric_shm::{ShmFabric, ShmOptions};

const IMPORTED: RegionId = RegionId(1);

fn poll(endpoint: &mut dyn Endpoint, completions: &mut Vec<Completion>) -> Option<FabricError> {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..50 {
        if let Poll::Ready(Err(error)) = endpoint.poll(&mut cx, completions) {
            return Some(error);
        }
    }
    None
}

/// The steps of the child. Returns whether each of them is refused as it should be.
fn in_the_child(mut borrower: Box<dyn Endpoint>, slab: thallus_fabric::memory::Slab, address: u64) -> bool {
    let failed = poll(&mut *borrower, &mut Vec::new()).is_some_and(|error| error.to_string().contains("parent"));
    let from = RemoteRange { region: IMPORTED, address, len: 4096 };
    let refused = slab.range(0, 4096).is_ok_and(|into| borrower.post_read(ReadToken(9), from, into).is_err());
    drop(borrower);
    failed && refused
}

#[test]
fn a_forked_child_gets_an_error_and_the_parent_goes_on() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _within = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    let mut options = ShmOptions::default();
    options.directory = Some(directory.path().to_owned());
    let fabric: Arc<dyn Fabric> = Arc::new(ShmFabric::new(options).unwrap());
    let content = vec![7; 4096];
    let arena = StagingArena::new(Arc::clone(&fabric), PoolLimits::default());
    let lent = arena.stage(&[&content]).unwrap();
    let (mut lender, mut borrower) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
    lender.connect(&borrower.address()).unwrap();
    borrower.connect(&lender.address()).unwrap();
    let memory = lent[0].memory();
    let key = lender.expose(memory, 0..memory.len()).unwrap();
    borrower.import(IMPORTED, memory.address(), memory.len() as u64, &key).unwrap();
    // An endpoint that still listens: the child must not remove its socket.
    let listening = fabric.endpoint().unwrap();
    let pool = SlabPool::new(Arc::clone(&fabric), PoolLimits::default());
    let slab = pool.take(4096).unwrap();
    let address = lent[0].address();

    // SAFETY: this process has no other thread that this test's code depends on; the child calls only code of this test
    // and the fabric, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", std::io::Error::last_os_error());
    if child == 0 {
        drop(listening);
        let code = i32::from(!in_the_child(borrower, slab, address));
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: a child of this process, and room for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child used the endpoint");

    let from = RemoteRange { region: IMPORTED, address, len: 4096 };
    borrower.post_read(ReadToken(1), from, slab.range(0, 4096).unwrap()).unwrap();
    let mut completions = Vec::new();
    assert_eq!(poll(&mut *lender, &mut Vec::new()), None);
    assert_eq!(poll(&mut *borrower, &mut completions), None);
    assert_eq!(completions, [Completion { token: ReadToken(1), result: Ok(()) }]);
    assert_eq!(slab.into_buffer().unwrap().as_slice(), content);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "the socket that still listens");
    drop(listening);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
