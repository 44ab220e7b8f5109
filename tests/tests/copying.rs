//! Several threads copy the bytes of reads through shared memory, also if all bytes are one long buffer.

use std::fs;

use futures::TryStreamExt;
use thallus_client::{Client, LendFrom, QueryOptions};
use thallus_tests::block_on;
use thallus_tests::server::TestServer;

const ROWS: u32 = 2 << 20;

/// Number of copying threads of this process.
fn helpers() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let names = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "thallus-copy").count()
}

// One test: the counted threads are those of the whole process.
#[test]
fn a_long_buffer_is_copied_by_several_threads() {
    let server = TestServer::start::<&str>([]);
    block_on(async {
        let client = Client::connect(&server.url("require_fabric=true&copy_threads=2")).await.unwrap();
        for (batch_rows, expected) in [(8192, 0..=0), (ROWS, 1..=2)] {
            let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0)).with_batch_rows(Some(batch_rows));
            let sql = format!("SELECT value FROM generate_series(1, {batch_rows})");
            let mut result = client.query_with(&sql, options).await.unwrap();
            while result.try_next().await.unwrap().is_some() {}
            let report = result.report();
            assert_eq!((report.batches_lent, report.rows), (1, u64::from(batch_rows)), "one buffer: {report}");
            let helpers = helpers();
            assert!(expected.contains(&helpers), "{helpers} helpers for {} bytes", report.bytes_lent);
        }
    });
    server.stop();
}
