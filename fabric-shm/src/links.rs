//! The sockets between two endpoints: how they find each other, and how descriptors of regions travel.
//!
//! Each endpoint listens from its creation on. The end that is connected first dials the other; the second one finds
//! that connection waiting, or dials itself. Only one of the two directions may work: a container with its own network
//! namespace is reached through a socket with a path, if the other end has one. If both ends dial at once there are two
//! links, and both serve.
//!
//! The dialling end shows the secret of the other's address (`HELLO`), and the other answers with that of the first
//! (`WELCOME`). Only then do descriptors travel. Messages on a link arrive in order, and the kernel queues them in
//! `sendmsg`: a region that was sent before its key went out on the control connection is there when the key arrives.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::process::Presence;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

use crate::address::{Address, Secret};
use crate::attachment::{self, Attachment, Attachments};
use crate::region::ShmRegistration;
use crate::socket::{self, Sent};

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REGION: u8 = 3;
const WITHDRAWN: u8 = 4;
const BYE: u8 = 5;

/// Connections that have not shown the secret yet. More are closed, the oldest first.
const MAX_STRANGERS: usize = 8;
/// Regions that a peer may have sent and not withdrawn: the segments of 256 GiB.
const MAX_REGIONS: usize = 8192;
/// Regions of these that have not been used. Each costs this process a descriptor.
const MAX_UNUSED: usize = 512;
/// Time until a message is sent again that found too many descriptors on their way.
const RETRY: Duration = Duration::from_millis(10);
/// Messages that are taken from a link in one turn, so that a peer cannot hold the task.
const MAX_MESSAGES: usize = 64;

/// A socket that other ends may share: the buffers that this process has mapped keep it open, so that the lender sees
/// the end of this process and not only that of its endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Socket(Arc<OwnedFd>);

impl Socket {
    /// Whether the process at the other end is still there: whether any process has that end open.
    pub(crate) fn presence(&self) -> Presence {
        let mut polled = [PollFd::new(&self.0, PollFlags::RDHUP)];
        match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
            Ok(0) => Presence::Running,
            Ok(_) if polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) => Presence::Ended,
            Ok(_) => Presence::Running,
            Err(_) => Presence::Unknown,
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A listening socket. Its path is removed with it.
struct Listener {
    io: AsyncFd<OwnedFd>,
    path: Option<PathBuf>,
    /// Connections may wait.
    due: bool,
}

impl Listener {
    fn new(socket: OwnedFd, path: Option<PathBuf>) -> io::Result<Self> {
        Ok(Listener { io: reading(socket)?, path, due: true })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Another process may have swept it.
            _ = std::fs::remove_file(path);
        }
    }
}

/// A connected socket.
struct Link {
    io: AsyncFd<Socket>,
    /// The user at the other end.
    user: u32,
    /// Whether this end has dialled the peer's name. No other process of the namespace can have the name, so the other
    /// end is the peer's. A path can be replaced.
    by_name: bool,
    state: LinkState,
    /// Whether messages may wait. Looking costs a system call, so it is not done at every turn.
    due: bool,
}

/// A region that a peer has sent. It is mapped when it is used first.
enum Arrived {
    File(OwnedFd, u64),
    Mapped(Result<Arc<Attachment>, String>),
}

impl Arrived {
    fn is_unused(&self) -> bool {
        matches!(self, Arrived::File(..))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    /// Accepted; the other end has not shown the secret yet.
    Stranger,
    /// Dialled; the other end has not answered yet.
    Dialled,
    /// Both ends have proven themselves.
    Up,
}

/// A message to be sent.
enum Outgoing {
    Region { number: u64, memory: Arc<RegisteredMemory> },
    Withdrawn { number: u64 },
}

/// The sockets of one endpoint.
pub(crate) struct Links {
    own: Address,
    peer: Option<Address>,
    listeners: Vec<Listener>,
    links: Vec<Link>,
    outbox: VecDeque<Outgoing>,
    /// Runs until the outbox is tried again, if no socket will tell.
    retry: Option<Pin<Box<Sleep>>>,
    arrived: HashMap<u64, Arrived>,
    /// The number of these that have not been used.
    unused: usize,
    attachments: Arc<Attachments>,
}

impl Links {
    /// Listens at this address.
    pub(crate) fn new(own: Address, attachments: Arc<Attachments>) -> io::Result<Self> {
        let mut listeners = vec![Listener::new(socket::listen(&own.abstract_name())?, None)?];
        if let Some(path) = &own.path {
            let listener = socket::listen_at(path).and_then(|socket| Listener::new(socket, Some(path.clone())));
            listeners.push(listener.inspect_err(|_| _ = std::fs::remove_file(path))?);
        }
        Ok(Links {
            own,
            peer: None,
            listeners,
            links: Vec::new(),
            outbox: VecDeque::new(),
            retry: None,
            arrived: HashMap::new(),
            unused: 0,
            attachments,
        })
    }

    pub(crate) fn own(&self) -> &Address {
        &self.own
    }

    pub(crate) fn peer(&self) -> Option<&Address> {
        self.peer.as_ref()
    }

    /// Connects to the peer, or finds that the peer has connected already. The call never waits.
    pub(crate) fn connect(&mut self, peer: Address) -> Result<(), String> {
        if peer.is_elsewhere() {
            return Err("the peer is on another host".to_owned());
        }
        let name = peer.shares_names().then(|| peer.abstract_name());
        let path = peer.path.clone();
        self.peer = Some(peer);
        self.progress()?;
        if self.is_up() {
            return Ok(());
        }
        let named = name.map_or(Err(io::ErrorKind::ConnectionRefused.into()), |name| socket::dial(&name));
        let by_name = named.is_ok();
        let dialled = named.or_else(|error: io::Error| path.as_deref().map_or(Err(error), socket::dial_path));
        match dialled {
            Ok(dialled) => {
                let link = Link::new(dialled, LinkState::Dialled);
                let mut link = Link { by_name, ..link.map_err(|error| error.to_string())? };
                let secret = self.peer.as_ref().map(|peer| peer.secret).unwrap_or_default();
                link.say(HELLO, &secret).map_err(|error| format!("the peer's socket: {error}"))?;
                self.links.push(link);
                self.progress()
            }
            // The peer can still come here.
            Err(_) if self.own.path.is_some() => Ok(()),
            Err(error) => Err(format!(
                "its socket cannot be reached ({error}): it is gone, or in another network namespace; then start the \
                 server with --shm-directory DIR, a directory that both see"
            )),
        }
    }

    /// The user at the other end, as the kernel knows it, once it is sure that the other end is the peer's.
    pub(crate) fn user(&self) -> Option<u32> {
        let is_sure = |link: &&Link| link.state == LinkState::Up || (link.state == LinkState::Dialled && link.by_name);
        self.links.iter().find(is_sure).map(|link| link.user)
    }

    /// The links whose other ends are the peer's.
    pub(crate) fn sockets(&self) -> Vec<Socket> {
        self.links.iter().filter(|link| link.state == LinkState::Up).map(|link| link.io.get_ref().clone()).collect()
    }

    /// Whether both ends have proven themselves.
    pub(crate) fn is_up(&self) -> bool {
        self.links.iter().any(|link| link.state == LinkState::Up)
    }

    /// Sends a region, as soon as there is a link.
    pub(crate) fn offer(&mut self, number: u64, memory: Arc<RegisteredMemory>) {
        self.outbox.push_back(Outgoing::Region { number, memory });
    }

    /// Tells the peer to let go of a region.
    pub(crate) fn withdraw(&mut self, number: u64) {
        self.outbox.push_back(Outgoing::Withdrawn { number });
    }

    /// The region of this number, once it is there. The first call maps it.
    pub(crate) fn arrived(&mut self, number: u64) -> Option<&Result<Arc<Attachment>, String>> {
        let arrived = self.arrived.get_mut(&number)?;
        if let Arrived::File(file, len) = arrived {
            *arrived = Arrived::Mapped(self.attachments.attach(file, *len));
            self.unused -= 1;
        }
        match arrived {
            Arrived::Mapped(mapped) => Some(mapped),
            Arrived::File(..) => None,
        }
    }

    /// Tells the peer that this end closes, and closes it. `forked`: this process is a child of the one that connected.
    /// It keeps its copies of the descriptors until it ends, and tells the peer nothing.
    pub(crate) fn close(&mut self, forked: bool) {
        if forked {
            // Dropping them would take the parent's sockets out of the poller that both processes share.
            std::mem::forget(std::mem::take(&mut self.listeners));
            std::mem::forget(std::mem::take(&mut self.links));
        }
        for link in self.links.iter_mut().filter(|link| link.state == LinkState::Up) {
            // The peer may be gone, or not read any more: it sees the end of the connection then.
            _ = link.say(BYE, &Secret::default());
        }
        self.listeners.clear();
        self.links.clear();
        self.outbox.clear();
        self.arrived.clear();
        self.unused = 0;
    }

    /// The next [`Links::progress`] looks at every socket, whether [`Links::watch`] has found anything there or not.
    pub(crate) fn look(&mut self) {
        self.listeners.iter_mut().for_each(|listener| listener.due = true);
        self.links.iter_mut().for_each(|link| link.due = true);
    }

    /// Does everything that can be done without waiting.
    ///
    /// # Errors
    /// Why the endpoint is beyond use.
    pub(crate) fn progress(&mut self) -> Result<(), String> {
        self.accept()?;
        let mut at = 0;
        while at < self.links.len() {
            if !self.links[at].due {
                at += 1;
                continue;
            }
            match self.receive(at) {
                Ok(()) => at += 1,
                // The true peer may still connect.
                Err(_) if self.links[at].state == LinkState::Stranger => drop(self.links.remove(at)),
                Err(reason) => return Err(reason),
            }
        }
        if self.is_up() {
            // One connection is expected, and it is there: the sockets to listen on are two descriptors less.
            self.listeners.clear();
            self.links.retain(|link| link.state != LinkState::Stranger);
        }
        self.send_offers()
    }

    /// Wakes the task when there is anything to do. Returns whether there is already.
    pub(crate) fn watch(&mut self, cx: &mut Context<'_>) -> bool {
        let mut ready = self.retry.as_mut().is_some_and(|retry| retry.as_mut().poll(cx).is_ready());
        if ready {
            self.retry = None;
        }
        for listener in &mut self.listeners {
            if let Poll::Ready(Ok(mut guard)) = listener.io.poll_read_ready(cx) {
                guard.clear_ready();
                listener.due = true;
                ready = true;
            }
        }
        for link in &mut self.links {
            if let Poll::Ready(Ok(mut guard)) = link.io.poll_read_ready(cx) {
                guard.clear_ready();
                link.due = true;
            }
            ready |= link.due;
            if !self.outbox.is_empty()
                && link.state == LinkState::Up
                && let Poll::Ready(Ok(mut guard)) = link.io.poll_write_ready(cx)
            {
                guard.clear_ready();
                ready = true;
            }
        }
        ready
    }

    fn accept(&mut self) -> Result<(), String> {
        // Before, this end does not know which secret to answer with.
        if self.peer.is_none() {
            return Ok(());
        }
        for listener in self.listeners.iter_mut().filter(|listener| listener.due) {
            for _ in 0..MAX_MESSAGES {
                let accepted = socket::accept(listener.io.get_ref().as_fd());
                let accepted = accepted.map_err(|error| format!("accepting the peer's connection: {error}"))?;
                let Some(socket) = accepted else {
                    listener.due = false;
                    break;
                };
                self.links.push(Link::new(socket, LinkState::Stranger).map_err(|error| error.to_string())?);
            }
        }
        while self.links.iter().filter(|link| link.state == LinkState::Stranger).count() > MAX_STRANGERS {
            let oldest = self.links.iter().position(|link| link.state == LinkState::Stranger).unwrap_or(0);
            self.links.remove(oldest);
        }
        Ok(())
    }

    /// Takes the messages of a link.
    fn receive(&mut self, at: usize) -> Result<(), String> {
        for _ in 0..MAX_MESSAGES {
            let Some(link) = self.links.get_mut(at) else { return Ok(()) };
            let is_up = link.state == LinkState::Up;
            let received = socket::receive(link.io.get_ref().as_fd(), is_up).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "the peer is gone".to_owned(),
                _ => format!("the peer's socket: {error}"),
            })?;
            let Some((message, mut files)) = received else {
                link.due = false;
                return Ok(());
            };
            let Some((&tag, rest)) = message.split_first() else { continue };
            let theirs = self.peer.as_ref().map(|peer| peer.secret);
            match (link.state, tag, files.len()) {
                (LinkState::Stranger, HELLO, 0) if rest == self.own.secret => {
                    let secret: Secret = theirs.unwrap_or_default();
                    link.say(WELCOME, &secret).map_err(|error| format!("the peer's socket: {error}"))?;
                    link.state = LinkState::Up;
                }
                (LinkState::Dialled, WELCOME, 0) if rest == self.own.secret => link.state = LinkState::Up,
                (LinkState::Up, REGION, 1) if rest.len() == 16 => {
                    let (number, len) = (number(rest), number(&rest[8..]));
                    let checked = if self.arrived.len() >= MAX_REGIONS {
                        Err(format!("more than {MAX_REGIONS} regions"))
                    } else if self.unused >= MAX_UNUSED {
                        Err(format!("more than {MAX_UNUSED} regions that nothing has used"))
                    } else {
                        attachment::check(&files[0])
                    };
                    if let Err(reason) = checked {
                        socket::close_elsewhere(files);
                        return Err(format!("the peer sent a region that cannot be taken: {reason}"));
                    }
                    if let Some(file) = files.pop() {
                        self.unused += 1;
                        let before = self.arrived.insert(number, Arrived::File(file, len));
                        self.unused -= usize::from(before.is_some_and(|before| before.is_unused()));
                    }
                }
                (LinkState::Up, WITHDRAWN, 0) if rest.len() == 16 => {
                    let gone = self.arrived.remove(&number(rest));
                    self.unused -= usize::from(gone.is_some_and(|gone| gone.is_unused()));
                }
                (LinkState::Up, BYE, 0) => return Err("the peer has closed its end".to_owned()),
                _ => {
                    socket::close_elsewhere(files);
                    return Err("the peer sent bytes that are no message of this fabric".to_owned());
                }
            }
        }
        Ok(())
    }

    fn send_offers(&mut self) -> Result<(), String> {
        let Some(link) = self.links.iter().find(|link| link.state == LinkState::Up) else { return Ok(()) };
        while let Some(outgoing) = self.outbox.front() {
            let (tag, number, len, file) = match outgoing {
                Outgoing::Region { number, memory } => {
                    let file = shown_to(link.user, memory)?;
                    (REGION, *number, memory.len() as u64, Some(file))
                }
                Outgoing::Withdrawn { number } => (WITHDRAWN, *number, 0, None),
            };
            let message = message(tag, [number, len].map(u64::to_le_bytes).as_flattened());
            match socket::send(link.io.get_ref().as_fd(), &message, file) {
                Ok(Sent::Done) => drop(self.outbox.pop_front()),
                Ok(Sent::Full) => return Ok(()),
                Ok(Sent::Crowded) => {
                    self.retry.get_or_insert_with(|| Box::pin(tokio::time::sleep(RETRY)));
                    return Ok(());
                }
                Err(error) => return Err(format!("sending a region to the peer: {error}")),
            }
        }
        Ok(())
    }
}

impl Link {
    fn new(socket: OwnedFd, state: LinkState) -> io::Result<Self> {
        let user = socket::user(socket.as_fd())?;
        // SAFETY: the socket owns its descriptor, which stays open and the same until the `AsyncFd` is dropped.
        let io = unsafe { AsyncFd::register(Socket(Arc::new(socket))) }?;
        Ok(Link { io, user, by_name: false, state, due: true })
    }

    fn say(&mut self, tag: u8, secret: &Secret) -> io::Result<()> {
        // The first message of a link finds room.
        socket::send(self.io.get_ref().as_fd(), &message(tag, secret), None).map(drop)
    }
}

/// A message of 17 bytes: its tag and 16 bytes.
fn message(tag: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend_from_slice(rest);
    message.resize(17, 0);
    message
}

/// The descriptor of memory, if this user may see it.
fn shown_to(user: u32, memory: &RegisteredMemory) -> Result<BorrowedFd<'_>, String> {
    let registration = memory.registration::<ShmRegistration>();
    let registration = registration.ok_or("bug: memory of another fabric was offered")?;
    if registration.audience().admits(user) {
        Ok(registration.file())
    } else {
        Err(format!("the peer runs as user {user}, and this memory is shown to {:?} only", registration.audience()))
    }
}

fn reading(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the socket owns its descriptor, which stays open and the same until the `AsyncFd` is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// The little-endian number at the beginning.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("links", &self.links.iter().map(|link| link.state).collect::<Vec<_>>())
            .field("outbox", &self.outbox.len())
            .field("arrived", &self.arrived.len())
            .finish_non_exhaustive()
    }
}
