//! Control connections with faults: short reads and writes, delays, flipped bits, and a reset of one end.

use std::io;
use std::net::IpAddr;
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
    key: (IpAddr, Side),
    resets_at_start: u64,
    waits: Option<Pin<Box<Sleep>>>,
    waited: bool,
    tap: Option<Tap>,
}

impl Wire {
    /// Wraps a stream of the client whose address is in `key`.
    pub fn new(
        io: Socket,
        shared: Arc<Shared>,
        faults: WireFaults,
        dice: Dice,
        key: (IpAddr, Side),
        tap: Option<Tap>,
    ) -> Self {
        let resets_at_start = shared.connection_ends.resets(key);
        Wire { io, faults, dice, shared, key, resets_at_start, waits: None, waited: false, tap }
    }

    fn faults(&self) -> WireFaults {
        if self.shared.is_healed() { WireFaults::default() } else { self.faults }
    }

    /// In one write of `one_in`, returns the bytes with one bit flipped.
    fn flip(&mut self, one_in: u32, bytes: &[u8]) -> Option<Vec<u8>> {
        if one_in == 0 || bytes.is_empty() || self.dice.within(1, one_in) != 1 {
            return None;
        }
        let mut flipped = bytes.to_vec();
        let at = self.dice.within(0, u32::try_from(bytes.len() - 1).unwrap_or(u32::MAX)) as usize;
        flipped[at] ^= 1 << self.dice.within(0, 7);
        Some(flipped)
    }

    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        if self.shared.connection_ends.is_reset(self.key, self.resets_at_start, cx) {
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
            let key = (io.local_addr()?.ip(), Side::Client);
            let dice = Dice::new(shared.options.seed, u64::from(part) | 1 << 42);
            let tap = Tap::new(shared.trace.clone(), shared.options.upload_window);
            let faults = shared.options.client_wire;
            Ok(Wire::new(sockets.open(io), shared, faults, dice, key, Some(tap)))
        };
        connected.boxed()
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check(cx)?;
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
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check(cx)?;
        if this.key.1 == Side::Server && this.shared.is_deaf(this.key.0) {
            // No wake-up is needed: the timers of the connection end it.
            return Poll::Pending;
        }
        let faults = this.faults();
        let most = if faults.max_write > 0 { faults.max_write.min(bytes.len()) } else { bytes.len() };
        let flipped = this.flip(faults.flip_one_in, &bytes[..most]);
        let sent = flipped.as_deref().unwrap_or(&bytes[..most]);
        let written = ready!(this.io.with(|io| Pin::new(io).poll_write(cx, sent)))?;
        if sent[..written] != bytes[..written] {
            this.shared.trace.count("wire", "flipped bit");
            this.shared.flip();
        }
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
