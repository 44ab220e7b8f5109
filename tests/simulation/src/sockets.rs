//! A process's sockets, as its kernel has them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turmoil::net::TcpStream;

/// The sockets of one process. Clones are the same ones.
///
/// A runtime that is dropped drops its tasks in an order that depends on how many tasks the whole test process has ever spawned
/// (tokio shards them by their numbers), and each of a peer's connections would hear of the end in that order: two runs of a seed
/// would differ. So the sockets of a process that is killed are kept until all of it is gone, and close in the order in which they
/// were opened.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Mutex<Open>>);

#[derive(Default)]
struct Open {
    streams: BTreeMap<u64, TcpStream>,
    opened: u64,
    killed: bool,
}

impl Sockets {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing closes, but all at once when the last of the process has been dropped.
    pub fn kill(self) {
        self.lock().killed = true;
    }

    /// One more.
    pub fn open(&self, stream: TcpStream) -> Socket {
        let mut open = self.lock();
        open.opened += 1;
        let number = open.opened;
        open.streams.insert(number, stream);
        drop(open);
        Socket { sockets: self.clone(), number }
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sockets({:?})", self.lock().streams.keys())
    }
}

/// A process's handle of a socket. The socket closes with it.
#[derive(Debug)]
pub struct Socket {
    sockets: Sockets,
    number: u64,
}

impl Socket {
    /// The process's.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Does something with the stream.
    pub fn with<T>(&self, what: impl FnOnce(&mut TcpStream) -> T) -> T {
        let mut open = self.sockets.lock();
        what(open.streams.get_mut(&self.number).expect("a socket is open while its handle lives"))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let stream = {
            let mut open = self.sockets.lock();
            if open.killed { None } else { open.streams.remove(&self.number) }
        };
        drop(stream);
    }
}
