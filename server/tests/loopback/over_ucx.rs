//! UCX without shared memory: results travel inline, with a reason.

use futures::{StreamExt, TryStreamExt};
use thallus_client::{Access, Carrier, Client, ClientError, FabricPreference, QueryOptions, StreamCode};
use thallus_protocol::message::ProcessId;
use thallus_scripted_engine::{Script, ScriptedEngine};

use crate::one_host::{Over, serve, serve_mapped};
use crate::world::in_parallel;

#[test]
fn where_ucx_has_only_tcp_results_travel_inline_with_a_reason() {
    in_parallel(async {
        let options = serve(Over::Ucx, ScriptedEngine::new().with_query("q", Script::synthetic(3, 50_000))).await;
        let client = Client::connect_with(options.with_fabric(FabricPreference::Auto).with_ucx_tls(Some("tcp".into())))
            .await
            .unwrap();
        let reason = client.connection().carrier.fallback().map(str::to_owned).expect("a fallback");
        assert!(reason.contains("one-sided reads"), "{reason}");
        let mut result = client.query("q").await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        assert_eq!(batches.len(), 3);
        assert_eq!((result.report().batches_lent, result.report().batches_inline), (0, 3));
    });
}

#[test]
fn without_a_fabric_results_travel_inline_without_a_fallback() {
    in_parallel(async {
        let options = serve(Over::Ucx, ScriptedEngine::new().with_query("q", Script::synthetic(3, 50_000))).await;
        let client = Client::connect_with(options.with_fabric(FabricPreference::None)).await.unwrap();
        assert_eq!(client.connection().carrier, Carrier::Inline { fallback: None });
        let batches: Vec<_> = client.query("q").await.unwrap().try_collect().await.unwrap();
        assert_eq!(batches.len(), 3);
    });
}

#[test]
fn where_ucx_has_only_tcp_mapping_is_refused() {
    in_parallel(async {
        let options =
            serve_mapped(Over::Ucx, ScriptedEngine::new().with_query("q", Script::synthetic(3, 50_000))).await;
        let client = Client::connect_with(options.with_fabric(FabricPreference::Auto).with_ucx_tls(Some("tcp".into())))
            .await
            .unwrap();
        let mapped = QueryOptions::default().with_access(Access::Map);
        let error = client.query_with("q", mapped).await.map(drop).unwrap_err();
        assert!(matches!(&error, ClientError::Mapping { message } if message.contains("one-sided reads")), "{error:?}");
    });
}

#[test]
fn a_client_maps_nothing_under_the_id_of_another_process() {
    // The start time of process 1, which every process may read.
    let stat = std::fs::read_to_string("/proc/1/stat").unwrap();
    let started = stat.rsplit_once(") ").unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    in_parallel(async {
        let options =
            serve_mapped(Over::Ucx, ScriptedEngine::new().with_query("q", Script::synthetic(3, 50_000))).await;
        let forged = options.with_process(Some(ProcessId { pid: 1, started }));
        let client = Client::connect_with(forged).await.unwrap();
        let mapped = QueryOptions::default().with_access(Access::Map);
        let error = client.query_with("q", mapped).await.map(drop).unwrap_err();
        let is_refused = matches!(error, ClientError::Query { kind: StreamCode::MappingRefused, .. });
        assert!(is_refused && error.to_string().contains("process 1 is this client"), "{error:?}");
        let batches: Vec<_> = client.query("q").await.unwrap().try_collect().await.unwrap();
        assert_eq!(batches.len(), 3);
    });
}
