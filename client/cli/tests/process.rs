//! The program itself, without a server or with a peer that never answers.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::Scratch;
use support::server::{outcome, thallus};

const PATIENCE: Duration = Duration::from_secs(20);

fn run(args: &[&str]) -> (i32, String, String) {
    outcome(thallus().args(args).output().unwrap())
}

/// A URL of a closed port. The listener reserves the port while the test runs.
fn closed_port() -> (std::net::TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // No process listens on this port at another loopback address.
    (listener, format!("thallus://127.0.0.2:{port}"))
}

#[test]
fn version_and_help_go_to_stdout() {
    let (code, out, err) = run(&["version"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with(concat!("thallus ", env!("CARGO_PKG_VERSION"), "\nprotocol ")), "{out}");
    let (code, out, _) = run(&["query", "--help"]);
    assert_eq!(code, 0);
    assert!(out.contains("Exit codes:") && out.contains("THALLUS_URL"), "{out}");
}

#[test]
fn with_few_descriptors_it_ends_in_an_error_and_not_in_a_panic() {
    let (_reserved, url) = closed_port();
    for limit in 8..24 {
        let script = format!("ulimit -n {limit} && exec \"$0\" query \"$1\" 'SELECT 1'");
        let mut shell = Command::new("sh");
        shell.env_remove("THALLUS_URL").env_remove("THALLUS_LOG").stdin(Stdio::null());
        let (code, out, err) =
            outcome(shell.args(["-c", &script, env!("CARGO_BIN_EXE_thallus"), &url]).output().unwrap());
        assert!(!err.contains("panicked") && out.is_empty(), "{limit}: {err}");
        if limit < 16 {
            assert!(code == 6 && err.contains("`ulimit -n`"), "{limit}: {code} {err}");
        } else {
            assert!([3, 6].contains(&code) && err.contains("error: "), "{limit}: {code} {err}");
        }
    }
}

#[test]
fn usage_errors_exit_with_2_and_say_what_to_do() {
    let cases: [(&[&str], &str); 30] = [
        (&["query"], "no server is given"),
        (&["query", "thallus://h"], "no query is given"),
        (&["query", "thallus://h", "  "], "no query is given"),
        (&["query", "-f", "-", "thallus://h", "SELECT 1"], "given twice"),
        (&["query", "-f", "-", "thallus://h"], "no query is given"),
        (&["query", "http://h", "SELECT 1"], "unknown scheme \"http\""),
        (&["query", "thallus://h?fabrics=ucx", "SELECT 1"], "unknown option \"fabrics\" (known: fabric,"),
        (&["query", "thallus://h", "SELECT 1", "-o", "x.xlsx"], "unknown extension \"xlsx\""),
        (&["query", "thallus://h", "SELECT 1", "--format", "parquet"], "Parquet can only be written to a file"),
        (&["query", "thallus://h", "SELECT 1", "--deadline", "10"], "the unit is missing"),
        (&["query", "thallus://h", "SELECT 1", "--format", "xml"], "possible values"),
        (&["query", "thallus://h", "SELECT 1", "--access", "read", "--columns", "a"], "--columns and --rows read on"),
        (&["query", "thallus://h", "SELECT 1", "--access", "map", "--rows", "5"], "--columns and --rows read on"),
        (&["query", "thallus://h", "SELECT 1", "--lazy", "--access", "map"], "cannot be used with"),
        (&["query", "thallus://h", "SELECT 1", "--lend-from", "some"], "never"),
        (&["query", "thallus://h", "SELECT 1", "--delivery", "lent", "--lend-from", "0"], "cannot be used with"),
        (&["query", "thallus://h", "SELECT 1", "--access", "map", "--delivery", "auto"], "cannot be used with"),
        (&["query", "thallus://h", "SELECT 1", "--null", "-"], "--null is for CSV"),
        (&["query", "thallus://h", "SELECT 1", "--format", "csv", "--null", "a,b"], "has a quote, comma or line break"),
        (&["query", "thallus://h", "SELECT 1", "--plain-strings"], "--plain-strings is for Arrow and Parquet"),
        (&["query", "thallus://h", "SELECT 1", "--delivery", "fast"], "auto, inline, lent, lazy, mapped"),
        (&["query", "thallus://h", "SELECT 1", "--delivery", "lent", "--rows", "5"], "--columns and --rows read on"),
        (&["query", "thallus://h", "SELECT 1", "--lazy", "--rows", "5-7"], "no range of rows"),
        (&["ping", "localhost"], "no scheme"),
        (&["put", "t", "a.csv"], "no server is given"),
        (&["put", "thallus://h", "t"], "no file is given"),
        (&["put", "thallus://h", "t", "a.xlsx"], "unknown extension \"xlsx\""),
        (&["put", "thallus://h", "t", "a.csv", "--mode", "merge"], "create-append, append, create, replace"),
        (&["put", "thallus://h", "t", "a.csv", "--delimiter", "\""], "the delimiter is no ASCII character"),
        (&["put", "thallus://h", "t", "a.csv", "--delivery", "lent", "--lend-from", "0"], "cannot be used with"),
    ];
    for (args, message) in cases {
        let (code, out, err) = run(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: {err}");
        assert!(err.starts_with("error: "), "{args:?}: {err}");
    }
    let (_, _, err) = run(&["query"]);
    assert!(err.contains("\nhint: write thallus query thallus://localhost:7807"), "{err}");
}

#[test]
fn no_server_exits_with_3_and_leaves_no_file() {
    let dir = Scratch::new("no-server");
    let (_reserved, url) = closed_port();
    let out = dir.path("out.csv");
    let (code, _, err) = run(&["query", &url, "SELECT 1", "-o", out.to_str().unwrap()]);
    assert_eq!(code, 3, "{err}");
    assert!(err.starts_with("error: ") && err.contains("127.0.0.2") && err.contains("\nhint: "), "{err}");
    assert!(dir.names().is_empty());
    let (code, _, _) = run(&["ping", &url]);
    assert_eq!(code, 3);
}

#[test]
fn a_query_may_begin_with_a_comment_and_flags_may_follow_it() {
    let (_port, url) = closed_port();
    for args in [[&url, "-- all of it\nSELECT 1", "--quiet"], [&url, "--quiet", "--a comment\nSELECT 1"]] {
        let (code, _, err) = run(&[&["query"], &args[..]].concat());
        assert_eq!(code, 3, "{args:?}: {err}");
    }
    let (code, _, err) = run(&["query", &url, "SELECT 1", "--no-such-flag"]);
    assert!(code == 2 && err.contains("--no-such-flag"), "{err}");
}

#[test]
fn the_url_may_come_from_the_environment() {
    let (_reserved, url) = closed_port();
    let (code, _, err) = outcome(thallus().env("THALLUS_URL", &url).args(["query", "SELECT 1"]).output().unwrap());
    assert_eq!(code, 3, "{err}");
    let (code, _, err) = outcome(thallus().env("THALLUS_URL", &url).arg("ping").output().unwrap());
    assert_eq!(code, 3, "{err}");
    // The argument takes precedence over the environment.
    let (code, _, err) =
        outcome(thallus().env("THALLUS_URL", "nonsense").args(["query", &url, "SELECT 1"]).output().unwrap());
    assert_eq!(code, 3, "{err}");
}

#[test]
fn the_query_may_come_from_a_file_or_a_pipe() {
    let dir = Scratch::new("query-file");
    let (_reserved, url) = closed_port();
    let sql = dir.path("query.sql");
    fs::write(&sql, "SELECT 1").unwrap();
    let (code, _, err) = run(&["query", &url, "-f", sql.to_str().unwrap()]);
    assert_eq!(code, 3, "{err}");
    fs::write(&sql, b"SELECT '\xff'").unwrap();
    let (code, _, err) = run(&["query", &url, "-f", sql.to_str().unwrap()]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("is not UTF-8"), "{err}");
    let (code, _, err) = run(&["query", &url, "-f", dir.path("missing.sql").to_str().unwrap()]);
    assert_eq!(code, 6, "{err}");
    for args in [["query", &url, "-"], ["query", &url, "--file=-"]] {
        let mut child = thallus().args(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"SELECT 1").unwrap();
        let (code, _, err) = outcome(child.wait_with_output().unwrap());
        assert_eq!(code, 3, "{err}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_reported_before_connecting() {
    let (code, _, err) = run(&["query", "thallus://h.invalid", "SELECT 1", "-o", "/nowhere/out.csv"]);
    assert_eq!(code, 6, "{err}");
    assert!(err.contains("cannot write /nowhere/out.csv"), "{err}");
}

#[test]
fn a_closed_pipe_ends_the_program_without_a_message() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = thallus().arg("version").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let (code, _, err) = outcome(output.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (141, ""));
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn exit_code(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("still running after {PATIENCE:?}");
}

#[test]
fn signals_end_the_program_and_leave_no_file() {
    for (name, expected) in [("-INT", 130), ("-TERM", 143)] {
        let dir = Scratch::new("signal");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("thallus://{}?connect_timeout=1h", listener.local_addr().unwrap());
        let out = dir.path("out.csv");
        let mut command = thallus();
        command.args(["query", &url, "SELECT 1", "-o"]).arg(&out).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The program has connected, has created its file, and waits for an answer that never comes.
        let connection = listener.accept().unwrap();
        assert_eq!(dir.names().len(), 1);
        signal(&child, name);
        assert_eq!(exit_code(&mut child), Some(expected));
        assert!(dir.names().is_empty());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(err.starts_with("error: ") && err.contains("ed\n"), "{err}");
        drop(connection);
    }
}

#[test]
fn binary_data_does_not_go_to_a_terminal() {
    // script(1) provides a pseudo-terminal.
    let line = format!("{} query thallus://h.invalid 'SELECT 1' --format arrow", env!("CARGO_BIN_EXE_thallus"));
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("will not write binary data to a terminal"), "{text}");
    assert_eq!(output.status.code(), Some(2));
}
