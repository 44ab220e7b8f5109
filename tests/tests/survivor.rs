//! A client whose server is killed: its error, and its resources afterwards.

use std::time::{Duration, Instant};

use futures::StreamExt;
use thallus_client::{Client, ClientError, LendFrom, QueryOptions};
use thallus_tests::server::TestServer;
use thallus_tests::usage::{self, Orphans};
use thallus_tests::{ENDLESS, block_on};

const ROUNDS: usize = 6;

/// Kills a server in the middle of a result. Returns the time until the client reported the loss.
async fn round(lend_from: LendFrom) -> Duration {
    let mut server = TestServer::start::<&str>([]);
    let client = Client::connect(&server.url("require_fabric=true")).await.unwrap();
    let mut result = client.query_with(ENDLESS, QueryOptions::new().with_lend_from(lend_from)).await.unwrap();
    let mut kept = Vec::new();
    for _ in 0..20 {
        kept.push(result.next().await.unwrap().unwrap());
    }
    let copies = kept.clone();
    server.process().kill();
    let killed = Instant::now();
    let error = loop {
        match result.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("{lend_from:?}: an endless result has ended"),
        }
    };
    let took = killed.elapsed();
    let gone = matches!(error, ClientError::ServerGone { .. } | ClientError::Read { .. });
    assert!(gone, "{lend_from:?}: {error:?}");
    assert!(result.next().await.is_none(), "{lend_from:?}: the result continued after its error");
    assert!(!result.report().complete, "{lend_from:?}");
    let error = client.query("SELECT 1").await.unwrap_err();
    assert!(matches!(error, ClientError::ServerGone { .. }), "{lend_from:?}: {error:?}");
    // Batches that were delivered before are in the client's own memory, and do not change.
    assert_eq!(kept, copies);
    took
}

// One test: it measures its own process, and a second test would add to it.
#[test]
fn a_client_survives_its_servers_and_keeps_nothing_of_them() {
    let orphans = Orphans::now();
    let mut level = None;
    for n in 0..ROUNDS {
        let lend_from = if n % 2 == 0 { LendFrom::Bytes(0) } else { LendFrom::Never };
        let took = block_on(round(lend_from));
        println!("{lend_from:?}: the client reported the loss after {:.3} s", took.as_secs_f64());
        assert!(took < Duration::from_secs(5), "{lend_from:?}: {took:?}");
        let id = std::process::id();
        let now = (usage::descriptors(id), usage::shared(id));
        // The first round creates everything that exists once per process.
        if n >= 1 {
            let (descriptors, shared) = *level.get_or_insert(now);
            assert!(now.0 <= descriptors, "{} descriptors, {descriptors} before", now.0);
            assert!(now.1 <= shared, "{} bytes of shared memory, {shared} before", now.1);
        }
    }
    orphans.until_no_more();
}
