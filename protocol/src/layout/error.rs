//! What can be wrong with a batch or a descriptor, and where.

use std::fmt;

use arrow_schema::{ArrowError, DataType};

/// Why a batch cannot be lent, or what was lent cannot be used.
#[derive(Debug)]
pub struct LayoutError {
    /// Field names from the column inwards; innermost first, as they are found on the way out.
    path: Vec<String>,
    /// What is wrong there.
    problem: LayoutProblem,
}

impl LayoutError {
    /// The array concerned, as `column.child.grandchild`; `batch` where it is no single column.
    #[must_use]
    pub fn path(&self) -> String {
        if self.path.is_empty() {
            return "batch".to_owned();
        }
        self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &LayoutProblem {
        &self.problem
    }

    pub(super) fn within(mut self, name: &str) -> Self {
        // A hostile schema may have names of any length; an error need not repeat them.
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

/// A defect of one array or of the batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutProblem {
    /// The schema has more arrays than the descriptor.
    #[error("the descriptor ends before the schema does: no array for this field")]
    MissingNode,
    /// The values of a dictionary are to be those of a batch before, and none had any.
    #[error("its dictionary is to be that of an earlier batch, and there is none")]
    NoDictionary,
    /// The descriptor has more arrays than the schema.
    #[error("the descriptor has {extra} arrays more than the schema")]
    ExtraNodes {
        /// How many more.
        extra: usize,
    },
    /// An array needs a buffer that the descriptor does not have, or that was not given.
    #[error("no buffer for its {what}")]
    MissingBuffer {
        /// The buffer's role.
        what: &'static str,
    },
    /// There are more buffers than arrays need.
    #[error("{extra} buffers belong to no array")]
    ExtraBuffers {
        /// How many.
        extra: usize,
    },
    /// Two numbers that have to be equal are not.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// What the numbers count.
        what: &'static str,
        /// What it has to be.
        expected: u64,
        /// What it is.
        got: u64,
    },
    /// A number is greater than it may be, by a limit or by what else is known.
    #[error("{what}: {got} is more than {limit}")]
    TooLarge {
        /// What the number counts.
        what: &'static str,
        /// The number.
        got: u64,
        /// The greatest that is allowed.
        limit: u64,
    },
    /// A length cannot be computed in 64 bits.
    #[error("{what} overflows")]
    Overflow {
        /// What was to be computed.
        what: &'static str,
    },
    /// The descriptor speaks of this array as of another type.
    #[error("the descriptor's detail is \"{got}\", which does not fit an array of type {data_type}")]
    Detail {
        /// The field's type.
        data_type: DataType,
        /// The detail's name.
        got: &'static str,
    },
    /// An offset lies outside of the range that is lent.
    #[error("{what} at position {at} lies outside of what is lent")]
    OutOfRange {
        /// What kind of offset.
        what: &'static str,
        /// Position in its buffer.
        at: usize,
    },
    /// An extent of a data buffer is empty, or not beyond the one before it.
    #[error(
        "{len} bytes from {base} of data buffer {buffer} on are no extent: it has to be beyond the one before, and not empty"
    )]
    Extent {
        /// The data buffer.
        buffer: u32,
        /// Where in it the extent begins.
        base: u32,
        /// Its length in bytes.
        len: u64,
    },
    /// A view contradicts itself or the bytes that it points at.
    #[error("the view at position {at} is not valid: {why}")]
    View {
        /// Position in the array.
        at: usize,
        /// The problem.
        why: &'static str,
    },
    /// A string is not UTF-8.
    #[error("the string at position {at} is not valid UTF-8")]
    NotUtf8 {
        /// Position in the array.
        at: usize,
    },
    /// An offset is less than the one before it, or than zero.
    #[error("the offset at position {at} is negative, or less than the one before it")]
    Descending {
        /// Position in its buffer.
        at: usize,
    },
    /// A buffer of the lender's batch is shorter than its array needs, or not aligned for it.
    #[error("the array's {what} buffer does not hold what the array says: the array is not valid")]
    Broken {
        /// The buffer's role.
        what: &'static str,
    },
    /// A column of a batch is not of the type that the stream's schema gives it.
    #[error("the column is of type {got}, and the stream's schema says {expected}")]
    OtherType {
        /// The schema's type.
        expected: DataType,
        /// The column's type.
        got: DataType,
    },
    /// A field that is declared as non-nullable has nulls.
    #[error("{nulls} nulls in a field that is declared as not nullable")]
    Nulls {
        /// How many.
        nulls: u64,
    },
    /// The type is not one that arrays can have.
    #[error("{data_type} is not a type that arrays can have: {why}")]
    Type {
        /// The type.
        data_type: DataType,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The type is nested deeper than [`MAX_DEPTH`](super::MAX_DEPTH).
    #[error("types are nested deeper than {limit} levels")]
    TooDeep {
        /// The greatest depth that is allowed.
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
