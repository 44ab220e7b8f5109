//! Errors of batches and descriptors, with the field concerned.

use std::fmt;

use arrow_schema::{ArrowError, DataType};

/// The reason why a batch cannot be lent, or why lent bytes cannot be used.
#[derive(Debug)]
pub struct LayoutError {
    /// Field names, innermost first: each level adds its name as the error is returned.
    path: Vec<String>,
    /// The error at that field.
    problem: LayoutProblem,
}

impl LayoutError {
    /// The array concerned, as `column.child.grandchild`; `batch` if the error concerns no single column.
    #[must_use]
    pub fn path(&self) -> String {
        if self.path.is_empty() {
            return "batch".to_owned();
        }
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// The error at that field.
    #[must_use]
    pub fn problem(&self) -> &LayoutProblem {
        &self.problem
    }

    pub(super) fn within(mut self, name: &str) -> Self {
        // Names in a hostile schema may have any length. The error contains their beginning only.
        const LONGEST: usize = 64;
        self.path.push(match name.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}...", &name[..end]),
            None => name.to_owned(),
        });
        self
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path(), self.problem)
    }
}

impl std::error::Error for LayoutError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

impl From<LayoutProblem> for LayoutError {
    fn from(problem: LayoutProblem) -> Self {
        LayoutError { path: Vec::new(), problem }
    }
}

impl From<ArrowError> for LayoutError {
    fn from(error: ArrowError) -> Self {
        LayoutProblem::Invalid(error).into()
    }
}

/// An error in one array or in the batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutProblem {
    /// The schema has more arrays than the descriptor.
    #[error("the descriptor ends before the schema does: no array for this field")]
    MissingNode,
    /// A dictionary refers to the values of an earlier batch, and there are none.
    #[error("it uses the dictionary of an earlier batch, and there is none")]
    NoDictionary,
    /// The descriptor has more arrays than the schema.
    #[error("the descriptor has {extra} arrays more than the schema")]
    ExtraNodes {
        /// Number of surplus arrays.
        extra: usize,
    },
    /// An array needs a buffer that is missing in the descriptor or in the list of buffers.
    #[error("no buffer for its {what}")]
    MissingBuffer {
        /// The buffer's role.
        what: &'static str,
    },
    /// There are more buffers than arrays need.
    #[error("{extra} buffers belong to no array")]
    ExtraBuffers {
        /// Number of surplus buffers.
        extra: usize,
    },
    /// Two numbers that must be equal are not.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// Name of the number.
        what: &'static str,
        /// The expected value.
        expected: u64,
        /// The actual value.
        got: u64,
    },
    /// A number exceeds a limit, or another number of the batch that bounds it.
    #[error("{what}: {got} is more than {limit}")]
    TooLarge {
        /// Name of the number.
        what: &'static str,
        /// The number.
        got: u64,
        /// The maximum.
        limit: u64,
    },
    /// A length does not fit 64 bits.
    #[error("{what} overflows")]
    Overflow {
        /// Name of the length.
        what: &'static str,
    },
    /// The detail in the descriptor is of another type than the array.
    #[error("the descriptor's detail is \"{got}\", which does not fit an array of type {data_type}")]
    Detail {
        /// The field's type.
        data_type: DataType,
        /// The detail's name.
        got: &'static str,
    },
    /// An offset lies outside of the lent range.
    #[error("{what} at position {at} lies outside of the lent range")]
    OutOfRange {
        /// The kind of offset.
        what: &'static str,
        /// Position in its buffer.
        at: usize,
    },
    /// An extent of a data buffer is empty, or not beyond the previous one.
    #[error("the extent of {len} bytes at {base} of data buffer {buffer} is empty, or not beyond the previous extent")]
    Extent {
        /// Number of the data buffer.
        buffer: u32,
        /// Start of the extent in that buffer, in bytes.
        base: u32,
        /// Its length in bytes.
        len: u64,
    },
    /// A view contradicts itself or the bytes that it points at.
    #[error("the view at position {at} is not valid: {why}")]
    View {
        /// Position in the array.
        at: usize,
        /// The contradiction.
        why: &'static str,
    },
    /// A string is not UTF-8.
    #[error("the string at position {at} is not valid UTF-8")]
    NotUtf8 {
        /// Position in the array.
        at: usize,
    },
    /// An offset is less than the previous one, or negative.
    #[error("the offset at position {at} is negative, or less than the one before it")]
    Descending {
        /// Position in its buffer.
        at: usize,
    },
    /// A buffer of the lender's batch is shorter than its array needs, or not aligned for it.
    #[error("the array's {what} buffer is too short for the array, or not aligned: the array is not valid")]
    Broken {
        /// The buffer's role.
        what: &'static str,
    },
    /// The type of a batch's column is not that in the stream's schema.
    #[error("the column is of type {got}, but {expected} in the stream's schema")]
    OtherType {
        /// The schema's type.
        expected: DataType,
        /// The column's type.
        got: DataType,
    },
    /// A field that is declared as non-nullable has nulls.
    #[error("{nulls} nulls in a field that is declared as not nullable")]
    Nulls {
        /// Number of nulls.
        nulls: u64,
    },
    /// A type that arrays cannot have.
    #[error("{data_type} is not a type that arrays can have: {why}")]
    Type {
        /// The type.
        data_type: DataType,
        /// The violated rule.
        why: &'static str,
    },
    /// The type is nested deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    #[error("types are nested deeper than {limit} levels")]
    TooDeep {
        /// The maximum depth.
        limit: usize,
    },
    /// Arrow's own validation refused the array.
    #[error("not a valid array: {0}")]
    Invalid(#[source] ArrowError),
}

/// Adds the name of a field to the path of an error that comes from within it.
pub(super) trait Within<T> {
    fn within(self, name: &str) -> Result<T, LayoutError>;
}

impl<T> Within<T> for Result<T, LayoutError> {
    fn within(self, name: &str) -> Result<T, LayoutError> {
        self.map_err(|error| error.within(name))
    }
}

pub(super) fn equal(what: &'static str, expected: u64, got: u64) -> Result<(), LayoutError> {
    if expected == got { Ok(()) } else { Err(LayoutProblem::Mismatch { what, expected, got }.into()) }
}

pub(super) fn at_most(what: &'static str, got: u64, limit: u64) -> Result<(), LayoutError> {
    if got <= limit { Ok(()) } else { Err(LayoutProblem::TooLarge { what, got, limit }.into()) }
}
