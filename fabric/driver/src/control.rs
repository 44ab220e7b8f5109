//! The control connection: writes frames in order, and reads bytes as they arrive.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thallus_protocol::codec::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::coop::has_budget_remaining;

use crate::budget::PeerBudget;

/// A byte stream that can carry a control connection: TCP, a simulated TCP, or later TLS.
pub trait ControlIo: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ControlIo for T {}

/// Maximum number of bytes of one read call.
const MAX_READ: usize = 256 * 1024;
/// Maximum number of frames in one write call.
const SLICES: usize = 64;
/// Memory that a queued part takes besides its bytes: its place in the queue, and its allocations.
const PART_OVERHEAD: usize = 128;
const LINGER: Duration = Duration::from_secs(1);

/// The result of [`Control::poll`].
#[derive(Debug, PartialEq, Eq)]
pub enum ControlEvent {
    /// Bytes were appended to the buffer.
    Received,
    /// The byte stream takes bytes again after it was full: the peer's host has acknowledged earlier ones.
    Relieved,
    /// The connection was lost, with the reason.
    Disconnected(String),
}

/// Bytes that wait to be written: a message, or a piece of a batch.
#[derive(Debug)]
struct Part {
    bytes: Bytes,
    /// Memory that the part takes until its last byte is written.
    memory: usize,
    is_batch: bool,
    ends_frame: bool,
}

/// A control connection with its queue of unwritten bytes.
#[derive(Debug)]
pub struct Control<S> {
    io: S,
    queue: VecDeque<Part>,
    /// A part of the first frame of the queue has been written.
    begun: bool,
    /// The byte stream took nothing at the last write.
    full: bool,
    /// The byte stream took bytes after it was full, and this has not been reported.
    relieved: bool,
    budget: PeerBudget,
    /// Memory of all parts in the queue, in bytes.
    unsent: usize,
    /// Memory of the parts that are no pieces of batches, in bytes.
    unsent_messages: usize,
    /// [`ControlEvent::Disconnected`] has been reported.
    lost: bool,
}

impl<S: ControlIo> Control<S> {
    /// A control connection over a connected byte stream.
    pub fn new(io: S, budget: PeerBudget) -> Self {
        Control {
            io,
            queue: VecDeque::new(),
            begun: false,
            full: false,
            relieved: false,
            budget,
            unsent: 0,
            unsent_messages: 0,
            lost: false,
        }
    }

    /// Queues a frame. The next polls write it: an urgent frame before all frames that are not begun, any other frame
    /// after all others.
    pub fn send(&mut self, frame: Frame) {
        let at = if frame.urgent { self.first_not_begun() } else { self.queue.len() };
        let is_whole = frame.payload.is_empty();
        self.insert(at, frame.head, false, is_whole);
        if !is_whole {
            self.insert(at + 1, frame.payload, frame.is_batch, true);
        }
    }

    fn insert(&mut self, at: usize, bytes: Bytes, is_batch: bool, ends_frame: bool) {
        let memory = bytes.len() + PART_OVERHEAD;
        self.unsent += memory;
        self.unsent_messages += if is_batch { 0 } else { memory };
        self.queue.insert(at, Part { bytes, memory, is_batch, ends_frame });
    }

    /// Position of the first frame of which nothing has been written.
    fn first_not_begun(&self) -> usize {
        if !self.begun {
            return 0;
        }
        self.queue.iter().position(|part| part.ends_frame).map_or(0, |last| last + 1)
    }

    /// Memory of everything that waits to be written, in bytes.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.unsent
    }

    /// Returns whether the queue has room for further batches.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unsent <= self.budget.unsent
    }

    /// Writes queued bytes, and appends the bytes that have arrived to `into`. The loss of a connection is reported
    /// once; after that, polls return `Pending`. Otherwise the end of file would keep a driver busy that still waits
    /// for another event, such as the close of an endpoint.
    pub fn poll(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<ControlEvent> {
        if self.lost {
            return Poll::Pending;
        }
        let polled = self.poll_io(cx, into);
        self.lost = matches!(polled, Poll::Ready(ControlEvent::Disconnected(_)));
        if polled.is_pending() && into.is_empty() {
            // An idle connection keeps no room for the next frame.
            *into = BytesMut::new();
        }
        polled
    }

    fn poll_io(&mut self, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<ControlEvent> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx) {
            return Poll::Ready(ControlEvent::Disconnected(error.to_string()));
        }
        if std::mem::take(&mut self.relieved) {
            return Poll::Ready(ControlEvent::Relieved);
        }
        if self.unsent_messages > self.budget.messages {
            // The writer wakes this task once the peer has read something.
            return Poll::Pending;
        }
        match ready!(read_to(&mut self.io, cx, into)) {
            Err(error) => Poll::Ready(ControlEvent::Disconnected(error.to_string())),
            Ok(0) => Poll::Ready(ControlEvent::Disconnected("the peer closed the connection".into())),
            Ok(_) => Poll::Ready(ControlEvent::Received),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut used = 0;
            for (slice, part) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(&part.bytes);
                used += 1;
            }
            let polled = Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..used]);
            // A task without budget is told that every byte stream is full.
            self.full |= polled.is_pending() && has_budget_remaining();
            let written = ready!(polled)?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written(written);
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn written(&mut self, mut bytes: usize) {
        self.relieved |= std::mem::take(&mut self.full);
        while let Some(front) = self.queue.front_mut() {
            if bytes < front.bytes.len() {
                front.bytes.advance(bytes);
                self.begun |= bytes > 0;
                return;
            }
            bytes -= front.bytes.len();
            self.begun = !front.ends_frame;
            self.unsent -= front.memory;
            self.unsent_messages -= if front.is_batch { 0 } else { front.memory };
            self.queue.pop_front();
        }
    }

    /// Writes queued bytes, shuts down the sending side, and waits a short time for the peer to do the same. A
    /// connection closed with unread bytes is reset, and the peer might then never receive the goodbye.
    pub async fn finish(mut self) {
        let goodbye = async {
            std::future::poll_fn(|cx| self.poll_write(cx)).await?;
            self.io.shutdown().await?;
            let mut unread = vec![0; 16 * 1024];
            while self.io.read(&mut unread).await? > 0 {}
            io::Result::Ok(())
        };
        // This end is done, whether or not the peer received the goodbye.
        let _heard = tokio::time::timeout(LINGER, goodbye).await;
    }
}

/// Reads once, into the free space at the end of a buffer. Returns the number of bytes.
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
        let mut control = Control::new(ours, PeerBudget::SERVER);
        let mut expected = Vec::new();
        for i in 0..200_u8 {
            let frame = Frame {
                head: Bytes::from(vec![i; usize::from(i % 11) + 1]),
                payload: Bytes::from(vec![i; usize::from(i % 3)]),
                urgent: false,
                is_batch: i % 2 == 0,
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

    fn frame(byte: u8, urgent: bool) -> Frame {
        Frame { head: Bytes::from(vec![byte; 3]), payload: Bytes::from(vec![byte; 4]), is_batch: false, urgent }
    }

    /// Polls once. An event is an error, apart from the expected one.
    async fn poll_once<S: ControlIo>(control: &mut Control<S>) -> Poll<ControlEvent> {
        let mut buffer = BytesMut::new();
        std::future::poll_fn(|cx| Poll::Ready(control.poll(cx, &mut buffer))).await
    }

    #[tokio::test]
    async fn an_urgent_frame_goes_before_all_that_are_not_begun_and_never_into_one() {
        for already in [0, 1, 3, 5, 7] {
            let (ours, mut theirs) = tokio::io::duplex(already.max(1));
            let mut control = Control::new(ours, PeerBudget::SERVER);
            control.send(frame(1, false));
            if already > 0 {
                // Fills the pipe: in the head, between the parts, in the payload, or at the end of the frame.
                assert_eq!(poll_once(&mut control).await, Poll::Pending);
            }
            control.send(frame(2, false));
            control.send(frame(3, true));
            let reader = tokio::spawn(async move {
                let mut got = Vec::new();
                theirs.read_to_end(&mut got).await.map(|_| got)
            });
            assert_eq!(control.queue.iter().map(|part| part.bytes.len()).sum::<usize>(), 21 - already);
            control.finish().await;
            let expected = if already == 0 { [3, 1, 2] } else { [1, 3, 2] };
            assert_eq!(reader.await.unwrap().unwrap(), expected.map(|byte| [byte; 7]).concat(), "after {already}");
        }
    }

    #[tokio::test]
    async fn a_full_stream_that_takes_bytes_again_is_reported_and_one_that_never_was_full_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(10);
        let mut control = Control::new(ours, PeerBudget::SERVER);
        control.send(frame(1, false));
        assert_eq!(poll_once(&mut control).await, Poll::Pending);
        control.send(frame(2, false));
        // Three bytes of seven fit.
        assert_eq!(poll_once(&mut control).await, Poll::Pending);
        assert_eq!(poll_once(&mut control).await, Poll::Pending);
        let mut read = [0; 2];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(poll_once(&mut control).await, Poll::Ready(ControlEvent::Relieved));
        assert_eq!(poll_once(&mut control).await, Poll::Pending);
        let mut read = [0; 12];
        theirs.read_exact(&mut read[..10]).await.unwrap();
        assert_eq!(poll_once(&mut control).await, Poll::Ready(ControlEvent::Relieved));
        assert_eq!(poll_once(&mut control).await, Poll::Pending, "nothing is left to be written");
    }

    #[tokio::test]
    async fn the_peer_s_close_is_reported_after_its_last_bytes() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut control = Control::new(ours, PeerBudget::SERVER);
        theirs.write_all(b"bye").await.unwrap();
        drop(theirs);
        let mut buffer = BytesMut::new();
        let first = std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await;
        assert_eq!(first, ControlEvent::Received);
        assert_eq!(buffer, b"bye"[..]);
        let second = std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await;
        assert!(matches!(second, ControlEvent::Disconnected(_)), "{second:?}");
    }

    #[tokio::test]
    async fn a_lost_connection_keeps_nobody_busy() {
        let (ours, theirs) = tokio::io::duplex(64);
        let mut control = Control::new(ours, PeerBudget::SERVER);
        drop(theirs);
        let mut buffer = BytesMut::new();
        let first = std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await;
        assert!(matches!(first, ControlEvent::Disconnected(_)), "{first:?}");
        let idle = std::future::poll_fn(|cx| Poll::Ready(control.poll(cx, &mut buffer).is_pending())).await;
        assert!(idle);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_messages_is_not_read_either() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut control = Control::new(ours, PeerBudget { messages: 4000, unsent: 10_000 });
        theirs.write_all(b"a").await.unwrap();
        let mut buffer = BytesMut::new();
        let send = |control: &mut Control<_>, len, is_batch| {
            let payload = Bytes::from(vec![0; len]);
            control.send(Frame { head: Bytes::from_static(b"h"), payload, is_batch, urgent: false });
        };
        // A piece of a batch does not count as a message.
        send(&mut control, 3000, true);
        send(&mut control, 3000, true);
        assert_eq!((control.has_room(), control.unsent_bytes()), (true, 6000 + 2 + 4 * PART_OVERHEAD));
        assert_eq!(std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await, ControlEvent::Received);
        theirs.write_all(b"b").await.unwrap();
        send(&mut control, 3800, false);
        assert!(!control.has_room());
        let is_pending = std::future::poll_fn(|cx| Poll::Ready(control.poll(cx, &mut buffer).is_pending())).await;
        assert!(is_pending && buffer == b"a"[..]);
        let reader = tokio::spawn(async move {
            let mut all = vec![0; 9803];
            theirs.read_exact(&mut all).await.map(|_| theirs)
        });
        let received = loop {
            match std::future::poll_fn(|cx| control.poll(cx, &mut buffer)).await {
                ControlEvent::Relieved => {}
                other => break other,
            }
        };
        assert_eq!(received, ControlEvent::Received);
        while control.unsent_bytes() > 0 {
            let _none = std::future::poll_fn(|cx| Poll::Ready(control.poll(cx, &mut buffer).is_pending())).await;
            tokio::task::yield_now().await;
        }
        drop(reader.await.unwrap().unwrap());
        assert!(control.has_room() && control.unsent_messages == 0 && buffer == b"ab"[..]);
    }
}
