//! Translates DataFusion's errors, which wrap each other and those of five libraries, to [`EngineError`].

use std::any::Any;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arrow_schema::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::object_store;
use datafusion::parquet::errors::ParquetError;
use tokio::task::JoinError;

use crate::catalog::{CatalogError, TableSpec};
use crate::engine::EngineError;

/// The engine shut down during a query.
pub(super) fn shutting_down() -> EngineError {
    EngineError::Internal { message: "the engine is shutting down".to_owned() }
}

/// A task of the engine panicked or was aborted.
pub(super) fn of_join(error: JoinError) -> EngineError {
    match error.try_into_panic() {
        Ok(panic) => of_panicked(of_panic(&*panic)),
        Err(_) => shutting_down(),
    }
}

/// A panic. Arrow panics if a text, a list or a batch outgrows its type, which is the query's doing.
fn of_panicked(text: &str) -> EngineError {
    match outgrown(text) {
        Some(message) => EngineError::Execution { message: message.to_owned() },
        None => EngineError::Internal { message: format!("a bug: {text}") },
    }
}

/// The message for the panic of an array that outgrows its type.
pub(super) fn outgrown(panic: &str) -> Option<&'static str> {
    let grown = ["offset overflow", "capacity overflow", "exceeds i32", "exceeds u32", "exceeds usize"];
    grown.iter().any(|known| panic.contains(known)).then_some(
        "a text, a list or a batch grew beyond the limit of its type, which is 2 GiB for text; make less of it, or \
         cast it to LargeUtf8",
    )
}

fn of_nested_join(error: &JoinError) -> EngineError {
    match error.is_panic() {
        true => of_panicked(&error.to_string()),
        false => shutting_down(),
    }
}

pub(super) fn of_panic(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked without a message")
}

/// The message of a decoder's panic, in parentheses, if it is about the data rather than about the code; else nothing.
pub(super) fn about_data(panic: &(dyn Any + Send)) -> String {
    let line = of_panic(panic).lines().next().unwrap_or_default();
    let is_of_code = ["`", "panic", "bug", "assert", "internal", "unreachable"].iter().any(|word| line.contains(word));
    if line.is_empty() || is_of_code { String::new() } else { format!(" ({line})") }
}

/// DataFusion's message without its context.
pub(super) fn short(error: &DataFusionError) -> String {
    error.find_root().message().into_owned()
}

/// The meaning of DataFusion's error for the user of a query that reads the tables `scanned`.
pub(super) fn of_datafusion(error: DataFusionError, scanned: &[&TableSpec]) -> EngineError {
    let mut cause: &(dyn Error + 'static) = &error;
    // The innermost error with a meaning decides; those around it only show the path. No recursion: chains may be long.
    let mut found = None;
    loop {
        found = meaning(cause, scanned).or(found);
        // Below a store's own message is only the operating system's error code, which is less informative.
        match cause.source().filter(|_| !is_of_store(cause)) {
            Some(source) => cause = source,
            None => break,
        }
    }
    found.unwrap_or_else(|| EngineError::Execution { message: error.strip_backtrace() })
}

fn is_of_store(cause: &(dyn Error + 'static)) -> bool {
    use object_store::Error as E;
    matches!(cause.downcast_ref(), Some(error) if !matches!(error, E::Generic { .. } | E::JoinError { .. }))
}

fn meaning(cause: &(dyn Error + 'static), scanned: &[&TableSpec]) -> Option<EngineError> {
    let shared = cause.downcast_ref::<Arc<DataFusionError>>().map(|error| &**error);
    if let Some(error) = cause.downcast_ref().or(shared) {
        return of_datafusion_itself(error, scanned);
    }
    if let Some(error) = cause.downcast_ref::<CatalogError>() {
        return Some(of_catalog(error));
    }
    if let Some(error) = cause.downcast_ref::<ArrowError>() {
        return of_arrow(error, scanned);
    }
    if let Some(error) = cause.downcast_ref::<ParquetError>() {
        return Some(source(scanned, None, error.to_string()));
    }
    if let Some(error) = cause.downcast_ref::<object_store::Error>() {
        return Some(of_store(error, scanned));
    }
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return Some(of_io(error, scanned));
    }
    // The error of a task that the query's own task spawned.
    let shared = cause.downcast_ref::<Arc<JoinError>>().map(|error| &**error);
    if let Some(error) = cause.downcast_ref().or(shared) {
        return Some(of_nested_join(error));
    }
    None
}

/// A table, or one of its files, cannot be read.
pub(super) fn of_catalog(error: &CatalogError) -> EngineError {
    let (table, path, reason) = error.parts();
    EngineError::Source { tables: table.map(str::to_owned).into_iter().collect(), path: Some(path.to_owned()), reason }
}

fn of_datafusion_itself(error: &DataFusionError, scanned: &[&TableSpec]) -> Option<EngineError> {
    let message = error.message().into_owned();
    Some(match error {
        DataFusionError::SQL(parser, _) => EngineError::Syntax { message: of_parser(parser) },
        DataFusionError::NotImplemented(_) => EngineError::Unsupported { message },
        DataFusionError::SchemaError(..) => EngineError::Column { message },
        DataFusionError::Plan(_) | DataFusionError::Configuration(_) => EngineError::Plan { message },
        DataFusionError::Execution(_) => EngineError::Execution { message },
        DataFusionError::ResourcesExhausted(_) => exhausted(message),
        DataFusionError::Internal(_) => EngineError::Internal { message },
        DataFusionError::ExecutionJoin(join) => of_nested_join(join),
        DataFusionError::ArrowError(error, _) => return of_arrow(error, scanned),
        DataFusionError::ParquetError(error) => source(scanned, None, error.to_string()),
        DataFusionError::ObjectStore(error) => of_store(error, scanned),
        DataFusionError::IoError(error) => of_io(error, scanned),
        // Wrappers without a meaning of their own.
        _ => return None,
    })
}

/// Memory or space for spilling is used up: the resource, its largest consumers, and the remedy.
fn exhausted(message: String) -> EngineError {
    let remedy =
        "request less, try again when fewer queries run, or raise engine.memory_limit or engine.max_spill_bytes";
    EngineError::ResourcesExhausted { message: format!("{message} ({remedy})") }
}

fn of_parser(error: &datafusion::sql::sqlparser::parser::ParserError) -> String {
    use datafusion::sql::sqlparser::parser::ParserError;
    match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.clone(),
        ParserError::RecursionLimitExceeded => "nested too deeply".to_owned(),
    }
}

fn of_arrow(error: &ArrowError, scanned: &[&TableSpec]) -> Option<EngineError> {
    let message = error.to_string();
    Some(match error {
        ArrowError::ExternalError(_) => return None,
        ArrowError::NotYetImplemented(_) => EngineError::Unsupported { message },
        ArrowError::MemoryError(_) => exhausted(message),
        ArrowError::CsvError(_)
        | ArrowError::JsonError(_)
        | ArrowError::AvroError(_)
        | ArrowError::IpcError(_)
        | ArrowError::ParquetError(_) => source(scanned, None, message),
        ArrowError::IoError(_, error) => of_io(error, scanned),
        // The CSV reader reports this if a later row does not have the type of the first rows. The error of a cast in
        // the query does not contain "for column".
        ArrowError::ParseError(text) if text.contains("for column") && !scanned.is_empty() => {
            source(scanned, None, format!("{text} (a column's type is inferred from the first rows)"))
        }
        // Only the rows of an INSERT have columns that take no NULL.
        ArrowError::InvalidArgumentError(text)
            if text.contains("declared as non-nullable but contains null values") =>
        {
            EngineError::Constraint { message: text.clone() }
        }
        ArrowError::ParseError(text) if text.starts_with("Arrow file") => source(scanned, None, text.clone()),
        _ => EngineError::Execution { message },
    })
}

fn of_store(error: &object_store::Error, scanned: &[&TableSpec]) -> EngineError {
    use object_store::Error as E;
    let path = match error {
        E::NotFound { path, .. }
        | E::PermissionDenied { path, .. }
        | E::Precondition { path, .. }
        | E::NotModified { path, .. } => Some(path),
        _ => None,
    };
    let reason = match error {
        E::NotFound { .. } => "no such file or directory".to_owned(),
        E::PermissionDenied { source, .. } => format!("permission denied ({source})"),
        E::Precondition { source, .. } | E::NotModified { source, .. } => {
            format!("the file changed under the server ({source})")
        }
        other => other.to_string(),
    };
    source(scanned, path.map(|path| PathBuf::from(format!("/{}", path.trim_start_matches('/')))), reason)
}

fn of_io(error: &io::Error, scanned: &[&TableSpec]) -> EngineError {
    match error.kind() {
        // Only spilling writes files.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => exhausted(format!("cannot spill: {error}")),
        _ => source(scanned, None, error.to_string()),
    }
}

/// A file cannot be read. The error names the table of the path, or else all tables that the query reads.
fn source(scanned: &[&TableSpec], path: Option<PathBuf>, reason: String) -> EngineError {
    // The tables of the database have one directory.
    let owner = path.as_ref().and_then(|path| {
        let has = |spec: &&&TableSpec| spec.files.iter().any(|file| file.path == *path);
        scanned.iter().find(has).or_else(|| scanned.iter().find(|spec| path.starts_with(&spec.path)))
    });
    let candidates: &[&TableSpec] = owner.map_or(scanned, std::slice::from_ref);
    let path = match (path, candidates) {
        (None, [only]) => Some(only.path.clone()),
        (path, _) => path,
    };
    EngineError::Source { tables: candidates.iter().map(|spec| spec.name.clone()).collect(), path, reason }
}
