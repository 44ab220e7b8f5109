//! Files, messages and exit codes after a failed result.

mod support;

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thallus_cli::failure::{Failure, Interrupt, Phase, code, exit_code};
use thallus_cli::format::Format;
use thallus_client::{ClientError, ConnectOptions, StreamCode};

use support::{Scratch, Synthetic, batches, options, run, run_interrupted};

const ALL: [Format; 5] = [Format::Table, Format::Csv, Format::Json, Format::Arrow, Format::Parquet];

fn failed_query() -> ClientError {
    ClientError::Query { kind: StreamCode::Execution, message: "division by zero".into() }
}

#[test]
fn an_error_in_mid_stream_leaves_no_file() {
    for format in ALL {
        let dir = Scratch::new("mid-stream");
        let result = Synthetic::of(batches()).then(Err(failed_query()));
        let failure = run(result, options(format), &dir.path("out")).unwrap_err();
        assert_eq!(failure.exit_code(), code::QUERY);
        assert!(dir.names().is_empty(), "{format:?} left {:?}", dir.names());
    }
}

#[test]
fn an_error_leaves_the_old_file_as_it_was() {
    let dir = Scratch::new("old-file");
    let path = dir.path("out.csv");
    fs::write(&path, "precious").unwrap();
    let result = Synthetic::of(batches()).then(Err(failed_query()));
    run(result, options(Format::Csv), &path).unwrap_err();
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    assert_eq!(dir.names(), ["out.csv"]);
}

#[test]
fn an_interrupt_leaves_no_file_and_cancels() {
    for (interrupt, exit) in [(Interrupt::CtrlC, code::INTERRUPTED), (Interrupt::Terminate, code::TERMINATED)] {
        let dir = Scratch::new("interrupt");
        // After its batches the stream neither continues nor ends, so only the interrupt can end the command.
        let result = Synthetic::of(batches()).then_silent();
        let dropped = result.dropped();
        let failure = run_interrupted(result, options(Format::Csv), &dir.path("out.csv"), interrupt).unwrap_err();
        assert_eq!(failure.exit_code(), exit);
        assert!(dir.names().is_empty());
        assert!(dropped.load(Ordering::SeqCst));
    }
}

#[test]
fn a_full_disk_is_a_local_failure_in_every_format() {
    for format in ALL {
        let failure = run(Synthetic::of(batches()), options(format), "/dev/full".as_ref()).unwrap_err();
        assert_eq!(failure.exit_code(), code::LOCAL, "{format:?}: {failure}");
        assert!(failure.to_string().starts_with("cannot write /dev/full: No space left"), "{format:?}: {failure}");
        assert!(failure.hint().unwrap().contains("make room"));
    }
}

#[test]
fn a_file_that_cannot_be_created_is_a_local_failure() {
    let dir = Scratch::new("uncreatable");
    let directory = dir.path("directory");
    fs::create_dir(&directory).unwrap();
    for path in [directory, dir.path("missing/out.csv"), dir.path("..")] {
        let failure = run(Synthetic::of(batches()), options(Format::Csv), &path).unwrap_err();
        assert!(matches!(failure, Failure::Local { .. }), "{path:?}: {failure:?}");
        assert_eq!(failure.exit_code(), code::LOCAL);
    }
    assert_eq!(dir.names(), ["directory"]);
}

#[test]
fn links_are_followed_and_permissions_kept() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let dir = Scratch::new("links");
    let (target, link) = (dir.path("target.csv"), dir.path("link.csv"));
    fs::write(&target, "old").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&target, &link).unwrap();
    run(Synthetic::of(batches()), options(Format::Csv), &link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&target).unwrap().starts_with("id,name\n"));
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(dir.names(), ["link.csv", "target.csv"]);
}

#[test]
fn exit_codes_follow_from_the_error_and_the_phase() {
    let url = "thallus://h?x=1".parse::<ConnectOptions>().unwrap_err();
    let timeout = ClientError::Timeout { what: "reading".into(), after: Duration::from_secs(1) };
    let cases = [
        (ClientError::Url(url), code::USAGE, code::USAGE),
        (failed_query(), code::QUERY, code::QUERY),
        (timeout, code::CONNECT, code::TRANSFER),
        (ClientError::Refused { message: "shutting down".into() }, code::CONNECT, code::TRANSFER),
        (ClientError::Cancelled, code::INTERRUPTED, code::INTERRUPTED),
    ];
    for (error, connecting, transferring) in cases {
        assert_eq!(exit_code(Phase::Connect, &error), connecting, "{error}");
        assert_eq!(exit_code(Phase::Transfer, &error), transferring, "{error}");
    }
}

#[test]
fn a_file_may_have_the_longest_name() {
    let dir = Scratch::new("long-name");
    for name in [format!("{}.csv", "x".repeat(251)), format!("{}.csv", "é".repeat(125))] {
        run(Synthetic::of(batches()), options(Format::Csv), &dir.path(&name)).unwrap();
        assert_eq!(dir.names(), [name.as_str()]);
        fs::remove_file(dir.path(&name)).unwrap();
    }
}
