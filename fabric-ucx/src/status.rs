//! Converts UCX statuses to the errors of the fabric.

use thallus_fabric::{FabricError, ReadFailure};
use thallus_protocol::FabricKind;
use ucx_sys::ucs_status_t;

/// `call: UCX's text`, for the reasons in errors.
pub(crate) fn failed(call: &str, status: ucs_status_t) -> String {
    let text = ucx_sys::loaded().map_or_else(|| "UCX is not loaded".to_owned(), |ucx| ucx.status_string(status));
    format!("{call}: {text} (status {})", status.0)
}

/// `Ok` for `UCS_OK`, else [`failed`].
pub(crate) fn check(call: &str, status: ucs_status_t) -> Result<(), String> {
    if status == ucs_status_t::UCS_OK { Ok(()) } else { Err(failed(call, status)) }
}

/// The failure of a read that ended with `status`.
pub(crate) fn read_failure(status: ucs_status_t) -> ReadFailure {
    match status {
        ucs_status_t::UCS_ERR_CANCELED => ReadFailure::Flushed,
        ucs_status_t::UCS_ERR_ENDPOINT_TIMEOUT | ucs_status_t::UCS_ERR_TIMED_OUT => ReadFailure::RetryExceeded,
        ucs_status_t::UCS_ERR_CONNECTION_RESET
        | ucs_status_t::UCS_ERR_NOT_CONNECTED
        | ucs_status_t::UCS_ERR_UNREACHABLE => ReadFailure::PeerGone(failed("ucp_get_nbx", status)),
        other => ReadFailure::Other(failed("ucp_get_nbx", other)),
    }
}

pub(crate) fn unavailable(reason: String) -> FabricError {
    FabricError::Unavailable { fabric: FabricKind::UCX, reason }
}

pub(crate) fn down(reason: impl Into<String>) -> FabricError {
    FabricError::EndpointDown { fabric: FabricKind::UCX, reason: reason.into() }
}
