//! Shared memory between processes of other users and in other namespaces: who reads what, and how.
//!
//! The cases need root, to become another user and to make namespaces, and util-linux and iproute2. Without these they
//! are skipped, and say so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use thallus_tests::PATIENCE;
use thallus_tests::process::{Process, program};

/// Number of rows of the test query. Its result has 16 MB.
const ROWS: u64 = 2_000_000;

/// A place where a process runs: another user, or other namespaces.
#[derive(Clone, Copy, Debug)]
struct Place {
    name: &'static str,
    /// The command that runs a program there.
    prefix: &'static [&'static str],
}

const HERE: Place = Place { name: "here", prefix: &["env"] };
const USER: Place =
    Place { name: "user 4711", prefix: &["setpriv", "--reuid", "4711", "--regid", "4711", "--clear-groups", "--"] };
const PLACES: &[Place] = &[
    HERE,
    USER,
    Place { name: "own IPC namespace", prefix: &["unshare", "--ipc", "--"] },
    Place { name: "own PID namespace", prefix: &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"] },
    Place { name: "own mount namespace", prefix: &["unshare", "--mount", "--"] },
    Place { name: "own user namespace", prefix: &["unshare", "--user", "--map-root-user", "--"] },
    Place {
        name: "own user namespace of another user",
        prefix: &[
            "setpriv",
            "--reuid",
            "4711",
            "--regid",
            "4711",
            "--clear-groups",
            "--",
            "unshare",
            "--user",
            "--map-root-user",
            "--",
        ],
    },
    Place {
        name: "all namespaces but the network's",
        prefix: &[
            "unshare",
            "--user",
            "--map-root-user",
            "--ipc",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--mount",
            "--uts",
            "--",
        ],
    },
    Place { name: "64 KiB of locked memory", prefix: &["prlimit", "--memlock=65536", "--"] },
    Place { name: "Docker's filter of system calls", prefix: &[SECCOMP, "env"] },
    Place { name: "/dev/shm of 1 MiB", prefix: &["unshare", "--mount", "sh", "-c", SMALL_SHM, "sh"] },
];

const SMALL_SHM: &str = "mount -t tmpfs -o size=1m none /dev/shm && exec \"$@\"";

/// Installs the filter. A command of this name stands for the program in the directory of the test.
const SECCOMP: &str = "thallus-seccomp";

/// Whether this process may make users and namespaces.
fn may_isolate() -> bool {
    let status = Command::new("unshare").args(["--net", "true"]).stderr(Stdio::null()).status();
    let may = status.is_ok_and(|status| status.success());
    if !may {
        println!("SKIPPED: this needs root and unshare(1)");
    }
    may
}

/// The programs, in a directory that every user reaches.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("thallus-test-").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        for name in ["thallus", "thallus-server", SECCOMP] {
            let (from, to) = (program(name), directory.path().join(name));
            fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop)).unwrap();
        }
        Programs(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, place: Place, name: &str) -> Command {
        let mut command = match place.prefix[0] {
            SECCOMP => Command::new(self.path().join(SECCOMP)),
            command => Command::new(command),
        };
        command.args(&place.prefix[1..]).arg(self.path().join(name)).stdin(Stdio::null());
        for variable in ["THALLUS_CONFIG", "THALLUS_LOG", "THALLUS_URL"] {
            command.env_remove(variable);
        }
        command
    }

    /// A server with shared memory, and its address. `listen`: the address to listen on.
    fn server(&self, place: Place, listen: &str, flags: &[&str]) -> (Process, String) {
        let log = self.path().join("server.log");
        let file = fs::File::create(&log).unwrap();
        let mut command = self.command(place, "thallus-server");
        command.args(["--fabric", "shm", "--allow-mapped", "--registered-heap", "1GiB", "--listen", listen]);
        command.args(flags).stdout(Stdio::null()).stderr(file);
        let mut server = Process::spawn("thallus-server", &mut command);
        let began = std::time::Instant::now();
        loop {
            let text = fs::read_to_string(&log).unwrap();
            assert!(server.exit_status().is_none(), "{}: the server has ended: {text}", place.name);
            if let Some((_, after)) = text.split_once("listening address=")
                && let Some((address, _)) = after.split_once('\n')
            {
                return (server, address.trim().to_owned());
            }
            assert!(began.elapsed() < PATIENCE, "{}: the server does not listen: {text}", place.name);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Runs the query; the last row and the statistics.
    fn query(&self, place: Place, address: &str, access: &str) -> (String, serde_json::Value) {
        let url = format!("thallus://{address}?require_fabric=true&lend_from=0");
        let all = format!("SELECT value FROM generate_series(1, {ROWS})");
        let mut command = self.command(place, "thallus");
        command.args(["query", &url, &all, "--format", "csv", "--stats=json", "--access", access]);
        let output = command.output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}, {access}: {stderr}", place.name);
        assert_eq!(stdout.lines().count() as u64, ROWS + 1, "{}, {access}", place.name);
        let stats = stderr.lines().find_map(|line| serde_json::from_str(line).ok());
        let stats = stats.or_else(|| serde_json::from_str(stderr.trim()).ok());
        (stdout.lines().last().unwrap().to_owned(), stats.unwrap_or_else(|| panic!("no statistics: {stderr}")))
    }

    /// Checks that a client there gets its result through shared memory, read and mapped.
    fn check(&self, client: Place, address: &str, server: &str) {
        for (access, way) in [("read", "batches_lent"), ("map", "batches_mapped")] {
            let (last, stats) = self.query(client, address, access);
            assert_eq!(last, ROWS.to_string(), "client {}, server {server}, {access}", client.name);
            assert_eq!(stats["fabric"], "shm", "client {}, server {server}, {access}: {stats}", client.name);
            assert_eq!(stats["batches_inline"], 0, "client {}, server {server}, {access}: {stats}", client.name);
            assert!(stats[way].as_u64() > Some(0), "client {}, server {server}, {access}: {stats}", client.name);
        }
        println!("client {}, server {server}: read and mapped", client.name);
    }
}

#[test]
fn every_place_on_this_host_is_reached() {
    if !may_isolate() {
        return;
    }
    let programs = Programs::new();
    for server in [HERE, USER] {
        let (mut process, address) = programs.server(server, "127.0.0.1:0", &[]);
        for client in PLACES {
            programs.check(*client, &address, server.name);
        }
        process.kill();
    }
    for server in &PLACES[2..] {
        let (mut process, address) = programs.server(*server, "127.0.0.1:0", &[]);
        for client in [HERE, USER] {
            programs.check(client, &address, server.name);
        }
        process.kill();
    }
}

/// A network namespace with a link to this one. Removed by its drop.
struct Network {
    name: String,
}

impl Network {
    fn new() -> Option<Self> {
        let name = format!("thallus{}", std::process::id() % 100_000);
        let network = Network { name: name.clone() };
        let steps = [
            format!("ip netns add {name}"),
            format!("ip link add {name} type veth peer name eth0 netns {name}"),
            format!("ip addr add 10.213.7.1/30 dev {name}"),
            format!("ip link set {name} up"),
            format!("ip -n {name} addr add 10.213.7.2/30 dev eth0"),
            format!("ip -n {name} link set eth0 up"),
            format!("ip -n {name} link set lo up"),
        ];
        for step in steps {
            let done = Command::new("sh").args(["-c", &step]).stderr(Stdio::null()).status();
            if !done.is_ok_and(|status| status.success()) {
                println!("SKIPPED: this host has no network namespaces with links ({step})");
                return None;
            }
        }
        Some(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for step in [format!("ip link del {}", self.name), format!("ip netns del {}", self.name)] {
            let _ = Command::new("sh").args(["-c", &step]).stderr(Stdio::null()).status();
        }
    }
}

#[test]
fn another_network_namespace_is_reached_by_a_directory_that_both_see() {
    let Some(network) = may_isolate().then(Network::new).flatten() else { return };
    let programs = Programs::new();
    let name: &'static str = network.name.clone().leak();
    let prefix: &'static [&'static str] = vec!["ip", "netns", "exec", name].leak();
    let inside = Place { name: "own network namespace", prefix };
    let user: &'static [&'static str] = [prefix, USER.prefix].concat().leak();
    let inside_as_user = Place { name: "own network namespace, user 4711", prefix: user };
    let sockets: PathBuf = programs.path().join("sockets");
    fs::create_dir(&sockets).unwrap();
    let flags = ["--shm-directory", sockets.to_str().unwrap()];
    let (mut process, address) = programs.server(HERE, "10.213.7.1:0", &flags);
    programs.check(inside, &address, HERE.name);
    programs.check(inside_as_user, &address, HERE.name);
    process.kill();
    assert_eq!(fs::read_dir(&sockets).unwrap().count(), 0, "sockets are left");

    // Without the directory the result travels inline, and the client says why.
    let (mut process, address) = programs.server(HERE, "10.213.7.1:0", &[]);
    let mut command = programs.command(inside, "thallus");
    let output = command.args(["ping", &format!("thallus://{address}")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("network namespace"), "{text}");
    process.kill();
}

#[test]
fn kills_leave_no_socket() {
    let programs = Programs::new();
    let sockets = programs.path().join("sockets");
    fs::create_dir(&sockets).unwrap();
    let flags = ["--shm-directory", sockets.to_str().unwrap()];
    for _ in 0..3 {
        let (mut process, address) = programs.server(HERE, "127.0.0.1:0", &flags);
        let mut client = programs.command(HERE, "thallus");
        let endless = "SELECT value FROM generate_series(1, 1000000000000)";
        let url = format!("thallus://{address}?require_fabric=true");
        client.args(["query", &url, endless, "--format", "csv"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut client = Process::spawn("thallus", &mut client);
        std::thread::sleep(std::time::Duration::from_millis(300));
        client.kill();
        // The server goes on.
        programs.check(HERE, &address, "whose other client was killed");
        process.kill();
    }
    let (mut process, _) = programs.server(HERE, "127.0.0.1:0", &flags);
    assert_eq!(fs::read_dir(&sockets).unwrap().count(), 0, "sockets are left");
    process.kill();
}
