//! Peers that do not speak this protocol, or not its version: garbage, oversized messages, silence, too many
//! connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use thallus_client::{Client, ClientError};
use thallus_protocol::codec::{FEATURES, FrameLimits, Preface, VersionRange, encode};
use thallus_protocol::message::{Hello, Message};
use thallus_tests::cli::thallus;
use thallus_tests::server::TestServer;
use thallus_tests::{PATIENCE, block_on, usage};

const OURS: VersionRange = VersionRange { min: 1, max: 1 };
const OTHERS: VersionRange = VersionRange { min: 7, max: 9 };

/// The preface of an end that requests no checksums: later bytes are then judged by their content.
fn preface(versions: VersionRange) -> Vec<u8> {
    Preface { versions, features: 0 }.encode().to_vec()
}

/// The header of a frame without checksums.
fn header(message: u32, payload: u32) -> Vec<u8> {
    [&message.to_le_bytes()[..], &payload.to_le_bytes(), &[0; 8]].concat()
}

/// Sends bytes to a server. Returns the answer until the server closes the connection, and the time until then.
fn exchange(server: &TestServer, bytes: &[u8]) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // The server may close the connection before it has received everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "the server did not close: {error}");
    }
    (answer, began.elapsed())
}

fn serves(server: &TestServer) {
    let client = thallus(["query", &server.url(""), "SELECT 40 + 2 AS answer", "--format", "csv"]);
    assert_eq!((client.code, client.stdout.as_str()), (Some(0), "answer\n42\n"), "{}", client.stderr);
}

#[test]
fn a_connection_with_garbage_is_closed_and_others_are_served() {
    let server = TestServer::start::<&str>([]);
    serves(&server);
    let descriptors = usage::descriptors(server.id());
    let resident = usage::rss(server.id());
    let mut random = vec![0_u8; 1 << 20];
    let mut state = 42_u64;
    random.fill_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let framed = |rest: &[u8]| [&preface(OURS)[..], rest].concat();
    let garbage: [(&str, Vec<u8>); 8] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
        ("zeros", vec![0; 4096]),
        ("random", random.clone()),
        ("a preface, then random", framed(&random)),
        ("a message of 4 GiB", framed(&header(u32::MAX, 0))),
        ("a payload of 4 GiB", framed(&[header(1, u32::MAX), vec![0]].concat())),
        ("an unknown message", framed(&[header(4, 0), vec![0x7f; 4]].concat())),
    ];
    for (what, bytes) in &garbage {
        let (answer, took) = exchange(&server, bytes);
        assert!(took < Duration::from_secs(5), "{what}: the server closed the connection after {took:?}");
        // The server may answer with its preface and the reason.
        assert!(answer.len() < 1024, "{what}: {} bytes", answer.len());
    }
    // The server may log after the peer sees the end of the connection.
    for part in ["message", "payload"] {
        server.wait_for_log(&format!("a {part} of 4294967295 bytes exceeds the limit"));
    }
    server.wait_for_log("not a Thallus connection");
    serves(&server);
    server.wait_until_idle();
    assert!(usage::descriptors(server.id()) <= descriptors, "descriptors were leaked");
    let grown = usage::rss(server.id()).saturating_sub(resident);
    println!("the server grew by {} KiB over {} strangers", grown >> 10, garbage.len());
    assert!(grown < 64 << 20, "announced bytes were allocated: {grown}");
    server.stop();
}

#[test]
fn text_of_a_client_is_one_line_of_the_log() {
    let server = TestServer::start::<&str>([]);
    // The log of this server has the queries.
    let sql = "SELECT 1 /* \n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}31m */ AS one";
    let answer = thallus(["query", &server.url(""), sql, "--format", "csv"]);
    assert_eq!((answer.code, answer.stdout.as_str()), (Some(0), "one\n1\n"), "{}", answer.stderr);
    server.wait_for_log("SELECT 1 /* \\n2026-01-01T00:00:00Z ERROR forged\\r");
    let log = server.log();
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR")), "{log}");
    assert!(log.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{log:?}");
    server.stop();
}

#[test]
fn a_silent_peer_is_disconnected_after_the_handshake_timeout() {
    let server = TestServer::configured::<&str>("[timeouts]\nhandshake = \"500ms\"\n", []);
    let whole = preface(OURS);
    for half in [&[][..], &whole[..3], &whole[..23], &whole] {
        let (_, took) = exchange(&server, half);
        assert!((Duration::from_millis(400)..Duration::from_secs(5)).contains(&took), "closed after {took:?}");
    }
    serves(&server);
    server.wait_until_idle();
    server.stop();
}

#[test]
fn the_last_descriptors_are_kept_for_open_connections() {
    let server = TestServer::configured::<&str>("[timeouts]\nhandshake = \"60s\"\n", ["--fabric", "none"]);
    serves(&server);
    server.wait_until_idle();
    let limit = usage::descriptors(server.id()) + 60;
    // Of util-linux: prlimit(1).
    let (pid, nofile) = (format!("--pid={}", server.id()), format!("--nofile={limit}:{limit}"));
    let set = std::process::Command::new("prlimit").args([pid, nofile]).status().unwrap();
    assert!(set.success(), "{set}");
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    server.wait_for_log("near its limit");
    // With each that is refused a silent one leaves, so that a client gets a place.
    thallus_tests::process::wait_for("a client beside silent connections", PATIENCE, || {
        let client = thallus(["query", &server.url("connect_timeout=2s"), "SELECT 1"]);
        let is_refused = client.code == Some(3) && client.stderr.contains(&format!("limit of {limit} open files"));
        assert!(is_refused || client.code == Some(0), "{}", client.stderr);
        client.code.filter(|code| *code == 0)
    });
    drop(silent);
    server.wait_until_idle();
    serves(&server);
    server.stop();
}

#[test]
fn one_connection_too_many_is_refused_until_there_is_room() {
    let server = TestServer::configured("[timeouts]\nhandshake = \"2s\"\n", ["--max-connections", "3"]);
    // Connections without a hello do not count.
    let silent: Vec<_> = (0..5).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let hello = Message::Hello(Hello { name: "stranger".into(), ..Hello::default() });
    let hello = encode(&hello, Default::default(), FrameLimits::default()).unwrap().head;
    let greeted = (0..3).map(|_| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(&[preface(OURS), hello.to_vec()].concat()).unwrap();
        // The server answers once the connection has its place: the first byte after the preface is of the welcome.
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 25]).unwrap();
        stream
    });
    let greeted: Vec<_> = greeted.collect();
    let refused = thallus(["query", &server.url(""), "SELECT 1"]);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("3 connections at most"), "{}", refused.stderr);
    drop((silent, greeted));
    server.wait_until_idle();
    serves(&server);
    server.stop();
}

/// A peer that accepts one connection, sends these bytes, and waits until the other end closes.
fn fake_server(greeting: Vec<u8>) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("thallus://{}?connect_timeout=10s", listener.local_addr().unwrap());
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&greeting).unwrap();
        let _received = stream.read_to_end(&mut Vec::new());
    });
    (url, serving)
}

#[test]
fn another_version_is_named_on_both_ends() {
    let (url, serving) = fake_server(preface(OTHERS));
    let error = block_on(Client::connect(&url)).unwrap_err();
    serving.join().unwrap();
    assert!(matches!(error, ClientError::Version { ours: OURS, theirs: OTHERS }), "{error:?}");
    assert_eq!(error.to_string(), "this client speaks protocol 1, the server 7 to 9");

    let (url, serving) = fake_server(preface(OTHERS));
    let client = thallus(["query", &url, "SELECT 1"]);
    serving.join().unwrap();
    assert_eq!(client.code, Some(3), "{}", client.stderr);
    assert!(client.stderr.contains("protocol 1, the server 7 to 9\nhint: "), "{}", client.stderr);

    let server = TestServer::start::<&str>([]);
    let (answer, took) = exchange(&server, &preface(OTHERS));
    assert!(took < Duration::from_secs(5), "{took:?}");
    let server_preface = Preface { versions: OURS, features: FEATURES }.encode();
    assert!(answer.starts_with(&server_preface), "the server sends its versions: {answer:x?}");
    server.wait_for_log("no protocol version in common: this end speaks 1, the peer 7 to 9");
    serves(&server);
    server.stop();
}

#[test]
fn a_server_that_is_not_thallus_is_a_typed_error_at_once() {
    let oversized = [preface(OURS), header(u32::MAX, u32::MAX)].concat();
    for (what, greeting, expected) in [
        ("HTTP", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "not a Thallus connection"),
        ("oversized", oversized, "exceeds the limit"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(), "not a Thallus connection"),
    ] {
        let (url, serving) = fake_server(greeting);
        let client = thallus(["query", &url, "SELECT 1"]);
        serving.join().unwrap();
        assert_eq!(client.code, Some(3), "{what}: {}", client.stderr);
        assert!(client.stderr.starts_with("error: ") && client.stderr.contains(expected), "{what}: {}", client.stderr);
        assert!(client.elapsed < Duration::from_secs(5), "{what}: {:?}", client.elapsed);
    }
}

#[test]
fn an_unreachable_server_is_a_typed_error_in_time() {
    // This listener lets connections be established, and never answers.
    let hole = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("thallus://{}?connect_timeout=500ms", hole.local_addr().unwrap());
    let client = thallus(["query", &url, "SELECT 1"]);
    assert_eq!(client.code, Some(3), "{}", client.stderr);
    assert!(client.stderr.contains("longer than 500ms") && client.stderr.contains("\nhint: "), "{}", client.stderr);
    assert!(client.elapsed < Duration::from_secs(5), "{:?}", client.elapsed);

    // Another address of the loopback network, on a port of this process. No process listens there.
    let closed = format!("thallus://127.0.0.2:{}", hole.local_addr().unwrap().port());
    let client = thallus(["query", &closed, "SELECT 1"]);
    assert_eq!(client.code, Some(3), "{}", client.stderr);
    assert!(
        client.stderr.contains("cannot connect to 127.0.0.2") && client.stderr.contains("refused"),
        "{}",
        client.stderr
    );
    assert!(client.elapsed < Duration::from_secs(5), "{:?}", client.elapsed);

    let client = thallus(["query", "thallus://nobody.invalid?connect_timeout=5s", "SELECT 1"]);
    assert_eq!(client.code, Some(3), "{}", client.stderr);
    assert!(client.stderr.contains("nobody.invalid"), "{}", client.stderr);
    assert!(client.elapsed < Duration::from_secs(10), "{:?}", client.elapsed);

    for wrong in
        ["http://localhost", "localhost:7807", "thallus://", "thallus://localhost:99999", "thallus://h?windows=1MiB"]
    {
        let client = thallus(["query", wrong, "SELECT 1"]);
        assert_eq!(client.code, Some(2), "{wrong}: {}", client.stderr);
        assert!(
            client.stderr.starts_with("error: ") && client.stderr.contains("\nhint: "),
            "{wrong}: {}",
            client.stderr
        );
    }
}

#[test]
fn bad_sql_is_refused_in_words_and_the_connection_goes_on() {
    let server = TestServer::start::<&str>([]);
    for (sql, code, expected) in [
        ("SELEC 1", 4, "syntax error"),
        ("SELECT 1; SELECT 2", 4, "one statement at a time"),
        ("SELECT * FROM nowhere", 4, "table 'nowhere' not found"),
        ("SELECT nonsense FROM generate_series(1, 2)", 4, "nonsense"),
        ("SELECT no_such_function(1)", 4, "no_such_function"),
        ("CREATE TABLE t (a INT)", 4, "is not allowed"),
        ("SELECT 1 / (value - 5) FROM generate_series(1, 10)", 4, "ivide by zero"),
        ("", 2, "no query is given"),
    ] {
        let client = thallus(["query", &server.url(""), sql]);
        assert_eq!(client.code, Some(code), "{sql}: {}", client.stderr);
        assert!(client.stderr.contains(expected), "{sql}: {}", client.stderr);
        assert!(!client.stderr.contains("failed: execution failed"), "{sql}: {}", client.stderr);
        assert_eq!(client.stdout, "", "{sql}");
        assert!(client.elapsed < Duration::from_secs(10), "{sql}: {:?}", client.elapsed);
    }
    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        for sql in ["SELEC 1", "SELECT * FROM nowhere", "SELECT no_such_function(1)"] {
            let error = client.query(sql).await.unwrap_err();
            assert!(matches!(error, ClientError::Query { .. }), "{sql}: {error:?}");
            let batches: Vec<_> = client.query("SELECT 1").await.unwrap().try_collect().await.unwrap();
            assert_eq!(batches[0].num_rows(), 1);
        }
    });
    server.stop();
}
