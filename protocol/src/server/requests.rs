//! Requests of a client: queries, whose results this end lends, and uploads, which this end borrows.

use std::time::Duration;

use bytes::Bytes;

use super::{ServerConnection, ServerEvent, ServerOutput, Upload};
use crate::borrower::{BorrowOptions, BorrowerEvent};
use crate::codes::{CancelReason, StreamCode};
use crate::error::{ApiMisuse, StreamError};
use crate::ids::StreamId;
use crate::lender::LendOptions;
use crate::link::truncate;
use crate::message::{
    Answer, Extensions, Failure, FromLender, MAX_PARAMETER_BYTES, Message, Open, OpenOptions, Request, UnknownExtension,
};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;

/// Maximum number of refused streams whose end the client has not acknowledged. With more, the connection ends.
const REFUSED_STREAMS: u64 = 1024;

impl ServerConnection {
    pub(super) fn open(&mut self, now: Timestamp, open: Open) -> Result<(), PeerMisbehaved> {
        let Open { stream, request, mut options, extensions } = open;
        if self.core.last_stream.is_some_and(|last| stream <= last) {
            return Err(PeerMisbehaved::StreamReused(stream));
        }
        extensions.check()?;
        let understood = options.extend(&extensions);
        self.core.last_stream = Some(stream);
        self.core.lender.note_stream(stream);
        let (value, limit) = (self.open_streams() as u64, u64::from(self.config.limits.max_streams) + REFUSED_STREAMS);
        if value >= limit {
            return Err(PeerMisbehaved::Limit { what: "streams, refused ones included", value, limit });
        }
        let refusal = self.refusal(&request, &options, understood);
        match request {
            Request::Upload(table) => self.open_upload(now, stream, table, options, refusal),
            request => self.open_result(now, stream, request, options, refusal)?,
        }
        Ok(())
    }

    /// The reason why a request is refused before it reaches the engine, if there is one.
    fn refusal(
        &self,
        request: &Request,
        options: &OpenOptions,
        understood: Result<(), UnknownExtension>,
    ) -> Option<Failure> {
        let limits = &self.config.limits;
        if let Err(extension) = understood {
            return Some(Failure::new(StreamCode::Unsupported, format!("the request is not understood: {extension}")));
        }
        if let Request::Unknown { kind, .. } = request {
            let message = format!("request kind {kind} is unknown to this server");
            return Some(Failure::new(StreamCode::Unsupported, message));
        }
        let text_bytes = request.text_bytes();
        let parameter_bytes = options.parameters.as_ref().map_or(0, Bytes::len);
        if self.draining {
            Some(Failure::new(StreamCode::ShuttingDown, ""))
        } else if self.open_streams() >= limits.max_streams as usize {
            let message = format!("the limit is {} streams per connection", limits.max_streams);
            Some(Failure::new(StreamCode::TooManyStreams, message))
        } else if text_bytes > limits.max_sql_bytes as usize {
            let message = format!("{text_bytes} bytes, the limit is {} bytes", limits.max_sql_bytes);
            Some(Failure::new(StreamCode::SqlTooLong, message))
        } else if parameter_bytes > MAX_PARAMETER_BYTES {
            let message = format!("{parameter_bytes} bytes of parameters, the limit is {MAX_PARAMETER_BYTES} bytes");
            Some(Failure::new(StreamCode::Parameters, message))
        } else {
            None
        }
    }

    fn open_result(
        &mut self,
        now: Timestamp,
        stream: StreamId,
        request: Request,
        options: OpenOptions,
        refusal: Option<Failure>,
    ) -> Result<(), PeerMisbehaved> {
        let limit = self.core.lender.max_credit();
        if options.credit > limit {
            return Err(PeerMisbehaved::Limit { what: "unspent credit", value: options.credit, limit });
        }
        if let Some(failure) = refusal {
            let extensions = Extensions::none();
            self.core.send(Message::Lender(FromLender::Failed { stream, failure, extensions }));
            return Ok(());
        }
        let lend = LendOptions {
            credit: options.credit,
            lend_from: options.lend_from,
            measured: options.measured,
            access: options.access,
            deadline: options.deadline_ms.map(Duration::from_millis),
        };
        self.core.lender.open(now, stream, lend)?;
        match request {
            Request::Sql(sql) => self.core.event(ServerEvent::Query { stream, sql, options }),
            Request::Describe(sql) => self.core.event(ServerEvent::Describe { stream, sql, options }),
            Request::Objects(request) => self.core.event(ServerEvent::Objects { stream, request, options }),
            // An upload has been handled before, and an unknown request refused.
            Request::Upload(_) | Request::Unknown { .. } => {}
        }
        Ok(())
    }

    fn open_upload(
        &mut self,
        now: Timestamp,
        stream: StreamId,
        table: String,
        options: OpenOptions,
        refusal: Option<Failure>,
    ) {
        let deadline = options.deadline_ms.map(Duration::from_millis);
        self.core.link.accept_payloads();
        // The stream has no window until the engine has accepted it.
        self.core.borrower.open(now, stream, BorrowOptions { deadline, ..BorrowOptions::default() });
        self.uploads.insert(stream, Upload::default());
        match refusal {
            // The schema may be on its way, so the stream must exist: it is opened and then cancelled.
            Some(failure) => self.refuse(stream, failure),
            None => self.core.event(ServerEvent::Upload { stream, table, options }),
        }
    }

    /// Ends an upload in an error.
    pub(super) fn refuse(&mut self, stream: StreamId, failure: Failure) {
        if self.say_answer(stream, Err(failure)) {
            self.core.borrower.cancel(stream, CancelReason::RequestFailed);
        }
    }

    /// Sends the answer to an upload. `false` if it has been answered.
    fn say_answer(&mut self, stream: StreamId, result: Result<u64, Failure>) -> bool {
        if self.uploads.remove(&stream).is_none() {
            return false;
        }
        let result = result.map_err(|failure| Failure { message: truncate(failure.message), ..failure });
        self.core.send(Message::Answer(Answer { stream, result, extensions: Extensions::none() }));
        true
    }

    /// The engine's answer to an upload.
    pub(super) fn answer(&mut self, stream: StreamId, result: Result<u64, Failure>) -> Result<(), ApiMisuse> {
        match (self.uploads.get(&stream), result) {
            (Some(Upload { ended: true }), Ok(rows)) => drop(self.say_answer(stream, Ok(rows))),
            (Some(Upload { ended: false }), Ok(_)) => {
                return Err(ApiMisuse::State { command: "answer", state: "the upload has not ended" });
            }
            (Some(_), Err(failure)) => self.refuse(stream, failure),
            // The upload has ended in another way in the meantime.
            (None, _) if self.core.last_stream.is_some_and(|last| stream <= last) => {}
            (None, _) => return Err(ApiMisuse::UnknownStream(stream)),
        }
        Ok(())
    }

    /// Whether a message fails an upload after its end and before its answer. The client then does not wait for an
    /// answer.
    pub(super) fn withdraws_upload(&mut self, message: &Message) -> bool {
        let Message::Lender(FromLender::Failed { stream, failure, .. }) = message else { return false };
        if self.core.borrower.withdraw(*stream, failure) {
            return true;
        }
        let known = self.core.last_stream.is_some_and(|last| *stream <= last);
        if self.core.borrower.is_open(*stream) || !known {
            return false;
        }
        // An upload that has been answered in the meantime is not withdrawn.
        if self.uploads.remove(stream).is_some() {
            self.core.event(ServerEvent::UploadWithdrawn { stream: *stream });
        }
        true
    }

    /// Forwards all outputs of the two halves.
    pub(super) fn absorb(&mut self) {
        while let Some(task) = self.core.absorb_lender() {
            self.core.output(ServerOutput::Lender(task));
        }
        while let Some(output) = self.core.borrower.poll() {
            let Some(event) = self.core.absorb_borrower(output) else { continue };
            self.upload_event(&event);
            self.core.output(ServerOutput::Stream(event));
        }
    }

    fn upload_event(&mut self, event: &BorrowerEvent) {
        match event {
            BorrowerEvent::End { stream, .. } => {
                if let Some(upload) = self.uploads.get_mut(stream) {
                    upload.ended = true;
                }
            }
            // The lender failed the stream, or the connection has ended: no answer is needed.
            BorrowerEvent::Failed { stream, error: StreamError::Remote(_) | StreamError::Connection(_) } => {
                self.uploads.remove(stream);
            }
            BorrowerEvent::Failed { stream, error } => {
                let failure = Failure::new(error.code(), error.to_string());
                self.say_answer(*stream, Err(failure));
            }
            _ => {}
        }
    }
}
