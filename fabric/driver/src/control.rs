//! The control connection: frames out in order, bytes in as they come.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thallus_protocol::codec::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Any byte stream that can carry a control connection: TCP, a simulated TCP, one day TLS.
pub trait ControlIo: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ControlIo for T {}

/// Bytes taken in by one read.
const MAX_READ: usize = 256 * 1024;
/// Frames handed to one write call.
const SLICES: usize = 64;
/// With more than this to be written, nothing more is read: a peer that only asks and never reads is made to wait.
const BACKLOG: usize = 256 << 20;
const LINGER: Duration = Duration::from_secs(1);

/// What came of polling.
#[derive(Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// Bytes were appended to the buffer.
    Received,
    /// The connection is gone, and why.
    Lost(String),
}

/// A control connection with its queue of bytes to be written.
#[derive(Debug)]
pub struct Control<S> {
    io: S,
    queue: VecDeque<Bytes>,
    backlog: usize,
    /// [`ControlEvent::Lost`] has been reported.
    lost: bool,
}

impl<S: ControlIo> Control<S> {
    /// Over a connected byte stream.
    pub fn new(io: S) -> Self {
        Control { io, queue: VecDeque::new(), backlog: 0, lost: false }
    }

    /// Queues a frame. It goes out at the next polls.
    pub fn send(&mut self, frame: Frame) {
        for part in [frame.head, frame.payload] {
            if !part.is_empty() {
                self.backlog += part.len();
                self.queue.push_back(part);
            }
        }
    }

    /// Bytes queued and not written yet.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// Writes what is queued, and reads what has come to the end of `into`. A connection is lost once: after that
    /// nothing happens here any more, so that a driver which still waits for something else, for an endpoint to close,
    /// is not kept busy by the end of file.
    pub fn poll(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<ControlEvent> {
        if self.lost {
            return Poll::Pending;
        }
        let polled = self.poll_io(cx, into);
        self.lost = matches!(polled, Poll::Ready(ControlEvent::Lost(_)));
        polled
    }

    fn poll_io(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<ControlEvent> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(ControlEvent::Lost(error.to_string()));
        }
        if self.backlog > BACKLOG {
            return Poll::Pending;
        }
        match ready!(read_to(&mut self.io, cx, into)) {
            Err(error) => Poll::Ready(ControlEvent::Lost(error.to_string())),
            Ok(0) => Poll::Ready(ControlEvent::Lost("the peer closed the connection".into())),
            Ok(_) => Poll::Ready(ControlEvent::Received),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, part) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(part);
                used += 1;
            }
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..used]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn written(&mut self, mut bytes: usize) {
        self.backlog -= bytes;
        while let Some(front) = self.queue.front_mut() {
            if bytes < front.len() {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.queue.pop_front();
        }
    }

    /// Writes what is queued, says that no more comes, and waits a moment for the peer to do the same: a connection
    /// closed with bytes unread is reset, and the peer might never see the goodbye.
    pub async fn finish(mut self) {
        let goodbye = async {
            std::future::poll_fn(|cx| self.poll_write(cx)).await?;
            self.io.shutdown().await?;
            let mut unread = vec![0; 16 * 1024];
            while self.io.read(&mut unread).await? > 0 {}
            io::Result::Ok(())
        };
        // Whether the peer heard it or not, this end is done.
        let _heard = tokio::time::timeout(LINGER, goodbye).await;
    }
}

/// Reads once, into the room at the end of a buffer: how many bytes came.
fn read_to<S: AsyncRead + Unpin>(io: &mut S, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
    let mut room = into.limit(MAX_READ);
    std::pin::pin!(io.read_buf(&mut room)).poll(cx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_go_out_whole_and_in_order_through_a_narrow_pipe() {
        let (ours, mut theirs) = tokio::io::duplex(7);
        let mut control = Control::new(ours);
        let mut expected = Vec::new();
        for i in 0..200_u8 {
            let frame = Frame {
                head: Bytes::from(vec![i; usize::from(i % 11)]),
                payload: Bytes::from(vec![i; usize::from(i % 3)]),
            };
            expected.extend_from_slice(&frame.head);
            expected.extend_from_slice(&frame.payload);
            control.send(frame);
        }
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).await.map(|_| got)
        });
        control.finish().await;
        assert_eq!(reader.await.unwrap().unwrap(), expected);
    }

    #[tokio::test]
    async fn the_peer_s_close_is_reported_after_its_last_bytes() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut control = Control::new(ours);
        theirs.write_all(b"bye").await.unwrap();
        drop(theirs);
        let mut buffer = BytesMut::new();
        let first = std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await;
        assert_eq!(first, ControlEvent::Received);
        assert_eq!(buffer, b"bye"[..]);
        let second = std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await;
        assert!(matches!(second, ControlEvent::Lost(_)), "{second:?}");
    }

    #[tokio::test]
    async fn a_lost_connection_keeps_nobody_busy() {
        let (ours, theirs) = tokio::io::duplex(64);
        let mut control = Control::new(ours);
        drop(theirs);
        let mut buffer = BytesMut::new();
        let first = std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await;
        assert!(matches!(first, ControlEvent::Lost(_)), "{first:?}");
        let idle = std::future::poll_fn(|cx| Poll::Ready(control.poll(cx, &mut buffer).is_pending())).await;
        assert!(idle);
    }
}
