//! Statistics, of which servers keep none.

use adbc_core::error::Error;
use adbc_core::schemas::GET_STATISTIC_NAMES_SCHEMA;

use crate::error::not_implemented;
use crate::reader::{Reader, without_rows};

/// Names of statistics besides those of ADBC: none.
pub(crate) fn names() -> Reader {
    without_rows(GET_STATISTIC_NAMES_SCHEMA.clone())
}

/// The answer to a request for statistics. An empty result would say that there are no tables.
pub(crate) fn not_kept() -> Error {
    not_implemented("statistics: servers keep none; SELECT count(*), min(...), max(...) FROM the table computes them")
}
