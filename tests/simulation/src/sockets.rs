//! The sockets of a simulated process, as its kernel would hold them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turmoil::net::TcpStream;

/// The sockets of one process. Clones share the same sockets.
///
/// A dropped runtime drops its tasks in an order that depends on the number of tasks that the whole test process has
/// ever spawned (tokio shards tasks by their numbers). The peers of the connections would see their ends in that order,
/// and two runs of a seed would differ. So the sockets of a killed process stay open until its last task is gone, and
/// then close in the order in which they were opened.
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

    /// From now on no socket closes until the last handle has been dropped. Then all close.
    pub fn kill(self) {
        self.lock().killed = true;
    }

    /// Adds a socket.
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

/// A process's handle of a socket. Dropping the handle closes the socket.
#[derive(Debug)]
pub struct Socket {
    sockets: Sockets,
    number: u64,
}

impl Socket {
    /// All sockets of the process.
    pub fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// Calls a function with the stream.
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
