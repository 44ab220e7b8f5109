//! Watches a client's end of a control connection and checks credit in both directions: the borrower grants no more
//! than its window, and the lender sends no more than it was granted. Also checks that a lender lends nothing after it
//! has reported that the path is lost.

use std::collections::{BTreeMap, BTreeSet};

use thallus_protocol::StreamId;
use thallus_protocol::codec::{Decoded, Decoder, FrameLimits};
use thallus_protocol::codes::StreamCode;
use thallus_protocol::credit::batch_cost;
use thallus_protocol::message::{FromBorrower, FromLender, Message, Request};

use crate::trace::Trace;

/// Observer of the messages of one connection.
pub struct Tap {
    trace: Trace,
    from_server: Decoder,
    from_client: Decoder,
    streams: BTreeMap<StreamId, Account>,
    /// The ends to which nothing may be lent any more.
    path_lost: BTreeSet<&'static str>,
    /// Largest window of an upload, in bytes.
    upload_window: u64,
}

/// The credit of one stream.
#[derive(Debug, Default)]
struct Account {
    window: u64,
    granted: u64,
    arrived: u64,
    /// Sequence number of the inline batch of the last piece.
    piece_of: Option<u64>,
}

impl Tap {
    /// A tap of one connection to a server with this limit for the window of an upload.
    #[must_use]
    pub fn new(trace: Trace, upload_window: u64) -> Self {
        let decoder = || {
            let mut decoder = Decoder::new(FrameLimits { message: u32::MAX, payload: u32::MAX });
            // A message with a flipped bit must not be counted.
            decoder.verify_checksums(true);
            decoder
        };
        let (streams, path_lost) = (BTreeMap::new(), BTreeSet::new());
        Tap { trace, from_server: decoder(), from_client: decoder(), streams, path_lost, upload_window }
    }

    /// Takes bytes that the client wrote.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.from_client.push(bytes);
        while let Ok(Some(decoded)) = self.from_client.decode::<Message>() {
            if let Decoded::Message(message, _) = decoded {
                self.message(message, "server");
            }
        }
    }

    /// Takes bytes that the client read.
    pub fn received(&mut self, bytes: &[u8]) {
        self.from_server.push(bytes);
        while let Ok(Some(decoded)) = self.from_server.decode::<Message>() {
            if let Decoded::Message(message, _) = decoded {
                self.message(message, "client");
            }
        }
    }

    fn message(&mut self, message: Message, to: &'static str) {
        match message {
            Message::Open(open) => {
                let account = match open.request {
                    Request::Upload(_) => Account { window: self.upload_window, ..Account::default() },
                    _ => {
                        let credit = open.options.credit;
                        Account { window: credit, granted: credit, ..Account::default() }
                    }
                };
                self.streams.insert(open.stream, account);
            }
            Message::Lender(message) => self.lender_message(message, to),
            Message::Borrower(message) => self.borrower_message(message, to),
            Message::Answer(answer) => {
                let what = if answer.result.is_ok() { "upload taken" } else { "upload not taken" };
                self.trace.count("message", what);
            }
            Message::Goodbye { code, .. } if to == "client" => self.trace.count("goodbye", format!("{code:?}")),
            Message::Ping(_) => self.trace.count("message", format!("ping to {to}")),
            _ => {}
        }
    }

    fn lender_message(&mut self, message: FromLender, to: &'static str) {
        match message {
            FromLender::Lent { stream, batch, .. } => {
                self.trace.count("message", format!("lent to {to}"));
                if self.path_lost.contains(to) {
                    let how = format!("{stream:?} to the {to}");
                    self.trace.violation("nothing is lent once the path is lost", how);
                }
                self.arrived(stream, batch.descriptor.slab_bytes());
            }
            FromLender::Inline { stream, seq, bytes, .. } => {
                self.trace.count("message", format!("inline to {to}"));
                let first = self.streams.get_mut(&stream).is_some_and(|a| a.piece_of.replace(seq) != Some(seq));
                if first {
                    self.arrived(stream, bytes);
                }
            }
            FromLender::CreditWanted { stream, bytes } => {
                self.trace.count("message", "credit wanted");
                if let Some(account) = self.streams.get_mut(&stream) {
                    account.window = account.window.max(bytes);
                }
            }
            FromLender::Failed { failure, .. } => {
                self.trace.count("failed", format!("{:?}", failure.code));
                if failure.code == StreamCode::DataPlaneLost {
                    self.path_lost.insert(to);
                }
            }
            FromLender::RegionGone(_) => self.trace.count("message", "region gone"),
            _ => {}
        }
    }

    fn borrower_message(&mut self, message: FromBorrower, to: &str) {
        match message {
            FromBorrower::Credit { stream, total } => {
                self.trace.count("message", format!("credit to {to}"));
                let Some(account) = self.streams.get_mut(&stream) else { return };
                account.granted = total;
                let most = account.window + account.arrived;
                if total > most {
                    let how = format!("{stream:?} was granted {total} bytes, window and arrived batches are {most}");
                    self.trace.violation("bytes on the way <= window", how);
                }
            }
            FromBorrower::Release { .. } => self.trace.count("message", format!("release to {to}")),
            FromBorrower::Cancel { reason, .. } => self.trace.count("cancel", format!("{reason:?}")),
            FromBorrower::PathUp { lending, .. } => {
                let what = if lending.is_some() { "client lends" } else { "client lends not" };
                self.trace.count("message", what);
            }
            FromBorrower::PathDown { .. } => self.trace.count("message", format!("path down to {to}")),
        }
    }

    fn arrived(&mut self, stream: StreamId, bytes: u64) {
        let Some(account) = self.streams.get_mut(&stream) else { return };
        account.arrived += batch_cost(bytes);
        if account.arrived > account.granted {
            let how = format!("{stream:?}: {account:?}");
            self.trace.violation("bytes sent <= credit granted", how);
        }
    }
}
