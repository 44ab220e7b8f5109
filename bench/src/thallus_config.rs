//! The use of Thallus in this crate: the only place to change when Thallus has a new way of delivery.

use std::sync::Arc;

use thallus_client::{Access, ConnectOptions, FabricPreference, LendFrom, QueryOptions};
use thallus_fabric::{Fabric, raise_descriptor_limit};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};
use thallus_server::config::{ByteSize, FabricChoice, ServerConfig};
use thallus_server::{Fabrics, Settings};

use crate::contender::Contender;

/// Environment variable: the fabric of Thallus, `shm` by default, or `ucx`.
pub const FABRIC: &str = "THALLUS_BENCH_FABRIC";

/// The fabric of raw UCX reads. It has no additional copying threads.
pub fn fabric() -> Result<Arc<dyn Fabric>, String> {
    raise_descriptor_limit().map_err(|e| format!("the limit of open files cannot be raised: {e}"))?;
    let options = UcxOptions { copy_threads: 0, ..UcxOptions::default() };
    UcxFabric::new(options).map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|e| e.to_string())
}

/// Fabrics and settings of a server.
pub fn server() -> Result<(Fabrics, Settings), String> {
    let mut config = ServerConfig::default();
    config.fabric.kind = match uses_ucx() {
        true => FabricChoice::Ucx,
        false => FabricChoice::Shm,
    };
    let mut fabrics = thallus_server::fabrics::open(&config.fabric).map_err(|e| e.to_string())?;
    config.limits.max_connections = 2048;
    config.limits.max_bytes_on_loan_total = ByteSize::gib(8);
    config.limits.max_bytes_on_loan_per_connection = ByteSize::gib(1);
    config.fabric.allow_mapped = true;
    // As in `thallus-server`: the tables are generated later, in this heap.
    thallus_server::heap::grow_in_fabric(&mut fabrics, &config.fabric);
    Ok((fabrics, Settings::new(&config)))
}

fn uses_ucx() -> bool {
    std::env::var(FABRIC).is_ok_and(|fabric| fabric == "ucx")
}

/// Options of a contender's connection and queries. `None`: this build of Thallus does not have the contender.
pub fn client(contender: Contender, port: u16) -> Option<(ConnectOptions, QueryOptions)> {
    let connect = ConnectOptions::new("127.0.0.1").with_port(port).with_require_fabric(true);
    let connect = connect.with_fabric(if uses_ucx() { FabricPreference::Ucx } else { FabricPreference::Shm });
    let query = QueryOptions::new();
    let query = match contender {
        Contender::Thallus => query,
        Contender::Lent => query.with_lend_from(LendFrom::Bytes(0)),
        Contender::Mapped => query.with_access(Access::Map),
        Contender::Inline => query.with_lend_from(LendFrom::Never),
        _ => return None,
    };
    Some((connect, query))
}
