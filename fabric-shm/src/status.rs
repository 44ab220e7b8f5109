//! Errors of this fabric.

use thallus_fabric::{FabricError, FabricKind};

pub(crate) fn unavailable(reason: String) -> FabricError {
    FabricError::Unavailable { fabric: FabricKind::SHM, reason }
}

pub(crate) fn refused(reason: impl Into<String>) -> FabricError {
    FabricError::Connect { fabric: FabricKind::SHM, reason: reason.into() }
}

pub(crate) fn down(reason: impl Into<String>) -> FabricError {
    FabricError::EndpointDown { fabric: FabricKind::SHM, reason: reason.into() }
}
