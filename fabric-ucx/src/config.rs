//! UCX's configuration: read from its file and the environment, then changed by options.

use std::ffi::CString;
use std::ptr;

use ucx_sys::{self as sys, Ucx, Version, ucs_status_t};

use crate::status::{check, failed};

/// UCX from this version on refuses unknown option names.
const REFUSES_UNKNOWN: Version = Version::new(1, 20);

/// An open `ucp_config_t`.
pub(crate) struct Config {
    ucx: &'static Ucx,
    handle: *mut sys::ucp_config_t,
}

/// The reason why UCX did not accept an option.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// This UCX has no option of that name, or its module for the option is not installed.
    Unknown(String),
    /// The value is wrong.
    Failed(String),
}

impl Config {
    pub(crate) fn read(ucx: &'static Ucx) -> Result<Self, String> {
        let mut handle = ptr::null_mut();
        // SAFETY: no prefix and no file name mean the defaults; room for the handle.
        check("ucp_config_read", unsafe { ucx.ucp_config_read(ptr::null(), ptr::null(), &mut handle) })?;
        Ok(Config { ucx, handle })
    }

    /// Sets an option. UCX before 1.20 accepts any name.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<(), Refusal> {
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| Refusal::Failed(format!("UCX option {name} contains a NUL byte")))
        };
        let (c_name, c_value) = (c_string(name)?, c_string(value)?);
        // SAFETY: an open configuration and two C strings, which UCX copies.
        let status = unsafe { self.ucx.ucp_config_modify(self.handle, c_name.as_ptr(), c_value.as_ptr()) };
        if status == ucs_status_t::UCS_OK {
            return Ok(());
        }
        let reason = failed(&format!("ucp_config_modify({name}={value})"), status);
        // UCX returns the same status for an unknown name and for a wrong value.
        let is_known = match self.ucx.ucs_config_global_list_has_field {
            // SAFETY: a C string, which is only read.
            Some(has_field) => unsafe { has_field(c_name.as_ptr()) != 0 },
            None => self.ucx.version() < REFUSES_UNKNOWN,
        };
        Err(if is_known { Refusal::Failed(reason) } else { Refusal::Unknown(reason) })
    }

    pub(crate) fn handle(&self) -> *const sys::ucp_config_t {
        self.handle
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: opened by `read`, released once.
        unsafe { self.ucx.ucp_config_release(self.handle) }
    }
}
