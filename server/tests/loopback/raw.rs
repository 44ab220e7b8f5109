//! A client that says what no honest one would.

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
    heard: Vec<Message>,
    streams: u32,
}

impl Raw {
    /// Connected, without a fabric.
    pub(crate) async fn new(world: &World) -> Self {
        let mut io = world.pipe();
        io.write_all(&Preface { versions: VERSIONS, features: FEATURES }.encode()).await.unwrap();
        let decoder = Decoder::new(FrameLimits::default());
        let mut raw = Raw { io, decoder, heard: Vec::new(), streams: 0 };
        raw.say(Message::Hello(Hello { name: "raw".into(), ..Hello::default() })).await;
        raw
    }

    pub(crate) async fn say(&mut self, message: Message) {
        let frame = encode(&message, Bytes::new(), FrameLimits::default()).unwrap();
        self.io.write_all(&frame.head).await.unwrap();
    }

    /// Asks for a partition.
    pub(crate) async fn ask(&mut self, sql: &str, part: Partition) -> StreamId {
        self.ask_with(sql, OpenOptions { credit: 1 << 20, part: Some(part), ..OpenOptions::default() }).await
    }

    pub(crate) async fn ask_with(&mut self, sql: &str, options: OpenOptions) -> StreamId {
        self.streams += 1;
        let stream = StreamId(self.streams);
        let (request, extensions) = (Request::Sql(sql.into()), Extensions::none());
        self.say(Message::Open(Open { stream, request, options, extensions })).await;
        stream
    }

    pub(crate) async fn cancel(&mut self, stream: StreamId) {
        let cancel = FromBorrower::Cancel { stream, reason: CancelReason::Dropped };
        self.say(Message::Borrower(cancel)).await;
    }

    /// The first message that this is something for. Others wait for their turn.
    async fn hear<T>(&mut self, wanted: impl Fn(&Message) -> Option<T>) -> T {
        loop {
            if let Some((at, found)) = self.heard.iter().enumerate().find_map(|(at, said)| Some((at, wanted(said)?))) {
                self.heard.remove(at);
                return found;
            }
            let mut bytes = [0; 4096];
            let len = within("the server to answer", self.io.read(&mut bytes)).await.unwrap();
            assert!(len > 0, "the server hung up");
            self.decoder.push(&bytes[..len]);
            while let Some(decoded) = self.decoder.decode::<Message>().unwrap() {
                if let Decoded::Message(message, _) = decoded {
                    self.heard.push(message);
                }
            }
        }
    }

    /// Waits until this stream's schema has come, or it has failed.
    pub(crate) async fn begun(&mut self, stream: StreamId) -> Result<(), (StreamCode, String)> {
        self.hear(|said| match said {
            Message::Lender(FromLender::Schema { stream: of, .. }) if *of == stream => Some(Ok(())),
            other => failure(stream, other),
        })
        .await
    }

    /// Waits until this stream is whole, and says of how many rows, or has failed.
    pub(crate) async fn ended(&mut self, stream: StreamId) -> Result<u64, (StreamCode, String)> {
        self.hear(|said| match said {
            Message::Lender(FromLender::End { stream: of, stats, .. }) if *of == stream => Some(Ok(stats.rows)),
            other => failure(stream, other),
        })
        .await
    }
}

fn failure<T>(stream: StreamId, said: &Message) -> Option<Result<T, (StreamCode, String)>> {
    match said {
        Message::Lender(FromLender::Failed { stream: of, failure: Failure { code, message, .. }, .. })
            if *of == stream =>
        {
            Some(Err((*code, message.clone())))
        }
        _ => None,
    }
}
