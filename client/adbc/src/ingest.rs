//! Bulk ingestion: bound rows become rows of a table.

use std::task::Poll;

use adbc_core::constants;
use adbc_core::error::{Error, Result, Status};
use adbc_core::options::{IngestMode as AdbcMode, OptionValue};
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use futures::Stream;
use thallus_client::{Defaults, IngestMode, UploadOptions};
use tokio::sync::mpsc;

use crate::bind::Bound;
use crate::cancel::Watch;
use crate::error::{error, from_arrow, invalid_argument, to_arrow};
use crate::option::{flag, text};
use crate::session::Session;
use crate::settings::Settings;

/// Names of the options.
pub(crate) const NAMES: [&str; 5] = [
    constants::ADBC_INGEST_OPTION_TARGET_TABLE,
    constants::ADBC_INGEST_OPTION_MODE,
    constants::ADBC_INGEST_OPTION_TARGET_CATALOG,
    constants::ADBC_INGEST_OPTION_TARGET_DB_SCHEMA,
    constants::ADBC_INGEST_OPTION_TEMPORARY,
];

/// The target of an ingestion.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    /// `None`: the statement is no ingestion.
    pub(crate) table: Option<String>,
    /// `None`: a new table.
    mode: Option<AdbcMode>,
    catalog: Option<String>,
    schema: Option<String>,
    temporary: bool,
}

impl Target {
    /// Sets an option. Returns `false` if it is none of these.
    ///
    /// # Errors
    /// The value does not fit.
    pub(crate) fn set(&mut self, name: &str, value: &OptionValue) -> Result<bool> {
        let text = || text(name, value.clone());
        // An empty name stands for none, as in other drivers.
        let name_or_none = || text().map(|text| Some(text).filter(|text| !text.is_empty()));
        match name {
            constants::ADBC_INGEST_OPTION_TARGET_TABLE => self.table = name_or_none()?,
            constants::ADBC_INGEST_OPTION_TARGET_CATALOG => self.catalog = name_or_none()?,
            constants::ADBC_INGEST_OPTION_TARGET_DB_SCHEMA => self.schema = name_or_none()?,
            constants::ADBC_INGEST_OPTION_MODE => self.mode = Some(AdbcMode::try_from(value)?),
            constants::ADBC_INGEST_OPTION_TEMPORARY => self.temporary = flag(name, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The value of an option, if it is one of these and has one.
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        match name {
            constants::ADBC_INGEST_OPTION_TARGET_TABLE => self.table.clone(),
            constants::ADBC_INGEST_OPTION_TARGET_CATALOG => self.catalog.clone(),
            constants::ADBC_INGEST_OPTION_TARGET_DB_SCHEMA => self.schema.clone(),
            constants::ADBC_INGEST_OPTION_MODE => Some(self.mode().into()),
            constants::ADBC_INGEST_OPTION_TEMPORARY => Some(self.temporary.to_string()),
            _ => None,
        }
    }

    fn mode(&self) -> AdbcMode {
        self.mode.unwrap_or(AdbcMode::Create)
    }

    /// Writes all rows, or none. Returns their number.
    ///
    /// # Errors
    /// Those of the application's stream and of the server.
    pub(crate) fn write(
        &self,
        rows: Bound,
        session: &Session,
        watch: &mut Watch,
        defaults: &Defaults,
        settings: &Settings,
    ) -> Result<u64> {
        let table = self.table.as_deref().ok_or_else(|| invalid_argument("no table to write to"))?;
        let schema = rows.schema();
        // The error of the application's stream stays as it is.
        let batches = pulled(rows)?;
        let defaults = Defaults {
            catalog: self.catalog.clone().or_else(|| defaults.catalog.clone()),
            schema: self.schema.clone().or_else(|| defaults.schema.clone()),
        };
        let mut options = UploadOptions::new()
            .with_mode(match self.mode() {
                AdbcMode::Create => IngestMode::Create,
                AdbcMode::Append => IngestMode::Append,
                AdbcMode::Replace => IngestMode::Replace,
                AdbcMode::CreateAppend => IngestMode::CreateAppend,
            })
            .with_defaults(defaults)
            .with_temporary(self.temporary)
            .with_deadline(settings.deadline());
        if let Some(lend_from) = settings.lend_from() {
            options = options.with_lend_from(lend_from);
        }
        let upload = session.client()?.upload_with(table, schema, batches, options);
        let report = session.run(watch, upload).map_err(|error| unknown_outcome(self.explain(error)))?;
        Ok(report.rows)
    }

    /// ADBC calls it `AlreadyExists` that a table has other columns than the rows that are appended.
    fn explain(&self, failed: Error) -> Error {
        let appends = matches!(self.mode(), AdbcMode::Append | AdbcMode::CreateAppend);
        let is_plan = failed.sqlstate.map(|letter| letter as u8) == *b"42000";
        if appends && is_plan {
            return Error { sqlstate: failed.sqlstate, ..error(Status::AlreadyExists, failed.message) };
        }
        failed
    }
}

/// The rows of the application, pulled on a thread of their own: the source may take long, and may use this driver,
/// neither of which is possible within the runtime of the connection.
fn pulled(rows: Bound) -> Result<impl Stream<Item = std::result::Result<RecordBatch, ArrowError>> + Unpin> {
    let (sender, mut receiver) = mpsc::channel(1);
    let pull = move || {
        for batch in rows {
            let batch = batch.map_err(|e| to_arrow(from_arrow(e)));
            if sender.blocking_send(Some(batch)).is_err() {
                return;
            }
        }
        // The end. Without it the thread has panicked, and the rows are not all.
        let _ended = sender.blocking_send(None);
    };
    let started = std::thread::Builder::new().name("thallus-rows".into()).spawn(pull);
    started.map_err(|e| error(Status::Internal, format!("cannot start a thread for the rows: {e}")))?;
    let mut ended = false;
    Ok(futures::stream::poll_fn(move |context| {
        if ended {
            return Poll::Ready(None);
        }
        receiver.poll_recv(context).map(|received| {
            ended = !matches!(received, Some(Some(Ok(_))));
            match received {
                Some(item) => item,
                None => Some(Err(to_arrow(error(Status::Internal, "the source of the rows panicked")))),
            }
        })
    }))
}

/// After a loss of the connection it is unknown whether the rows were written, so the request is not to be repeated.
fn unknown_outcome(mut failed: Error) -> Error {
    if matches!(failed.status, Status::IO | Status::Timeout) {
        failed.details = None;
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_and_read_back() {
        let mut target = Target::default();
        let values = ["t", constants::ADBC_INGEST_OPTION_MODE_REPLACE, "c", "s", "true"];
        for (name, value) in NAMES.into_iter().zip(values) {
            assert!(target.set(name, &value.into()).unwrap());
            assert_eq!(target.get(name).as_deref(), Some(value));
        }
        assert!(target.set(NAMES[0], &"".into()).unwrap());
        assert_eq!(target.get(NAMES[0]), None);
        assert!(!target.set("x", &"y".into()).unwrap());
        for (name, value) in [(NAMES[1], "adbc.ingest.mode.upsert"), (NAMES[4], "maybe")] {
            assert_eq!(target.set(name, &value.into()).unwrap_err().status, Status::InvalidArguments);
        }
    }
}
