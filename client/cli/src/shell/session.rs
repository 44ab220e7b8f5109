//! The connection of a shell. It outlives the server: a new connection is made when one is needed.

use std::io;
use std::time::Duration;

use thallus_client::{CatalogObject, Client, ClientError, ConnectOptions, ObjectsRequest, QueryOptions};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::failure::{Failure, Interrupt, Phase};
use crate::format::FormatOptions;
use crate::interrupt::Interrupts;
use crate::output::Output;
use crate::print::print_message;
use crate::progress::Progress;
use crate::query::{FAREWELL, deliver, warn_of_fallback};

/// A connection, and the runtime that drives it.
pub(super) struct Session {
    options: ConnectOptions,
    client: Option<Client>,
    interrupts: Interrupts,
    ready: watch::Sender<Option<Interrupt>>,
    // Dropped after the client.
    runtime: Runtime,
}

impl Session {
    /// Connects. SIGINT ends the process, unless the shell is typed into.
    ///
    /// # Errors
    /// [`Failure::Client`], [`Failure::Interrupted`], [`Failure::Local`] if no thread can be started.
    pub(super) fn connect(options: ConnectOptions, is_typed: bool) -> Result<Self, Failure> {
        let local = |source| Failure::Local { what: "cannot start".into(), source };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(local)?;
        let (interrupts, ready) = runtime.block_on(async { Interrupts::install_repeated(is_typed) }).map_err(local)?;
        let mut session = Session { options, client: None, interrupts, ready, runtime };
        session.reconnect()?;
        Ok(session)
    }

    fn reconnect(&mut self) -> Result<(), Failure> {
        let connected = self.interrupts.unless(Client::connect_with(self.options.clone()));
        let client = self.runtime.block_on(connected)?;
        let client = client.map_err(|error| Failure::Client { phase: Phase::Connect, error })?;
        warn_of_fallback(&client);
        self.client = Some(client);
        Ok(())
    }

    /// Makes a new connection if the last one has ended. Returns whether it did.
    ///
    /// A statement is never sent twice: the connection is tested before it is sent.
    ///
    /// # Errors
    /// See [`Self::connect`].
    pub(super) fn revive(&mut self) -> Result<bool, Failure> {
        self.ready.send_replace(None);
        if let Some(client) = &self.client {
            let pong = self.interrupts.unless(client.ping());
            if self.runtime.block_on(pong)?.is_ok() {
                return Ok(false);
            }
            self.client = None;
        }
        self.reconnect()?;
        Ok(true)
    }

    /// The server's name.
    pub(super) fn server(&self) -> String {
        let info = self.client.as_ref().map(Client::connection).unwrap_or_default();
        format!("{} at {}", info.server, info.address)
    }

    /// Runs a statement and writes its result. Ctrl-C ends it, here and at the server.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub(super) fn run(
        &mut self,
        sql: &str,
        format: FormatOptions,
        output: Output,
        progress: Progress,
    ) -> Result<(), Failure> {
        self.ready.send_replace(None);
        let (client, mut interrupts) = (self.client.as_ref().ok_or_else(lost)?, self.interrupts.clone());
        let failed = |error| Failure::Client { phase: Phase::Transfer, error };
        self.runtime.block_on(async {
            let answer = interrupts.unless(client.query_with(sql, QueryOptions::new())).await?;
            let result = answer.map_err(failed)?;
            let (outcome, _report) = deliver(result, format, output, progress, interrupts).await;
            outcome
        })
    }

    /// Lists objects of the server, for at most this time.
    ///
    /// # Errors
    /// [`Failure::Client`], [`Failure::Interrupted`].
    pub(super) fn objects(&mut self, request: &ObjectsRequest, limit: Duration) -> Result<Vec<CatalogObject>, Failure> {
        let client = self.client.as_ref().ok_or_else(lost)?;
        let late = |_| ClientError::Timeout { what: "the list of tables".into(), after: limit };
        let listed = async { tokio::time::timeout(limit, client.objects(request)).await.map_err(late)? };
        let listed = self.runtime.block_on(self.interrupts.unless(listed))?;
        listed.map_err(|error| Failure::Client { phase: Phase::Transfer, error })
    }

    /// Closes the connection in good order.
    pub(super) fn close(mut self) {
        if let Some(client) = self.client.take() {
            let _ = self.runtime.block_on(async { tokio::time::timeout(FAREWELL, client.close()).await });
        }
        self.runtime.shutdown_background();
    }
}

fn lost() -> Failure {
    let message = "there is no connection".into();
    Failure::Client { phase: Phase::Transfer, error: ClientError::ConnectionLost { message } }
}

/// Prints a failure with its SQLSTATE.
pub(super) fn print_failure(failure: &Failure) {
    match failure {
        Failure::BrokenPipe => return,
        Failure::Interrupted(_) => print_message(format_args!("cancelled")),
        Failure::Client { error, .. } => {
            let text = failure.to_string().replace('\n', "\n  ");
            print_message(format_args!("error (SQLSTATE {}): {text}", error.sqlstate()));
        }
        other => print_message(format_args!("error: {}", other.to_string().replace('\n', "\n  "))),
    }
    if let Some(hint) = failure.hint() {
        print_message(format_args!("hint: {hint}"));
    }
}

/// A file without a name, for text that is shown later.
pub(super) fn spool() -> Result<std::fs::File, Failure> {
    let failed = |source: io::Error| Failure::Local { what: "cannot create a temporary file".into(), source };
    tempfile::tempfile().map_err(failed)
}
