//! The end of the process.

/// Ends the process even if other threads still run code of a fabric's library.
#[cfg(feature = "ucx")]
pub(crate) fn leave(code: u8) -> ! {
    thallus_fabric_ucx::exit_process(code)
}

#[cfg(not(feature = "ucx"))]
pub(crate) fn leave(code: u8) -> ! {
    std::process::exit(code.into())
}
