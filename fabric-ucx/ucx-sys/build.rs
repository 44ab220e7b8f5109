//! Finds the installed UCX by pkg-config and binds its headers. Nothing is downloaded or built from C.

use std::env;
use std::path::PathBuf;
use std::process::exit;

/// Older releases lack the memory handle of an operation (`UCP_OP_ATTR_FIELD_MEMH`), and nobody tests them.
const OLDEST_UCX: &str = "1.13";

fn main() {
    println!("cargo:rerun-if-changed=wrapper.h");
    if let Err(reason) = run() {
        eprintln!("error: {reason}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    let ucx = pkg_config::Config::new().atleast_version(OLDEST_UCX).probe("ucx").map_err(|error| {
        format!(
            "ucx-sys needs UCX >= {OLDEST_UCX} with its headers. Install it (Debian, Ubuntu: `apt install libucx-dev`; \
             Fedora, RHEL: `dnf install ucx-devel`), or let PKG_CONFIG_PATH name the directory of its `ucx.pc`, or build \
             without UCX.\n{error}"
        )
    })?;
    println!("cargo:version={}", ucx.version);

    // bindgen panics where it cannot load libclang; the panic's text is right but does not name the package.
    let bindings = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header("wrapper.h")
            .clang_args(ucx.include_paths.iter().map(|path| format!("-I{}", path.display())))
            .allowlist_function("ucp_.*|ucs_status_string|ucs_global_opts_(get|set)_value")
            .allowlist_type("ucp_.*|ucs_status_t|ucs_status_ptr_t|ucs_thread_mode_t|ucs_memory_type")
            .allowlist_var("UCP_.*|UCS_.*")
            // Deprecated interfaces that take va_list or socket addresses bring in half of libc.
            .blocklist_function("ucp_listener_.*|ucp_dt_.*")
            .opaque_type("sockaddr_storage|FILE|_IO_FILE")
            .newtype_enum("ucs_status_t")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .derive_default(true)
            .layout_tests(false)
            .generate_comments(false)
            .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
            .generate()
    })
    .map_err(|_| "bindgen could not start; it needs libclang (Debian, Ubuntu: `apt install libclang-dev`)".to_owned())?
    .map_err(|error| format!("bindgen could not read the headers of UCX {}: {error}", ucx.version))?;

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo did not set OUT_DIR")?);
    bindings.write_to_file(out.join("bindings.rs")).map_err(|error| format!("cannot write the bindings: {error}"))
}
