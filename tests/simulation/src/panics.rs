//! Where a run's panic came from: kept for its report instead of being printed at once.

use std::cell::RefCell;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on panics are kept, for each thread.
pub fn keep() {
    std::panic::set_hook(Box::new(|info| LAST.set(Some(info.to_string().replace('\n', " ")))));
}

/// The last panic of this thread.
pub fn take() -> Option<String> {
    LAST.take()
}
