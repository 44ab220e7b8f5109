//! The device under test.

#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::sync::Arc;

use thallus_fabric_verbs::{Exposure, VerbsFabric, VerbsOptions};

/// Names the device that tests run on. There must be one: a test that was asked for never passes without.
pub const DEVICE: &str = "THALLUS_VERBS_DEVICE";

/// The device under test.
pub fn fabric(exposure: Exposure) -> Arc<VerbsFabric> {
    let device = std::env::var(DEVICE).unwrap_or_else(|_| panic!("{DEVICE} names no device to test on"));
    let options = VerbsOptions { device: Some(device), exposure, ..VerbsOptions::default() };
    Arc::new(VerbsFabric::new(options).unwrap_or_else(|error| panic!("{error}")))
}
