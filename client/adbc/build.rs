//! Link options of the shared library.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // Arrays that an application keeps have their release functions in the library, and threads may still be on
        // their way out: a driver manager that closes the library must not unload it.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
