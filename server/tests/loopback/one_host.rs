//! The real server and the real client over TCP and a fabric with shared memory, in one process, without an engine.
//! To run only this: `cargo test -p thallus-server -p thallus-client --no-default-features --features
//! thallus-server/ucx,thallus-client/ucx --test loopback one_host`.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use thallus_client::{
    Access, Carrier, Client, ClientError, ConnectOptions, FabricPreference, LendFrom, QueryOptions, StreamCode,
};
use thallus_fabric::Fabric;
use thallus_fabric_shm::{ShmFabric, ShmOptions};
use thallus_protocol_testing::{arb_batches, same_batch};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};
use thallus_server::config::ServerConfig;
use thallus_server::{Fabrics, Server, Settings};
use tokio::net::TcpListener;

use crate::world::in_parallel;

/// A fabric with shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Over {
    Shm,
    #[cfg(feature = "ucx")]
    Ucx,
}

impl Over {
    fn fabric(self) -> Arc<dyn Fabric> {
        match self {
            Over::Shm => Arc::new(ShmFabric::new(ShmOptions::default()).unwrap()),
            #[cfg(feature = "ucx")]
            Over::Ucx => Arc::new(thallus_fabric_ucx::UcxFabric::new(Default::default()).unwrap()),
        }
    }

    fn preference(self) -> FabricPreference {
        match self {
            Over::Shm => FabricPreference::Shm,
            #[cfg(feature = "ucx")]
            Over::Ucx => FabricPreference::Ucx,
        }
    }
}

/// Runs each case over each fabric.
macro_rules! over_each_fabric {
    ($($case:ident),* $(,)?) => {
        mod shm {
            $(#[test]
            fn $case() {
                super::$case(super::Over::Shm);
            })*
        }

        #[cfg(feature = "ucx")]
        mod ucx {
            $(#[test]
            fn $case() {
                super::$case(super::Over::Ucx);
            })*
        }
    };
}

over_each_fabric!(
    a_result_crosses_shared_memory,
    some_columns_and_rows_cross_shared_memory,
    a_mapped_result_is_used_in_place,
    any_batches_survive,
    any_batches_survive_being_mapped,
);

/// Starts a server on a free port. Its task ends with the runtime.
pub(crate) async fn serve(over: Over, engine: ScriptedEngine) -> ConnectOptions {
    serve_as(over, engine, &ServerConfig::default()).await
}

async fn serve_as(over: Over, engine: ScriptedEngine, config: &ServerConfig) -> ConnectOptions {
    let fabrics = Fabrics { available: vec![over.fabric()], ..Fabrics::default() };
    let server = Server::new(Arc::new(engine), fabrics, Settings::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { server.serve(listener).await });
    ConnectOptions::new("127.0.0.1").with_port(port).with_fabric(over.preference())
}

/// Starts a server whose clients may map lent memory.
pub(crate) async fn serve_mapped(over: Over, engine: ScriptedEngine) -> ConnectOptions {
    let mut config = ServerConfig::default();
    config.fabric.allow_mapped = true;
    serve_as(over, engine, &config).await
}

fn a_result_crosses_shared_memory(over: Over) {
    in_parallel(async {
        let options = serve(over, ScriptedEngine::new().with_query("q", Script::synthetic(50, 50_000))).await;
        let client = Client::connect_with(options.with_require_fabric(true)).await.unwrap();
        let info = client.connection();
        assert!(
            matches!(&info.carrier, Carrier::OneSided { fabric, .. } if fabric == over.preference().as_str()),
            "{info:?}"
        );
        assert!(info.probe.is_some());
        let mut result = client.query("q").await.unwrap();
        let mut number = 0;
        while let Some(batch) = result.try_next().await.unwrap() {
            assert_eq!(batch, synthetic_batch(number, 50_000));
            number += 1;
        }
        assert_eq!(number, 50);
        let report = result.report();
        assert_eq!((report.batches_lent, report.batches_inline), (50, 0), "{report}");
    });
}

fn some_columns_and_rows_cross_shared_memory(over: Over) {
    in_parallel(async {
        let options = serve(over, ScriptedEngine::new().with_query("q", Script::synthetic(50, 50_000))).await;
        let client = Client::connect_with(options.with_require_fabric(true)).await.unwrap();
        let mut result = client.query_lazy("q").await.unwrap();
        let mut number = 0;
        while let Some(batch) = result.try_next().await.unwrap() {
            let sent = synthetic_batch(number, 50_000);
            assert_eq!(batch.columns(&[1]).await.unwrap(), sent.project(&[1]).unwrap());
            assert_eq!(
                batch.columns_in(&[2, 0], 777..888).await.unwrap(),
                sent.project(&[2, 0]).unwrap().slice(777, 111)
            );
            number += 1;
        }
        let report = result.report();
        let lazy = report.lazy.unwrap();
        assert_eq!((number, report.batches_lent), (50, 50), "{report}");
        assert!(lazy.bytes_read < lazy.bytes_offered * 2 / 3, "{report}");
    });
}

fn any_batches_survive(over: Over) {
    let config = ProptestConfig { cases: 32, ..ProptestConfig::default() };
    proptest!(config, |(batches in arb_batches(3))| {
            let sent: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect();
            let got = in_parallel(async {
                let options = serve(over, ScriptedEngine::new().with_query("q", Script::batches(batches))).await;
                let client = Client::connect_with(options).await.unwrap();
                let lent = QueryOptions::default().with_lend_from(LendFrom::Bytes(0));
                let mut result = match client.query_with("q", lent).await {
                    Ok(result) => result,
                    // Types that Arrow IPC does not support are refused with a message.
                    Err(ClientError::Query { kind: StreamCode::Unencodable, .. }) => return None,
                    Err(other) => panic!("{other}"),
                };
                let got: Vec<_> = result.by_ref().try_collect().await.unwrap();
                assert_eq!(result.report().batches_inline, 0);
                Some(got)
            });
            let Some(got) = got else { return Ok(()) };
            prop_assert_eq!(got.len(), sent.len());
            for (got, sent) in got.iter().zip(&sent) {
                prop_assert_eq!(same_batch(got, sent), Ok(()));
            }
    });
}

fn a_mapped_result_is_used_in_place(over: Over) {
    in_parallel(async {
        let options = serve_mapped(over, ScriptedEngine::new().with_query("q", Script::synthetic(50, 50_000))).await;
        let client = Client::connect_with(options.with_require_fabric(true)).await.unwrap();
        let mapped = QueryOptions::default().with_access(Access::Map);
        let mut result = client.query_with("q", mapped).await.unwrap();
        let mut kept = Vec::new();
        let mut number = 0;
        while let Some(batch) = result.try_next().await.unwrap() {
            assert_eq!(batch, synthetic_batch(number, 50_000));
            if number % 10 == 3 {
                kept.push((number, batch));
            }
            number += 1;
        }
        let report = result.report();
        assert_eq!((number, report.batches_mapped, report.batches_lent), (50, 50, 0), "{report}");
        // The server reuses its memory, and then the client and its endpoint are dropped.
        for _ in 0..3 {
            let batches: Vec<_> = client.query("q").await.unwrap().try_collect().await.unwrap();
            assert_eq!(batches.len(), 50);
        }
        drop((result, client));
        for (number, batch) in &kept {
            assert_eq!(*batch, synthetic_batch(*number, 50_000));
        }
        assert_eq!(kept.len(), 5);
    });
}

fn any_batches_survive_being_mapped(over: Over) {
    let config = ProptestConfig { cases: 32, ..ProptestConfig::default() };
    proptest!(config, |(batches in arb_batches(3))| {
            let sent: Vec<_> = batches.iter().filter(|batch| batch.num_rows() > 0).cloned().collect();
            let got = in_parallel(async {
                let options = serve_mapped(over, ScriptedEngine::new().with_query("q", Script::batches(batches))).await;
                let client = Client::connect_with(options.with_lend_from(LendFrom::Bytes(0))).await.unwrap();
                let mapped = QueryOptions::default().with_access(Access::Map);
                match client.query_with("q", mapped).await {
                    Ok(result) => Some(result.try_collect::<Vec<_>>().await.unwrap()),
                    Err(ClientError::Query { kind: StreamCode::Unencodable, .. }) => None,
                    Err(other) => panic!("{other}"),
                }
            });
            // The runtime, the endpoint and the server are gone, but the arrays are still valid.
            let Some(got) = got else { return Ok(()) };
            prop_assert_eq!(got.len(), sent.len());
            for (got, sent) in got.iter().zip(&sent) {
                prop_assert_eq!(same_batch(got, sent), Ok(()));
            }
    });
}
