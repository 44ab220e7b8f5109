//! A server, its fabric, and pipes to the server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use thallus_client::{Client, ClientError, ConnectOptions, FabricPreference};
use thallus_fabric::{Fabric, Fencing};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};
use thallus_scripted_engine::ScriptedEngine;
use thallus_server::config::{ServerConfig, Span};
use thallus_server::{Fabrics, Server, Settings};
use tokio::io::DuplexStream;
use tokio::task::AbortHandle;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in paused time: sleeps and timeouts take no time, and no test depends on the speed of this machine.
pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(within("the test", test))
}

/// Runs a test on two threads and the real clock, so that both ends and the fabric run in parallel. For tests with a
/// real device or an engine that blocks its thread, and for races.
pub(crate) fn in_parallel<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(within("the test", test))
}

pub(crate) async fn within<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

pub(crate) struct World {
    pub(crate) engine: ScriptedEngine,
    pub(crate) server: Server,
    network: Option<(SimNetwork, Arc<SimFabric>)>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl World {
    /// A server with a fabric of this fencing, or without a fabric.
    pub(crate) fn over(engine: ScriptedEngine, fencing: Option<Fencing>) -> Self {
        Self::over_with(engine, fencing, |_| {})
    }

    /// A server with changed settings.
    pub(crate) fn over_with(
        engine: ScriptedEngine,
        fencing: Option<Fencing>,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let network = fencing.map(|fencing| {
            let options = match fencing {
                Fencing::LeaseWord => SimOptions::shared_memory(),
                Fencing::Revocation => SimOptions::default(),
            };
            let network = SimNetwork::new(42, options);
            let host = network.host();
            (network, host)
        });
        Self::new(engine, network, ServerConfig::default(), change)
    }

    /// A server whose clients may map lent memory.
    pub(crate) fn mapping(engine: ScriptedEngine, change: impl FnOnce(&mut Settings)) -> Self {
        Self::over_with(engine, Some(Fencing::LeaseWord), |settings| {
            settings.allow_mapped = true;
            // The connections are pipes within this process.
            settings.is_peer = |_, _| true;
            change(settings);
        })
    }

    /// A server with a short lease timeout, with a fabric fenced by lease words.
    pub(crate) fn impatient(engine: ScriptedEngine, lease: Duration) -> Self {
        let network = SimNetwork::new(42, SimOptions::shared_memory());
        let host = network.host();
        let mut config = ServerConfig::default();
        config.timeouts.lease = Span(lease);
        Self::new(engine, Some((network, host)), config, |_| {})
    }

    /// A server with a limit on connections.
    pub(crate) fn limited(engine: ScriptedEngine, max_connections: usize) -> Self {
        let mut config = ServerConfig::default();
        config.limits.max_connections = max_connections;
        Self::new(engine, None, config, |_| {})
    }

    /// A server without a fabric, with this configuration.
    pub(crate) fn configured(engine: ScriptedEngine, config: ServerConfig) -> Self {
        Self::new(engine, None, config, |_| {})
    }

    fn new(
        engine: ScriptedEngine,
        network: Option<(SimNetwork, Arc<SimFabric>)>,
        config: ServerConfig,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let available = network.iter().map(|(_, host)| Arc::clone(host) as Arc<dyn Fabric>).collect();
        let fabrics = Fabrics { available, reason: "this world has no fabric".into(), ..Fabrics::default() };
        // Without a clock, the choice between copying and registering does not depend on the speed of this machine.
        let mut settings = Settings { clock: None, ..Settings::new(&config) };
        change(&mut settings);
        let server = Server::new(Arc::new(engine.clone()), fabrics, settings);
        World { engine, server, network, connections: Arc::default() }
    }

    /// Opens a connection, and returns the client's end.
    pub(crate) fn pipe(&self) -> DuplexStream {
        self.pipes()()
    }

    fn pipes(&self) -> impl Fn() -> DuplexStream + Send + Sync + 'static {
        let (server, connections) = (self.server.clone(), Arc::clone(&self.connections));
        move || {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let server = server.clone();
            let task = tokio::spawn(async move { server.handle(near).await });
            connections.lock().unwrap().push(task.abort_handle());
            far
        }
    }

    /// A client that may open several connections.
    pub(crate) async fn client_of_many(&self) -> Client {
        let (options, fabrics) = self.client_side();
        let pipes = self.pipes();
        Client::connect_through(move || std::future::ready(Ok(pipes())), fabrics, None, options).await.unwrap()
    }

    fn client_side(&self) -> (ConnectOptions, Vec<Arc<dyn Fabric>>) {
        let options = ConnectOptions::new("world");
        match &self.network {
            Some((network, _)) => (options, vec![network.host()]),
            None => (options.with_fabric(FabricPreference::None), Vec::new()),
        }
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_with(|options| options).await
    }

    pub(crate) async fn client_with(&self, change: impl FnOnce(ConnectOptions) -> ConnectOptions) -> Client {
        self.try_client(change).await.unwrap()
    }

    pub(crate) async fn try_client(
        &self,
        change: impl FnOnce(ConnectOptions) -> ConnectOptions,
    ) -> Result<Client, ClientError> {
        let (options, fabrics) = self.client_side();
        Client::connect_over(self.pipe(), &fabrics, None, change(options)).await
    }

    /// Aborts the server's task of every connection.
    pub(crate) fn cut(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    /// Aborts the server's task of one connection, numbered from 0 in the order of their creation.
    pub(crate) fn cut_one(&self, number: usize) {
        self.connections.lock().unwrap()[number].abort();
    }

    /// Waits until no connection and no query is left. Checks that no registration is left except those that the server
    /// keeps, and that no memory was read that was not on loan.
    pub(crate) async fn is_at_rest(&self) {
        within("connections and queries to end", async {
            while self.server.connections() > 0 || self.engine.running() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        assert_eq!(self.server.partitioned_queries(), 0);
        if let Some((network, host)) = &self.network {
            assert_eq!(network.violations(), [], "memory was read that was not on loan");
            // The server keeps memory for further loans, but no lease words.
            assert_eq!(host.registered_bytes(), self.server.idle_registered_bytes(), "registrations were leaked");
        }
    }
}
