//! The server processes. Each prints `ready PORT` on standard output, and ends with its standard input.

mod flight;
mod raw;
mod thallus;

use std::io::Write;

use clap::ValueEnum;
pub use flight::WINDOW;
pub use raw::REGION;
pub use thallus::MemoryEngine;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// Protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Thallus,
    Flight,
    Raw,
}

/// Serves until standard input ends.
pub async fn serve(protocol: Protocol) -> Result<(), String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|e| e.to_string())?;
    let port = listener.local_addr().map_err(|e| e.to_string())?.port();
    let server = async {
        match protocol {
            Protocol::Thallus => thallus::serve(listener).await,
            Protocol::Flight => flight::serve(listener).await,
            Protocol::Raw => raw::serve(listener).await,
        }
    };
    println!("ready {port}");
    std::io::stdout().flush().map_err(|e| e.to_string())?;
    let mut nothing = [0; 1];
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        ended = server => ended,
        _ = stdin.read(&mut nothing) => Ok(()),
    }
}
