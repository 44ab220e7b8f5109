//! Checks whether a process holds the other end of a TCP connection, from Linux's `/proc/PID/net/tcp` and
//! `/proc/PID/fd` (proc(5)). A peer can send any process id; the kernel knows whose socket it is.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use thallus_protocol::message::ProcessId;

use super::{Presence, presence};

/// The addresses of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpEnds {
    /// The address of this process' end.
    pub own: SocketAddr,
    /// The address of the peer's end.
    pub peer: SocketAddr,
}

/// Returns whether the process runs and has the peer's end of the connection open.
///
/// Both processes must be on one host and in one PID namespace, and this process must be allowed to see the other's
/// open files: by the same user, or as root. Address translation between the two ends hides the peer's socket.
///
/// # Errors
/// `/proc` does not tell: the process is gone, or belongs to another user.
pub fn holds_peer_end(process: ProcessId, ends: TcpEnds) -> io::Result<bool> {
    let inodes = sockets_of(process.pid, ends)?;
    if inodes.is_empty() {
        return Ok(false);
    }
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for descriptor in fs::read_dir(format!("/proc/{}/fd", process.pid))? {
        // A descriptor may be closed meanwhile.
        let Ok(target) = fs::read_link(descriptor?.path()) else { continue };
        if target.to_str().is_some_and(|target| sockets.iter().any(|socket| socket == target)) {
            // The descriptors may be those of a later process with this id.
            return Ok(presence(process) == Presence::Running);
        }
    }
    Ok(false)
}

/// The inodes of the sockets at the peer's end, in the network namespace of this process id.
fn sockets_of(pid: u32, ends: TcpEnds) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        match fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => found.extend(text.lines().filter_map(|line| inode(line, ends))),
            // A kernel without IPv6 has no second table.
            Err(error) if table == "tcp6" && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The inode in a line of the table, if the line is of the peer's end of the connection.
fn inode(line: &str, ends: TcpEnds) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace();
    let (local, remote) = (address(fields.nth(1)?)?, address(fields.next()?)?);
    let is_peer = (local, remote) == (canonical(ends.peer), canonical(ends.own));
    // After the addresses: state, queues, timer, retransmissions, user, timeout, inode.
    fields.nth(6).filter(|_| is_peer)?.parse::<u64>().ok().filter(|inode| *inode != 0)
}

/// An address of the table: words of the machine's byte order in hexadecimal, and the port.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(words.get(8 * at..8 * at + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match words.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[4 * at..4 * at + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, port))
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    use super::super::{current, fields};
    use super::*;

    fn connected(listen: &str, dial: impl Fn(u16) -> SocketAddr) -> Option<(TcpStream, TcpStream, TcpEnds)> {
        let listener = TcpListener::bind(listen).ok()?;
        let near = TcpStream::connect(dial(listener.local_addr().unwrap().port())).ok()?;
        let (far, peer) = listener.accept().unwrap();
        let ends = TcpEnds { own: far.local_addr().unwrap(), peer };
        Some((near, far, ends))
    }

    #[test]
    fn only_the_process_with_the_peers_end_holds_it() {
        let this = current().unwrap();
        // A dual-stack listener sees an IPv4 client by a mapped address.
        for listen in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let dial = |port| match listen {
                "[::1]:0" => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
                _ => SocketAddr::from(([127, 0, 0, 1], port)),
            };
            let Some((near, far, ends)) = connected(listen, dial) else {
                assert_ne!(listen, "127.0.0.1:0", "IPv6 may be missing, IPv4 not");
                continue;
            };
            assert!(holds_peer_end(this, ends).unwrap(), "{listen}");
            assert!(!holds_peer_end(ProcessId { started: this.started + 1, ..this }, ends).unwrap(), "{listen}");
            let other = TcpEnds { peer: SocketAddr::new(ends.peer.ip(), ends.peer.port() ^ 1), ..ends };
            assert!(!holds_peer_end(this, other).unwrap(), "{listen}");
            drop(near);
            assert!(!holds_peer_end(this, ends).unwrap(), "{listen}");
            drop(far);
        }
    }

    #[test]
    fn another_process_does_not_hold_it() {
        let (_near, _far, ends) = connected("127.0.0.1:0", |port| SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let process = ProcessId { pid: child.id(), started: fields(&stat).unwrap().started };
        assert_eq!(presence(process), Presence::Running);
        assert!(!holds_peer_end(process, ends).unwrap());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(holds_peer_end(process, ends).is_err(), "the process is gone");
    }

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let ends = TcpEnds { own: "127.0.0.1:7807".parse().unwrap(), peer: "127.0.0.1:50814".parse().unwrap() };
        let line =
            "   1: 0100007F:C67E 0100007F:1E7F 01 00000000:00000000 00:00000000 00000000  1000        0 424242 1";
        #[cfg(target_endian = "little")]
        assert_eq!(inode(line, ends), Some(424_242));
        assert_eq!(inode(line, TcpEnds { own: ends.peer, peer: ends.own }), None);
        for garbage in
            ["", "  sl  local_address rem_address   st", "1: x:y 0100007F:1E7F", "1: 7F:1 7F:1 01 0 0 0 0 0 1"]
        {
            assert_eq!(inode(garbage, ends), None, "{garbage}");
        }
    }
}
