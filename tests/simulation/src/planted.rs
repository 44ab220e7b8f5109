//! The bugs that can be planted. The sources have none: the feature `planted-bugs` is for the copy of them that
//! `scripts/plant-bugs.sh` makes.

/// A bug, by the name of its file in `bugs/`.
pub type Bug = &'static str;

#[cfg(feature = "planted-bugs")]
pub use thallus_protocol::planted::{ALL, plant};

#[cfg(not(feature = "planted-bugs"))]
mod none {
    /// The names of all bugs.
    pub const ALL: &[&str] = &[];

    /// Plants a bug in this thread, in place of the one before.
    ///
    /// # Panics
    /// If there is one to be planted.
    pub fn plant(bug: Option<super::Bug>) {
        assert_eq!(bug, None, "no bug can be planted in these sources");
    }
}

#[cfg(not(feature = "planted-bugs"))]
pub use none::{ALL, plant};
