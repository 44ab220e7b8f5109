//! Control connections with faults: short reads and writes, delays, flipped bits, and a reset of one end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use turmoil::net::TcpStream;

use crate::connection_ends::Side;
use crate::dice::Dice;
use crate::frames::{Frames, Piece};
use crate::links::End;
use crate::options::WireFaults;
use crate::shared::{PORT, Shared};
use crate::sockets::Socket;
use crate::tap::Tap;

/// One end of a control connection.
pub struct Wire {
    io: Socket,
    faults: WireFaults,
    dice: Dice,
    shared: Arc<Shared>,
    end: End,
    resets_at_start: u64,
    /// The position in the stream that this end writes.
    frames: Frames,
    /// Bytes that this end has read.
    read: u64,
    waits: Option<Pin<Box<Sleep>>>,
    waited: bool,
    tap: Option<Tap>,
}

impl Wire {
    /// Wraps a stream at one end.
    pub fn new(
        io: Socket,
        shared: Arc<Shared>,
        faults: WireFaults,
        dice: Dice,
        end: (SocketAddr, Side),
        tap: Option<Tap>,
    ) -> Self {
        let resets_at_start = shared.connection_ends.resets((end.0.ip(), end.1));
        shared.links.open(end);
        let frames = Frames::default();
        Wire { io, faults, dice, shared, end, resets_at_start, frames, read: 0, waits: None, waited: false, tap }
    }

    fn faults(&self) -> WireFaults {
        if self.shared.is_healed() { WireFaults::default() } else { self.faults }
    }

    /// In one write of `one_in`, returns the bytes with one bit flipped, the place of that byte, and its piece. Each
    /// piece is as probable as another one, or nearly all flips would be in payloads.
    fn flip(&mut self, one_in: u32, bytes: &[u8]) -> Option<(Vec<u8>, usize, Piece)> {
        if one_in == 0 || bytes.is_empty() || self.dice.within(1, one_in) != 1 {
            return None;
        }
        let mut flipped = bytes.to_vec();
        let piece = self.dice.pick(&self.frames.clone().advance(bytes));
        let last = piece.place.len() - 1;
        let at = piece.place.start + self.dice.within(0, u32::try_from(last).unwrap_or(u32::MAX)) as usize;
        flipped[at] ^= 1 << self.dice.within(0, 7);
        Some((flipped, at, piece))
    }

    /// Counts bytes that were read. If they complete a damaged part, the machine must find that now.
    fn has_read(&mut self, bytes: usize) {
        let before = self.read;
        self.read += bytes as u64;
        let (client, side) = self.end;
        let found_at = self.shared.links.flipped((client, side.other()));
        if found_at.is_some_and(|at| before < at && at <= self.read) {
            self.shared.trace.count("flip found", format!("at the {}", side.name()));
            self.shared.trace.expect_end(Some(format!("the {} of {client} has read a flipped bit", side.name())));
        }
    }

    /// Returns whether this end's process uses its sockets now.
    fn is_awake(&self, cx: &Context<'_>) -> bool {
        // The machine has handled what it read last.
        self.shared.trace.expect_end(None);
        !self.shared.links.stands_still(self.end, cx)
    }

    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        if self.shared.connection_ends.is_reset((self.end.0.ip(), self.end.1), self.resets_at_start, cx) {
            self.shared.trace.count("wire", "reset");
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

/// The connector of a client: returns `first`, then a new connection to the server for each further call.
pub fn connector(
    first: Wire,
    shared: Arc<Shared>,
    dice: Dice,
) -> impl Fn() -> BoxFuture<'static, io::Result<Wire>> + Send + Sync + 'static {
    let sockets = first.io.sockets().clone();
    let state = Mutex::new((Some(first), dice));
    move || {
        let (first, part) = {
            let (first, dice) = &mut *state.lock().unwrap_or_else(PoisonError::into_inner);
            (first.take(), dice.within(0, u32::MAX))
        };
        let (shared, sockets) = (Arc::clone(&shared), sockets.clone());
        let connected = async move {
            if let Some(first) = first {
                return Ok(first);
            }
            let io = TcpStream::connect(("server", PORT)).await?;
            let end = (io.local_addr()?, Side::Client);
            let dice = Dice::new(shared.options.seed, u64::from(part) | 1 << 42);
            let tap = Tap::new(shared.trace.clone(), shared.options.upload_window);
            let faults = shared.options.client_wire;
            Ok(Wire::new(sockets.open(io), shared, faults, dice, end, Some(tap)))
        };
        connected.boxed()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.shared.links.close(self.end) {
            self.shared.trace.count("half-dead link", format!("noticed at the {}", self.end.1.name()));
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check(cx)?;
        if !this.is_awake(cx) {
            return Poll::Pending;
        }
        if let Some(waits) = &mut this.waits {
            ready!(waits.as_mut().poll(cx));
            this.waits = None;
            this.waited = true;
        }
        let faults = this.faults();
        if faults.slow_one_in > 0 && !std::mem::take(&mut this.waited) && this.dice.within(1, faults.slow_one_in) == 1 {
            this.shared.trace.count("wire", "slow read");
            let mut sleep = Box::pin(tokio::time::sleep(faults.slow));
            if sleep.as_mut().poll(cx).is_pending() {
                this.waits = Some(sleep);
                return Poll::Pending;
            }
        }
        let most = buf.remaining().min(if faults.max_read > 0 { faults.max_read } else { 16 << 10 });
        let mut bytes = vec![0; most];
        let mut part = ReadBuf::new(&mut bytes);
        ready!(this.io.with(|io| Pin::new(io).poll_read(cx, &mut part)))?;
        if faults.max_read > 0 && part.filled().len() == faults.max_read {
            this.shared.trace.count("wire", "short read");
        }
        if let Some(tap) = &mut this.tap {
            tap.received(part.filled());
        }
        this.has_read(part.filled().len());
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check(cx)?;
        if !this.is_awake(cx) {
            return Poll::Pending;
        }
        if this.end.1 == Side::Server && this.shared.is_deaf(this.end.0.ip()) {
            // No wake-up is needed: the timers of the connection end it.
            return Poll::Pending;
        }
        let faults = this.faults();
        let most = if faults.max_write > 0 { faults.max_write.min(bytes.len()) } else { bytes.len() };
        let flipped = this.flip(faults.flip_one_in, &bytes[..most]);
        let sent = flipped.as_ref().map_or(&bytes[..most], |(flipped, ..)| flipped);
        let written = ready!(this.io.with(|io| Pin::new(io).poll_write(cx, sent)))?;
        if let Some((_, _, piece)) = flipped.filter(|(_, at, _)| *at < written) {
            this.shared.trace.count("wire", "flipped bit");
            this.shared.trace.count("flip", piece.part.name());
            this.shared.links.flip(this.end, piece.found_at);
            this.shared.flip();
        }
        this.frames.advance(&bytes[..written]);
        if written < bytes.len() {
            this.shared.trace.count("wire", "short write");
        }
        this.shared.trace.count_many("wire", "bytes written", written as u64);
        if let Some(tap) = &mut this.tap {
            tap.sent(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.with(|io| Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.with(|io| Pin::new(io).poll_shutdown(cx))
    }
}
