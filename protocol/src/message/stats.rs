//! Figures of a stream, as numbered values: either end may know some that the other does not.

use serde::{Deserialize, Serialize};

macro_rules! stats {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident = $number:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$fdoc])* pub $field: u64,)*
        }

        impl From<Vec<(u16, u64)>> for $name {
            fn from(values: Vec<(u16, u64)>) -> Self {
                let mut stats = $name::default();
                for (number, value) in values {
                    match number {
                        $($number => stats.$field = value,)*
                        // Of a peer that knows more.
                        _ => {}
                    }
                }
                stats
            }
        }

        impl From<$name> for Vec<(u16, u64)> {
            fn from(stats: $name) -> Self {
                let all = [$(($number, stats.$field)),*];
                all.into_iter().filter(|(_, value)| *value != 0).collect()
            }
        }
    };
}

stats! {
    /// The lender's figures of a stream, said at its good end. On the wire: a list of numbers and values, without those
    /// that are 0; unknown numbers are ignored.
    StreamStats {
        /// No. 1: Rows sent.
        rows = 1;
        /// No. 2: Batches sent as leases.
        batches_lent = 2;
        /// No. 3: Batches sent inline.
        batches_inline = 3;
        /// No. 4: Live bytes lent.
        bytes_lent = 4;
        /// No. 5: Bytes of inline batches.
        bytes_inline = 5;
        /// No. 6: Bytes that the lender had to copy to registered memory before they could be lent.
        bytes_staged = 6;
        /// No. 7: Registrations of memory that the lender had to make for what it lent. 0 in steady state.
        registrations = 7;
        /// No. 8: Regions that the lender had to announce for what it lent: keys that the borrower had to take in. 0 in
        /// steady state.
        regions = 8;
        /// No. 9: Page faults that the lender took while it made batches ready to be lent. 0 in steady state.
        page_faults = 9;
        /// No. 10: Nanoseconds from the request's arrival to the first batch out of the engine.
        first_batch_nanos = 10;
        /// No. 11: Nanoseconds that the engine took in all, time waiting for credit left out.
        execute_nanos = 11;
        /// No. 12: Nanoseconds in which a batch was ready and credit was not.
        credit_wait_nanos = 12;
    }
}
