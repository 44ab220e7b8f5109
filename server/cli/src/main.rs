//! `thallus-server`: configuration, tables, fabrics, and a socket.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use thallus_fabric::lines::OneLineRecords;
use thallus_server::engine::Engine;
use thallus_server::{Server, Settings};
use thallus_server_cli::Args;
use thallus_server_cli::config::{Config, LogConfig, LogFormat};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;

#[cfg(feature = "registered-heap")]
#[global_allocator]
static HEAP: thallus_fabric::memory::RegisteredHeap = thallus_fabric::memory::RegisteredHeap::new();

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() {
    match run(Args::parse()) {
        Ok(()) => leave(0),
        Err(error) => {
            let mut message = format!("thallus-server: error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_says = cause.to_string();
                // Many errors contain the text of their cause.
                if !message.ends_with(&cause_says) {
                    message.push_str(&format!(": {cause_says}"));
                }
                source = cause.source();
            }
            // If stderr is closed, the message is lost.
            let _ = writeln!(std::io::stderr(), "{message}");
            leave(1)
        }
    }
}

/// Ends the process even if other threads still run code of a fabric's library.
#[cfg(feature = "ucx")]
fn leave(code: u8) -> ! {
    thallus_fabric_ucx::exit_process(code)
}

#[cfg(not(feature = "ucx"))]
fn leave(code: u8) -> ! {
    std::process::exit(code.into())
}

fn run(args: Args) -> Result<(), Failure> {
    let print_config = args.print_config;
    let config = args.into_config()?;
    if print_config {
        std::io::stdout().write_all(config.to_toml()?.as_bytes())?;
        return Ok(());
    }
    init_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(serve(config));
    // The tasks hold the engine, which removes its files when it is dropped. A query that computes without end must not
    // delay the end of the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn serve(config: Config) -> Result<(), Failure> {
    let (address, server) = (config.listen.as_str(), config.server());
    // Before the tables are opened, which may take long.
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            info!("SIGHUP has no effect: new and changed files are found without it; other settings need a restart");
        }
    });
    #[cfg_attr(not(feature = "registered-heap"), expect(unused_mut))]
    let mut fabrics = thallus_server::fabrics::open(&server.fabric)?;
    // Before the engine, so that its tables in memory are allocated in the registered heap.
    #[cfg(feature = "registered-heap")]
    thallus_server::heap::grow_in_fabric(&mut fabrics, &server.fabric);
    let engine = open_engine(&config).await?;
    for table in engine.tables() {
        info!(table = %table.name, source = %table.source, format = table.format, columns = table.columns, "table");
    }
    thallus_server::fabrics::log_limits(server.limits.max_bytes_on_loan_total.bytes());
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| format!("cannot listen on {address}: {e} (choose another with --listen HOST:PORT)"))?;
    // With port 0 this line shows the port that the system chose.
    info!(address = %listener.local_addr()?, "listening");

    let server = Server::new(engine, fabrics, Settings::new(&server));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let draining = server.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "shutting down: no new work is accepted; a second signal ends the process immediately");
        draining.drain();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        leave(130);
    });
    server.serve(listener).await?;
    info!("stopped");
    Ok(())
}

async fn open_engine(config: &Config) -> Result<Arc<dyn Engine>, Failure> {
    #[cfg(feature = "adbc")]
    if let Some(adbc) = config.adbc.clone() {
        return open_database(adbc).await;
    }
    open_datafusion(config).await
}

#[cfg(feature = "adbc")]
async fn open_database(config: thallus_adbc_engine::AdbcConfig) -> Result<Arc<dyn Engine>, Failure> {
    let driver = config.driver.clone();
    // Drivers block, and may wait for a server.
    let opened = tokio::task::spawn_blocking(move || thallus_adbc_engine::AdbcEngine::open(&config)).await?;
    let engine = opened?;
    let vendor = engine.vendor();
    // Not the URI, which may contain a password.
    info!(%driver, database = %vendor.name, version = %vendor.version, "database");
    Ok(Arc::new(engine))
}

#[cfg(feature = "datafusion")]
async fn open_datafusion(config: &Config) -> Result<Arc<dyn Engine>, Failure> {
    use thallus_server::engine::datafusion::DataFusionEngine;
    Ok(Arc::new(DataFusionEngine::open(&config.server()).await?))
}

#[cfg(not(feature = "datafusion"))]
async fn open_datafusion(_config: &Config) -> Result<Arc<dyn Engine>, Failure> {
    Err("this build has no query engine (feature `datafusion`)".into())
}

fn init_log(config: &LogConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let is_terminal = std::io::stderr().is_terminal();
    // The reader of the log may have closed it. By default such an error is reported on stderr too, and the thread that
    // logs would panic.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_terminal).log_internal_errors(false);
    // Clients choose some of the text: queries, reasons for closing.
    let lines = move || OneLineRecords::new(std::io::stderr(), is_terminal);
    match config.format {
        LogFormat::Full => log.with_writer(lines).init(),
        LogFormat::Compact => log.compact().with_writer(lines).init(),
        // Its records have several lines each.
        LogFormat::Pretty => log.pretty().with_writer(std::io::stderr).init(),
        LogFormat::Json => log.json().with_writer(lines).init(),
    }
    Ok(())
}
