//! `thallus`: SQL to a server, results to a table, file or pipe. The code is in the library, where tests can call it.

#![forbid(unsafe_code)]

fn main() {
    thallus_cli::main()
}
