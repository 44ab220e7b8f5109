//! The real server and the real client over TCP and verbs, in one process, without a query engine. These tests need an
//! RDMA device, named by `THALLUS_VERBS_DEVICE`.

use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use thallus_client::{Carrier, Client, ConnectOptions, FabricPreference, LendFrom, QueryOptions};
use thallus_protocol_testing::{arb_batches, same_batch};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};
use thallus_server::config::{ExposureChoice, FabricChoice, FabricConfig, ServerConfig, VerbsConfig};
use thallus_server::{Server, Settings, fabrics};
use tokio::net::TcpListener;

use crate::world::in_parallel;

fn device() -> String {
    std::env::var("THALLUS_VERBS_DEVICE").expect("THALLUS_VERBS_DEVICE names no device to test on")
}

/// Starts a server on a free port. Its task ends with the runtime.
async fn serve(engine: ScriptedEngine, exposure: ExposureChoice) -> ConnectOptions {
    let verbs = VerbsConfig { device: Some(device()), exposure, ..VerbsConfig::default() };
    let fabric = FabricConfig { kind: FabricChoice::Verbs, verbs, ..FabricConfig::default() };
    let config = ServerConfig { fabric, ..ServerConfig::default() };
    let fabrics = fabrics::open(&config.fabric).unwrap_or_else(|error| panic!("{error}"));
    let server = Server::new(std::sync::Arc::new(engine), fabrics, Settings::new(&config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { server.serve(listener).await });
    ConnectOptions::new("127.0.0.1")
        .with_port(port)
        .with_fabric(FabricPreference::Verbs)
        .with_verbs_device(Some(device()))
        .with_require_fabric(true)
}

fn a_result_crosses(exposure: ExposureChoice) {
    in_parallel(async {
        let options = serve(ScriptedEngine::new().with_query("q", Script::synthetic(6, 10_000)), exposure).await;
        let client = Client::connect_with(options).await.unwrap();
        let info = client.connection();
        assert!(matches!(&info.carrier, Carrier::OneSided { fabric, .. } if fabric == "verbs"), "{info:?}");
        for _ in 0..2 {
            let mut result = client.query("q").await.unwrap();
            let mut number = 0;
            while let Some(batch) = result.try_next().await.unwrap() {
                assert_eq!(batch, synthetic_batch(number, 10_000));
                number += 1;
            }
            assert_eq!(number, 6);
            let report = result.report();
            assert_eq!((report.batches_lent, report.batches_inline), (6, 0), "{report}");
        }
    });
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_result_crosses_the_device_with_automatic_exposure() {
    a_result_crosses(ExposureChoice::Auto);
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_result_crosses_the_device_with_one_key_for_all_memory() {
    a_result_crosses(ExposureChoice::Whole);
}

/// Unregistered memory that is lent again and again is in the end neither registered nor copied. Before that, it may be
/// copied several times, while the server measures the cheaper way.
#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_table_is_registered_once_where_one_key_opens_all() {
    in_parallel(async {
        let table = (0..4).map(|n| synthetic_batch(n, 20_000));
        let options = serve(ScriptedEngine::new().with_query("q", Script::batches(table)), ExposureChoice::Whole).await;
        let client = Client::connect_with(options).await.unwrap();
        let mut costs = Vec::new();
        for _ in 0..100 {
            let mut result = client.query("q").await.unwrap();
            while result.try_next().await.unwrap().is_some() {}
            let (lent, server) = (result.report().bytes_lent, result.report().server.unwrap());
            costs.push((server.registrations, server.bytes_copied));
            // Bitmaps are always copied, because they are short.
            if server.registrations == 0 && server.bytes_copied < lent / 20 {
                println!("registrations and bytes copied: {costs:?}, of {lent}");
                return;
            }
        }
        panic!("registrations and bytes copied: {costs:?}");
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    #[test]
    #[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
    fn any_batches_survive_verbs(batches in arb_batches(3)) {
        let sent: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect();
        let got = in_parallel(async {
            let engine = ScriptedEngine::new().with_query("q", Script::batches(batches));
            let options = serve(engine, ExposureChoice::Auto).await;
            let client = Client::connect_with(options).await.unwrap();
            let lent = QueryOptions::default().with_lend_from(LendFrom::Bytes(0));
            let mut result = client.query_with("q", lent).await.unwrap();
            let got: Vec<_> = result.by_ref().try_collect().await.unwrap();
            assert_eq!(result.report().batches_inline, 0);
            got
        });
        prop_assert_eq!(got.len(), sent.len());
        for (got, sent) in got.iter().zip(&sent) {
            prop_assert_eq!(same_batch(got, sent), Ok(()));
        }
    }
}
