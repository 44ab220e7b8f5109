//! The users whom memory may be shown to.

use std::sync::LazyLock;

use rustix::process::geteuid;

/// The peers that may read a region. The kernel vouches for the user of a peer (unix(7), `SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Audience {
    /// Processes of this process's user.
    SameUser,
    /// Processes of the user with this id.
    User(u32),
    /// Every peer of this process. For an operator who says that all users may read each other's results.
    Everyone,
}

impl Audience {
    /// Whether a peer of this user id may read the memory.
    #[must_use]
    pub fn admits(self, peer: u32) -> bool {
        // A user of another user namespace has the overflow id here, as has every other such user.
        let known = peer != overflow_uid();
        match self {
            Audience::Everyone => true,
            Audience::SameUser => known && peer == geteuid().as_raw(),
            Audience::User(user) => known && peer == user,
        }
    }
}

/// The id that stands for users who have none in this user namespace (user_namespaces(7)).
fn overflow_uid() -> u32 {
    static ID: LazyLock<u32> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
        text.trim().parse().unwrap_or(65_534)
    });
    *ID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_without_an_id_here_are_nobody_in_particular() {
        let own = geteuid().as_raw();
        let other = own.wrapping_add(1000);
        assert!(Audience::SameUser.admits(own));
        assert!(!Audience::SameUser.admits(other) && Audience::User(other).admits(other));
        assert!(!Audience::User(other).admits(own) && !Audience::User(other).admits(other + 1));
        assert!(!Audience::User(overflow_uid()).admits(overflow_uid()));
        assert!(Audience::Everyone.admits(overflow_uid()));
    }
}
