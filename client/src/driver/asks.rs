//! Parts of lazy batches that applications wait for, and loans that they hold.

use std::collections::BTreeMap;

use arrow::buffer::Buffer;
use thallus_protocol::layout::SlabLayout;
use thallus_protocol::{AskId, StreamError, StreamId};
use tokio::sync::{mpsc, oneshot};

use super::handle::Command;
use super::reads::{ReadSlab, into_buffer};

/// Bytes that were asked for, and where in them each piece is.
pub(crate) type Found = Result<(Buffer, SlabLayout), StreamError>;

/// What has been read for an ask of batch `seq`.
pub(super) fn found(seq: u64, read: Option<ReadSlab>) -> Found {
    let invalid = |reason| StreamError::InvalidBatch { seq, reason };
    let read = read.ok_or_else(|| invalid("bug: an ask was answered that had not been read".into()))?;
    let buffer = read.slab.map_or_else(|| Ok(Buffer::default()), into_buffer).map_err(invalid)?;
    Ok((buffer, read.layout))
}

/// Who waits for which answer.
#[derive(Debug, Default)]
pub(super) struct Asks {
    waiting: BTreeMap<AskId, oneshot::Sender<Found>>,
    last: u64,
}

impl Asks {
    pub(super) fn enter(&mut self, answer: oneshot::Sender<Found>) -> AskId {
        self.last += 1;
        let ask = AskId(self.last);
        self.waiting.insert(ask, answer);
        ask
    }

    pub(super) fn answer(&mut self, ask: AskId, found: Found) {
        if let Some(answer) = self.waiting.remove(&ask) {
            // Whoever asked may have been dropped since, and with it what was found.
            let _gone = answer.send(found);
        }
    }
}

/// A lazy batch that is held. Dropping it, wherever it is on its way, gives it up.
#[derive(Debug)]
pub(crate) struct Loan {
    /// Weak: a connection closes when nobody can ask it anything, whatever it has yet to deliver.
    commands: mpsc::WeakUnboundedSender<Command>,
    pub(crate) stream: StreamId,
    pub(crate) seq: u64,
}

impl Loan {
    pub(super) fn new(commands: mpsc::WeakUnboundedSender<Command>, stream: StreamId, seq: u64) -> Self {
        Loan { commands, stream, seq }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.upgrade() {
            // A connection that has ended has ended its loans.
            let _gone = commands.send(Command::GiveUp { stream: self.stream, seq: self.seq });
        }
    }
}
