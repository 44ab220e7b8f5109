//! Statistics of a stream, as numbered values. Either end may know values that the other end does not know.

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
                        // A value that this build does not know.
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
    /// The lender's statistics of a stream, sent at its successful end. On the wire: a list of numbers and values,
    /// without values of 0; unknown numbers are ignored.
    StreamStats {
        /// No. 1: Rows sent.
        rows = 1;
        /// No. 2: Batches lent.
        batches_lent = 2;
        /// No. 3: Batches sent inline.
        batches_inline = 3;
        /// No. 4: Live bytes lent.
        bytes_lent = 4;
        /// No. 5: Bytes of inline batches.
        bytes_inline = 5;
        /// No. 6: Bytes that the lender copied to registered memory before it could lend them.
        bytes_staged = 6;
        /// No. 7: Registrations of memory that the lender made for the batches it lent. 0 in steady state.
        registrations = 7;
        /// No. 8: Regions that the lender announced for the batches it lent. The borrower imports each key. 0 in steady
        /// state.
        regions = 8;
        /// No. 9: Page faults of the lender while it prepared batches for lending. 0 in steady state.
        page_faults = 9;
        /// No. 10: Nanoseconds from the arrival of the request to the first batch of the engine.
        first_batch_nanos = 10;
        /// No. 11: Nanoseconds of work of the engine in total, without the time that it waited for credit.
        execute_nanos = 11;
        /// No. 12: Nanoseconds during which a batch was ready but credit was missing.
        credit_wait_nanos = 12;
    }
}
