//! Ends a process in which threads may still be within UCX.

use std::io::{self, Write};

/// Ends this process with an exit code, without running the destructors of its libraries.
///
/// `exit(3)` runs libucs's destructor, which frees its tables while a thread that is still closing an endpoint or the
/// context uses them. UCX then aborts (`vfs_obj.c: Assertion`), and a server that stopped in good order seems to have
/// crashed. A program that cannot wait for all its threads, because a query computes without end or a second signal
/// demands an immediate end, ends by this function instead. The buffers of Rust's standard streams are written first;
/// the operating system frees everything else.
pub fn exit_process(code: u8) -> ! {
    // An error of a closed stream cannot be reported any more.
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    // SAFETY: takes a number and does not return; that no destructor runs is the purpose.
    unsafe { libc::_exit(code.into()) }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    /// Set in the process that is to end.
    const ENDING: &str = "THALLUS_TEST_EXIT_PROCESS";

    /// Would abort in a destructor of a library.
    extern "C" fn destructor() {
        std::process::abort();
    }

    #[test]
    fn a_process_ends_with_its_code_and_without_destructors() {
        if env::var_os(ENDING).is_some() {
            // SAFETY: a function without arguments that stays at its address.
            assert_eq!(unsafe { libc::atexit(destructor) }, 0);
            print!("said without a newline");
            super::exit_process(42);
        }
        let name = "exit::tests::a_process_ends_with_its_code_and_without_destructors";
        let child =
            Command::new(env::current_exe().unwrap()).args([name, "--exact", "--nocapture"]).env(ENDING, "1").output();
        let child = child.unwrap();
        assert_eq!(child.status.code(), Some(42), "{child:?}");
        assert!(String::from_utf8_lossy(&child.stdout).ends_with("said without a newline"), "{child:?}");
    }
}
