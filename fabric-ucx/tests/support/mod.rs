//! A lender in a process of its own, controlled over its standard input and output, and a reader of its memory.
//!
//! The child is this executable again, with `THALLUS_UCX_LENDER` set. It lends two regions: one that the fabric
//! allocated and one that it registered, read-only. Lines for the parent begin with `@`.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::env;
use std::fs::File;
use std::future::poll_fn;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Stdio;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{LocalRange, RegisteredMemory};
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, ReadToken, Touch};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};
use thallus_protocol::{RegionId, RemoteRange};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Set for the child, to the transports (empty: default).
pub const LENDER: &str = "THALLUS_UCX_LENDER";
/// Names the UCX library of lenders, if it differs from the readers': a path, or `system`.
pub const LENDER_UCX: &str = "THALLUS_TEST_SERVER_UCX";
/// Bytes in each lent region.
pub const REGION: usize = 16 << 20;
/// Maximum time of a step of a test.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The region that the lender's fabric allocated.
pub const ALLOCATED: RegionId = RegionId(1);
/// The region that the lender registered: a mapped file, read-only.
pub const REGISTERED: RegionId = RegionId(2);

/// Options of both ends: transports (empty: default), then ` emulated` if reads may be emulated.
pub fn options(text: &str) -> UcxOptions {
    let (transports, emulation) = text.strip_suffix(EMULATED).map_or((text, false), |transports| (transports, true));
    let transports = (!transports.is_empty()).then(|| transports.to_owned());
    UcxOptions { transports, emulation, ..Default::default() }
}

/// Suffix of [`options`].
pub const EMULATED: &str = " emulated";

/// The byte at `offset` of a region.
pub fn pattern(region: RegionId, offset: usize) -> u8 {
    (offset.wrapping_mul(31) >> 3) as u8 ^ region.0 as u8
}

/// A file of the pattern, mapped read-only, which registration must support.
pub fn mapped_file(region: RegionId, len: usize) -> Buffer {
    struct Mapping(NonNull<u8>, usize);
    // SAFETY: read-only memory of the process.
    unsafe impl Send for Mapping {}
    // SAFETY: as above.
    unsafe impl Sync for Mapping {}
    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: mapped below, unmapped once.
            unsafe { libc::munmap(self.0.as_ptr().cast(), self.1) };
        }
    }
    let path = env::temp_dir().join(format!("thallus-ucx-{}-{}", std::process::id(), region.0));
    let bytes: Vec<u8> = (0..len).map(|offset| pattern(region, offset)).collect();
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // SAFETY: a new mapping; no other code can open the file any more.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(start, libc::MAP_FAILED);
    let start = NonNull::new(start.cast::<u8>()).unwrap();
    // SAFETY: valid for reads until the mapping is dropped.
    unsafe { Buffer::from_custom_allocation(start, len, Arc::new(Mapping(start, len))) }
}

/// Drives one end until `wanted` returns true.
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
pub async fn close(mut end: Box<dyn Endpoint>) -> Vec<Completion> {
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

/// The work of the child.
pub async fn lend() {
    let fabric = UcxFabric::new(options(&env::var(LENDER).unwrap())).unwrap();
    let mut end = fabric.endpoint().unwrap();
    let allocated = fabric.allocate(REGION, Touch::Now).unwrap();
    for offset in 0..REGION {
        // SAFETY: within the memory, which no code reads yet.
        unsafe { allocated.start().add(offset).write(pattern(ALLOCATED, offset)) };
    }
    let mut lent = vec![(ALLOCATED, allocated)];
    let registered = fabric.register(mapped_file(REGISTERED, REGION)).or_else(|error| match error {
        // With an RDMA device, UCX 1.13 registers writable pages only.
        FabricError::Registration { .. } => fabric.register((0..REGION).map(|at| pattern(REGISTERED, at)).collect()),
        other => Err(other),
    });
    match registered {
        Ok(registered) => lent.push((REGISTERED, registered)),
        Err(error) => assert!(matches!(error, FabricError::Unsupported { .. }), "{error}"),
    }
    let mut line = hex(&end.address());
    for (_, memory) in &lent {
        line += &format!(" {} {}", memory.address(), hex(&end.expose(memory, 0..memory.len()).unwrap()));
    }
    println!("@{line}");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut completions = Vec::new();
    loop {
        tokio::select! {
            line = lines.next_line() => match line.unwrap() {
                Some(line) if line == "alive" => {
                    // The memory still exists, with its content.
                    for (region, memory) in &lent {
                        // SAFETY: within the memory, which no code writes.
                        assert_eq!(unsafe { memory.start().add(12345).read() }, pattern(*region, 12345));
                    }
                    println!("@alive");
                }
                Some(peer) => {
                    end.connect(&unhex(peer.as_str())).unwrap();
                    println!("@connected");
                }
                None => return,
            },
            outcome = poll_fn(|cx| end.poll(cx, &mut completions)) => if let Err(error) = outcome {
                println!("@down {error}");
                close(end).await;
                println!("@closed");
                // A new end answers further lines.
                end = fabric.endpoint().unwrap();
            },
        }
    }
}

/// The child process.
pub struct Lender {
    pub child: Child,
    pub stdin: ChildStdin,
    pub stdout: Lines<BufReader<ChildStdout>>,
}

impl Lender {
    /// Starts this executable again with `args`, as a lender.
    pub fn start(transports: &str, args: &[&str]) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        match env::var(LENDER_UCX) {
            Ok(system) if system == "system" => command.env_remove(ucx_sys::LIBRARY_VARIABLE),
            Ok(library) => command.env(ucx_sys::LIBRARY_VARIABLE, library),
            Err(_) => &mut command,
        };
        let mut child = command
            .args(args)
            .env(LENDER, transports)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Lender { child, stdin, stdout: BufReader::new(stdout).lines() }
    }

    /// The next line for the parent, without its `@`.
    pub async fn line(&mut self) -> String {
        timeout(DEADLINE, async {
            loop {
                let line = self.stdout.next_line().await.unwrap().expect("the lender writes a line");
                if let Some((_, line)) = line.split_once('@') {
                    return line.to_owned();
                }
            }
        })
        .await
        .expect("the lender answers in time")
    }

    pub async fn say(&mut self, line: &str) {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

/// The parent's end: connected, with both regions imported.
pub struct Reader {
    pub fabric: UcxFabric,
    pub end: Box<dyn Endpoint>,
    pub bases: Vec<u64>,
    pub completions: Vec<Completion>,
}

impl Reader {
    /// Connects to a child.
    pub async fn connect(lender: &mut Lender, transports: &str) -> Self {
        Reader::connect_with(lender, options(transports)).await
    }

    /// Connects to a child, with options of its own.
    pub async fn connect_with(lender: &mut Lender, options: UcxOptions) -> Self {
        let reader = Reader::new(&lender.line().await, options);
        lender.say(&hex(&reader.end.address())).await;
        reader
    }

    /// Connects to a lender whose line arrives over standard input.
    pub async fn over_stdio(transports: &str) -> Self {
        let mut input = BufReader::new(tokio::io::stdin()).lines();
        let line = timeout(DEADLINE, input.next_line()).await.unwrap().unwrap().unwrap();
        let reader = Reader::new(&line, options(transports));
        println!("@{}", hex(&reader.end.address()));
        reader
    }

    fn new(line: &str, options: UcxOptions) -> Self {
        let fabric = UcxFabric::new(options).unwrap();
        let mut end = fabric.endpoint().unwrap();
        let mut words = line.split(' ');
        end.connect(&unhex(words.next().unwrap())).unwrap();
        let mut bases = Vec::new();
        while let (Some(base), Some(key)) = (words.next(), words.next()) {
            bases.push(base.parse().unwrap());
            let region = RegionId(bases.len() as u32);
            end.import(region, bases[bases.len() - 1], REGION as u64, &unhex(key)).unwrap();
        }
        Reader { fabric, end, bases, completions: Vec::new() }
    }

    /// The regions of the lender.
    pub fn regions(&self) -> Vec<RegionId> {
        (1..=self.bases.len() as u32).map(RegionId).collect()
    }

    /// Posts a read of `offset .. offset + len` of `region` into `memory` at `at`.
    pub fn post(
        &mut self,
        token: u64,
        region: RegionId,
        offset: usize,
        memory: &Arc<RegisteredMemory>,
        at: usize,
        len: usize,
    ) -> Result<(), FabricError> {
        let address = self.bases[region.0 as usize - 1] + offset as u64;
        // SAFETY: tests access a range only after its completion, and post no overlapping reads meanwhile whose bytes
        // they compare.
        let into = unsafe { LocalRange::new(memory.clone(), at, len, None) };
        self.end.post_read(ReadToken(token), RemoteRange { region, address, len: len as u64 }, into)
    }

    /// Polls until there are `count` completions, and takes them.
    pub async fn completed(&mut self, count: usize) -> Result<Vec<Completion>, FabricError> {
        timeout(DEADLINE, drive(&mut *self.end, &mut self.completions, |done| done.len() >= count))
            .await
            .expect("reads complete in time")?;
        Ok(std::mem::take(&mut self.completions))
    }

    /// Whether the endpoint has something to report now.
    pub async fn poll_once(&mut self) -> Poll<Result<(), FabricError>> {
        poll_fn(|cx| Poll::Ready(self.end.poll(cx, &mut self.completions))).await
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}
