//! Unix sockets that keep the boundaries of messages (`SOCK_SEQPACKET`), and descriptors sent over them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Longest message.
pub(crate) const MAX_MESSAGE: usize = 64;
/// Connections that may wait to be accepted. Only one is expected: the rest is room for strangers.
const BACKLOG: i32 = 64;

/// A message, and the descriptors that came with it.
pub(crate) type Received = (Vec<u8>, Vec<OwnedFd>);

fn new() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Listens on the abstract name.
pub(crate) fn listen(name: &str) -> io::Result<OwnedFd> {
    let socket = new()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Listens on a path, at which every user may connect that reaches its directory.
pub(crate) fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    let socket = new()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    open_to_all(path)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Lets every user connect at a path where this process has just bound a socket. Another process may have replaced it,
/// by a link for example: only a socket of this user is changed.
fn open_to_all(path: &Path) -> io::Result<()> {
    use rustix::fs::{FileType, Mode, OFlags};
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&file)?;
    let is_own = stat.st_uid == rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || !is_own {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another process has replaced the socket"));
    }
    Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(0o666))?)
}

/// Connects to an abstract name. The call never waits.
pub(crate) fn dial(name: &str) -> io::Result<OwnedFd> {
    let socket = new()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(socket)
}

/// Connects to a path. The call never waits.
pub(crate) fn dial_path(path: &Path) -> io::Result<OwnedFd> {
    let socket = new()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A connection that waits to be accepted; `None` if there is none.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(socket) => Ok(Some(socket)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The result of sending a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Done,
    /// The peer's queue is full. The socket is ready again once there is room.
    Full,
    /// Too many descriptors of this user are on their way to other processes. No socket tells when they have arrived.
    Crowded,
}

/// Sends a message, with a descriptor if there is one.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<Sent> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.as_slice();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, flags) {
        Ok(_) => Ok(Sent::Done),
        Err(rustix::io::Errno::AGAIN) => Ok(Sent::Full),
        Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::TOOMANYREFS) => Ok(Sent::Crowded),
        Err(error) => Err(error.into()),
    }
}

/// The next message. `Ok(None)`: none is there yet. An error of kind `UnexpectedEof` once the peer has closed its end.
///
/// `with_files`: takes descriptors too. Not from a peer that has proven nothing: closing a descriptor can block, if its
/// file belongs to a file system in user space. Without, the kernel discards them, and the message is an error.
pub(crate) fn receive(socket: BorrowedFd<'_>, with_files: bool) -> io::Result<Option<Received>> {
    let mut message = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(if with_files { &mut space } else { &mut [] });
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, flags);
    let received = match received {
        Ok(received) => received,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let messages = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let files: Vec<OwnedFd> = messages.flatten().collect();
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // A descriptor is cut off where this process has no more room for one (`ulimit -n`).
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        close_elsewhere(files);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message was cut short: it is too long, or this process has no room for more open files (`ulimit -n`)",
        ));
    }
    Ok(Some((message[..received.bytes].to_vec(), files)))
}

/// Closes descriptors of a peer that are no memory files, on a separate thread: closing may block for as long as the
/// peer likes.
pub(crate) fn close_elsewhere(files: Vec<OwnedFd>) {
    if files.is_empty() {
        return;
    }
    let closing = std::thread::Builder::new().name("thallus-close".into());
    if let Err(error) = closing.spawn(move || drop(files)) {
        tracing::debug!(%error, "descriptors of a peer were closed by the spawning thread");
    }
}

/// The user at the other end, as the kernel knows it.
pub(crate) fn user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // Not by rustix, whose type for the peer's process excludes 0: the id of a process of another namespace.
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: an open socket, and room for a `ucred` of which the call writes at most `len` bytes.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if asked == 0 { Ok(peer.uid) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str) -> (OwnedFd, OwnedFd) {
        let listener = listen(name).unwrap();
        let dialled = dial(name).unwrap();
        (accept(listener.as_fd()).unwrap().unwrap(), dialled)
    }

    #[test]
    fn messages_and_descriptors_arrive_whole_and_in_order() {
        let (a, b) = pair("thallus-test-messages");
        assert!(receive(a.as_fd(), true).unwrap().is_none());
        let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(send(b.as_fd(), b"one", None).unwrap(), Sent::Done);
        assert_eq!(send(b.as_fd(), b"two", Some(file.as_fd())).unwrap(), Sent::Done);
        let (message, none) = receive(a.as_fd(), true).unwrap().unwrap();
        assert!(message == b"one" && none.is_empty());
        let (message, some) = receive(a.as_fd(), true).unwrap().unwrap();
        assert!(message == b"two" && some.len() == 1);
        assert_eq!(send(b.as_fd(), &[1; MAX_MESSAGE + 1], None).unwrap(), Sent::Done);
        assert!(receive(a.as_fd(), true).is_err(), "too long");
        drop(b);
        assert_eq!(receive(a.as_fd(), true).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_kernel_vouches_for_the_peer() {
        let (a, b) = pair("thallus-test-peer");
        let own = rustix::process::geteuid().as_raw();
        assert_eq!((user(a.as_fd()).unwrap(), user(b.as_fd()).unwrap()), (own, own));
    }

    #[test]
    fn a_name_without_a_listener_is_refused_at_once() {
        assert_eq!(dial("thallus-test-none").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = listen_at(&path).unwrap();
        dial_path(&path).unwrap();
        drop(listener);
        assert_eq!(dial_path(&path).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
