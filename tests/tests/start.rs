//! Error messages of servers that cannot start, and tables that become unreadable while a server runs.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;

use futures::TryStreamExt;
use tempfile::TempDir;
use thallus_client::{Client, ClientError, StreamCode};
use thallus_tests::block_on;
use thallus_tests::process::Signal;
use thallus_tests::server::TestServer;
use thallus_tests::tpch::{Format, generate};

fn data() -> TempDir {
    let data = tempfile::tempdir().unwrap();
    generate(data.path(), 0.001, Format::Parquet).unwrap();
    data
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Checks that a server with this flag does not start, and that its log has each of the texts.
fn refuses(flag: &str, value: &str, texts: &[&str]) {
    let message = TestServer::start_error(&[flag, value]);
    assert!(message.contains("thallus-server: error: "), "{message}");
    for text in texts {
        assert!(message.contains(text), "{flag} {value}: {text:?} is not in {message}");
    }
}

#[test]
fn a_table_that_cannot_be_read_is_named_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let table = |name: &str| format!("trips={}", text(&path(name)));

    refuses("--table", &table("missing.parquet"), &["`trips`", "missing.parquet", "no such file or directory"]);
    symlink(path("nowhere.parquet"), path("dangling.parquet")).unwrap();
    refuses("--table", &table("dangling.parquet"), &["`trips`", "dangling.parquet", "no such file or directory"]);
    for (name, content) in
        [("text.parquet", "this is no Parquet"), ("cut.parquet", "PAR1"), ("magic.parquet", "PAR1\0\0PAR1")]
    {
        fs::write(path(name), content).unwrap();
        refuses("--table", &table(name), &["`trips`", name, "not a readable parquet file"]);
    }
    fs::write(path("empty.parquet"), "").unwrap();
    refuses("--table", &table("empty.parquet"), &["`trips`", "empty.parquet", "the file is empty"]);
}

#[test]
fn a_directory_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    refuses("--data", text(&path("missing")), &["missing", "no such file or directory"]);
    fs::write(path("file"), "1").unwrap();
    refuses("--data", text(&path("file")), &["file: cannot be read", "Not a directory"]);
    fs::create_dir(path("empty")).unwrap();
    refuses("--data", text(&path("empty")), &["empty: the directory holds no data files"]);
    fs::create_dir(path("half")).unwrap();
    symlink(path("nowhere"), path("half").join("gone.parquet")).unwrap();
    refuses("--data", text(&path("half")), &["gone.parquet", "no such file or directory"]);

    // Root may read every directory: then this case cannot occur.
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir(path("locked")).unwrap();
    fs::set_permissions(path("locked"), fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read_dir(path("locked")).is_err() {
        refuses("--data", text(&path("locked")), &["locked: cannot be read", "ermission denied"]);
    }
}

#[test]
fn the_error_for_a_port_in_use_names_the_port_and_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refuses("--listen", &address, &["cannot listen on", &address, "in use", "choose another with --listen"]);
}

async fn failure(client: &Client, sql: &str) -> ClientError {
    match client.query(sql).await {
        Ok(result) => result.try_collect::<Vec<_>>().await.expect_err("the file is bad"),
        Err(error) => error,
    }
}

#[test]
fn unreadable_files_fail_their_queries_and_no_others() {
    let data = data();
    let server = TestServer::start(["--data", text(data.path())]);
    let path = |table: &str| data.path().join(format!("{table}.parquet"));

    fs::remove_file(path("orders")).unwrap();
    // One file is cut in half. In another all data is overwritten, and the footer left in place.
    let whole = fs::read(path("customer")).unwrap();
    fs::write(path("customer"), &whole[..whole.len() / 2]).unwrap();
    let mut lineitem = fs::read(path("lineitem")).unwrap();
    let footer = lineitem.len() - 8;
    let length = u32::from_le_bytes(lineitem[footer..footer + 4].try_into().unwrap()) as usize;
    lineitem[4..footer - length].fill(0xff);
    fs::write(path("lineitem"), lineitem).unwrap();

    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        for table in ["orders", "customer", "lineitem"] {
            let error = failure(&client, &format!("SELECT * FROM {table}")).await;
            println!("{table}: {error}");
            assert!(matches!(&error, ClientError::Query { kind: StreamCode::Source, .. }), "{table}: {error:?}");
            assert!(error.to_string().contains(table), "{table}: {error}");
            let nations: Vec<_> = client.query("SELECT * FROM nation").await.unwrap().try_collect().await.unwrap();
            assert_eq!(nations.iter().map(|batch| batch.num_rows()).sum::<usize>(), 25);
        }
    });
    server.stop();
}

#[test]
fn a_hangup_does_not_end_a_server() {
    let data = data();
    let mut server = TestServer::start(["--data", text(data.path())]);
    server.process().signal(Signal::Hangup);
    server.wait_for_log("SIGHUP has no effect");
    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        let rows: Vec<_> = client.query("SELECT * FROM nation").await.unwrap().try_collect().await.unwrap();
        assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 25);
    });
    server.stop();
}
