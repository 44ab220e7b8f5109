//! A server in this process, with a scripted engine, for the program as a child process.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use thallus_scripted_engine::ScriptedEngine;
use thallus_server::config::ServerConfig;
use thallus_server::{Fabrics, Server, Settings};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// A server on a free port, without a fabric. Dropping it ends its connections.
pub(crate) struct TestServer {
    pub(crate) engine: ScriptedEngine,
    port: u16,
    _runtime: Runtime,
}

impl TestServer {
    pub(crate) fn new(engine: ScriptedEngine) -> Self {
        Self::at(0, engine)
    }

    /// A server on the port of one that has ended.
    pub(crate) fn restarted(self) -> Self {
        let (port, engine) = (self.port, self.engine.clone());
        drop(self);
        Self::at(port, engine)
    }

    fn at(port: u16, engine: ScriptedEngine) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = Server::new(Arc::new(engine.clone()), Fabrics::default(), Settings::new(&ServerConfig::default()));
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", port))).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move { server.serve(listener).await.unwrap() });
        TestServer { engine, port, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("thallus://127.0.0.1:{}?fabric=none", self.port)
    }
}

/// The program, without any of this process's settings.
pub(crate) fn thallus() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thallus"));
    command.env_remove("THALLUS_URL").env_remove("THALLUS_LOG").stdin(Stdio::null());
    command
}

/// Exit code, stdout and stderr.
pub(crate) fn outcome(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
