//! Listens in at a client's end of a control connection: no more is granted than was taken, nor sent than was granted.

use std::collections::BTreeMap;

use thallus_protocol::StreamId;
use thallus_protocol::codec::{Decoded, Decoder, FrameLimits};
use thallus_protocol::credit::batch_cost;
use thallus_protocol::message::{ToClient, ToServer};

use crate::trace::Trace;

/// What both ends said of a connection.
pub struct Tap {
    trace: Trace,
    from_server: Decoder,
    from_client: Decoder,
    streams: BTreeMap<StreamId, Account>,
}

/// One stream's credit.
#[derive(Debug, Default)]
struct Account {
    window: u64,
    granted: u64,
    arrived: u64,
    /// Bytes of the pieces that make up the inline batch before.
    piece_of: Option<u64>,
}

impl Tap {
    /// A tap of one connection.
    #[must_use]
    pub fn new(trace: Trace) -> Self {
        let decoder = || Decoder::new(FrameLimits { message: u32::MAX, payload: u32::MAX });
        Tap { trace, from_server: decoder(), from_client: decoder(), streams: BTreeMap::new() }
    }

    /// The client wrote this.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.from_client.push(bytes);
        while let Ok(Some(decoded)) = self.from_client.decode::<ToServer>() {
            let Decoded::Message(message, _) = decoded else { continue };
            match message {
                ToServer::Execute { stream, options, .. } => {
                    let account = Account { window: options.credit, granted: options.credit, ..Account::default() };
                    self.streams.insert(stream, account);
                }
                ToServer::Credit { stream, total } => {
                    self.trace.count("message", "credit");
                    let Some(account) = self.streams.get_mut(&stream) else { continue };
                    account.granted = total;
                    let most = account.window + account.arrived;
                    if total > most {
                        let how =
                            format!("{stream:?} was granted {total} bytes, window and arrived batches are {most}");
                        self.trace.violated("bytes on the way <= window", how);
                    }
                }
                ToServer::Release { .. } => self.trace.count("message", "release"),
                ToServer::Cancel { reason, .. } => self.trace.count("cancel", format!("{reason:?}")),
                ToServer::Ping(_) => self.trace.count("message", "ping to server"),
                ToServer::FabricDown { .. } => self.trace.count("message", "fabric down"),
                _ => {}
            }
        }
    }

    /// The client read this.
    pub fn received(&mut self, bytes: &[u8]) {
        self.from_server.push(bytes);
        while let Ok(Some(decoded)) = self.from_server.decode::<ToClient>() {
            let Decoded::Message(message, _) = decoded else { continue };
            match message {
                ToClient::Lent { stream, batch, .. } => {
                    self.trace.count("message", "lent");
                    self.arrived(stream, batch.descriptor.slab_bytes());
                }
                ToClient::Inline { stream, seq, bytes, .. } => {
                    self.trace.count("message", "inline");
                    let first = self.streams.get_mut(&stream).is_some_and(|a| a.piece_of.replace(seq) != Some(seq));
                    if first {
                        self.arrived(stream, bytes);
                    }
                }
                ToClient::CreditWanted { stream, bytes } => {
                    self.trace.count("message", "credit wanted");
                    if let Some(account) = self.streams.get_mut(&stream) {
                        account.window = account.window.max(bytes);
                    }
                }
                ToClient::Failed { code, .. } => self.trace.count("failed", format!("{code:?}")),
                ToClient::Goodbye { code, .. } => self.trace.count("goodbye", format!("{code:?}")),
                ToClient::RegionGone(_) => self.trace.count("message", "region gone"),
                ToClient::Ping(_) => self.trace.count("message", "ping to client"),
                _ => {}
            }
        }
    }

    fn arrived(&mut self, stream: StreamId, bytes: u64) {
        let Some(account) = self.streams.get_mut(&stream) else { return };
        account.arrived += batch_cost(bytes);
        if account.arrived > account.granted {
            let how = format!("{stream:?}: {account:?}");
            self.trace.violated("bytes sent <= credit granted", how);
        }
    }
}
