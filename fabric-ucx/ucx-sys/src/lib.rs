//! Bindings to the installed UCX: `ucp/api/ucp.h` and the little of `ucs` that it needs, made by bindgen at build time.
//!
//! Needs UCX 1.13 or later with its headers, found by pkg-config, and libclang. The items keep their C names and are
//! documented in the [UCX API reference](https://openucx.readthedocs.io/en/master/api.html). What the C headers offer as
//! macros or inline functions, which bindgen cannot see, is written out here.
//!
//! # Safety
//! Everything that bindgen made is as unsafe as the C it stands for.

#[allow(non_camel_case_types, non_snake_case, non_upper_case_globals, clippy::all, clippy::pedantic)]
#[allow(clippy::undocumented_unsafe_blocks, unnecessary_transmutes, rustdoc::all)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

use std::ffi::CStr;

pub use bindings::*;

/// What a call that returns `ucs_status_ptr_t` began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It is done; no callback will come. (`NULL`.)
    Done,
    /// It is under way: the callback will come, and the request has to be freed by [`ucp_request_free`].
    Request(ucs_status_ptr_t),
    /// It failed; no callback will come.
    Failed(ucs_status_t),
}

/// Takes a `ucs_status_ptr_t` apart: the macros `UCS_PTR_IS_ERR`, `UCS_PTR_IS_PTR` and `UCS_PTR_STATUS` of
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

/// UCX's words for a status.
#[must_use]
pub fn status_string(status: ucs_status_t) -> String {
    // SAFETY: any status value is allowed; the string is static, or (for a status unknown to this UCX) a static buffer.
    let text = unsafe { CStr::from_ptr(ucs_status_string(status)) };
    text.to_string_lossy().into_owned()
}

/// Version of the UCX library that is loaded, which may be newer than the headers: major, minor, release.
#[must_use]
pub fn version() -> (u32, u32, u32) {
    let (mut major, mut minor, mut release) = (0, 0, 0);
    // SAFETY: three valid pointers to unsigned.
    unsafe { ucp_get_version(&mut major, &mut minor, &mut release) };
    (major, minor, release)
}

/// `ucp_init` for these headers' version: the inline function of `ucp.h`.
///
/// # Safety
/// As of `ucp_init`: `params` and `context` are valid, `config` is null or came from `ucp_config_read`.
pub unsafe fn ucp_init(
    params: *const ucp_params_t,
    config: *const ucp_config_t,
    context: *mut ucp_context_h,
) -> ucs_status_t {
    // SAFETY: the caller's promise; the version is that of the headers that the structs were bound from.
    unsafe { ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, params, config, context) }
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

    #[test]
    fn the_library_answers() {
        assert!(version() >= (UCP_API_MAJOR, UCP_API_MINOR, 0), "{:?}", version());
        assert_eq!(status_string(ucs_status_t::UCS_ERR_CANCELED), "Request canceled");
    }
}
