//! Bugs on purpose, to prove that the simulation finds bugs. Only with the feature `planted-bugs`, which nothing that
//! ships has; one at most is planted, in one thread, by name.

use std::cell::Cell;

macro_rules! bugs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[$doc])* $variant,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$variant),*];

            /// What it is called.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$variant => $name,)*
                }
            }
        }
    };
}

bugs! {
    /// Borrower: a lease is given back before its bytes have been read.
    LeaseReleasedEarly = "lease-released-early";
    /// Borrower: consumed credit is granted twice.
    CreditDoubleCounted = "credit-double-counted";
    /// Borrower: batches are delivered in the order in which their reads end.
    BatchesOutOfOrder = "batches-out-of-order";
    /// Borrower: the end of a stream is said before its last batches.
    EndTooSoon = "end-too-soon";
    /// Borrower: the lender is not told that a stream was given up.
    CancelLost = "cancel-lost";
    /// Borrower: a batch is delivered whatever its lease word says.
    WordNotChecked = "word-not-checked";
    /// Borrower: the places of a batch are not checked.
    PlacesNotChecked = "places-not-checked";
    /// Borrower: bytes of a failed read are delivered.
    FailedReadDelivered = "failed-read-delivered";
    /// Borrower: the lease of a batch on demand is given back before anything of it has been asked for.
    LazyLeaseNotHeld = "lazy-lease-not-held";
    /// Both: deadlines of streams are not kept.
    DeadlineForgotten = "deadline-forgotten";
    /// Both: silence is never taken for death.
    IdleTimeoutForgotten = "idle-timeout-forgotten";
    /// Either end: pings are not answered.
    PongLost = "pong-lost";
    /// Lender: leases end before the peer is cut off.
    TornDownBeforeClosed = "torn-down-before-closed";
    /// Lender: more is lent than the limit allows.
    LoanLimitIgnored = "loan-limit-ignored";
    /// Lender: all leases have the same word.
    LeaseWordsAlike = "lease-words-alike";
    /// Lender: the word of a lease that has ended still stands.
    LeaseWordNotCleared = "lease-word-not-cleared";
    /// Lender: memory is reused once its batch has been announced.
    MemoryFreedWhenSent = "memory-freed-when-sent";
    /// Lender: memory of leases that have ended is kept.
    LoanLeaked = "loan-leaked";
    /// Lender: an error of the source in mid-stream passes for the end.
    ErrorTakenForEnd = "error-taken-for-end";
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug in this thread, in place of the one before.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted here.
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}
