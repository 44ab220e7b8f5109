//! Ends of streams and leases at a lender.

use bytes::Bytes;

use super::{LeaseEnd, Lender, LenderOutput, LenderTask};
use crate::codes::StreamCode;
use crate::error::ConnectionError;
use crate::ids::{LeaseId, StreamId};
use crate::lender::stream::{LentStream, Pending};
use crate::link::clip;
use crate::message::{Extensions, Failure, Fencing, FromLender};
use crate::time::Timestamp;
use crate::timers::Timer;

impl Lender {
    /// Handles all deadlines that have passed.
    ///
    /// # Errors
    /// [`ConnectionError::LeaseExpired`]: the connection must end, because the lease cannot be revoked in any other
    /// way.
    pub fn expire(&mut self, now: Timestamp) -> Result<(), ConnectionError> {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Stream(stream) if self.streams.contains_key(&stream) => {
                    self.stop(stream, Failure::new(StreamCode::DeadlineExceeded, ""));
                }
                Timer::Lease(lease) => self.lease_expired(lease)?,
                Timer::Room(stream) => self.found_no_room(stream),
                _ => {}
            }
        }
        Ok(())
    }

    fn lease_expired(&mut self, lease: LeaseId) -> Result<(), ConnectionError> {
        let by_word = self.path.words().is_some_and(|words| words.fencing == Fencing::LeaseWord);
        if !by_word || self.leases.revoked() >= self.config.max_leases as usize {
            // Either this fabric can only revoke all leases of a connection at once, or the borrower never releases any
            // lease.
            if self.leases.is_live(lease) {
                return Err(ConnectionError::LeaseExpired(lease));
            }
            return Ok(());
        }
        if let Some(ended) = self.leases.revoke(lease) {
            self.end_lease(lease, ended.slot, LeaseEnd::Revoked);
            if self.streams.contains_key(&ended.stream) {
                let message = format!("{lease:?} was not released within {:?}", self.config.lease_timeout);
                self.stop(ended.stream, Failure::new(StreamCode::LeaseExpired, message));
            }
        }
        Ok(())
    }

    /// Ends a stream in an error that does not come from its source. Has no effect if the stream has ended.
    pub fn stop(&mut self, stream: StreamId, failure: Failure) {
        if self.streams.contains_key(&stream) {
            let told = Some(failure.clone());
            self.out.push_back(LenderOutput::Do(LenderTask::Stop { stream, reason: None, failure: told }));
            self.fail(stream, failure);
        }
    }

    /// Ends a stream in an error. Batches on loan stay on loan until they are released.
    pub(super) fn fail(&mut self, stream: StreamId, mut failure: Failure) {
        let Some(open) = self.streams.remove(&stream) else { return };
        self.timers.clear(Timer::Stream(stream));
        self.timers.clear(Timer::Room(stream));
        self.withdraw_pending(open);
        failure.message = clip(failure.message);
        self.say(FromLender::Failed { stream, failure, extensions: Extensions::none() }, Bytes::new());
    }

    /// Withdraws the batch that was handed over for a stream that ends here. A batch whose memory is just being opened
    /// is withdrawn once the driver reports the result: see [`super::LenderCommand::Exposed`].
    fn withdraw_pending(&mut self, ended: LentStream) {
        if let Some(Pending::Lent(loan)) = ended.pending {
            self.withdraw(loan.lease);
        }
    }

    /// Ends a lease that was never announced to the borrower.
    pub(super) fn withdraw(&mut self, lease: LeaseId) {
        self.end_lease(lease, None, LeaseEnd::Withdrawn);
    }

    /// The connection begins to end: all sources stop, and no message is sent any more. Leases stand until
    /// [`Lender::tear_down`].
    pub fn shut(&mut self) {
        self.stopped = true;
        self.timers.clear_all();
        for (stream, open) in std::mem::take(&mut self.streams) {
            self.out.push_back(LenderOutput::Do(LenderTask::Stop { stream, reason: None, failure: None }));
            self.withdraw_pending(open);
        }
    }

    /// Ends all leases. The borrower must be cut off before this call, as far as the fabric can do this.
    pub fn tear_down(&mut self) {
        while let Some((lease, ended)) = self.leases.pop() {
            self.end_lease(lease, ended.slot, LeaseEnd::TornDown);
        }
    }
}
