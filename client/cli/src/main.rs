//! `thallus`: SQL to a server, results to a table, file or pipe. All of it is in the library, where tests reach it.

#![forbid(unsafe_code)]

fn main() {
    thallus_cli::main()
}
