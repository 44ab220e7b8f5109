//! The connections of a client to its server: one at first, more as results in partitions need them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, join_all, try_join_all};
use thallus_driver::MAX_THRESHOLD;
use thallus_protocol::message::{Access, LendFrom, OpenOptions, Request};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::driver::{Command, Handle};
use crate::error::ClientError;
use crate::report::ConnectionInfo;
use crate::result::PartStream;

/// A connection. It closes when the last clone and every result of it have been dropped.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) handle: Arc<Handle>,
    pub(crate) info: Arc<Mutex<ConnectionInfo>>,
    /// Size of the largest batch that is accepted, in bytes.
    pub(crate) max_batch: u64,
}

impl Link {
    /// Sends a query. The caller then waits for its schema.
    pub(crate) fn query(&self, sql: &str, options: OpenOptions, started: Instant) -> Result<PartStream, ClientError> {
        self.open(Request::Sql(sql.to_owned()), options, started)
    }

    /// Sends a request whose rows the server lends. The caller then waits for their schema.
    pub(crate) fn open(
        &self,
        request: Request,
        options: OpenOptions,
        started: Instant,
    ) -> Result<PartStream, ClientError> {
        let mapped_from = match (options.access, options.lend_from) {
            (Access::Map(_), LendFrom::Bytes(bytes)) => Some(bytes),
            (Access::Map(_), LendFrom::Auto) => Some(MAX_THRESHOLD),
            _ => None,
        };
        let wants_loans = options.lend_from != LendFrom::Never;
        let (stream, items) = self.handle.request(request, options).ok_or_else(ClientError::gone)?;
        let mut part = PartStream::new(Arc::clone(&self.handle), stream, items, started, Arc::clone(&self.info));
        part.mapped_from = mapped_from;
        part.wants_loans = wants_loans;
        part.max_batch = self.max_batch;
        Ok(part)
    }

    pub(crate) fn info(&self) -> ConnectionInfo {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.handle.send(Command::Close { done }) {
            // The connection drops the sender when it has closed.
            let _closed = closed.await;
        }
    }
}

/// A connection's task, and whether mapped results were requested on it.
#[derive(Debug)]
struct Driven {
    task: JoinHandle<()>,
    maps: Arc<AtomicBool>,
}

/// The tasks that drive a client's connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks(Arc<Mutex<Vec<Driven>>>, Arc<AtomicU64>);

impl Tasks {
    /// A number for the next connection.
    pub(crate) fn number(&self) -> u64 {
        self.1.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn add(&self, task: JoinHandle<()>, maps: Arc<AtomicBool>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|driven| !driven.task.is_finished());
        tasks.push(Driven { task, maps });
    }

    /// The tasks of connections with mapped results, whose arrays may still be held.
    pub(crate) fn take_mapped(&self) -> Vec<JoinHandle<()>> {
        let tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mapped = |driven: &Driven| driven.maps.load(Ordering::Relaxed) && !driven.task.is_finished();
        tasks.into_iter().filter(mapped).map(|driven| driven.task).collect()
    }
}

/// Makes one more connection to the same server.
pub(crate) type Dial = Box<dyn Fn() -> BoxFuture<'static, Result<Link, ClientError>> + Send + Sync>;

/// A client's connections, kept for later queries. Each has its own fabric endpoint.
pub(crate) struct Links {
    first: Link,
    dial: Option<Dial>,
    others: tokio::sync::Mutex<Vec<Link>>,
    tasks: Tasks,
}

impl Links {
    /// Without `dial` there is only the first connection, and partitions share it. `tasks` drive all connections.
    pub(crate) fn new(first: Link, dial: Option<Dial>, tasks: Tasks) -> Self {
        Links { first, dial, others: tokio::sync::Mutex::default(), tasks }
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    pub(crate) fn first(&self) -> &Link {
        &self.first
    }

    /// Connections for `count` partitions: that many if more can be made.
    pub(crate) async fn open_links(&self, count: usize) -> Result<Vec<Link>, ClientError> {
        let mut links = vec![self.first.clone()];
        let Some(dial) = self.dial.as_ref().filter(|_| count > 1) else { return Ok(links) };
        // Concurrent queries wait for each other here, and share new connections.
        let mut others = self.others.lock().await;
        others.retain(|link| link.handle.is_open());
        let missing = (count - 1).saturating_sub(others.len());
        others.extend(try_join_all((0..missing).map(|_| dial())).await?);
        links.extend(others.iter().take(count - 1).cloned());
        Ok(links)
    }

    pub(crate) async fn close(self) {
        let others = self.others.into_inner();
        join_all(others.into_iter().chain([self.first]).map(Link::close)).await;
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("first", &self.first).field("others", &self.others).finish_non_exhaustive()
    }
}
