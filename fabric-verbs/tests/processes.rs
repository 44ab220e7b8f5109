//! A lender process that is killed during reads, and a reader process that is killed while it reads. Needs an RDMA
//! device, named by `THALLUS_VERBS_DEVICE`.
//!
//! The child is this executable again, with `THALLUS_VERBS_ROLE` set. Lines for the parent begin with `@`.

mod support;

use std::env;
use std::future::poll_fn;
use std::process::Stdio;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use support::{DEADLINE, RETRY_EXCEEDED, close, fabric, status};
use thallus_fabric::memory::{LocalRange, RegisteredMemory};
use thallus_fabric::{Completion, Endpoint, Fabric, ReadToken, Touch};
use thallus_fabric_verbs::{Exposure, VerbsFabric};
use thallus_protocol::{RegionId, RemoteRange};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

const ROLE: &str = "THALLUS_VERBS_ROLE";
const LENT: usize = 16 << 20;
const PIECE: usize = 1 << 20;

fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(31) >> 3) as u8
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// This executable again, in a role.
struct Other {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(role: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "child", "--include-ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Other { child, stdin, stdout: BufReader::new(stdout).lines() }
    }

    /// The next line for the parent, without its `@`.
    async fn line(&mut self) -> String {
        timeout(DEADLINE, async {
            loop {
                let line = self.stdout.next_line().await.unwrap().expect("the other process writes a line");
                if let Some((_, line)) = line.split_once('@') {
                    return line.to_owned();
                }
            }
        })
        .await
        .expect("the other process answers in time")
    }

    async fn say(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

async fn next_line() -> String {
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await.unwrap();
    line.trim().to_owned()
}

/// A lending endpoint, and its memory with the pattern in it.
fn lender(fabric: &Arc<VerbsFabric>) -> (Box<dyn Endpoint>, Arc<RegisteredMemory>) {
    let memory = fabric.allocate(LENT, Touch::Now).unwrap();
    for offset in 0..LENT {
        // SAFETY: within the memory, which no code reads yet.
        unsafe { memory.start().add(offset).write(pattern(offset)) };
    }
    (fabric.endpoint().unwrap(), memory)
}

/// Address, base and key, for the reader.
fn invitation(end: &mut dyn Endpoint, memory: &Arc<RegisteredMemory>) -> String {
    format!("{} {} {}", hex(&end.address()), memory.address(), hex(&end.expose(memory, 0..memory.len()).unwrap()))
}

/// An endpoint that reads the memory of an invitation repeatedly, eight pieces at once.
struct Reader {
    fabric: Arc<VerbsFabric>,
    end: Box<dyn Endpoint>,
    base: u64,
    into: Arc<RegisteredMemory>,
    posted: u64,
    completions: Vec<Completion>,
}

impl Reader {
    fn new(invitation: &str) -> Self {
        let fabric = fabric(Exposure::Auto);
        let mut end = fabric.endpoint().unwrap();
        let mut words = invitation.split(' ');
        end.connect(&unhex(words.next().unwrap())).unwrap();
        let base = words.next().unwrap().parse().unwrap();
        end.import(RegionId(1), base, LENT as u64, &unhex(words.next().unwrap())).unwrap();
        let into = fabric.allocate(LENT, Touch::Now).unwrap();
        Reader { fabric, end, base, into, posted: 0, completions: Vec::new() }
    }

    fn post(&mut self) -> Result<(), thallus_fabric::FabricError> {
        let at = self.posted as usize % 8 * PIECE;
        // SAFETY: the memory is not accessed while reads into it are outstanding.
        let into = unsafe { LocalRange::new(self.into.clone(), at, PIECE, None) };
        let from = RemoteRange { region: RegionId(1), address: self.base + at as u64, len: PIECE as u64 };
        self.end.post_read(ReadToken(self.posted), from, into)?;
        self.posted += 1;
        Ok(())
    }

    /// Eight reads, all successful.
    async fn round(&mut self) {
        (0..8).for_each(|_| self.post().unwrap());
        self.completions.clear();
        while self.completions.len() < 8 {
            poll_fn(|cx| self.end.poll(cx, &mut self.completions)).await.unwrap();
        }
        assert!(self.completions.iter().all(|completion| completion.result.is_ok()), "{:?}", self.completions);
        for offset in (0..8 * PIECE).step_by(4093) {
            // SAFETY: within the memory, into which no read is outstanding.
            assert_eq!(unsafe { self.into.start().add(offset).read() }, pattern(offset));
        }
    }
}

/// The work of the child. Without a parent it does nothing.
#[tokio::test(flavor = "current_thread")]
#[ignore = "the child of the others"]
async fn child() {
    match env::var(ROLE).as_deref() {
        Ok("lender") => {
            let (mut end, memory) = lender(&fabric(Exposure::Auto));
            println!("@{}", invitation(&mut *end, &memory));
            end.connect(&unhex(&next_line().await)).unwrap();
            println!("@connected");
            let mut completions = Vec::new();
            let failed = poll_fn(|cx| end.poll(cx, &mut completions)).await;
            panic!("the lender has no completions: {failed:?}");
        }
        Ok("reader") => {
            let mut reader = Reader::new(&next_line().await);
            println!("@{}", hex(&reader.end.address()));
            // The lender connects.
            assert_eq!(next_line().await, "go");
            for round in 0.. {
                reader.round().await;
                if round == 1 {
                    println!("@reading");
                }
            }
        }
        _ => {}
    }
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
async fn a_killed_lender_ends_every_read_in_a_typed_error() {
    let mut lender = Other::start("lender");
    let mut reader = Reader::new(&lender.line().await);
    lender.say(&hex(&reader.end.address())).await;
    assert_eq!(lender.line().await, "connected");
    reader.round().await;
    (0..8).for_each(|_| reader.post().unwrap());
    reader.completions.clear();
    // The device has the reads now.
    let _ = poll_fn(|cx| Poll::Ready(reader.end.poll(cx, &mut reader.completions))).await;
    lender.child.kill().await.unwrap();
    // A fast device may complete the reads above. This read cannot complete.
    reader.post().unwrap();
    let killed = Instant::now();
    let outcome = timeout(DEADLINE, async {
        loop {
            if let Err(error) = poll_fn(|cx| reader.end.poll(cx, &mut reader.completions)).await {
                return error;
            }
        }
    });
    let outcome = outcome.await.expect("the endpoint goes down in time");
    println!("{outcome} after {:?}", killed.elapsed());
    assert_eq!(reader.completions.len(), 9, "every read ends once: {:?}", reader.completions);
    let first = reader.completions.iter().find(|completion| completion.result.is_err()).expect("not all came through");
    assert_eq!(status(&first.result), Some(RETRY_EXCEEDED), "{first:?}");
    assert!(reader.post().is_err());
    assert_eq!(close(&mut *reader.end).await, []);
    drop(reader.fabric);
}

#[tokio::test(flavor = "current_thread")]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
async fn a_killed_reader_leaves_the_lender_unharmed() {
    let fabric = fabric(Exposure::Auto);
    let (mut end, memory) = lender(&fabric);
    for _ in 0..2 {
        let mut reader = Other::start("reader");
        reader.say(&invitation(&mut *end, &memory)).await;
        end.connect(&unhex(&reader.line().await)).unwrap();
        reader.say("go").await;
        assert_eq!(reader.line().await, "reading");
        reader.child.kill().await.unwrap();
        assert_eq!(close(&mut *end).await, []);
        for offset in (0..LENT).step_by(4093) {
            // SAFETY: within the memory, which no code writes.
            assert_eq!(unsafe { memory.start().add(offset).read() }, pattern(offset));
        }
        // The next reader gets an endpoint of its own.
        end = fabric.endpoint().unwrap();
    }
}
