//! Figures of connections and of memory on one host, for `one-host.sh`: the time of a connect, the cost of an idle
//! connection, and the memory of a server before and after a load.
//!
//! `one-host connects N`, `one-host idle N` and `one-host memory` start a server of this program, which is
//! `one-host serve`, and print one line. `THALLUS_BENCH_FABRIC` is the fabric.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use thallus_bench::contender::Contender;
use thallus_bench::{serve, thallus_config};
use thallus_client::{Client, QueryOptions};
use thallus_fabric::memory::RegisteredHeap;
use thallus_fabric::raise_descriptor_limit;
use thallus_fabric_ucx::exit_process;

/// Connections under load at a time, and the bytes of each one's result.
const LOAD: (usize, u64) = (8, 1 << 29);
/// Time from the end of the load to the last look at the server's memory.
const AFTER: Duration = Duration::from_secs(60);

/// A server of this program, in a process of its own. It ends with its standard input.
struct ServerProcess {
    process: Child,
    stdin: Option<ChildStdin>,
    port: u16,
}

impl ServerProcess {
    fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let mut command = Command::new(program);
        let command = command.arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().map_err(|e| e.to_string())?;
        let stdin = process.stdin.take();
        let mut ready = String::new();
        let stdout = process.stdout.take().ok_or("no standard output")?;
        BufReader::new(stdout).read_line(&mut ready).map_err(|e| e.to_string())?;
        let port = ready.trim().strip_prefix("ready ").and_then(|port| port.parse().ok());
        Ok(ServerProcess { process, stdin, port: port.ok_or_else(|| format!("the server said {ready:?}"))? })
    }

    /// MiB of it that lie in memory.
    fn resident(&self) -> Result<f64, String> {
        resident(&self.process.id().to_string())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.stdin.take());
        _ = self.process.wait();
    }
}

fn resident(process: &str) -> Result<f64, String> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).map_err(|e| e.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().map_err(|_| format!("VmRSS: {line}"))?;
    Ok(kib / 1024.0)
}

fn descriptors(process: &str) -> Result<usize, String> {
    Ok(std::fs::read_dir(format!("/proc/{process}/fd")).map_err(|e| e.to_string())?.count())
}

async fn connect(contender: Contender, port: u16) -> Result<(Client, QueryOptions), String> {
    let (connect, options) = thallus_config::client(contender, port).ok_or("this build cannot deliver so")?;
    Ok((Client::connect_with(connect).await.map_err(|e| e.to_string())?, options))
}

async fn rows(client: &Client, query: &str, options: &QueryOptions) -> Result<usize, String> {
    let result = client.query_with(query, options.clone()).await.map_err(|e| e.to_string())?;
    let batches: Vec<_> = result.try_collect().await.map_err(|e| e.to_string())?;
    Ok(batches.iter().map(|batch| batch.num_rows()).sum())
}

/// Median and fastest time of a connect with its data plane, in microseconds.
async fn connects(count: usize) -> Result<String, String> {
    let server = ServerProcess::start()?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count + 1 {
        let began = Instant::now();
        let (client, _) = connect(Contender::Lent, server.port).await?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
        client.close().await;
    }
    // The first opens the client's fabric.
    let first = times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(format!("connect_us median={:.0} least={:.0} first={first:.0}", times[times.len() / 2], times[0]))
}

/// The descriptors and the memory of an idle connection at each end. Each connection has had one result.
async fn idle(count: usize) -> Result<String, String> {
    raise_descriptor_limit().map_err(|e| e.to_string())?;
    let server = ServerProcess::start()?;
    let id = server.process.id().to_string();
    let (first, options) = connect(Contender::Lent, server.port).await?;
    rows(&first, "num8 rows=1000", &options).await?;
    let look = || -> Result<[f64; 4], String> {
        Ok([descriptors(&id)? as f64, descriptors("self")? as f64, server.resident()?, resident("self")?])
    };
    let before = look()?;
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let (client, options) = connect(Contender::Lent, server.port).await?;
        rows(&client, "num8 rows=1000", &options).await?;
        clients.push(client);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = look()?;
    let [fds, own_fds, mib, own_mib] = std::array::from_fn(|at| (after[at] - before[at]) / count as f64);
    let (kib, own_kib) = (mib * 1024.0, own_mib * 1024.0);
    Ok(format!("idle n={count} server: {fds:.2} descriptors, {kib:.0} KiB; client: {own_fds:.2}, {own_kib:.0} KiB"))
}

/// A server's memory before a load, at its end, and some time after it, while the connections stay open.
async fn memory() -> Result<String, String> {
    let server = ServerProcess::start()?;
    let mut clients = Vec::new();
    for _ in 0..LOAD.0 {
        let (client, options) = connect(Contender::Mapped, server.port).await?;
        rows(&client, "num8 rows=16384 fresh", &options).await?;
        clients.push((client, options));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = server.resident()?;
    let query = format!("num8 rows={} fresh", LOAD.1 / 64);
    let mut most = 0_f64;
    for _round in 0..3 {
        // Each client holds its whole result.
        let results = futures::future::join_all(clients.iter().map(|(client, options)| async {
            let result = client.query_with(&query, options.clone()).await.map_err(|e| e.to_string())?;
            result.try_collect::<Vec<_>>().await.map_err(|e| e.to_string())
        }))
        .await;
        most = most.max(server.resident()?);
        results.into_iter().collect::<Result<Vec<_>, String>>()?;
    }
    let ended = Instant::now();
    let mut line = format!("memory_mib before={before:.0} most={most:.0}");
    for seconds in [10, 20, 30, 60] {
        tokio::time::sleep(Duration::from_secs(seconds).min(AFTER).saturating_sub(ended.elapsed())).await;
        line += &format!(" after{seconds}s={:.0}", server.resident()?);
    }
    Ok(line)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if args != ["serve"] {
        RegisteredHeap::stay_ordinary();
    }
    let number = |text: &str| text.parse::<usize>().map_err(|_| format!("{text:?} is no number"));
    let work = async {
        match args[..] {
            ["serve"] => serve::serve(serve::Protocol::Thallus).await.map(|()| None),
            ["connects", count] => connects(number(count)?).await.map(Some),
            ["idle", count] => idle(number(count)?).await.map(Some),
            ["memory"] => memory().await.map(Some),
            _ => Err("usage: one-host connects N | idle N | memory".to_owned()),
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("one-host: error: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(work);
    match &done {
        Ok(line) => line.iter().for_each(|line| println!("{line}")),
        Err(error) => eprintln!("one-host: error: {error}"),
    }
    exit_process(done.is_err().into())
}
