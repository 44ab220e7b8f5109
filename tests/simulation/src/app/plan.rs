//! The plan of a query: how its result is read. Requests besides queries.

use std::time::Duration;

use thallus_client::{Depth, ObjectsRequest, QueryOptions};

use crate::dice::Dice;
use crate::scripts::sql;
use crate::statements;

/// A query to be made.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) index: usize,
    pub(super) query: QueryOptions,
    pub(super) cancel_after: Option<usize>,
    pub(super) pace: Duration,
    pub(super) lazy: Option<PartialReads>,
    /// Number of the parameters and of the defaults, if there are any.
    pub(super) statement: Option<u32>,
}

/// The parts that are read of every batch.
#[derive(Clone, Debug)]
pub(super) struct PartialReads {
    /// Columns, and the range of rows in thousandths of the batch.
    pub(super) reads: Vec<(Vec<usize>, [u32; 2])>,
    /// Pause before each read.
    pub(super) pause: Duration,
    /// Number of batches to hold before the first of them is read.
    pub(super) hold: usize,
    /// Whether each read is made twice at the same time.
    pub(super) twice: bool,
}

impl PartialReads {
    /// All of each batch, without a pause.
    pub(super) fn all() -> Self {
        PartialReads { reads: vec![(vec![0, 1, 2], [0, 1000])], pause: Duration::ZERO, hold: 0, twice: false }
    }

    pub(super) fn draw(dice: &mut Dice, fault_free: bool) -> Self {
        let columns = [vec![], vec![0], vec![2, 0], vec![1], vec![0, 1, 2], vec![2, 2]];
        let ask = |dice: &mut Dice| {
            let mut ends = [dice.within(0, 1000), dice.within(0, 1000)];
            ends.sort_unstable();
            (dice.pick(&columns), if dice.percent(30) { [0, 1000] } else { ends })
        };
        PartialReads {
            reads: (0..dice.within(0, 3)).map(|_| ask(dice)).collect(),
            pause: if dice.percent(40) { dice.millis(1, 60) } else { Duration::ZERO },
            // A client that holds several batches may have to wait until its leases are revoked: not in a fault-free
            // run.
            hold: if fault_free { 0 } else { dice.pick(&[0, 0, 1, 3]) },
            twice: dice.percent(20),
        }
    }
}

/// A request about a statement or about tables.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Describe { sql: String, number: u32 },
    Objects(ObjectsRequest),
}

impl Question {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        if dice.percent(50) {
            let sql = sql(dice.within(0, 1000) as usize);
            return Question::Describe { sql, number: dice.within(1, statements::NUMBERS) };
        }
        let table = Some("%".repeat(dice.within(0, 300) as usize));
        let depth = dice.pick(&[Depth::Tables, Depth::Columns]);
        Question::Objects(ObjectsRequest { depth, table, ..ObjectsRequest::default() })
    }
}
