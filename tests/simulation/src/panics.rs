//! Where a run's panic came from: kept for its report instead of being printed at once.

use std::cell::{Cell, RefCell};
use std::sync::Once;

thread_local! {
    static RUNS: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on panics of runs are kept, for each thread. Others, as of tests that find something wrong, are printed as ever.
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

/// What this thread does is a run.
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
