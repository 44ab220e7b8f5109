//! The memory that a server lends and keeps, over all connections and fabrics.

use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::Buffer;
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Client, ConnectOptions, LazyBatch, LazyOptions, LendFrom};
use thallus_fabric::memory::{FilePiece, RegisteredMemory};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError, Fencing, Touch};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};
use thallus_protocol::FabricKind;
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};
use thallus_server::{Fabrics, Server, Settings};

use crate::world::{World, block_on, within};

/// A simulated fabric of another kind, so that a server can have two.
#[derive(Debug)]
struct Other(Arc<SimFabric>);

impl Fabric for Other {
    fn kind(&self) -> FabricKind {
        FabricKind::new("other")
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.allocate(len, touch)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.register(buffer)
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.0.endpoint()
    }
}

async fn client_over(server: &Server, fabric: Arc<dyn Fabric>) -> Client {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let server = server.clone();
    tokio::spawn(async move { server.handle(near).await });
    Client::connect_over(far, &[fabric], None, ConnectOptions::new("memory")).await.unwrap()
}

/// The first batch of a result that is read on demand. A lent batch stays on loan until it is dropped. Also returns the
/// number of lent batches.
async fn first(client: &Client) -> (LazyBatch, u64) {
    let options = LazyOptions::new().with_lend_from(LendFrom::Bytes(0));
    let mut result = client.query_lazy_with("q", options).await.unwrap();
    let batch = within("a batch", result.next()).await.unwrap().unwrap();
    assert!(within("the end", result.next()).await.is_none());
    (batch, result.report().batches_lent)
}

#[test]
fn the_loans_of_two_fabrics_count_against_one_budget() {
    block_on(async {
        let network = SimNetwork::new(42, SimOptions::shared_memory());
        let fabrics = || -> [Arc<dyn Fabric>; 2] { [network.host(), Arc::new(Other(network.host()))] };
        let engine = ScriptedEngine::new().with_query("q", Script::synthetic(1, 20_000));
        // Room for one batch, not for two.
        let budget = synthetic_batch(0, 20_000).get_array_memory_size() as u64 * 3 / 2;
        let settings = Settings { clock: None, max_loan_bytes_total: budget, ..Settings::default() };
        let fabrics_of_server = Fabrics { available: fabrics().to_vec(), ..Fabrics::default() };
        let server = Server::new(Arc::new(engine), fabrics_of_server, settings);
        let [one, other] = fabrics();
        let clients = [client_over(&server, one).await, client_over(&server, other).await];
        for [this, that] in [[0, 1], [1, 0]] {
            let (held, lent) = first(&clients[this]).await;
            assert_eq!(lent, 1);
            let on_loan = server.bytes_on_loan();
            assert!(budget / 2 < on_loan && on_loan <= budget, "{on_loan} of {budget}");
            let (inline, lent) = first(&clients[that]).await;
            assert_eq!((lent, server.bytes_on_loan()), (0, on_loan), "the budget is spent over the other fabric");
            drop((held, inline));
            within("the loan to end", async {
                while server.bytes_on_loan() > 0 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
            .await;
        }
    });
}

/// Here nothing but [`Server::handle`] runs: this test accepts its connections itself.
#[tokio::test(start_paused = true)]
async fn idle_memory_is_freed_while_and_after_connections_are_handled() {
    let world =
        World::over(ScriptedEngine::new().with_query("q", Script::synthetic(5, 20_000)), Some(Fencing::LeaseWord));
    let idle = Duration::from_secs(100);
    for _ in 0..2 {
        let client = world.client().await;
        let query = async || client.query("q").await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        query().await;
        let kept = world.server.idle_registered_bytes();
        tokio::time::sleep(idle).await;
        // The connection has let go of the memory that small buffers were copied to, and lends from new memory.
        assert!(kept > 0);
        assert_eq!(world.server.idle_registered_bytes(), 0, "of {kept} bytes");
        assert_eq!(query().await.len(), 5);
        drop(client);
        world.is_at_rest().await;
        tokio::time::sleep(idle).await;
        assert_eq!(world.server.idle_registered_bytes(), 0);
        // The task for this has ended too, and the next connection starts a new one.
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_server_leaves_no_task_behind() {
    let world =
        World::over(ScriptedEngine::new().with_query("q", Script::synthetic(5, 20_000)), Some(Fencing::LeaseWord));
    let client = world.client().await;
    client.query("q").await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    drop(client);
    world.is_at_rest().await;
    assert!(world.server.idle_registered_bytes() > 0);
    drop(world);
    tokio::task::yield_now().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}
