//! The conformance suite within one process.

use std::sync::Arc;

use thallus_fabric::{Fabric, conformance_suite};
use thallus_fabric_shm::{ShmFabric, ShmOptions};

conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(ShmFabric::new(ShmOptions::default()).unwrap()) });
