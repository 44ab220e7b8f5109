//! The examples of the libraries run, and say what they should.

use std::process::Stdio;

use thallus_tests::process::command;
use thallus_tests::server::TestServer;

/// Runs an example of this workspace to its end. `cargo test --workspace` builds the examples; before `--test examples`
/// alone, run `cargo build --examples --workspace`.
fn example(name: &str, args: &[&str]) -> String {
    let output = command(&format!("examples/{name}")).args(args).stderr(Stdio::piped()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{name} {args:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

fn says(stdout: &str, parts: &[&str]) {
    for part in parts {
        assert!(stdout.contains(part), "{part:?} is not in:\n{stdout}");
    }
}

#[test]
fn a_query_is_read_whole_and_on_demand() {
    let server = TestServer::start([] as [&str; 0]);
    for options in ["", "fabric=none"] {
        let url = server.url(options);
        says(&example("query", &[&url]), &["columns: value, twice", "1000000 rows"]);
        says(&example("query", &[&url, "SELECT 'x' AS letter"]), &["columns: letter", "first row: x", "1 rows"]);
        says(&example("on_demand", &[&url]), &["1000000 rows", "% saved"]);
    }
    server.stop();
}

#[test]
fn an_engine_is_embedded() {
    says(&example("embedded", &[]), &["sum 500000500000", "\"a million\" is no number"]);
}

#[test]
fn the_machines_run_without_io() {
    says(&example("sans_io", &[]), &["server: query \"numbers\"", "3000 rows"]);
}
