//! A server in this process, and connections to it through the C interface of the driver.

// Each test program uses only a part of this module.
#![allow(dead_code)]

pub(crate) mod engine;

use std::sync::Arc;

use adbc_core::options::{AdbcVersion, OptionDatabase, OptionValue};
use adbc_core::{Connection, Database, Driver, Statement};
use adbc_driver_manager::{ManagedConnection, ManagedDatabase, ManagedDriver, ManagedStatement};
use adbc_driver_thallus::ffi::AdbcDriverThallusInit;
use adbc_ffi::FFI_AdbcDriverInitFunc;
use arrow::array::{RecordBatch, RecordBatchReader};
use thallus_server::config::ServerConfig;
use thallus_server::{Fabrics, Server, Settings};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use engine::TestEngine;

/// A server on a free port, driven by threads of its own.
pub(crate) struct World {
    pub(crate) engine: TestEngine,
    pub(crate) server: Server,
    runtime: Option<Runtime>,
    port: u16,
}

impl World {
    pub(crate) fn new(engine: TestEngine) -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let fabrics = Fabrics { reason: "this world has no fabric".into(), ..Fabrics::default() };
        let server = Server::new(Arc::new(engine.clone()), fabrics, Settings::new(&ServerConfig::default()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = server.clone();
        runtime.spawn(async move { serving.serve(listener).await });
        World { engine, server, runtime: Some(runtime), port }
    }

    pub(crate) fn uri(&self) -> String {
        format!("thallus://127.0.0.1:{}?fabric=none", self.port)
    }

    pub(crate) fn database(&self) -> ManagedDatabase {
        self.database_with([])
    }

    pub(crate) fn database_with<const N: usize>(&self, more: [(&str, OptionValue); N]) -> ManagedDatabase {
        let more = more.into_iter().map(|(name, value)| (OptionDatabase::from(name), value));
        let options = [(OptionDatabase::Uri, self.uri().into())].into_iter().chain(more);
        driver().new_database_with_opts(options).unwrap()
    }

    pub(crate) fn connection(&self) -> ManagedConnection {
        self.database().new_connection().unwrap()
    }

    pub(crate) fn statement(&self, sql: &str) -> ManagedStatement {
        statement(&mut self.connection(), sql)
    }

    /// Waits until the server has no connection and runs no query.
    pub(crate) fn is_at_rest(&self) {
        while self.server.connections() > 0 || self.engine.scripted.running() > 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn driver() -> ManagedDriver {
    let init: FFI_AdbcDriverInitFunc = AdbcDriverThallusInit;
    ManagedDriver::load_static(&init, AdbcVersion::V110).unwrap()
}

pub(crate) fn statement(connection: &mut ManagedConnection, sql: &str) -> ManagedStatement {
    let mut statement = connection.new_statement().unwrap();
    statement.set_sql_query(sql).unwrap();
    statement
}

pub(crate) fn all(reader: impl RecordBatchReader) -> Vec<RecordBatch> {
    reader.map(Result::unwrap).collect()
}

/// The SQLSTATE of an error, as text.
pub(crate) fn sqlstate(error: &adbc_core::error::Error) -> String {
    error.sqlstate.iter().map(|letter| char::from(*letter as u8)).collect()
}
