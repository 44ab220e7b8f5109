//! Errors of drivers, as errors of the engine.
//!
//! SQLSTATE decides, if the driver sends one. DuckDB and SQLite send none: their messages begin with a class, or are
//! fixed texts. Otherwise the status of ADBC decides. The message is always the driver's.

use adbc_core::error::{Error, Status};
use arrow_schema::ArrowError;
use thallus_server::engine::EngineError;
use thiserror::Error as ThisError;

/// The engine cannot start.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration names no driver.
    #[error("no ADBC driver is named")]
    NoDriver,
    /// No statement could ever get a connection.
    #[error("adbc.max_connections is 0; at least one connection is needed")]
    NoConnections,
    /// The driver cannot be loaded.
    #[error(
        "cannot load the ADBC driver {driver} (name the path of its shared library or of its manifest, and its \
         initialization function by --adbc-entrypoint if the library has an unusual one)"
    )]
    Driver {
        /// The driver, as configured.
        driver: String,
        /// The driver manager's error.
        source: DriverError,
    },
    /// The driver refuses the options, or cannot open the database.
    #[error("the ADBC driver {driver} cannot open the database (check the uri and the options)")]
    Database {
        /// The driver, as configured.
        driver: String,
        /// The driver's error.
        source: DriverError,
    },
}

/// An error of a driver or of its manager, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{}", text(.0))]
pub struct DriverError(Error);

impl From<Error> for DriverError {
    fn from(error: Error) -> Self {
        DriverError(error)
    }
}

/// Longest message of a driver that is passed on.
const MAX_MESSAGE: usize = 4096;

/// The message of a driver's error.
fn text(error: &Error) -> String {
    let mut message = error.message.trim().to_owned();
    // DuckDB reports some errors as JSON, with its own words in this member.
    if let Some((_, words)) = message.split_once("\"exception_message\":\"") {
        message = words.split("\",\"").next().unwrap_or(words).trim_end_matches(['"', '}']).replace("\\n", "\n");
    }
    if message.is_empty() {
        message = format!("the driver gives no reason; its status is {:?}", error.status);
    }
    if message.len() > MAX_MESSAGE {
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        message.push_str(" ...");
    }
    message
}

fn sqlstate(error: &Error) -> Option<String> {
    let state: String = error.sqlstate.iter().map(|letter| char::from(*letter as u8)).collect();
    let valid = state.chars().all(|letter| letter.is_ascii_alphanumeric());
    (valid && state != "00000").then_some(state)
}

/// Returns whether the error says that the driver lacks the operation.
pub(crate) fn is_missing(error: &Error) -> bool {
    error.status == Status::NotImplemented
}

/// Texts of PostgreSQL's client library, which sends no SQLSTATE if its connection is lost.
const LOST: [&str; 3] = ["server closed the connection", "terminating connection", "no connection to the server"];

/// Returns whether the error says that the connections to the database are lost.
pub(crate) fn is_of_connection(error: &Error) -> bool {
    let state = sqlstate(error).unwrap_or_default();
    // Class 08, and the shutdowns of 57P.
    state.starts_with("08") || state.starts_with("57P") || LOST.iter().any(|text| error.message.contains(text))
}

/// The error of a statement.
pub(crate) fn of_driver(error: &Error) -> EngineError {
    let message = text(error);
    if is_of_connection(error) {
        return EngineError::Execution { message: format!("the connection to the database is lost: {message}") };
    }
    if let Some(classified) = sqlstate(error).and_then(|state| by_sqlstate(&state, &message)) {
        return classified;
    }
    by_message(&message).unwrap_or_else(|| by_status(error.status, message))
}

/// An error in the middle of a result. The C interface of streams carries a message, without a status.
pub(crate) fn of_stream(error: &ArrowError) -> EngineError {
    let message = match error {
        ArrowError::CDataInterface(message) => message.clone(),
        other => other.to_string(),
    };
    let message = text(&Error::with_message_and_status(message, Status::Unknown));
    // PostgreSQL's driver ends its messages with it.
    let state = message.rsplit_once("SQLSTATE: ").and_then(|(_, state)| state.get(..5));
    let classified = state.and_then(|state| by_sqlstate(state, &message));
    classified.or_else(|| by_message(&message)).unwrap_or(EngineError::Execution { message })
}

fn by_sqlstate(state: &str, message: &str) -> Option<EngineError> {
    let message = message.to_owned();
    Some(match state {
        "42601" | "42000" => EngineError::Syntax { message },
        "42P01" | "42S02" | "3D000" | "3F000" => EngineError::NotFound { message },
        "42703" | "42S22" | "42702" => EngineError::Column { message },
        "42P07" | "42S01" | "42P06" | "42710" => exists(message),
        "42P02" | "07001" | "07002" => EngineError::Parameters { message },
        _ => match state.get(..2)? {
            "42" | "25" | "3B" => EngineError::Plan { message },
            "22" | "21" | "40" | "57" => EngineError::Execution { message },
            "23" => EngineError::Constraint { message },
            "0A" => EngineError::Unsupported { message },
            "53" | "54" => EngineError::ResourcesExhausted { message },
            _ => return None,
        },
    })
}

/// Makes an error from a message.
type OfMessage = fn(String) -> EngineError;

/// Classes at the beginning of DuckDB's messages.
const CLASSES: [(&str, OfMessage); 17] = [
    ("Parser Error:", |message| EngineError::Syntax { message }),
    ("Syntax Error:", |message| EngineError::Syntax { message }),
    ("Binder Error:", |message| EngineError::Plan { message }),
    ("Constraint Error:", |message| EngineError::Constraint { message }),
    ("Conversion Error:", |message| EngineError::Execution { message }),
    ("Mismatch Type Error:", |message| EngineError::Execution { message }),
    ("Invalid Input Error:", |message| EngineError::Execution { message }),
    ("Out of Range Error:", |message| EngineError::Execution { message }),
    ("Divide by Zero Error:", |message| EngineError::Execution { message }),
    ("Transaction", |message| EngineError::Execution { message }),
    ("INTERRUPT Error:", |message| EngineError::Execution { message }),
    ("Not implemented Error:", |message| EngineError::Unsupported { message }),
    ("Unsupported Arrow type", |message| EngineError::Unsupported { message }),
    ("Permission Error:", |message| EngineError::Plan { message }),
    ("Dependency Error:", |message| EngineError::Plan { message }),
    ("Out of Memory Error:", |message| EngineError::ResourcesExhausted { message }),
    ("IO Error:", |message| EngineError::Execution { message }),
];

/// Classifies by the texts of DuckDB and SQLite, which have no SQLSTATE.
fn by_message(message: &str) -> Option<EngineError> {
    let has = |text: &str| message.contains(text);
    let owned = || message.to_owned();
    // DuckDB's driver begins some messages with the name of a table or an operation.
    let catalog = has("Catalog Error:");
    Some(if catalog && has("already exists") || message.contains("already exists\nquery:") {
        exists(owned())
    } else if catalog && has("does not exist") && !has("Function with name") {
        EngineError::NotFound { message: owned() }
    } else if catalog {
        EngineError::Plan { message: owned() }
    } else if has("no such table") || has("no such view") || message.starts_with("Table \"") && has("does not exist") {
        EngineError::NotFound { message: owned() }
    } else if has("no such column") || has("Referenced column") {
        EngineError::Column { message: owned() }
    } else if has(": syntax error") || has("incomplete input") || has("unrecognized token") {
        EngineError::Syntax { message: owned() }
    } else if has("no such function") || has("Failed to prepare query:") {
        EngineError::Plan { message: owned() }
    } else if has("constraint failed") {
        EngineError::Constraint { message: owned() }
    } else if has("parameter count mismatch") || has("prepared statement parameters") || has("has parameters") {
        EngineError::Parameters { message: owned() }
    } else {
        let (_, of_class) = CLASSES.iter().find(|(class, _)| message.starts_with(class))?;
        of_class(owned())
    })
}

fn by_status(status: Status, message: String) -> EngineError {
    match status {
        Status::NotImplemented => EngineError::Unsupported { message },
        Status::NotFound => EngineError::NotFound { message },
        Status::AlreadyExists => exists(message),
        Status::Integrity => EngineError::Constraint { message },
        Status::InvalidArguments | Status::InvalidState | Status::Unauthenticated | Status::Unauthorized => {
            EngineError::Plan { message }
        }
        // SQLite reports all kinds of failures by this status.
        _ => EngineError::Execution { message },
    }
}

/// An object exists. Its name is the word before the words that say so.
fn exists(message: String) -> EngineError {
    let before = message.split(" already exists").next().filter(|before| before.len() < message.len());
    let name =
        before.and_then(|before| before.split_whitespace().last()).map(|name| name.trim_matches(['"', '\'', '`']));
    EngineError::AlreadyExists { what: name.map_or(message.clone(), |name| format!("'{name}'")) }
}

#[cfg(test)]
mod tests {
    use thallus_server::engine::EngineErrorKind as Kind;

    use super::*;

    fn error(status: Status, state: &str, message: &str) -> Error {
        let mut error = Error::with_message_and_status(message, status);
        for (letter, of) in error.sqlstate.iter_mut().zip(state.bytes()) {
            *letter = of as _;
        }
        error
    }

    #[test]
    fn sqlstate_decides_before_the_message_and_the_status() {
        for (state, expected) in [
            ("42601", Kind::Syntax),
            ("42P01", Kind::UnknownTable),
            ("42703", Kind::Column),
            ("42883", Kind::Plan),
            ("42P07", Kind::AlreadyExists),
            ("22012", Kind::Execution),
            ("23505", Kind::Constraint),
            ("57014", Kind::Execution),
            ("0A000", Kind::Unsupported),
            ("53200", Kind::ResourcesExhausted),
            ("08006", Kind::Execution),
        ] {
            assert_eq!(of_driver(&error(Status::Internal, state, "ERROR: some words")).kind(), expected, "{state}");
        }
        assert_eq!(of_driver(&error(Status::Integrity, "XX000", "words")).kind(), Kind::Constraint);
        assert_eq!(of_driver(&error(Status::Integrity, "00000", "words")).kind(), Kind::Constraint);
    }

    #[test]
    fn messages_without_sqlstate() {
        for (message, expected) in [
            ("Parser Error: syntax error at or near \"SELEC\"", Kind::Syntax),
            ("Catalog Error: Table with name nope does not exist!\nDid you mean \"t\"?", Kind::UnknownTable),
            ("Catalog Error: Scalar Function with name nofunc does not exist!", Kind::Plan),
            ("Catalog Error: Table with name \"t\" already exists!", Kind::AlreadyExists),
            ("Binder Error: Referenced column \"nope\" not found in FROM clause!", Kind::Column),
            ("Constraint Error: NOT NULL constraint failed: t.b", Kind::Constraint),
            ("Conversion Error: Could not convert string 'x' to INT32", Kind::Execution),
            ("[SQLite] Failed to prepare query: near \"SELEC\": syntax error\nquery: SELEC 1", Kind::Syntax),
            ("[SQLite] Failed to prepare query: no such table: nope\nquery: SELECT", Kind::UnknownTable),
            ("[SQLite] Failed to prepare query: no such column: nope", Kind::Column),
            ("[SQLite] Failed to prepare query: table t already exists\nquery: CREATE", Kind::AlreadyExists),
            ("[SQLite] Failed to prepare query: no such function: nofunc", Kind::Plan),
            ("parameter count mismatch: expected 1 but found 2", Kind::Parameters),
        ] {
            let classified = of_driver(&error(Status::InvalidArguments, "", message));
            assert_eq!(classified.kind(), expected, "{message}");
        }
    }

    #[test]
    fn messages_are_the_drivers_and_bounded() {
        let json = r#"{"exception_type":"Not implemented","exception_message":"Unsupported Arrow type UNKNOWN"}"#;
        let unsupported = of_driver(&error(Status::InvalidArguments, "", json));
        assert_eq!(unsupported, EngineError::Unsupported { message: "Unsupported Arrow type UNKNOWN".into() });
        let exists = of_driver(&error(Status::AlreadyExists, "42P07", "ERROR: relation \"t\" already exists"));
        assert_eq!(exists, EngineError::AlreadyExists { what: "'t'".into() });
        let long = of_stream(&ArrowError::CDataInterface("é".repeat(MAX_MESSAGE)));
        assert!(long.to_string().len() < MAX_MESSAGE + 100);
        let in_stream = of_stream(&ArrowError::CDataInterface("ERROR: some words. SQLSTATE: 23505".into()));
        assert_eq!(in_stream.kind(), Kind::Constraint);
        assert!(of_driver(&error(Status::Internal, "", " ")).to_string().contains("no reason"));
    }
}
