//! Settings of the fabric.

use std::path::PathBuf;

use crate::Audience;

/// Settings of the fabric. The defaults are right for processes of one user and one network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShmOptions {
    /// A directory in which every endpoint listens too. A peer in another network namespace, such as a container,
    /// reaches this process there. Both must see the directory under the same path.
    pub directory: Option<PathBuf>,
    /// The users whom memory of this fabric is shown to.
    pub audience: Audience,
    /// Threads that help to copy large reads, at most.
    pub copy_threads: usize,
}

impl Default for ShmOptions {
    fn default() -> Self {
        ShmOptions { directory: None, audience: Audience::SameUser, copy_threads: default_copy_threads() }
    }
}

/// A few cores use the whole memory bandwidth; the other cores are left to the application. As over UCX.
fn default_copy_threads() -> usize {
    std::thread::available_parallelism().map_or(0, |cores| (cores.get() / 2).min(4))
}
