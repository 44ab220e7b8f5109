//! The name of a table or a view.

use std::fmt;

use super::super::names::SCHEMA;

/// The name of a table or a view, with its schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) struct Name {
    pub(in super::super) schema: String,
    pub(in super::super) object: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.schema.as_str() {
            SCHEMA => f.write_str(&self.object),
            schema => write!(f, "{schema}.{}", self.object),
        }
    }
}
