//! Which bug is planted. Only the copy of the sources that `scripts/plant-bugs.sh` makes has this module.

use std::cell::Cell;

/// The names of all bugs, which are those of their files.
pub const ALL: &[&str] = include!("planted.names");

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Plants a bug in this thread, in place of the one before.
pub fn plant(bug: Option<&'static str>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted in this thread.
#[must_use]
pub fn is_planted(bug: &str) -> bool {
    PLANTED.get() == Some(bug)
}
