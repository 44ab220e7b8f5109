//! Memory that is gone when its key is used.

use thallus_fabric::{Fabric, FabricError, Touch};
use thallus_fabric_ucx::{UcxFabric, UcxOptions};
use thallus_protocol::RegionId;

/// UCX 1.13 crashes if it cannot attach a segment that a key names. A lender that dies at the wrong moment would cause
/// that.
#[tokio::test]
async fn a_key_of_memory_that_is_gone_is_refused() {
    let fabric = || UcxFabric::new(UcxOptions::default()).unwrap();
    let (lender, borrower) = (fabric(), fabric());
    let (mut lending, mut borrowing) = (lender.endpoint().unwrap(), borrower.endpoint().unwrap());
    lending.connect(&borrowing.address()).unwrap();
    borrowing.connect(&lending.address()).unwrap();
    for round in 0..50 {
        let memory = lender.allocate(1 << 20, Touch::Now).unwrap();
        let (base, len) = (memory.address(), memory.len() as u64);
        let key = lending.expose(&memory, 0..memory.len()).unwrap();
        drop(memory);
        let refused = borrowing.import(RegionId(round), base, len, &key);
        assert!(matches!(refused, Err(FabricError::RemoteKey { .. })), "{refused:?}");
    }
    lending.close();
    borrowing.close();
}
