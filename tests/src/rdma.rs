//! RDMA objects of processes, as counted by the kernel (rdma-resource(8)), and links that a test can take down.

use std::fs;
use std::process::{Child, Command};

use serde_json::Value;

use crate::PATIENCE;
use crate::process::until;

/// RDMA objects of user processes. Objects of the kernel itself do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Open devices.
    pub contexts: usize,
    /// Queue pairs.
    pub queue_pairs: usize,
    /// Memory regions (registered and pinned memory).
    pub regions: usize,
}

/// Objects of all processes together, on all devices. A count for one process is not possible: the kernel records the
/// thread that made an object, and that thread may have ended.
///
/// # Panics
/// If `rdma` (of iproute2) is missing, or its output cannot be parsed.
#[must_use]
pub fn resources() -> Resources {
    let of = |kind: &str| {
        let text = run("rdma", &["-j", "resource", "show", kind]);
        let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("rdma printed {text:?}: {e}"));
        all.iter().filter(|object| object.get("pid").is_some()).count()
    };
    Resources { contexts: of("ctx"), queue_pairs: of("qp"), regions: of("mr") }
}

/// Runs a system program to its end, and returns its standard output.
///
/// # Panics
/// If the program cannot be started, or fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A separate RDMA device for a test that breaks it: Soft-RoCE over a pair of interfaces. Dropping it removes the
/// device.
#[derive(Debug)]
pub struct SpareDevice {
    /// Name of the RDMA device.
    pub name: &'static str,
    /// Name of the network interface below the device.
    pub interface: &'static str,
    removal: Option<Child>,
}

impl SpareDevice {
    /// Creates the device.
    ///
    /// # Panics
    /// If a step fails. All functions of this type panic on failure.
    #[must_use]
    pub fn new() -> Self {
        let (name, interface) = ("spare", "spare0");
        run("ip", &["link", "add", interface, "mtu", "4200", "type", "veth", "peer", "name", "spare1", "mtu", "4200"]);
        run("ip", &["addr", "add", "10.3.0.1/24", "dev", interface]);
        run("ip", &["-6", "addr", "add", "fd00:3::1/64", "dev", interface, "nodad"]);
        run("ip", &["link", "set", "spare1", "up"]);
        run("ip", &["link", "set", interface, "up"]);
        run("rdma", &["link", "add", name, "type", "rxe", "netdev", interface]);
        until("the spare device to have addresses", PATIENCE, || (gids(name) >= 3).then_some(()));
        SpareDevice { name, interface, removal: None }
    }

    /// Removes the hardware, as if the card had been pulled. The kernel finishes the removal only when processes have
    /// closed their objects on the device.
    pub fn pull(&mut self) {
        let removal = Command::new("ip").args(["link", "del", self.interface]).spawn();
        self.removal = Some(removal.unwrap_or_else(|e| panic!("cannot run ip: {e}")));
    }

    /// Waits until no process uses the pulled device.
    pub fn until_gone(&mut self) {
        let removal = self.removal.as_mut().expect("the device was pulled");
        let ended = until("the device to be released", PATIENCE, || removal.try_wait().expect("a child's status"));
        assert!(ended.success(), "ip link del: {ended}");
        let listed = || run("rdma", &["link"]).contains(self.name);
        until("the device to vanish", PATIENCE, || (!listed()).then_some(()));
    }
}

impl Default for SpareDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for SpareDevice {
    fn drop(&mut self) {
        if self.removal.is_none() {
            run("ip", &["link", "del", self.interface]);
        }
    }
}

/// Number of addresses (GIDs) of the device's first port.
fn gids(device: &str) -> usize {
    let path = format!("/sys/class/infiniband/{device}/ports/1/gids");
    let read = |index| fs::read_to_string(format!("{path}/{index}")).ok();
    (0..16).map_while(read).filter(|gid| gid.contains(|c: char| c.is_ascii_hexdigit() && c != '0')).count()
}

/// A network interface that is down. Dropping this value brings it up again.
#[derive(Debug)]
pub struct LinkDown<'a> {
    interface: &'a str,
    /// IPv6 addresses of the interface. The kernel removes them with the link; the drop adds them again.
    addresses: Vec<String>,
}

impl<'a> LinkDown<'a> {
    /// Takes the interface down.
    ///
    /// # Panics
    /// If a command fails.
    #[must_use]
    pub fn new(interface: &'a str) -> Self {
        let shown = run("ip", &["-6", "-o", "addr", "show", "dev", interface, "scope", "global"]);
        let addresses = shown.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect();
        run("ip", &["link", "set", interface, "down"]);
        LinkDown { interface, addresses }
    }
}

impl Drop for LinkDown<'_> {
    fn drop(&mut self) {
        run("ip", &["link", "set", self.interface, "up"]);
        for address in &self.addresses {
            run("ip", &["-6", "addr", "replace", address, "dev", self.interface, "nodad"]);
        }
    }
}
