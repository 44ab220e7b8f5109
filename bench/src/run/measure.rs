//! Rounds: all contenders take turns repeatedly, so that a disturbance of the machine affects all of them.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::cases::Case;
use super::process::Process;
use crate::contender::Contender;
use crate::thallus_config;
use crate::wire::{Report, Request};

const SAMPLES: &str = "samples.jsonl";

/// One turn of a contender: a few iterations, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) figure: String,
    pub(super) x: f64,
    pub(super) label: String,
    pub(super) query: String,
    pub(super) contender: Contender,
    pub(super) round: usize,
    pub(super) streams: usize,
    /// Bytes of the results of all streams together.
    pub(super) bytes: u64,
    pub(super) batches: u64,
    /// Seconds of each iteration.
    pub(super) seconds: Vec<f64>,
    /// CPU seconds of all iterations.
    pub(super) cpu_client: f64,
    pub(super) cpu_server: f64,
    /// Page faults of all iterations.
    pub(super) faults_client: u64,
    pub(super) faults_server: u64,
    /// Peak of resident memory during the turn, in bytes.
    pub(super) peak_client: u64,
    pub(super) peak_server: u64,
    pub(super) report: Option<Report>,
}

/// Configuration of the measurements.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) python: Option<PathBuf>,
    pub(super) scripts: PathBuf,
    /// Directory of the tables as Arrow files.
    pub(super) files: PathBuf,
    pub(super) only: Vec<Contender>,
    pub(super) quick: bool,
    pub(super) rounds: Option<usize>,
}

/// The processes of all contenders, each started at its first use.
pub(super) struct Contest {
    setup: Setup,
    servers: BTreeMap<&'static str, (Process, u16)>,
    clients: BTreeMap<Contender, Process>,
}

impl Contest {
    pub(super) fn new(setup: Setup) -> Self {
        Contest { setup, servers: BTreeMap::new(), clients: BTreeMap::new() }
    }

    /// Returns whether this build can run the contender on this machine.
    fn has(&self, contender: Contender) -> bool {
        let wanted = self.setup.only.is_empty() || self.setup.only.contains(&contender);
        wanted
            && match contender {
                Contender::FlightCpp | Contender::FlightSqlCpp => self.setup.python.is_some(),
                _ if contender.is_thallus() => thallus_config::client(contender, 1).is_some(),
                _ => true,
            }
    }

    /// Runs a case and logs every turn.
    pub(super) fn run(&mut self, case: &Case, log: &mut Log) -> Result<(), String> {
        let contenders: Vec<_> = case.contenders.iter().copied().filter(|&c| self.has(c)).collect();
        let bytes = case.size.bytes * case.streams as u64;
        let (usual, budget) = if self.setup.quick { (5, 0.04) } else { (11, 0.12) };
        let fewer = if bytes > 512 << 20 { usual / 2 + 1 } else { usual };
        let rounds = self.setup.rounds.unwrap_or(fewer);
        let mut iterations = BTreeMap::new();
        for &contender in &contenders {
            // Warm-up: generates tables, opens connections, fills pools. Then measures the time of an iteration.
            self.turn(case, contender, 2, 0)?;
            let sample = self.turn(case, contender, 3, 0)?;
            let fastest = sample.seconds.iter().copied().fold(f64::INFINITY, f64::min);
            // The quotient is small, and not negative.
            iterations.insert(contender, ((budget / fastest) as usize).clamp(1, 400));
        }
        for round in 0..rounds {
            for &contender in &contenders {
                log.write(&self.turn(case, contender, iterations[&contender], round)?)?;
            }
        }
        eprintln!("{} {}: {} contenders, {rounds} rounds", case.figure, case.label, contenders.len());
        Ok(())
    }

    fn turn(&mut self, case: &Case, contender: Contender, iterations: usize, round: usize) -> Result<Sample, String> {
        self.start(contender)?;
        let (Some(client), server) = (self.clients.get_mut(&contender), self.servers.get(server_of(contender))) else {
            return Err("a client was just started".into());
        };
        let request = Request {
            query: case.query.to_string(),
            bytes: case.size.bytes,
            read_every_byte: case.read_every_byte,
            streams: case.streams,
            iterations,
        };
        client.reset_peak_memory();
        let server = server.map(|(server, _)| server);
        server.iter().for_each(|server| server.reset_peak_memory());
        let server_usage = || server.map(Process::usage).unwrap_or_default();
        let before = (client.usage(), server_usage());
        let answer = client.ask(&request)?;
        let after = (client.usage(), server_usage());
        if !contender.is_limit() && answer.rows != case.size.rows {
            let (got, wanted) = (answer.rows, case.size.rows);
            return Err(format!("{}: {}: {got} rows arrived of {wanted}", contender.name(), case.query));
        }
        Ok(Sample {
            figure: case.figure.to_owned(),
            x: case.x,
            label: case.label.clone(),
            query: request.query,
            contender,
            round,
            streams: case.streams,
            bytes: case.size.bytes * case.streams as u64,
            batches: case.size.batches * case.streams as u64,
            seconds: answer.seconds,
            cpu_client: after.0.cpu - before.0.cpu,
            cpu_server: after.1.cpu - before.1.cpu,
            faults_client: after.0.faults - before.0.faults,
            faults_server: after.1.faults - before.1.faults,
            peak_client: after.0.peak,
            peak_server: after.1.peak,
            report: answer.report,
        })
    }

    fn start(&mut self, contender: Contender) -> Result<(), String> {
        if self.clients.contains_key(&contender) {
            return Ok(());
        }
        let this = env::current_exe().map_err(|e| e.to_string())?;
        let server = server_of(contender);
        if !server.is_empty() && !self.servers.contains_key(server) {
            let mut command = match (server, &self.setup.python) {
                ("flight-cpp", Some(python)) => Command::new(python),
                _ => Command::new(&this),
            };
            match server {
                "flight-cpp" => command.arg(self.setup.scripts.join("flight_server.py")).arg(&self.setup.files),
                _ => command.args(["serve", server]),
            };
            let mut process = Process::start(&format!("server {server}"), &mut command)?;
            let port = process.port()?;
            self.servers.insert(server, (process, port));
        }
        let port = self.servers.get(server).map_or(0, |(_, port)| *port).to_string();
        let mut command = match (contender, &self.setup.python) {
            (Contender::FlightCpp | Contender::FlightSqlCpp, Some(python)) => {
                let mut command = Command::new(python);
                command.arg(self.setup.scripts.join("flight_client.py")).arg(port);
                if contender == Contender::FlightSqlCpp {
                    command.arg("sql");
                }
                command
            }
            _ => {
                let mut command = Command::new(&this);
                command.args(["client", contender.name(), &port]);
                command
            }
        };
        let process = Process::start(&format!("client {}", contender.name()), &mut command)?;
        self.clients.insert(contender, process);
        Ok(())
    }
}

/// Name of the server of a contender's client; empty if the contender has none.
fn server_of(contender: Contender) -> &'static str {
    match contender {
        Contender::FlightRust | Contender::FlightSqlRust => "flight",
        Contender::FlightCpp | Contender::FlightSqlCpp => "flight-cpp",
        Contender::UcxGet => "raw",
        Contender::Memcpy => "",
        _ => "thallus",
    }
}

/// The file of samples.
pub(super) struct Log(File);

impl Log {
    pub(super) fn create(out: &Path) -> Result<Self, String> {
        let path = out.join(SAMPLES);
        File::create(&path).map(Log).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn write(&mut self, sample: &Sample) -> Result<(), String> {
        let line = serde_json::to_string(sample).map_err(|e| e.to_string())?;
        writeln!(self.0, "{line}").map_err(|e| e.to_string())
    }
}

/// Reads all logged samples.
pub(super) fn read(out: &Path) -> Result<Vec<Sample>, String> {
    let path = out.join(SAMPLES);
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(|e| format!("{}: {e}", path.display()))).collect()
}
