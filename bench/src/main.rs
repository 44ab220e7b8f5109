//! The comparison. `run` is the harness, which starts this executable again as servers and clients. See README.md.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use thallus_bench::contender::Contender;
use thallus_bench::{run, serve, worker};
use thallus_fabric::memory::RegisteredHeap;
use thallus_fabric_ucx::exit_process;

/// Compares ways to transfer a result from a server's memory to a client's.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the comparison.
    Run(run::RunArgs),
    /// Writes figures and page again from existing measurements.
    Report(run::ReportArgs),
    /// A server of the comparison. Ends with its standard input.
    Serve { protocol: serve::Protocol },
    /// A client of the comparison. Ends with its standard input.
    Client { contender: Contender, port: u16 },
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !matches!(args.command, Command::Serve { protocol: serve::Protocol::Thallus }) {
        RegisteredHeap::stay_ordinary();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("thallus-bench: error: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let work = async {
        // On the runtime's own threads, as an application's tasks.
        let task = match args.command {
            Command::Run(args) => return run::run(&args),
            Command::Report(args) => return run::report(&args),
            Command::Serve { protocol } => tokio::spawn(serve::serve(protocol)),
            Command::Client { contender, port } => tokio::spawn(worker::work(contender, port)),
        };
        task.await.unwrap_or_else(|e| Err(e.to_string()))
    };
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    if let Err(error) = &done {
        eprintln!("thallus-bench: error: {error}");
    }
    // Connections may still be closing.
    exit_process(done.is_err().into())
}
