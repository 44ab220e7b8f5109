//! The conformance suite over the default transports of this host.

use std::sync::Arc;

use thallus_fabric::{Fabric, conformance_suite};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};

conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(UcxFabric::new(UcxOptions::default()).unwrap()) });
