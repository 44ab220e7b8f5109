//! Requests: results, which this end borrows, and uploads, which it lends.

use std::time::Duration;

use bytes::Bytes;

use super::{ClientCommand, ClientConnection, ClientEvent, ClientOutput, State, UploadOptions};
use crate::borrower::{BorrowOptions, BorrowerEvent};
use crate::codes::{CancelReason, StreamCode};
use crate::credit::batch_cost;
use crate::error::{ApiMisuse, StreamError};
use crate::ids::StreamId;
use crate::lender::{LendOptions, LenderTask};
use crate::link::truncate;
use crate::message::{
    Access, Answer, Extensions, Failure, FromLender, MAX_OBJECTS_BYTES, MAX_PARAMETER_BYTES, Message, Open,
    OpenOptions, Request,
};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::Timer;

/// Maximum bytes of a request's message besides its text.
const REQUEST_OVERHEAD: u32 = 1024;

impl ClientConnection {
    /// Takes the next stream id. Returns the inner error if the connection is ending.
    fn begin(&mut self, command: &'static str, stream: StreamId) -> Result<Result<(), StreamError>, ApiMisuse> {
        if self.is_known(stream) {
            return Err(ApiMisuse::StreamReused(stream));
        }
        if self.state != State::Open {
            let ended_by = self.core.ended_by.clone().filter(|_| self.state.is_ending());
            let Some(error) = ended_by else {
                return Err(ApiMisuse::State { command, state: self.state.name() });
            };
            self.note(stream);
            return Ok(Err(StreamError::Connection(error)));
        }
        self.note(stream);
        Ok(Ok(()))
    }

    fn note(&mut self, stream: StreamId) {
        self.core.last_stream = Some(stream);
        self.core.lender.note_stream(stream);
    }

    /// Whether a request's text and parameters are short enough for the server and for a message.
    fn check_text(&self, request: &Request, options: &OpenOptions) -> Result<(), StreamError> {
        let text = request.text_bytes() as u64;
        let added = options.parameters.as_ref().map_or(0, Bytes::len) + options.defaults.text_bytes();
        let most = self.limits.as_ref().map_or(u32::MAX, |limits| limits.max_sql_bytes);
        let room = u64::from(self.core.link.limits().message - REQUEST_OVERHEAD).saturating_sub(added as u64);
        let most_objects = matches!(request, Request::Objects(_)).then_some(MAX_OBJECTS_BYTES as u64);
        let limit = room.min(u64::from(most)).min(most_objects.unwrap_or(u64::MAX));
        if added > MAX_PARAMETER_BYTES {
            let (bytes, limit) = (added as u64, MAX_PARAMETER_BYTES as u64);
            return Err(StreamError::ParametersTooLong { bytes, limit });
        }
        if text > limit { Err(StreamError::SqlTooLong { bytes: text, limit }) } else { Ok(()) }
    }

    pub(super) fn open(
        &mut self,
        now: Timestamp,
        stream: StreamId,
        request: Request,
        mut options: OpenOptions,
    ) -> Result<(), ApiMisuse> {
        if request.is_lent_by_client() {
            return Err(ApiMisuse::State { command: "open", state: "the request is an upload" });
        }
        let begun = self.begin("open", stream)?.and_then(|()| self.check_text(&request, &options));
        if let Err(error) = begun {
            self.core.output(ClientOutput::Stream(BorrowerEvent::Failed { stream, error }));
            return Ok(());
        }
        let most_credit = self.limits.as_ref().map_or(u64::MAX, |limits| batch_cost(limits.max_loan_bytes));
        let most = options.credit.min(most_credit);
        // The window begins small to save the memory that batches are read into. Held batches are different: they are
        // read only on request of the application or not at all, and holding them does not mean that the application is
        // slow.
        let held = options.access != Access::Read;
        // In a merge, most partitions wait for one.
        let shares = options.partition.map_or(1, |part| u64::from(part.count).clamp(1, 4));
        options.credit = if held { most } else { most.min((self.config.first_window / shares).max(1)) };
        let borrow = BorrowOptions {
            window: Some(options.credit),
            max_window: most,
            access: options.access,
            deadline: options.deadline_ms.map(Duration::from_millis),
        };
        self.core.borrower.open(now, stream, borrow);
        options.largest_batch = Some(self.config.borrow.max_batch_bytes);
        let extensions = options.extensions();
        self.core.send(Message::Open(Open { stream, request, options, extensions }));
        Ok(())
    }

    pub(super) fn upload(
        &mut self,
        now: Timestamp,
        stream: StreamId,
        table: String,
        options: UploadOptions,
    ) -> Result<(), ApiMisuse> {
        let UploadOptions { lend_from, measured, deadline, defaults, ingest } = options;
        let deadline_ms = deadline.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let options = OpenOptions { deadline_ms, defaults, ingest, ..OpenOptions::default() };
        let request = Request::Upload(table);
        let begun = self.begin("upload", stream)?.and_then(|()| self.check_text(&request, &options));
        if let Err(error) = begun {
            self.core.event(ClientEvent::UploadFailed { stream, error });
            return Ok(());
        }
        self.uploads.insert(stream, deadline);
        if let Some(deadline) = deadline {
            self.core.timers.set(Timer::Answer(stream), now + deadline);
        }
        let lend = LendOptions { credit: 0, lend_from, measured, access: Access::Read, deadline };
        let opened = self.core.lender.open(now, stream, lend);
        debug_assert!(opened.is_ok(), "an initial credit of 0 is within the limit");
        let extensions = options.extensions();
        self.core.send(Message::Open(Open { stream, request, options, extensions }));
        Ok(())
    }

    /// The server has answered an upload.
    pub(super) fn answered(&mut self, answer: Answer) -> Result<(), PeerMisbehaved> {
        let Answer { stream, result, extensions } = answer;
        extensions.check()?;
        if !self.is_known(stream) {
            return Err(PeerMisbehaved::UnknownStream(stream));
        }
        if self.core.borrower.is_open(stream) {
            return Err(PeerMisbehaved::StreamOrder { stream, what: "an answer to a stream that is not an upload" });
        }
        // An upload that was withdrawn, or failed at this end, needs no answer.
        if !self.uploads.contains_key(&stream) {
            return Ok(());
        }
        let result = match extensions.unknown() {
            Ok(()) => result,
            Err(unknown) => {
                Err(Failure::new(StreamCode::Unsupported, format!("the server's answer is not understood: {unknown}")))
            }
        };
        match result {
            Ok(_) if self.core.lender.is_open(stream) => {
                return Err(PeerMisbehaved::StreamOrder { stream, what: "an answer before the end" });
            }
            Ok(rows) => {
                self.forget_upload(stream);
                self.core.event(ClientEvent::Uploaded { stream, rows });
            }
            Err(failure) => {
                let failure = Failure { message: truncate(failure.message), ..failure };
                self.upload_failed(stream, StreamError::Remote(failure));
            }
        }
        Ok(())
    }

    fn forget_upload(&mut self, stream: StreamId) -> Option<Option<Duration>> {
        self.core.timers.clear(Timer::Answer(stream));
        self.uploads.remove(&stream)
    }

    /// Reports the failure to the application, if it still waits.
    pub(super) fn upload_failed(&mut self, stream: StreamId, error: StreamError) {
        if self.forget_upload(stream).is_some() {
            self.core.event(ClientEvent::UploadFailed { stream, error });
        }
    }

    /// An upload's deadline has passed.
    pub(super) fn upload_is_late(&mut self, stream: StreamId) {
        let deadline = self.uploads.get(&stream).copied().flatten().unwrap_or_default();
        self.upload_failed(stream, StreamError::DeadlineExceeded(deadline));
        self.fail_lent(stream, Failure::new(StreamCode::DeadlineExceeded, ""));
    }

    pub(super) fn withdraw(&mut self, stream: StreamId) -> Result<(), ApiMisuse> {
        if !self.is_known(stream) {
            return Err(ApiMisuse::UnknownStream(stream));
        }
        if self.forget_upload(stream).is_some() {
            self.fail_lent(stream, Failure::cancelled(CancelReason::Dropped));
        }
        Ok(())
    }

    /// Fails the stream of an upload, before its end or after it.
    fn fail_lent(&mut self, stream: StreamId, failure: Failure) {
        if self.core.lender.is_open(stream) {
            self.core.lender.stop(stream, failure);
        } else {
            let extensions = Extensions::none();
            self.core.send_with(Message::Lender(FromLender::Failed { stream, failure, extensions }), Bytes::new());
        }
    }

    /// Forwards all outputs of the two halves.
    pub(super) fn absorb(&mut self) {
        while let Some(task) = self.core.absorb_lender() {
            if let LenderTask::Stop { stream, reason, failure } = &task {
                self.upload_stopped(*stream, *reason, failure.clone());
            }
            self.core.output(ClientOutput::Lender(task));
        }
        while let Some(output) = self.core.borrower.poll() {
            if let Some(event) = self.core.absorb_borrower(output) {
                self.core.output(ClientOutput::Stream(event));
            }
        }
    }

    /// The lender's half has stopped an upload. Reports this to the application, unless the end was reported before.
    fn upload_stopped(&mut self, stream: StreamId, reason: Option<CancelReason>, failure: Option<Failure>) {
        let error = match (failure, reason, &self.core.ended_by) {
            (Some(failure), _, _) => StreamError::Remote(failure),
            (None, Some(reason), _) => StreamError::Remote(Failure::cancelled(reason)),
            (None, None, Some(error)) => StreamError::Connection(std::sync::Arc::clone(error)),
            (None, None, None) => StreamError::Cancelled,
        };
        self.upload_failed(stream, error);
    }
}

impl ClientCommand {
    /// A request for a query with these options.
    #[must_use]
    pub fn query(stream: StreamId, sql: impl Into<String>, options: OpenOptions) -> Self {
        ClientCommand::Open { stream, request: Request::Sql(sql.into()), options }
    }
}
