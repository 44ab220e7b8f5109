//! The query for an endpoint's transports, which the headers of UCX 1.13 lack.

use std::ffi::{c_char, c_uint};

use crate::types::UCP_ENTITY_NAME_MAX;

/// `ucp_ep_attr_t` of UCX 1.14 and later, for one queried field: the transports of an endpoint. The headers of 1.13
/// have all but the last field.
#[repr(C)]
pub struct EndpointTransports {
    /// Must be [`EndpointTransports::FIELD`].
    pub field_mask: u64,
    name: [c_char; UCP_ENTITY_NAME_MAX as usize],
    local_sockaddr: SocketAddress,
    remote_sockaddr: SocketAddress,
    /// The transports.
    pub transports: ucp_transports_t,
}

impl EndpointTransports {
    /// `UCP_EP_ATTR_FIELD_TRANSPORTS`.
    pub const FIELD: u64 = 1 << 3;

    /// A query for the transports, with room for the answer.
    #[must_use]
    pub fn into(entries: &mut [ucp_transport_entry_t]) -> Self {
        EndpointTransports {
            field_mask: Self::FIELD,
            name: [0; UCP_ENTITY_NAME_MAX as usize],
            local_sockaddr: SocketAddress([0; 16]),
            remote_sockaddr: SocketAddress([0; 16]),
            transports: ucp_transports_t {
                entries: entries.as_mut_ptr(),
                num_entries: c_uint::try_from(entries.len()).unwrap_or(c_uint::MAX),
                entry_size: size_of::<ucp_transport_entry_t>(),
            },
        }
    }
}

/// `struct sockaddr_storage`: 128 bytes, aligned to 8 (Linux, POSIX).
#[repr(C)]
struct SocketAddress([u64; 16]);

/// `ucp_transports_t` of UCX 1.14.
#[repr(C)]
#[allow(non_camel_case_types, reason = "named as in C")]
pub struct ucp_transports_t {
    /// Buffer for the answer.
    pub entries: *mut ucp_transport_entry_t,
    /// Capacity of `entries`; after the call, the number of entries.
    pub num_entries: c_uint,
    /// Size of an entry in bytes, as the caller defines it.
    pub entry_size: usize,
}

/// `ucp_transport_entry_t` of UCX 1.14. The strings belong to the endpoint.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "named as in C")]
pub struct ucp_transport_entry_t {
    /// Name of the transport: `rc_mlx5`, `sysv`.
    pub transport_name: *const c_char,
    /// Name of the device: `mlx5_0:1`, `memory`.
    pub device_name: *const c_char,
}

impl Default for ucp_transport_entry_t {
    fn default() -> Self {
        ucp_transport_entry_t { transport_name: std::ptr::null(), device_name: std::ptr::null() }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// The layout of `ucp_ep_attr_t` of UCX 1.14 by a C compiler on a 64-bit machine.
    #[test]
    fn the_question_for_transports_has_the_layout_of_c() {
        assert_eq!(offset_of!(EndpointTransports, transports), 8 + 32 + 128 + 128);
        assert_eq!(size_of::<ucp_transports_t>(), 24);
        assert_eq!(size_of::<ucp_transport_entry_t>(), 16);
    }
}
