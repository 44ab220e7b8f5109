//! Two processes: reads of both kinds of memory, and the effects on one end when the other is killed.

mod support;

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::{ALLOCATED, DEADLINE, LENDER, Lender, REGION, Reader, close, pattern};
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{Fabric, FabricError, Touch};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// The child process of every test here. Without a parent it does nothing.
#[tokio::test(flavor = "current_thread")]
async fn lender() {
    if std::env::var_os(LENDER).is_some() {
        support::lend().await;
    }
}

fn start(transports: &str) -> Lender {
    Lender::start(transports, &["--exact", "lender", "--nocapture", "--test-threads=1"])
}

async fn reads_everything(transports: &str, native: bool, regions: usize) {
    let mut lender = start(transports);
    let mut reader = Reader::connect(&mut lender, transports).await;
    let transport = reader.end.transport().unwrap();
    assert_eq!(transport.inferior.is_none(), native, "{transport:?}");
    assert_eq!(reader.regions().len(), regions);
    let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
    let most = reader.fabric.capabilities().max_read as usize;
    for region in reader.regions() {
        // Odd lengths and offsets, a single byte, and a whole piece at the region's end.
        let ranges = [(0, 1), (1, 4095), (8191, 100_001), (REGION - most, most)];
        for (token, (offset, len)) in ranges.into_iter().enumerate() {
            reader.post(token as u64, region, offset, &into, offset, len).unwrap();
        }
        let mut completions = reader.completed(ranges.len()).await.unwrap();
        completions.sort_by_key(|completion| completion.token);
        assert_eq!(completions.len(), ranges.len());
        for (completion, (offset, len)) in completions.iter().zip(ranges) {
            assert_eq!(completion.result, Ok(()), "{region:?} {offset}+{len}");
            // SAFETY: the read is complete, and no other code writes.
            let bytes = unsafe { std::slice::from_raw_parts(into.start().add(offset).as_ptr(), len) };
            let wrong = (0..len).find(|&at| bytes[at] != pattern(region, offset + at));
            assert_eq!(wrong, None, "{region:?} {offset}+{len}");
        }
    }
    assert_eq!(close(reader.end).await, []);
}

/// Sends a signal to a lender.
fn signal(lender: &Lender, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(lender.child.id().unwrap()).unwrap();
    // SAFETY: a child of this process that was not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Reads 256 KiB of a region of a stopped lender, after a first read.
async fn read_of_a_stopped_lender(transports: &str) -> Result<(), String> {
    let mut lender = start(transports);
    let mut reader = Reader::connect(&mut lender, transports).await;
    let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
    reader.post(0, ALLOCATED, 0, &into, 0, 8).unwrap();
    reader.completed(1).await.unwrap();
    signal(&lender, libc::SIGSTOP);
    let stat = format!("/proc/{}/stat", lender.child.id().unwrap());
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Words, short and long reads.
    for (token, (offset, len)) in
        [(0, 8), (1 << 20, 100), (2 << 20, 4095), (3 << 20, 256 << 10)].into_iter().enumerate()
    {
        reader.post(token as u64, ALLOCATED, offset, &into, offset, len).unwrap();
        let bound = Duration::from_secs(2);
        let done =
            timeout(bound, support::drive(&mut *reader.end, &mut reader.completions, |done| !done.is_empty())).await;
        done.map_err(|_| format!("{len} bytes were not read within {bound:?}"))?.map_err(|error| error.to_string())?;
        reader.completions.pop().unwrap().result.map_err(|error| error.to_string())?;
        let read = into.copy_out(offset, len).unwrap();
        assert!(read.iter().enumerate().all(|(at, &byte)| byte == pattern(ALLOCATED, offset + at)), "{len} bytes");
    }
    signal(&lender, libc::SIGCONT);
    assert_eq!(close(reader.end).await, []);
    Ok(())
}

/// The meaning of "one-sided": the lender's processor has no part in the read.
#[tokio::test]
async fn a_stopped_lender_is_read_through_shared_memory() {
    read_of_a_stopped_lender("").await.unwrap();
    read_of_a_stopped_lender("posix,self").await.unwrap();
}

#[tokio::test]
async fn a_stopped_lender_is_not_read_by_emulation() {
    let error = read_of_a_stopped_lender("tcp emulated").await.unwrap_err();
    assert!(error.contains("8 bytes were not read"), "{error}");
}

/// Number of regions that these transports lend without emulation.
fn native_regions() -> usize {
    1 + usize::from(UcxFabric::new(support::options("")).unwrap().reads_registered_memory())
}

#[tokio::test]
async fn default_transports_read_natively() {
    reads_everything("", true, native_regions()).await;
}

#[tokio::test]
async fn posix_reads_natively() {
    reads_everything("posix,self,cma", true, 1).await;
}

#[tokio::test]
async fn emulation_reads_registered_memory_too() {
    reads_everything(" emulated", true, 2).await;
}

#[tokio::test]
async fn tcp_emulates_and_says_that_it_is_inferior() {
    reads_everything("tcp emulated", false, 2).await;
}

/// Posts reads of a whole region, piece by piece, all at once.
fn post_everything(reader: &mut Reader, into: &Arc<RegisteredMemory>, first: u64) -> usize {
    let piece = REGION / PIECES;
    for at in 0..PIECES {
        reader.post(first + at as u64, ALLOCATED, at * piece, into, at * piece, piece).unwrap();
    }
    PIECES
}

const PIECES: usize = 256;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_threads_copy_every_read_ends_once_with_its_bytes() {
    for copy_threads in [0, 1, 4] {
        let what = format!("copied by {copy_threads} threads");
        let mut lender = start("");
        let options = UcxOptions { copy_threads, ..support::options("") };
        let mut reader = Reader::connect_with(&mut lender, options).await;
        let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
        // Before the first small read has ended, and after.
        for first in [0, 1000, 2000] {
            let posted = post_everything(&mut reader, &into, first);
            let mut completions = reader.completed(posted).await.unwrap();
            completions.sort_by_key(|completion| completion.token);
            let tokens: Vec<_> = completions.iter().map(|completion| completion.token.0 - first).collect();
            assert_eq!(tokens, (0..posted as u64).collect::<Vec<_>>(), "{what}");
            assert!(completions.iter().all(|completion| completion.result.is_ok()), "{what}: {completions:?}");
            // SAFETY: every read has ended.
            let bytes = unsafe { std::slice::from_raw_parts_mut(into.start().as_ptr(), REGION) };
            let wrong = (0..REGION).find(|&at| bytes[at] != pattern(ALLOCATED, at));
            assert_eq!(wrong, None, "{what}");
            bytes.fill(0xa5);
        }
        // An endpoint that is closed in the middle completes every read; bytes are those of the region or unchanged.
        let posted = post_everything(&mut reader, &into, 3000);
        let _polled = reader.poll_once().await;
        let before = std::mem::take(&mut reader.completions);
        let after = close(reader.end).await;
        assert_eq!(before.len() + after.len(), posted, "{what}");
        let piece = REGION / PIECES;
        for completion in before.iter().chain(&after) {
            let at = (completion.token.0 - 3000) as usize * piece;
            // SAFETY: every read has ended.
            let bytes = unsafe { std::slice::from_raw_parts(into.start().add(at).as_ptr(), piece) };
            let read = (0..piece).all(|offset| bytes[offset] == pattern(ALLOCATED, at + offset));
            assert_eq!(read, completion.result.is_ok(), "{what}: {completion:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_dropped_while_threads_copy_leaves_nothing_behind() {
    for round in 0..8 {
        let mut lender = start("");
        let options = UcxOptions { copy_threads: 4, ..support::options("") };
        let mut reader = Reader::connect_with(&mut lender, options).await;
        let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
        reader.post(0, ALLOCATED, 0, &into, 0, 8).unwrap();
        reader.completed(1).await.unwrap();
        post_everything(&mut reader, &into, 1);
        for _ in 0..round {
            let _polled = reader.poll_once().await;
        }
        drop(reader);
        assert_eq!(Arc::strong_count(&into), 1, "a read still holds its target");
    }
}

#[tokio::test]
async fn without_emulation_a_key_over_tcp_is_refused() {
    let fabric = UcxFabric::new(support::options("tcp")).unwrap();
    let (mut lender, mut reader) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
    let memory = fabric.allocate(4096, Touch::Now).unwrap();
    let key = lender.expose(&memory, 0..memory.len()).unwrap();
    reader.connect(&lender.address()).unwrap();
    let error = reader.import(ALLOCATED, memory.address(), 4096, &key).unwrap_err();
    assert!(error.to_string().contains("emulated by messages"), "{error}");
    assert!(matches!(error, FabricError::RemoteKey { .. }), "{error}");
}

/// Bytes of a read from a lender that will be killed. Eight such reads are fewer packets than Soft-RoCE keeps in flight
/// (`RXE_MAX_UNACKED_PSNS`, 128). Beyond that its responder refuses reads (RNR NAK), and Linux 6.1's requester may then
/// stop retransmitting for good: one run in three saw neither a packet nor an error for the 50 s that it waited.
const READ_OF_A_VICTIM: usize = 32 << 10;

/// Reads until a read fails. Returns the time after which the endpoint was down.
async fn kill_the_lender(transports: &str) -> Duration {
    let mut lender = start(transports);
    let mut reader = Reader::connect(&mut lender, transports).await;
    let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
    let regions = reader.regions();
    let mut posted = 0;
    let mut ended = 0;
    let mut killed = None;
    let outcome = timeout(DEADLINE, async {
        loop {
            let region = regions[posted as usize % regions.len()];
            while posted - ended < 8 {
                let at = (posted as usize % 16) << 20;
                match reader.post(posted, region, at, &into, at, READ_OF_A_VICTIM) {
                    Ok(()) => posted += 1,
                    Err(_) => break,
                }
            }
            if posted > 100 && killed.is_none() {
                killed = Some(Instant::now());
                // Also waits for the child; otherwise the zombie still looks alive to UCX.
                lender.child.kill().await.unwrap();
            }
            let outcome = reader.poll_once().await;
            let completions = std::mem::take(&mut reader.completions);
            ended += completions.len() as u64;
            if let std::task::Poll::Ready(Err(error)) = outcome {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the endpoint goes down in time");
    println!("{transports:?}: {outcome} after {:?}; {posted} posted", killed.unwrap().elapsed());
    assert_eq!(posted, ended, "every posted read ends in one completion");
    assert!(reader.post(posted, ALLOCATED, 0, &into, 0, 1).is_err());
    let down = killed.unwrap().elapsed();
    assert_eq!(close(reader.end).await, []);
    down
}

#[tokio::test]
async fn a_killed_lender_takes_the_endpoint_down_over_default_transports() {
    assert!(kill_the_lender("").await < Duration::from_secs(10));
}

#[tokio::test]
async fn a_killed_lender_takes_the_endpoint_down_over_tcp() {
    assert!(kill_the_lender("tcp emulated").await < Duration::from_secs(10));
}

/// Here the reader is a process too: the test's child lends, and a second child reads and is killed.
async fn kill_the_reader(transports: &str) {
    let mut lender = start(transports);
    let mut reader = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, transports)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // Passes lines between the two.
    let mut to_reader = reader.stdin.take().unwrap();
    let mut from_reader = BufReader::new(reader.stdout.take().unwrap()).lines();
    let line = lender.line().await;
    to_reader.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    let mut next = async || loop {
        let line = timeout(DEADLINE, from_reader.next_line()).await.unwrap().unwrap().expect("the reader speaks");
        if let Some((_, line)) = line.split_once('@') {
            return line.to_owned();
        }
    };
    lender.say(&next().await).await;
    // Reads need no progress of the lender: the reader could be killed before the lender has connected.
    assert_eq!(lender.line().await, "connected");
    assert_eq!(next().await, "reading");
    reader.kill().await.unwrap();
    let killed = Instant::now();
    assert!(lender.line().await.starts_with("down "));
    println!("{transports:?}: the lender noticed after {:?}", killed.elapsed());
    assert_eq!(lender.line().await, "closed");
    lender.say("alive").await;
    assert_eq!(lender.line().await, "alive");
}

const VICTIM: &str = "THALLUS_UCX_VICTIM";

/// The child that is killed while it reads. Without a parent it does nothing.
#[tokio::test(flavor = "current_thread")]
async fn victim() {
    let Ok(transports) = std::env::var(VICTIM) else { return };
    let mut reader = Reader::over_stdio(&transports).await;
    let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
    let most = reader.fabric.capabilities().max_read as usize;
    for round in 0u64.. {
        for piece in 0..8 {
            reader
                .post(round * 8 + piece, ALLOCATED, piece as usize * most, &into, piece as usize * most, most)
                .unwrap();
        }
        if round == 3 {
            println!("@reading");
        }
        for completion in reader.completed(8).await.unwrap() {
            completion.result.unwrap();
        }
    }
}

#[tokio::test]
async fn a_killed_reader_leaves_the_lender_unharmed_over_shared_memory() {
    kill_the_reader("").await;
}
