//! Ending a process in which threads may still be within UCX.

use std::io::{self, Write};

/// Ends this process with an exit code, without running the destructors of its libraries.
///
/// `exit(3)` runs libucs's destructor, which takes its tables apart while a thread that is still closing an endpoint or
/// the context uses them: UCX then aborts (`vfs_obj.c: Assertion`), and a server that stopped in good order seems to
/// have crashed. A program whose threads cannot all be waited for, because a query computes without end or a second
/// signal wants an end at once, ends by this instead. What Rust's standard streams have buffered is written first; the
/// operating system takes everything else back.
pub fn exit_process(code: u8) -> ! {
    // There is no one left to tell that a stream is closed.
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    // SAFETY: takes a number and does not return; that no destructor runs is what is wanted.
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
            // SAFETY: a function without arguments that stays where it is.
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
