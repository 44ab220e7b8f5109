//! The conformance suite over TCP, where reads are emulated, between two contexts.

use std::sync::Arc;

use thallus_fabric::{Fabric, conformance_suite};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};

fn fabric() -> Arc<dyn Fabric> {
    let options = UcxOptions { transports: Some("tcp".into()), emulation: true, ..UcxOptions::default() };
    Arc::new(UcxFabric::new(options).unwrap())
}

conformance_suite!(|| (fabric(), fabric()));
