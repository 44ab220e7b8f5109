//! The conformance suite over the device that `THALLUS_VERBS_DEVICE` names.

mod support;

use std::sync::Arc;

use support::{fabric, fabric_of_windows};
use thallus_fabric::Fabric;
use thallus_fabric_verbs::Exposure;

/// The suite, each of its tests ignored: it needs a device.
macro_rules! on_a_device {
    ($make:expr; $($case:ident),* $(,)?) => {
        $(
            #[test]
            #[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
            fn $case() {
                thallus_fabric::conformance::run(stringify!($case), thallus_fabric::conformance::cases::$case, $make);
            }
        )*
    };
}

mod as_the_device_can {
    use super::*;

    thallus_fabric::for_each_conformance_case!(on_a_device; || -> Arc<dyn Fabric> { fabric(Exposure::Auto) });
}

mod by_windows {
    use super::*;

    thallus_fabric::for_each_conformance_case!(on_a_device; || -> Arc<dyn Fabric> { fabric_of_windows() });
}

mod one_key_for_all {
    use super::*;

    thallus_fabric::for_each_conformance_case!(on_a_device; || -> Arc<dyn Fabric> { fabric(Exposure::Whole) });
}

mod between_two_contexts {
    use super::*;

    thallus_fabric::for_each_conformance_case!(
        on_a_device;
        || -> (Arc<dyn Fabric>, Arc<dyn Fabric>) { (fabric(Exposure::Auto), fabric(Exposure::Registrations)) }
    );
}
