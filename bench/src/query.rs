//! The queries of the comparison: the table, the number of rows, and the engine's work. Every contender gets the same
//! text.

use std::fmt;
use std::str::FromStr;

/// The engine's work for a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Returns the batch that it holds.
    Held,
    /// Computes the batch: every buffer is new (a `take` of all rows).
    Fresh,
    /// Filters the batch, and keeps this share of the rows. `rows` counts the scanned rows.
    Keep(f64),
}

/// A query: `TABLE rows=N [batch=N] [fresh | keep=SHARE]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Name of a table of [`crate::tables`].
    pub table: String,
    /// Rows of the result; scanned rows, for [`Mode::Keep`].
    pub rows: u64,
    /// Rows of a batch, if fewer than in the table's batches.
    pub batch: Option<usize>,
    /// The engine's work.
    pub mode: Mode,
}

impl Query {
    /// The first `rows` rows of the table, without computation.
    pub fn held(table: &str, rows: u64) -> Self {
        Query { table: table.to_owned(), rows, batch: None, mode: Mode::Held }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows={}", self.table, self.rows)?;
        if let Some(batch) = self.batch {
            write!(f, " batch={batch}")?;
        }
        match self.mode {
            Mode::Held => Ok(()),
            Mode::Fresh => f.write_str(" fresh"),
            Mode::Keep(share) => write!(f, " keep={share}"),
        }
    }
}

impl FromStr for Query {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut query = Query::held(words.next().ok_or("an empty query")?, 0);
        for word in words {
            let bad = || format!("{word:?} is no part of a query: TABLE rows=N [batch=N] [fresh | keep=SHARE]");
            match word.split_once('=') {
                Some(("rows", rows)) => query.rows = rows.parse().map_err(|_| bad())?,
                Some(("batch", rows)) => query.batch = Some(rows.parse().ok().filter(|&n| n > 0).ok_or_else(bad)?),
                Some(("keep", share)) => query.mode = Mode::Keep(share.parse().map_err(|_| bad())?),
                None if word == "fresh" => query.mode = Mode::Fresh,
                _ => return Err(bad()),
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_written_as_they_are_read() {
        for text in ["num8 rows=1", "num8 rows=10 batch=3 fresh", "taxi rows=4096 keep=0.01"] {
            assert_eq!(text.parse::<Query>().unwrap().to_string(), text);
        }
        assert!("num8 rows=x".parse::<Query>().is_err());
        assert!("num8 row=1".parse::<Query>().is_err());
    }
}
