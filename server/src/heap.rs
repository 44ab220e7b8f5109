//! The program's heap in registered memory.

use std::sync::Arc;

use thallus_fabric::memory::RegisteredHeap;
use tracing::{info, warn};

use crate::config::FabricConfig;
use crate::server::{Fabrics, Registered};

/// Lets the heap grow in memory of the first fabric, as configured. If it cannot, logs the reason; results are then
/// copied before they are lent.
pub fn grow_in_fabric(fabrics: &mut Fabrics, config: &FabricConfig) {
    let limit = usize::try_from(config.effective_registered_heap().bytes()).unwrap_or(usize::MAX);
    let fabric = fabrics.available.first().filter(|_| limit > 0);
    let Some(fabric) = fabric else { return RegisteredHeap::stay_ordinary() };
    match RegisteredHeap::grow_in(Arc::clone(fabric), limit) {
        Ok(memory) => {
            info!(fabric = %fabric.kind(), limit, "the heap grows in registered memory");
            fabrics.registered = Some(Registered { fabric: fabric.kind(), space: Arc::new(memory) });
        }
        Err(error) => warn!(%error, "results are copied before they are lent"),
    }
}
