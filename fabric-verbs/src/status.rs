//! Converts work-completion statuses and failed verbs to the errors of the fabric.

use ibverbs_sys::ibv_wc_status as wc;
use thallus_fabric::{FabricError, ReadFailure, WorkFailure};
use thallus_protocol::FabricKind;

/// Name of the status in the InfiniBand Architecture Specification (vol. 1, section 11.6.2), and advice to an operator.
fn explain(status: wc::Type) -> (&'static str, &'static str) {
    match status {
        wc::IBV_WC_LOC_LEN_ERR => ("local length error", "the read is longer than the port's max_msg_sz: a bug"),
        wc::IBV_WC_LOC_QP_OP_ERR => {
            // Soft-RoCE reports this if it has no route.
            (
                "local QP operation error",
                "look whether the link is up (`ibv_devinfo`, `ip link`); if it is, this is a bug",
            )
        }
        wc::IBV_WC_LOC_PROT_ERR => {
            ("local protection error", "the memory that the read lands in is not registered with this device: a bug")
        }
        wc::IBV_WC_WR_FLUSH_ERR => ("flushed", "the queue pair was closed, or failed before; look at the first error"),
        wc::IBV_WC_MW_BIND_ERR => {
            ("memory window bind error", "the device refused a memory window; try exposure = \"registrations\"")
        }
        wc::IBV_WC_BAD_RESP_ERR => {
            ("bad response", "the peer's device answered out of protocol: compare the firmware of both ends")
        }
        wc::IBV_WC_REM_INV_REQ_ERR => {
            ("remote invalid request", "the peer's queue pair takes no reads, or fewer at once than were sent: a bug")
        }
        wc::IBV_WC_REM_ACCESS_ERR => (
            "remote access error",
            "the lease has ended, or does not cover the range: look for revoked leases in the peer's log",
        ),
        wc::IBV_WC_REM_OP_ERR => ("remote operation error", "the peer's device failed: look at the peer's kernel log"),
        wc::IBV_WC_RETRY_EXC_ERR => (
            "transport retry counter exceeded",
            "the peer does not answer: look whether its process lives, at the link (`ibv_devinfo`, `rdma link`), \
             at the GID on both ends, and for RoCE at the route and at flow control (PFC, ECN)",
        ),
        wc::IBV_WC_RNR_RETRY_EXC_ERR => {
            ("receiver-not-ready retry counter exceeded", "the peer's device is overloaded")
        }
        wc::IBV_WC_FATAL_ERR => ("fatal error", "the device failed or was removed: look at the kernel log (`dmesg`)"),
        wc::IBV_WC_RESP_TIMEOUT_ERR => ("response timeout", "look at the link and at the peer"),
        _ => {
            ("general error", "look at the kernel log (`dmesg`) and up the vendor error in the device's documentation")
        }
    }
}

/// The failure of a work request.
pub(crate) fn work_failure(verb: &'static str, status: wc::Type, vendor_error: u32) -> WorkFailure {
    let (name, advice) = explain(status);
    WorkFailure { verb, status, name, vendor_error, advice }
}

/// The failure of a read that ended with `status`.
pub(crate) fn read_failure(status: wc::Type, vendor_error: u32) -> ReadFailure {
    match status {
        wc::IBV_WC_WR_FLUSH_ERR => ReadFailure::Flushed,
        _ => ReadFailure::Device(work_failure("RDMA READ", status, vendor_error)),
    }
}

pub(crate) fn unavailable(reason: impl Into<String>) -> FabricError {
    FabricError::Unavailable { fabric: FabricKind::VERBS, reason: reason.into() }
}

pub(crate) fn down(reason: impl Into<String>) -> FabricError {
    FabricError::EndpointDown { fabric: FabricKind::VERBS, reason: reason.into() }
}
