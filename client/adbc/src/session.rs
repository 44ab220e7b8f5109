//! One connection to a server, with the threads that drive it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use adbc_core::error::{Result, Status};
use thallus_client::{Client, ClientError, ConnectOptions};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::timeout;

use crate::cancel::Watch;
use crate::error::{cancelled, error, from_client, invalid_state};
use crate::fork::{self, Anchored};

/// Time allowed for closing a connection.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection. It closes when its last user is dropped: the connection object, a statement or a result.
#[derive(Debug)]
pub(crate) struct Session(Anchored<Driven>);

#[derive(Debug)]
struct Driven {
    /// `None` only within the drop.
    client: Option<Client>,
    runtime: Option<Runtime>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// Those of [`Client::connect_with`], and of the system that gives no thread.
    pub(crate) fn connect(options: ConnectOptions) -> Result<Arc<Session>> {
        fork::enter()?;
        check_context()?;
        // Each partition's connection can use a thread, up to the number of cores.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = usize::try_from(options.partitions).unwrap_or(cores).clamp(1, cores);
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).thread_name("thallus-adbc").enable_all().build();
        let failed = |e| error(Status::Internal, format!("cannot start the threads of a connection: {e}"));
        let runtime = runtime.map_err(failed)?;
        match runtime.block_on(Client::connect_with(options)) {
            Ok(client) => Ok(Arc::new(Session(Anchored::new(Driven { client: Some(client), runtime: Some(runtime) })))),
            Err(failed) => {
                // A name that is still being looked up would delay a plain drop.
                runtime.shutdown_background();
                Err(from_client(failed))
            }
        }
    }

    /// The client.
    ///
    /// # Errors
    /// This is a forked child.
    pub(crate) fn client(&self) -> Result<&Client> {
        // Only the drop takes it out.
        self.0.get()?.client.as_ref().ok_or_else(closed)
    }

    /// Waits for an operation, unless it is cancelled.
    ///
    /// # Errors
    /// Those of the operation; `Cancelled`; `InvalidState` in a forked child and within an async runtime.
    pub(crate) fn run<T>(
        &self,
        watch: &mut Watch,
        work: impl Future<Output = std::result::Result<T, ClientError>>,
    ) -> Result<T> {
        let runtime = self.0.get()?.runtime.as_ref().ok_or_else(closed)?;
        check_context()?;
        runtime.block_on(async {
            tokio::select! {
                // First, since a result that is always ready would hide it.
                biased;
                () = watch.cancelled() => Err(cancelled()),
                done = work => done.map_err(from_client),
            }
        })
    }
}

fn closed() -> adbc_core::error::Error {
    invalid_state("the connection is closed")
}

/// A call that blocks would stop the tasks of the runtime that it is in, and tokio panics.
fn check_context() -> Result<()> {
    match Handle::try_current() {
        Ok(_) => {
            Err(invalid_state("this call blocks; call it outside of an async runtime (tokio::task::spawn_blocking)"))
        }
        Err(_) => Ok(()),
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        let (Some(client), Some(runtime)) = (self.client.take(), self.runtime.take()) else { return };
        // In good order, since a mapped result is released only by a connection that still works. At the end of a
        // process the thread may have lost what a runtime needs; a panic must not reach the application.
        let closed = catch_unwind(AssertUnwindSafe(|| {
            if check_context().is_err() {
                return runtime.shutdown_background();
            }
            let _in_time = runtime.block_on(async { timeout(FAREWELL, client.close()).await });
            runtime.shutdown_timeout(FAREWELL);
        }));
        drop(closed);
    }
}
