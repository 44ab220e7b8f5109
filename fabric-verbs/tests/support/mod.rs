//! The device under test, and two connected ends of it.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::future::poll_fn;
use std::process::Command;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, ReadFailure, ReadToken, Touch};
use thallus_fabric_verbs::{Exposure, VerbsEndpoint, VerbsFabric, VerbsOptions};
use thallus_protocol::{RegionId, RemoteRange};
use tokio::time::timeout;

/// Names the device for the tests. Without it, a test that was requested fails.
pub const DEVICE: &str = "THALLUS_VERBS_DEVICE";
/// Maximum time of a step of a test.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Work-completion statuses (`enum ibv_wc_status`).
pub const REMOTE_ACCESS: u32 = 10;
pub const RETRY_EXCEEDED: u32 = 12;

fn device() -> String {
    std::env::var(DEVICE).unwrap_or_else(|_| panic!("{DEVICE} names no device to test on"))
}

/// The device under test.
pub fn fabric(exposure: Exposure) -> Arc<VerbsFabric> {
    let options = VerbsOptions { device: Some(device()), exposure, ..VerbsOptions::default() };
    Arc::new(VerbsFabric::new(options).unwrap_or_else(|error| panic!("{error}")))
}

/// The device under test, with memory windows, whether or not it enforces their bounds.
pub fn fabric_of_windows() -> Arc<VerbsFabric> {
    let options = VerbsOptions { device: Some(device()), ..VerbsOptions::default() };
    Arc::new(VerbsFabric::with_windows_unverified(options).unwrap_or_else(|error| panic!("{error}")))
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The status of the device, if it failed the read.
pub fn status(result: &Result<(), ReadFailure>) -> Option<u32> {
    match result {
        Err(ReadFailure::Device(failure)) => Some(failure.status),
        _ => None,
    }
}

/// Drives one end until `wanted` returns true, or the end fails as a whole.
pub async fn drive(
    end: &mut dyn Endpoint,
    completions: &mut Vec<Completion>,
    mut wanted: impl FnMut(&[Completion]) -> bool,
) -> Result<(), FabricError> {
    while !wanted(completions) {
        poll_fn(|cx| end.poll(cx, completions)).await?;
    }
    Ok(())
}

/// Closes an end, in order.
pub async fn close(end: &mut dyn Endpoint) -> Vec<Completion> {
    let mut completions = Vec::new();
    end.close();
    timeout(DEADLINE, async {
        while !end.is_closed() {
            let _ = poll_fn(|cx| end.poll(cx, &mut completions)).await;
        }
    })
    .await
    .expect("an endpoint closes in time");
    completions
}

/// Two connected ends in this process.
pub struct Peers {
    pub lender: VerbsEndpoint,
    pub borrower: VerbsEndpoint,
    fabric: Arc<VerbsFabric>,
    completions: Vec<Completion>,
    next: u64,
}

impl Peers {
    pub fn connect(fabric: &Arc<VerbsFabric>) -> Self {
        let [mut lender, mut borrower] = [(); 2].map(|()| fabric.verbs_endpoint().unwrap());
        lender.connect(&borrower.address()).unwrap();
        borrower.connect(&lender.address()).unwrap();
        Peers { lender, borrower, fabric: fabric.clone(), completions: Vec::new(), next: 0 }
    }

    /// Posts a read into new memory.
    pub fn try_post(&mut self, region: RegionId, address: u64, len: usize) -> Result<u64, FabricError> {
        let into = self.fabric.allocate(len, Touch::Now).unwrap();
        // SAFETY: no other code has the memory.
        let into = unsafe { LocalRange::new(into, 0, len, None) };
        let token = self.next;
        self.borrower.post_read(ReadToken(token), RemoteRange { region, address, len: len as u64 }, into)?;
        self.next += 1;
        Ok(token)
    }

    pub fn post(&mut self, region: RegionId, address: u64, len: usize) -> u64 {
        self.try_post(region, address, len).unwrap()
    }

    /// Polls the borrower without waiting.
    pub async fn poll_once(&mut self) -> Poll<Result<(), FabricError>> {
        poll_fn(|cx| Poll::Ready(self.borrower.poll(cx, &mut self.completions))).await
    }

    /// Polls until these reads have ended, each exactly once. Returns their results.
    pub async fn finish(&mut self, tokens: &[u64]) -> Vec<Result<(), ReadFailure>> {
        let of = |token: &u64, done: &[Completion]| {
            let mut ends = done.iter().filter(|completion| completion.token == ReadToken(*token));
            let first = ends.next().map(|completion| completion.result.clone());
            assert!(ends.next().is_none(), "read {token} completed twice");
            first
        };
        let all = |done: &[Completion]| tokens.iter().all(|token| of(token, done).is_some());
        let driven = timeout(DEADLINE, drive(&mut self.borrower, &mut self.completions, all)).await;
        driven.expect("reads end in time").expect("their completions come before the endpoint's own failure");
        tokens.iter().filter_map(|token| of(token, &self.completions)).collect()
    }

    /// Reads into new memory.
    pub async fn read(&mut self, region: RegionId, address: u64, len: usize) -> Result<(), ReadFailure> {
        let token = self.post(region, address, len);
        self.finish(&[token]).await.remove(0)
    }

    pub async fn close(mut self) {
        assert_eq!(close(&mut self.borrower).await, []);
        assert_eq!(close(&mut self.lender).await, []);
    }
}

/// Gives up CAP_IPC_LOCK in this thread. With this capability root locks more than the limit.
pub fn give_up_ipc_lock() {
    const CAP_IPC_LOCK: u32 = 14;
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let mut data = [0_u32; 6];
    // SAFETY: the layouts of `capget(2)` and `capset(2)`, version 3: a header of two words, data of two times three.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_capget, &header, &mut data), 0);
        data[0] &= !(1 << CAP_IPC_LOCK);
        assert_eq!(libc::syscall(libc::SYS_capset, &header, &data), 0);
    }
}

/// `ip link set LINK up`, or `down`.
pub fn set_link(link: &str, state: &str) {
    let status = Command::new("/usr/bin/ip").args(["link", "set", link, state]).status().expect("ip can be run");
    assert!(status.success(), "ip link set {link} {state}");
}

/// Waits until the port is active.
pub async fn until_active() {
    let path = format!("/sys/class/infiniband/{}/ports/1/state", device());
    timeout(DEADLINE, async {
        while !std::fs::read_to_string(&path).is_ok_and(|state| state.contains("ACTIVE")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the port comes up again");
}
