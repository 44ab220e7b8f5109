//! The UCX of this host, and options that it refuses.

use arrow_buffer::Buffer;
use thallus_fabric::{Fabric, FabricError, Touch};
use thallus_fabric_ucx::{Allocation, UcxFabric, UcxOptions};

fn options(transports: &str) -> UcxOptions {
    UcxOptions { transports: Some(transports.into()), ..UcxOptions::default() }
}

#[test]
fn unknown_transports_are_unavailable_and_named() {
    let error = UcxFabric::new(options("carrier_pigeon")).unwrap_err();
    assert!(matches!(error, FabricError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("carrier_pigeon") && error.to_string().contains("ucp_init"), "{error}");
}

#[test]
fn options_that_ucx_cannot_take_are_unavailable() {
    for (name, value) in [("KEEPALIVE_INTERVAL", "soon"), ("TLS", "t\0cp"), ("T\0LS", "tcp")] {
        let settings = vec![(name.to_owned(), value.to_owned())];
        let error = UcxFabric::new(UcxOptions { settings, ..UcxOptions::default() }).unwrap_err();
        assert!(matches!(error, FabricError::Unavailable { .. }), "{error}");
    }
}

#[test]
fn the_description_names_version_and_transports() {
    let fabric = UcxFabric::new(options("tcp")).unwrap();
    let description = fabric.describe();
    assert!(description.transports.iter().all(|name| name.starts_with("tcp/")), "{description}");
    assert!(description.transports.iter().any(|name| name == "tcp/lo"), "{description}");
    assert!(description.to_string().starts_with(&format!("UCX {}", description.version)), "{description}");
    assert!(!fabric.reads_registered_memory());
}

#[test]
fn memory_that_only_emulation_could_read_is_not_registered() {
    let buffer = Buffer::from_vec(vec![7u8; 100]);
    let error = UcxFabric::new(options("posix,self")).unwrap().register(buffer.clone()).unwrap_err();
    assert!(matches!(error, FabricError::Unsupported { .. }), "{error}");
    let emulating = UcxFabric::new(UcxOptions { emulation: true, ..options("posix,self") }).unwrap();
    let memory = emulating.register(buffer.clone()).unwrap();
    assert_eq!((memory.address(), memory.len()), (buffer.as_ptr() as u64, 100));
    let error = emulating.register(Buffer::from_vec(Vec::<u8>::new())).unwrap_err();
    assert!(matches!(error, FabricError::Registration { len: 0, .. }), "{error}");
}

#[test]
fn memory_of_either_kind_is_zeroed_whole_pages() {
    for allocation in [Allocation::Segment, Allocation::HugePages] {
        let fabric = UcxFabric::new(UcxOptions { allocation, ..UcxOptions::default() }).unwrap();
        let memory = fabric.allocate(5000, Touch::Now).unwrap();
        assert_eq!((memory.len(), memory.address() % 4096), (8192, 0), "{allocation:?}");
        // SAFETY: the fabric's own fresh memory.
        assert!(unsafe { std::slice::from_raw_parts(memory.start().as_ptr(), 8192) }.iter().all(|&byte| byte == 0));
        for len in [0, usize::MAX] {
            assert!(
                matches!(fabric.allocate(len, Touch::Now), Err(FabricError::Registration { .. })),
                "{allocation:?} {len}"
            );
        }
    }
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let fabric = UcxFabric::new(UcxOptions::default()).unwrap();
    assert!(matches!(fabric.endpoint(), Err(FabricError::EndpointDown { .. })));
}
