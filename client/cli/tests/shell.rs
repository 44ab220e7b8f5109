//! `thallus shell`: statements from standard input, and on a pseudo-terminal.

mod support;

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use thallus_cli::failure::code;
use thallus_scripted_engine::{Script, ScriptedEngine};
use thallus_server::engine::EngineError;

use support::server::{TestServer, outcome, thallus};
use support::{Scratch, numbers};

const PATIENCE: Duration = Duration::from_secs(20);

fn engine() -> ScriptedEngine {
    let metadata = [("thallus.changes".to_owned(), "1".to_owned())].into();
    let fields = vec![Field::new("count", DataType::UInt64, false)];
    let counted: SchemaRef = Schema::new_with_metadata(fields, metadata).into();
    let three = RecordBatch::try_new(counted, vec![Arc::new(UInt64Array::from(vec![3]))]).unwrap();
    let division = EngineError::Execution { message: "division by zero".into() };
    ScriptedEngine::new()
        .with_query("SELECT\n  1", Script::batches([numbers(1, 1)]))
        .with_query("SELECT ';'", Script::batches([numbers(0, 2)]))
        .with_query("INSERT", Script::batches([three]))
        .with_query("FAIL", Script::refuse(division))
        .with_query("HANG", Script::synthetic(1, 10).hang())
}

fn shell(server: &TestServer, input: &str, flags: &[&str]) -> (i32, String, String) {
    let mut command = thallus();
    command.args(["shell", &server.url()]).args(flags).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    outcome(child.wait_with_output().unwrap())
}

const ONE: &str = "\
┌────┬───────────┐
│ id ┆ name      │
╞════╪═══════════╡
│  1 ┆ name, \"1\" │
└────┴───────────┘
1 row
";

#[test]
fn statements_of_a_file_run_in_order() {
    let server = TestServer::new(engine());
    let input = "SELECT\n  1; INSERT;\n\n\\x\nSELECT ';';\n\\x\nSELECT\n  1";
    let (code, out, err) = shell(&server, input, &[]);
    let switched = "expanded output is on\nexpanded output is off\n";
    assert_eq!((code, err.as_str()), (0, switched));
    let expanded = "── row 1 ──\nid   │ 0\nname │ NULL\n── row 2 ──\nid   │ 1\nname │ name, \"1\"\n2 rows\n";
    assert_eq!(out, format!("{ONE}3 rows changed\n{expanded}{ONE}"));
}

#[test]
fn the_first_failure_ends_a_file_with_its_exit_code() {
    let server = TestServer::new(engine());
    let (code, out, err) = shell(&server, "INSERT;\n\nFAIL;\nINSERT;\n", &[]);
    assert_eq!((code, out.as_str()), (i32::from(code::QUERY), "3 rows changed\n"));
    let error = "error (SQLSTATE 22000): execution failed: division by zero\n";
    let note = "note: that is the statement at line 3; the following ones were not run\n";
    assert_eq!(err, format!("{error}{note}"));
    assert_eq!(server.engine.started(), 1);
    let (code, _, err) = shell(&server, "\\nonsense\nINSERT;", &[]);
    assert_eq!(code, i32::from(code::USAGE));
    assert!(err.starts_with("error: \\nonsense is no command; \\? lists the commands\n"), "{err}");
    let (code, _, err) = shell(&server, "\\d\n", &[]);
    assert_eq!(code, i32::from(code::QUERY));
    assert!(err.starts_with("error (SQLSTATE 0A000): ") && err.contains("lists no objects"), "{err}");
    assert_eq!(shell(&server, "\\q\nFAIL;", &[]), (0, String::new(), String::new()));
}

#[test]
fn a_table_shows_at_most_max_rows() {
    let server = TestServer::new(engine());
    let (code, out, _) = shell(&server, "SELECT ';';", &["--max-rows", "1"]);
    assert_eq!(code, 0);
    assert!(
        out.ends_with(
            "1 row shown, 1 more left out: see them with --max-rows 2, or write all to a file with --output\n"
        )
    );
}

#[test]
fn a_url_alone_is_a_shell_and_another_word_is_no_command() {
    let server = TestServer::new(engine());
    let output = thallus().arg(server.url()).output().unwrap();
    assert_eq!(outcome(output), (0, String::new(), String::new()));
    let (code, _, err) = outcome(thallus().arg("qurey").output().unwrap());
    assert_eq!(code, 2);
    assert!(err.starts_with("error: \"qurey\" is no command and no URL\n"), "{err}");
    let (code, _, err) = outcome(thallus().output().unwrap());
    assert!(code == 2 && err.contains("Usage: thallus <COMMAND>"), "{err}");
}

/// A shell on a pseudo-terminal, which script(1) provides.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: std::path::PathBuf,
}

impl Terminal {
    fn new(url: &str, dir: &Scratch) -> Self {
        let screen = dir.path("screen");
        // `exec`: a shell of the system that waits for it is ended by Ctrl-C too, if it is dash.
        let line = format!("stty rows 5 cols 80; exec {} shell '{url}'", env!("CARGO_BIN_EXE_thallus"));
        let mut command = Command::new("script");
        command.args(["-qefc", &line]).arg(&screen).env("XDG_STATE_HOME", dir.path("state")).env("TERM", "xterm");
        command.env("PAGER", "sed s/^/paged:/").stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let keys = child.stdin.take().unwrap();
        let terminal = Terminal { child, keys, screen };
        terminal.wait_for("\\? lists the commands", 1);
        terminal
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.screen).unwrap_or_default()).replace('\r', "")
    }

    /// Waits until the screen has a text this many times.
    fn wait_for(&self, text: &str, times: usize) {
        let what = format!("{times} times {text:?}");
        wait_until(&what, || self.text().matches(text).count() >= times, || self.text());
    }

    fn exit_code(mut self) -> Option<i32> {
        drop(self.keys);
        self.child.wait().unwrap().code()
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool, shown: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}: {}", shown());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn on_a_terminal_statements_are_typed_and_ctrl_c_stops_one() {
    let (server, dir) = (TestServer::new(engine()), Scratch::new("terminal"));
    let mut terminal = Terminal::new(&server.url(), &dir);
    terminal.press("FAIL;\n");
    terminal.wait_for("error (SQLSTATE 22000): execution failed: division by zero", 1);
    terminal.press("HANG;\n");
    wait_until("the query to run", || server.engine.running() == 1, || terminal.text());
    terminal.press("\x03");
    terminal.wait_for("cancelled", 1);
    wait_until("the query to end", || server.engine.running() == 0, || terminal.text());
    terminal.press("\\timing\nINSERT;\n");
    terminal.wait_for("3 rows changed", 1);
    terminal.wait_for("time: ", 1);
    terminal.press("\x04");
    assert_eq!(terminal.exit_code(), Some(0));
}

#[test]
fn a_result_that_is_longer_than_the_screen_goes_through_the_pager() {
    let (server, dir) = (TestServer::new(engine()), Scratch::new("pager"));
    let mut terminal = Terminal::new(&server.url(), &dir);
    terminal.press("INSERT;\n");
    terminal.wait_for("3 rows changed", 1);
    terminal.press("SELECT ';';\n");
    terminal.wait_for("paged:2 rows", 1);
    assert!(!terminal.text().contains("paged:3 rows changed"), "{}", terminal.text());
    // At the begin of a line.
    terminal.press("\x04");
    assert_eq!(terminal.exit_code(), Some(0));
}

#[test]
fn a_shell_outlives_its_server() {
    let (mut server, dir) = (TestServer::new(engine()), Scratch::new("restart"));
    let mut terminal = Terminal::new(&server.url(), &dir);
    terminal.press("INSERT;\n");
    terminal.wait_for("3 rows changed", 1);
    server = server.restarted();
    terminal.press("INSERT;\n");
    terminal.wait_for("note: the connection had ended; this is a new one", 1);
    terminal.wait_for("3 rows changed", 2);
    // Each statement was sent once.
    assert_eq!(server.engine.started(), 2);
    terminal.press("\\q\n");
    assert_eq!(terminal.exit_code(), Some(0));
}
