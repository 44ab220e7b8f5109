//! Errors of queries, with a message for the user and a kind for the wire.

use std::path::PathBuf;

use thiserror::Error;

/// Most table names that a message lists.
const NAMES_SHOWN: usize = 20;

/// A query failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The text is not SQL that the engine can parse, or not exactly one statement.
    #[error("syntax error: {message}")]
    Syntax {
        /// The expectation and its position.
        message: String,
    },
    /// The query is longer or more deeply nested than the engine accepts.
    #[error("query too large: {what} is {actual}, the limit is {limit}")]
    TooLarge {
        /// The measure that is too large.
        what: &'static str,
        /// Its value.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// There is no such table.
    #[error("table '{table}' not found; {}", known_tables(known))]
    UnknownTable {
        /// The name in the query.
        table: String,
        /// Names of the existing tables.
        known: Vec<String>,
    },
    /// A table, or another object that the statement names, does not exist, in the words of a database behind the
    /// engine.
    #[error("{message}")]
    NotFound {
        /// The object.
        message: String,
    },
    /// There is no such column, or more than one.
    #[error("{message}")]
    Column {
        /// The column, and the existing ones.
        message: String,
    },
    /// The query is invalid: types that do not fit, an unknown function, an aggregate in the wrong place.
    #[error("{message}")]
    Plan {
        /// The part that is invalid, and why.
        message: String,
    },
    /// The engine does not implement this SQL.
    #[error("not supported: {message}")]
    Unsupported {
        /// The unsupported part.
        message: String,
    },
    /// A statement that would make changes: to data, tables, settings, files.
    #[error("{statement} is not allowed: this server only answers queries (SELECT, EXPLAIN, SHOW, DESCRIBE)")]
    ReadOnly {
        /// The statement's first word or words.
        statement: String,
    },
    /// An object that was to be created exists.
    #[error("{what} exists already; drop it first, or replace it or append to it")]
    AlreadyExists {
        /// The object: `table 't'`.
        what: String,
    },
    /// The parameters do not fit the statement.
    #[error("{message}")]
    Parameters {
        /// The number or the type that is expected, and the one that was given.
        message: String,
    },
    /// A value breaks a constraint of its table.
    #[error("{message}")]
    Constraint {
        /// The column, and its constraint.
        message: String,
    },
    /// The query failed on its input values: division by zero, an impossible cast, overflow.
    #[error("execution failed: {message}")]
    Execution {
        /// The operation that failed.
        message: String,
    },
    /// A resource of the engine is used up: its memory, its space for spilling, its connections to a database.
    #[error("out of resources: {message}")]
    ResourcesExhausted {
        /// The resource, its largest consumers, and the remedy.
        message: String,
    },
    /// The files of a table cannot be read: missing, changed, corrupt, forbidden.
    #[error("cannot read {}: {reason}", source_name(tables, path))]
    Source {
        /// The table; several if the engine cannot determine which of the query's tables it is.
        tables: Vec<String>,
        /// The file or directory, if known.
        path: Option<PathBuf>,
        /// The problem.
        reason: String,
    },
    /// A bug in the engine, or the engine is shutting down.
    #[error("internal error of the query engine: {message}")]
    Internal {
        /// The cause, as far as known.
        message: String,
    },
}

/// Kinds of [`EngineError`], with numbers that never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum EngineErrorKind {
    /// [`EngineError::Syntax`]
    Syntax = 1,
    /// [`EngineError::TooLarge`]
    TooLarge = 2,
    /// [`EngineError::UnknownTable`], [`EngineError::NotFound`]
    UnknownTable = 3,
    /// [`EngineError::Column`]
    Column = 4,
    /// [`EngineError::Plan`]
    Plan = 5,
    /// [`EngineError::Unsupported`]
    Unsupported = 6,
    /// [`EngineError::ReadOnly`]
    ReadOnly = 7,
    /// [`EngineError::Execution`]
    Execution = 8,
    /// [`EngineError::ResourcesExhausted`]
    ResourcesExhausted = 9,
    /// [`EngineError::Source`]
    Source = 10,
    /// [`EngineError::Internal`]
    Internal = 11,
    /// [`EngineError::AlreadyExists`]
    AlreadyExists = 12,
    /// [`EngineError::Parameters`]
    Parameters = 13,
    /// [`EngineError::Constraint`]
    Constraint = 14,
}

impl EngineError {
    /// The kind, for the wire and for programs.
    #[must_use]
    pub fn kind(&self) -> EngineErrorKind {
        match self {
            EngineError::Syntax { .. } => EngineErrorKind::Syntax,
            EngineError::TooLarge { .. } => EngineErrorKind::TooLarge,
            EngineError::UnknownTable { .. } | EngineError::NotFound { .. } => EngineErrorKind::UnknownTable,
            EngineError::Column { .. } => EngineErrorKind::Column,
            EngineError::Plan { .. } => EngineErrorKind::Plan,
            EngineError::Unsupported { .. } => EngineErrorKind::Unsupported,
            EngineError::ReadOnly { .. } => EngineErrorKind::ReadOnly,
            EngineError::Execution { .. } => EngineErrorKind::Execution,
            EngineError::ResourcesExhausted { .. } => EngineErrorKind::ResourcesExhausted,
            EngineError::Source { .. } => EngineErrorKind::Source,
            EngineError::Internal { .. } => EngineErrorKind::Internal,
            EngineError::AlreadyExists { .. } => EngineErrorKind::AlreadyExists,
            EngineError::Parameters { .. } => EngineErrorKind::Parameters,
            EngineError::Constraint { .. } => EngineErrorKind::Constraint,
        }
    }

    /// The message for the user.
    #[must_use]
    pub fn message(&self) -> String {
        self.to_string()
    }
}

fn known_tables(known: &[String]) -> String {
    match known.len() {
        0 => "there are no tables".to_owned(),
        n if n <= NAMES_SHOWN => format!("known tables: {}", known.join(", ")),
        n => format!("known tables: {} and {} more (SHOW TABLES)", known[..NAMES_SHOWN].join(", "), n - NAMES_SHOWN),
    }
}

fn source_name(tables: &[String], path: &Option<PathBuf>) -> String {
    let tables = match tables {
        [] => "the table's files".to_owned(),
        [table] => format!("table '{table}'"),
        several => format!("one of the tables {}", several.join(", ")),
    };
    match path {
        Some(path) => format!("{tables} ({})", path.display()),
        None => tables,
    }
}
