//! The tests that every fabric must pass. A fabric's crate runs them, with the feature `conformance`, by
//!
//! ```ignore
//! thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(MyFabric::new().unwrap()) });
//! ```
//!
//! which makes one `#[test]` of each case. The closure is called once for each case. It returns one fabric that acts as
//! both hosts, or a pair of fabrics: the lender's and the borrower's.
//!
//! A case panics with its name, the fabric, and the sizes at which it failed. No case hangs: each wait ends at
//! [`DEADLINE`].
//!
//! A fabric's longest read must be at least 256 KiB for the suite to run.

mod basics;
mod bench;
mod exposure;
mod hostile;
mod mapping;
mod memory;
mod runtime;
mod teardown;

use std::sync::Arc;

use crate::Fabric;

pub use bench::{Bench, Connection, DEADLINE, Side, drive};

/// The fabric, or the two fabrics, under test.
pub trait Hosts {
    /// The lender's fabric and the borrower's fabric.
    fn pair(self) -> (Arc<dyn Fabric>, Arc<dyn Fabric>);
}

impl Hosts for Arc<dyn Fabric> {
    fn pair(self) -> (Arc<dyn Fabric>, Arc<dyn Fabric>) {
        (Arc::clone(&self), self)
    }
}

impl Hosts for (Arc<dyn Fabric>, Arc<dyn Fabric>) {
    fn pair(self) -> (Arc<dyn Fabric>, Arc<dyn Fabric>) {
        self
    }
}

/// Runs one case. Its name appears in messages. Used by [`conformance_suite!`](crate::conformance_suite).
pub fn run<H: Hosts>(case: &'static str, test: fn(&Bench), make: impl Fn() -> H) {
    let (lender, borrower) = make().pair();
    test(&Bench::new(case, lender, borrower));
}

/// Runs every case, one after another.
pub fn run_all<H: Hosts>(make: impl Fn() -> H) {
    for (case, test) in CASES {
        run(case, *test, &make);
    }
}

/// The list of the cases. Calls `$then` with it, after `$args`.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_conformance_case {
    ($then:path; $($args:tt)*) => {
        $then! {
            $($args)*;
            addresses_are_exchanged,
            a_read_of_every_size_brings_its_bytes,
            a_read_at_any_offset_brings_its_bytes_and_no_others,
            many_reads_complete_each_once,
            too_many_reads_are_refused,
            a_token_can_be_used_again_once_it_completed,
            foreign_memory_is_read_in_place,
            a_region_can_be_forgotten_and_imported_again,
            reads_of_a_forgotten_region_complete,
            a_lease_word_is_seen_as_it_changes,
            both_ends_can_lend_at_once,
            an_endpoint_connects_once,
            a_read_longer_than_the_longest_is_refused,
            a_region_id_is_imported_once,
            an_exposed_range_opens_no_more_than_it_may,
            an_empty_or_outside_range_is_not_exposed,
            a_revoked_key_reads_nothing,
            a_key_opens_its_memory_to_its_peer_only,
            memory_of_another_fabric_is_not_exposed,
            allocated_memory_is_whole_pages_of_its_own,
            memory_touched_when_used_is_lent_and_read_into,
            registered_memory_is_neither_writable_nor_claimable,
            reads_before_connecting_are_refused,
            reads_outside_their_region_are_refused,
            mismatched_lengths_are_refused,
            malformed_addresses_are_refused,
            malformed_keys_are_refused,
            a_false_region_hurts_only_its_reader,
            mapped_bytes_are_those_of_the_lender,
            mapped_bytes_outlive_the_connection,
            maps_outside_their_region_are_refused,
            a_new_mapping_shows_current_bytes,
            closing_ends_each_read_once,
            a_closed_endpoint_takes_no_reads,
            a_closed_endpoint_opens_and_takes_in_nothing,
            closing_an_idle_endpoint_closes_it,
            a_revoked_lease_is_noticed,
            reads_end_after_the_peer_is_dropped,
            two_connections_work_at_once,
            an_endpoint_moves_between_threads,
            the_two_ends_may_be_driven_by_different_threads,
            an_idle_endpoint_does_not_spin,
        }
    };
}

macro_rules! cases {
    (; $($case:ident),* $(,)?) => {
        /// Every case, by name.
        pub const CASES: &[(&str, fn(&Bench))] = &[$((stringify!($case), cases::$case)),*];
    };
}

for_each_conformance_case!(cases; );

/// The cases.
pub mod cases {
    pub use super::basics::*;
    pub use super::exposure::*;
    pub use super::hostile::*;
    pub use super::mapping::*;
    pub use super::memory::*;
    pub use super::runtime::*;
    pub use super::teardown::*;
}

/// Makes a `#[test]` of each case of the [conformance suite](crate::conformance). Takes an expression of type
/// `impl Fn() -> H`, where `H` is an `Arc<dyn Fabric>` or a pair of them (lender's, borrower's).
#[macro_export]
macro_rules! conformance_suite {
    ($make:expr) => {
        $crate::for_each_conformance_case!($crate::conformance_tests; $make);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_tests {
    ($make:expr; $($case:ident),* $(,)?) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::run(stringify!($case), $crate::conformance::cases::$case, $make);
            }
        )*
    };
}
