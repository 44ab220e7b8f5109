//! Errors of the client as errors of ADBC: status, SQLSTATE and message.

use std::ffi::c_char;

use adbc_core::error::{Error, Status};
use arrow::error::ArrowError;
use thallus_client::{ClientError, StreamCode, UrlError};

/// Detail of an error: whether the same request may succeed if repeated, `true` or `false`.
const RETRYABLE: &str = "adbc.thallus.retryable";

/// An error of this driver, with the SQLSTATE of its status.
pub(crate) fn error(status: Status, message: impl Into<String>) -> Error {
    Error { sqlstate: letters(sqlstate(status)), ..Error::with_message_and_status(without_nul(message.into()), status) }
}

/// A text that C can hold. Arrow's interface to C ends the process at an error whose text has a NUL, and the text of a
/// value in a query may have one.
fn without_nul(text: String) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text }
}

pub(crate) fn invalid_argument(message: impl Into<String>) -> Error {
    error(Status::InvalidArguments, message)
}

pub(crate) fn invalid_state(message: impl Into<String>) -> Error {
    error(Status::InvalidState, message)
}

pub(crate) fn not_implemented(message: impl Into<String>) -> Error {
    error(Status::NotImplemented, message)
}

pub(crate) fn not_found(message: impl Into<String>) -> Error {
    error(Status::NotFound, message)
}

/// The operation was cancelled by this process.
pub(crate) fn cancelled() -> Error {
    error(Status::Cancelled, "cancelled by the application")
}

pub(crate) fn from_url(url: &UrlError) -> Error {
    invalid_argument(url.to_string())
}

/// The error of an Arrow operation, or the ADBC error within it.
pub(crate) fn from_arrow(arrow: ArrowError) -> Error {
    match arrow {
        ArrowError::ExternalError(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => error(Status::InvalidData, other.to_string()),
        },
        other => error(Status::InvalidData, other.to_string()),
    }
}

/// An ADBC error for interfaces of Arrow.
pub(crate) fn to_arrow(error: Error) -> ArrowError {
    ArrowError::ExternalError(Box::new(error))
}

pub(crate) fn from_client(client: ClientError) -> Error {
    let (status, state, retryable) = (status(&client), client.sqlstate(), client.is_retryable());
    let code = match &client {
        ClientError::Query { kind, .. } => i32::from(u16::from(*kind)),
        _ => 0,
    };
    let message = match client {
        // The application's own error, as it made it.
        ClientError::Source { source } => return from_source(source),
        ClientError::Connect { .. } => format!("{client}; is a thallus-server running there?"),
        other => other.to_string(),
    };
    Error {
        message: without_nul(message),
        status,
        vendor_code: code,
        sqlstate: letters(state),
        details: Some(vec![(RETRYABLE.to_owned(), retryable.to_string().into_bytes())]),
    }
}

/// The stream that the application gave for an upload ended in an error.
fn from_source(source: ArrowError) -> Error {
    let Error { message, status, .. } = from_arrow(source);
    error(status, format!("the stream of rows ended in an error, and nothing was written: {message}"))
}

fn status(client: &ClientError) -> Status {
    match client {
        ClientError::Query { kind, .. } => status_of_code(*kind),
        ClientError::Cancelled => Status::Cancelled,
        ClientError::Timeout { .. } | ClientError::ReadTimeout { .. } => Status::Timeout,
        ClientError::Url(_)
        | ClientError::TooManyPartitions { .. }
        | ClientError::OutOfRange { .. }
        | ClientError::Parameters { .. }
        | ClientError::SqlTooLong { .. } => Status::InvalidArguments,
        ClientError::Fabric { .. } | ClientError::Mapping { .. } => Status::NotImplemented,
        ClientError::InvalidBatch { .. } | ClientError::Incomplete { .. } | ClientError::BatchTooLarge { .. } => {
            Status::InvalidData
        }
        ClientError::Connect { .. }
        | ClientError::Refused { .. }
        | ClientError::Version { .. }
        | ClientError::Read { .. }
        | ClientError::LeaseExpired { .. }
        | ClientError::ConnectionLost { .. } => Status::IO,
        _ => Status::Internal,
    }
}

fn status_of_code(code: StreamCode) -> Status {
    match code {
        StreamCode::Cancelled => Status::Cancelled,
        StreamCode::DeadlineExceeded | StreamCode::PartitionMissing => Status::Timeout,
        // The other codes, and those that a later version adds, by their SQLSTATE.
        other => match other.sqlstate() {
            "42P01" => Status::NotFound,
            "42P07" => Status::AlreadyExists,
            "0A000" => Status::NotImplemented,
            "25006" => Status::Unauthorized,
            state => match state.get(..2) {
                Some("07" | "42" | "54") => Status::InvalidArguments,
                Some("08" | "57" | "58") => Status::IO,
                Some("22") => Status::InvalidData,
                Some("23") => Status::Integrity,
                Some("28") => Status::Unauthenticated,
                Some("53" | "XX") => Status::Internal,
                _ => Status::Unknown,
            },
        },
    }
}

/// The SQLSTATE of errors that this driver detects.
fn sqlstate(status: Status) -> &'static str {
    match status {
        Status::NotImplemented => "0A000",
        Status::NotFound => "42704",
        Status::AlreadyExists => "42P07",
        Status::InvalidArguments => "22023",
        Status::InvalidState => "55000",
        Status::InvalidData => "22000",
        Status::Integrity => "23000",
        Status::IO => "08006",
        Status::Cancelled | Status::Timeout => "57014",
        Status::Unauthenticated => "28000",
        Status::Unauthorized => "42501",
        Status::Ok | Status::Unknown | Status::Internal => "HY000",
    }
}

fn letters(state: &str) -> [c_char; 5] {
    let mut letters = [0; 5];
    for (letter, byte) in letters.iter_mut().zip(state.bytes()) {
        // `c_char` is signed on some machines and unsigned on others; a SQLSTATE is ASCII.
        *letter = byte as c_char;
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(kind: StreamCode) -> Error {
        from_client(ClientError::Query { kind, message: "as told".into() })
    }

    fn text(letters: [c_char; 5]) -> String {
        letters.iter().map(|letter| char::from(*letter as u8)).collect()
    }

    #[test]
    fn codes_of_the_server_have_a_status_and_their_sqlstate() {
        let cases = [
            (StreamCode::Syntax, Status::InvalidArguments, "42601"),
            (StreamCode::UnknownTable, Status::NotFound, "42P01"),
            (StreamCode::Plan, Status::InvalidArguments, "42000"),
            (StreamCode::Unsupported, Status::NotImplemented, "0A000"),
            (StreamCode::ReadOnly, Status::Unauthorized, "25006"),
            (StreamCode::Execution, Status::InvalidData, "22000"),
            (StreamCode::ResourcesExhausted, Status::Internal, "53000"),
            (StreamCode::Source, Status::IO, "58030"),
            (StreamCode::Internal, Status::Internal, "XX000"),
            (StreamCode::Cancelled, Status::Cancelled, "57014"),
            (StreamCode::DeadlineExceeded, Status::Timeout, "57014"),
            (StreamCode::ShuttingDown, Status::IO, "57P01"),
            (StreamCode::DataPlaneLost, Status::IO, "08006"),
            (StreamCode::PartitionInvalid, Status::InvalidData, "22023"),
            (StreamCode::Unknown(60000), Status::Unknown, "HY000"),
        ];
        for (code, status, state) in cases {
            let error = query(code);
            assert_eq!((error.status, text(error.sqlstate).as_str()), (status, state), "{code:?}");
            assert_eq!(error.message, format!("{code}: as told"));
            assert_eq!(error.vendor_code, i32::from(u16::from(code)));
        }
    }

    #[test]
    fn errors_say_whether_repeating_may_help() {
        let detail = |error: Error| String::from_utf8(error.details.unwrap()[0].1.clone()).unwrap();
        assert_eq!(detail(query(StreamCode::ShuttingDown)), "true");
        assert_eq!(detail(query(StreamCode::Syntax)), "false");
    }

    #[test]
    fn a_message_has_no_nul() {
        let failed = from_client(ClientError::Query { kind: StreamCode::Execution, message: "value a\0b".into() });
        assert!(!failed.message.contains('\0') && failed.message.contains("value a\u{fffd}b"), "{failed:?}");
        assert_eq!(error(Status::Internal, "\0").message, "\u{fffd}");
    }

    #[test]
    fn an_error_survives_the_interfaces_of_arrow() {
        let error = query(StreamCode::Execution);
        assert_eq!(from_arrow(to_arrow(error.clone())), error);
        assert_eq!(from_arrow(ArrowError::DivideByZero).status, Status::InvalidData);
    }
}
