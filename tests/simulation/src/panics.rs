//! Records the place of a run's panic for the report, instead of printing it.

use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs the hook that records panics of runs, for each thread. Other panics, such as of failing tests, are printed.
pub fn keep() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match RUNS.get() {
            true => LAST.set(Some(info.to_string().replace('\n', " "))),
            false => print(info),
        }));
    });
}

/// Executes `run` as a run: its panics are recorded.
pub fn within_run<T>(run: impl FnOnce() -> T) -> std::thread::Result<T> {
    RUNS.set(true);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    RUNS.set(false);
    ran
}

/// The last panic of this thread.
pub fn take() -> Option<String> {
    LAST.take()
}
