//! Bindings to UCX (`ucp`, and the few functions of `ucs` that it needs), which is loaded at run time by [`load`].
//!
//! A program with this crate is built without UCX's headers and without libclang, starts without UCX, and runs with
//! every UCX from 1.13 on. The types and constants in [`types`] were generated once by bindgen from the headers of UCX
//! 1.13 (`generate.sh`); they keep their C names and are documented in the [UCX API
//! reference](https://openucx.readthedocs.io/en/master/api.html). The functions are methods of [`Ucx`]. Macros and
//! inline functions of the headers, which bindgen cannot convert, are written by hand here.
//!
//! # Versions
//! UCX keeps its interface within a major version: structs grow at their end, and a mask in each struct names its valid
//! fields, so that a caller and a library of different minor versions are compatible. Nine versions were compared and
//! are run by this project's tests.
//!
//! | from UCX | what |
//! |---|---|
//! | 1.13 | all types, and all functions of [`Ucx`] that are not an `Option` |
//! | 1.14 | [`Ucx::ucp_ep_query`] returns the transports of an endpoint ([`EndpointTransports`]); 1.13 refuses |
//! | 1.14 | keepalive over RDMA no longer aborts the process; read-only memory can be registered with an RDMA device |
//! | 1.16 | new protocols are the default (`UCX_PROTO_ENABLE`), and text that UCX prints for people has another form |
//! | 1.19 | a remote key whose memory is gone is refused by `ucp_ep_rkey_unpack`; older ones crash on it |
//! | 1.20 | `ucp_config_modify` refuses names that it does not know; older ones ignore them |
//! | 1.20 | `ucs_config_global_list_has_field` |
//! | 1.20 | `ucp_ep_rkey_unpack` reads behind the entries of a key, up to a byte 0xff, if the peer has 1.20 too |
//!
//! # Safety
//! Every function has the safety conditions of the C function of its name.

#![warn(missing_docs)]

mod library;
mod transports;
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused,
    clippy::all,
    clippy::pedantic
)]
#[allow(clippy::undocumented_unsafe_blocks, unnecessary_transmutes, rustdoc::all)]
pub mod types;

pub use library::{LIBRARY_VARIABLE, LoadError, OLDEST, Ucx, Version, load, loaded};
pub use transports::{EndpointTransports, ucp_transport_entry_t, ucp_transports_t};
pub use types::*;

/// The state of the operation that a call with result `ucs_status_ptr_t` began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is done; the callback will not be called. (`NULL`.)
    Done,
    /// It is in progress: the callback will be called, and the request must be freed by [`Ucx::ucp_request_free`].
    Request(ucs_status_ptr_t),
    /// It failed; the callback will not be called.
    Failed(ucs_status_t),
}

/// Decodes a `ucs_status_ptr_t`: the macros `UCS_PTR_IS_ERR`, `UCS_PTR_IS_PTR` and `UCS_PTR_STATUS` of
/// `ucs/type/status.h`. Error statuses are the addresses from [`ucs_status_t::UCS_ERR_LAST`] (-100) up to -1.
#[must_use]
pub fn status_ptr(pointer: ucs_status_ptr_t) -> Begun {
    let value = pointer as isize;
    if value == 0 {
        Begun::Done
    } else if (ucs_status_t::UCS_ERR_LAST.0 as isize..0).contains(&value) {
        // The range just checked fits into an i8.
        Begun::Failed(ucs_status_t(value as i8))
    } else {
        Begun::Request(pointer)
    }
}

impl Ucx {
    /// `ucp_init` for the version of these bindings: the inline function of `ucp.h`.
    ///
    /// # Safety
    /// As for `ucp_init`: `params` and `context` are valid, `config` is null or came from `ucp_config_read`.
    pub unsafe fn ucp_init(
        &self,
        params: *const ucp_params_t,
        config: *const ucp_config_t,
        context: *mut ucp_context_h,
    ) -> ucs_status_t {
        // SAFETY: the caller's promise; the version is that of the headers from which the structs were generated.
        unsafe { self.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, params, config, context) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_pointers_are_told_apart() {
        let at = |value: isize| value as ucs_status_ptr_t;
        assert_eq!(status_ptr(at(0)), Begun::Done);
        assert_eq!(status_ptr(at(-1)), Begun::Failed(ucs_status_t::UCS_ERR_NO_MESSAGE));
        assert_eq!(status_ptr(at(-100)), Begun::Failed(ucs_status_t::UCS_ERR_LAST));
        assert_eq!(status_ptr(at(-101)), Begun::Request(at(-101)));
        assert_eq!(status_ptr(at(4096)), Begun::Request(at(4096)));
    }

    /// Needs a machine with UCX, as all machines that run this project's tests have.
    #[test]
    fn the_library_answers() {
        let ucx = load(None).unwrap();
        assert!(ucx.version() >= OLDEST, "{ucx:?}");
        assert_eq!(ucx.status_string(ucs_status_t::UCS_ERR_CANCELED), "Request canceled");
        assert!(std::ptr::eq(ucx, load(None).unwrap()));
        let error = load(Some(std::path::Path::new("/nowhere/libucp.so.0"))).unwrap_err();
        assert!(matches!(error, LoadError::Another { .. }), "{error}");
    }
}

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
