//! A range of rows, as `--rows` gives it.

use std::fmt;
use std::str::FromStr;

/// `--rows`: counted from 0 over the whole result, without the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first row.
    pub from: u64,
    /// The row after the last.
    pub to: u64,
}

impl Rows {
    /// Every row.
    pub const ALL: Rows = Rows { from: 0, to: u64::MAX };
}

/// A text that is not a range of rows.
#[derive(Debug, PartialEq, Eq)]
pub struct RowsError(String);

impl fmt::Display for RowsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no range of rows: write 100 for the first hundred, or 100..200, 100.., ..200", self.0)
    }
}

impl std::error::Error for RowsError {}

impl FromStr for Rows {
    type Err = RowsError;

    fn from_str(text: &str) -> Result<Self, RowsError> {
        let wrong = || RowsError(text.to_owned());
        let number = |text: &str, empty| if text.is_empty() { Ok(empty) } else { text.parse().map_err(|_| wrong()) };
        let rows = match text.split_once("..") {
            Some(("", "")) => return Err(wrong()),
            Some((from, to)) => Rows { from: number(from, 0)?, to: number(to, u64::MAX)? },
            None => Rows { from: 0, to: text.parse().map_err(|_| wrong())? },
        };
        if rows.from > rows.to { Err(wrong()) } else { Ok(rows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_rows() {
        for (text, from, to) in
            [("100", 0, 100), ("0", 0, 0), ("5..7", 5, 7), ("5..", 5, u64::MAX), ("..7", 0, 7), ("7..7", 7, 7)]
        {
            assert_eq!(text.parse(), Ok(Rows { from, to }), "{text}");
        }
        for text in ["", "..", "x", "-1", "7..5", "1..2..3", "1...2", "99999999999999999999"] {
            let error = text.parse::<Rows>().unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
