//! The command line, `thallus`. A library for the binary and its tests only; programs use `thallus-client`.

#![forbid(unsafe_code)]

pub mod args;
mod doctor;
mod exit;
pub mod failure;
pub mod format;
pub mod interrupt;
pub mod lazy;
mod names;
pub mod output;
mod ping;
mod print;
pub mod progress;
pub mod put;
pub mod query;
mod rows;
pub mod shell;
mod stdout;
mod tables;

use std::io::{self, IsTerminal};

use clap::Parser;
use thallus_fabric::lines::OneLineRecords;
use thallus_fabric::{descriptor_limit, raise_descriptor_limit};
use tracing_subscriber::EnvFilter;

use self::args::{Cli, Command, DEFAULT_ROWS, ShellArgs};
use self::exit::leave;
use self::failure::{Failure, code};
use self::interrupt::Interrupts;
use self::print::{print, print_failure};

/// Runs `thallus` with the process's arguments, and ends the process with its exit code.
pub fn main() -> ! {
    let cli = Cli::parse();
    if let Err(source) = stdout::reserve() {
        print_failure(&Failure::Local { what: "cannot write to standard output".into(), source });
        leave(code::LOCAL);
    }
    let filter = EnvFilter::try_from_env("THALLUS_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    let is_terminal = io::stderr().is_terminal();
    // An error of the log itself cannot be reported: its reader may have closed stderr.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).log_internal_errors(false);
    // Servers choose some of the text, such as their reasons.
    log.with_writer(move || OneLineRecords::new(io::stderr(), is_terminal)).init();
    match enough_descriptors().and_then(|()| run(cli)) {
        Ok(code) => leave(code),
        Err(failure) => {
            print_failure(&failure);
            leave(failure.exit_code())
        }
    }
}

/// Fewest open files with which a query can run: standard streams, the runtime, the connection and the output. Without
/// the first of these the runtime panics.
const MIN_DESCRIPTORS: u64 = 16;

/// Raises the limit of open files as far as it goes: received batches over shared memory take descriptors.
fn enough_descriptors() -> Result<(), Failure> {
    // An error leaves the limit as it is.
    let limit = raise_descriptor_limit().unwrap_or_else(|_| descriptor_limit());
    if limit >= MIN_DESCRIPTORS {
        return Ok(());
    }
    let what = format!("cannot start with at most {limit} open files, {MIN_DESCRIPTORS} is the least (`ulimit -n`)");
    Err(Failure::Local { what, source: io::Error::from(rustix::io::Errno::MFILE) })
}

/// Runs the command. Returns the exit code.
fn run(cli: Cli) -> Result<u8, Failure> {
    let command = match (cli.command, cli.url) {
        (Some(command), _) => command,
        (None, Some(url)) if query::looks_like_url(&url) => Command::Shell(ShellArgs { url, max_rows: DEFAULT_ROWS }),
        (None, given) => {
            let message = format!("{:?} is no command and no URL", given.unwrap_or_default());
            return Err(Failure::Usage { message, hint: "thallus --help lists the commands".into() });
        }
    };
    match command {
        Command::Shell(args) => return shell::run(&args),
        Command::Query(args) => {
            // Before signals are handled, so that Ctrl-C ends a prompt for the query on a terminal.
            let request = query::Request::new(*args, std::env::var("THALLUS_URL").ok())?;
            with_runtime(async |interrupts| request.run(interrupts).await)
        }
        Command::Put(args) => {
            let request = put::Request::new(args, std::env::var("THALLUS_URL").ok())?;
            print(&with_runtime(async |interrupts| request.run(interrupts).await)?)
        }
        Command::Ping(args) => print(&with_runtime(async |interrupts| ping::ping(args, interrupts).await)?),
        Command::Tables(args) => with_runtime(async |interrupts| tables::tables(args, interrupts).await),
        Command::Doctor(args) => {
            let (text, works) = doctor::doctor(&args)?;
            print(&text)?;
            if works { Ok(()) } else { Err(Failure::NoFabric) }
        }
        Command::Version => print(&ping::version()),
    }
    .map(|()| code::SUCCESS)
}

fn with_runtime<T>(work: impl AsyncFnOnce(Interrupts) -> Result<T, Failure>) -> Result<T, Failure> {
    let local = |source| Failure::Local { what: "cannot start".into(), source };
    // The work itself runs, and blocks for output, on this thread; one worker moves the data, another handles signals.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(local)?;
    let outcome = runtime.block_on(async { work(Interrupts::install().map_err(local)?).await });
    // Does not wait for operations that cannot be stopped, such as the resolution of a name.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use thallus_client::ConnectOptions;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_knows_every_option_of_a_url_and_every_exit_code() {
        let help = Cli::command().find_subcommand_mut("query").unwrap().render_long_help().to_string();
        for name in ConnectOptions::URL_OPTIONS {
            assert!(help.contains(name), "{name}");
        }
        for code in [2, 3, 4, 5, 6, 130, 141, 143] {
            assert!(help.contains(&code.to_string()), "{code}");
        }
    }
}
