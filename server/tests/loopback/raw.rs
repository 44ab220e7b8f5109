//! A client that can send messages that the real client never sends.

use bytes::Bytes;
use thallus_protocol::StreamId;
use thallus_protocol::codec::{Decoded, Decoder, FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::{CancelReason, StreamCode};
use thallus_protocol::message::{
    Extensions, Failure, FromBorrower, FromLender, Hello, Message, Open, OpenOptions, Partition, Request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::world::{World, within};

pub(crate) struct Raw {
    io: DuplexStream,
    decoder: Decoder,
    received: Vec<Message>,
    streams: u32,
}

impl Raw {
    /// Connects without a fabric.
    pub(crate) async fn new(world: &World) -> Self {
        let mut io = world.pipe();
        io.write_all(&Preface { versions: VERSIONS, features: FEATURES }.encode()).await.unwrap();
        let decoder = Decoder::new(FrameLimits::default());
        let mut raw = Raw { io, decoder, received: Vec::new(), streams: 0 };
        raw.send(Message::Hello(Hello { name: "raw".into(), ..Hello::default() })).await;
        raw
    }

    pub(crate) async fn send(&mut self, message: Message) {
        let frame = encode(&message, Bytes::new(), FrameLimits::default()).unwrap();
        self.io.write_all(&frame.head).await.unwrap();
    }

    /// Opens a stream for a partition.
    pub(crate) async fn open_part(&mut self, sql: &str, part: Partition) -> StreamId {
        self.open(sql, OpenOptions { credit: 1 << 20, part: Some(part), ..OpenOptions::default() }).await
    }

    pub(crate) async fn open(&mut self, sql: &str, options: OpenOptions) -> StreamId {
        self.streams += 1;
        let stream = StreamId(self.streams);
        let (request, extensions) = (Request::Sql(sql.into()), Extensions::none());
        self.send(Message::Open(Open { stream, request, options, extensions })).await;
        stream
    }

    pub(crate) async fn cancel(&mut self, stream: StreamId) {
        let cancel = FromBorrower::Cancel { stream, reason: CancelReason::Dropped };
        self.send(Message::Borrower(cancel)).await;
    }

    /// Returns the first match among the received messages. Other messages stay queued.
    async fn receive<T>(&mut self, wanted: impl Fn(&Message) -> Option<T>) -> T {
        loop {
            let mut received = self.received.iter().enumerate();
            if let Some((at, found)) = received.find_map(|(at, message)| Some((at, wanted(message)?))) {
                self.received.remove(at);
                return found;
            }
            let mut bytes = [0; 4096];
            let len = within("the server to answer", self.io.read(&mut bytes)).await.unwrap();
            assert!(len > 0, "the server closed the connection");
            self.decoder.push(&bytes[..len]);
            while let Some(decoded) = self.decoder.decode::<Message>().unwrap() {
                if let Decoded::Message(message, _) = decoded {
                    self.received.push(message);
                }
            }
        }
    }

    /// Waits until the stream's schema has arrived or the stream has failed.
    pub(crate) async fn begun(&mut self, stream: StreamId) -> Result<(), (StreamCode, String)> {
        self.receive(|message| match message {
            Message::Lender(FromLender::Schema { stream: of, .. }) if *of == stream => Some(Ok(())),
            other => failure(stream, other),
        })
        .await
    }

    /// Waits until the stream has ended or failed. Returns the number of rows.
    pub(crate) async fn ended(&mut self, stream: StreamId) -> Result<u64, (StreamCode, String)> {
        self.receive(|message| match message {
            Message::Lender(FromLender::End { stream: of, stats, .. }) if *of == stream => Some(Ok(stats.rows)),
            other => failure(stream, other),
        })
        .await
    }
}

fn failure<T>(stream: StreamId, message: &Message) -> Option<Result<T, (StreamCode, String)>> {
    match message {
        Message::Lender(FromLender::Failed { stream: of, failure: Failure { code, message, .. }, .. })
            if *of == stream =>
        {
            Some(Err((*code, message.clone())))
        }
        _ => None,
    }
}
