//! A client that says what no honest one would.

use bytes::Bytes;
use thallus_protocol::StreamId;
use thallus_protocol::codec::{Decoded, Decoder, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::{CancelReason, StreamCode};
use thallus_protocol::message::{ClientHello, ExecuteOptions, Partition, ToClient, ToServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::world::{World, within};

pub(crate) struct Raw {
    io: DuplexStream,
    decoder: Decoder,
    heard: Vec<ToClient>,
    streams: u32,
}

impl Raw {
    /// Connected, without a fabric.
    pub(crate) async fn new(world: &World) -> Self {
        let mut io = world.pipe();
        io.write_all(&Preface { versions: VERSIONS, features: 0 }.encode()).await.unwrap();
        let decoder = Decoder::new(FrameLimits::default());
        let mut raw = Raw { io, decoder, heard: Vec::new(), streams: 0 };
        raw.say(ToServer::Hello(ClientHello { name: "raw".into(), fabrics: Vec::new() })).await;
        raw
    }

    pub(crate) async fn say(&mut self, message: ToServer) {
        let frame = encode(&message, Bytes::new(), FrameLimits::default()).unwrap();
        self.io.write_all(&frame.head).await.unwrap();
    }

    /// Asks for a partition.
    pub(crate) async fn ask(&mut self, sql: &str, part: Partition) -> StreamId {
        self.ask_with(sql, ExecuteOptions { credit: 1 << 20, part: Some(part), ..ExecuteOptions::default() }).await
    }

    pub(crate) async fn ask_with(&mut self, sql: &str, options: ExecuteOptions) -> StreamId {
        self.streams += 1;
        let stream = StreamId(self.streams);
        self.say(ToServer::Execute { stream, sql: sql.into(), options }).await;
        stream
    }

    pub(crate) async fn cancel(&mut self, stream: StreamId) {
        self.say(ToServer::Cancel { stream, reason: CancelReason::Dropped }).await;
    }

    /// The first message that this is something for. Others wait for their turn.
    async fn hear<T>(&mut self, wanted: impl Fn(&ToClient) -> Option<T>) -> T {
        loop {
            if let Some((at, found)) = self.heard.iter().enumerate().find_map(|(at, said)| Some((at, wanted(said)?))) {
                self.heard.remove(at);
                return found;
            }
            let mut bytes = [0; 4096];
            let len = within("the server to answer", self.io.read(&mut bytes)).await.unwrap();
            assert!(len > 0, "the server hung up");
            self.decoder.push(&bytes[..len]);
            while let Some(decoded) = self.decoder.decode::<ToClient>().unwrap() {
                if let Decoded::Message(message, _) = decoded {
                    self.heard.push(message);
                }
            }
        }
    }

    /// Waits until this stream's schema has come, or it has failed.
    pub(crate) async fn begun(&mut self, stream: StreamId) -> Result<(), (StreamCode, String)> {
        self.hear(|said| match said {
            ToClient::Schema { stream: of, .. } if *of == stream => Some(Ok(())),
            other => failure(stream, other),
        })
        .await
    }

    /// Waits until this stream is whole, and says of how many rows, or has failed.
    pub(crate) async fn ended(&mut self, stream: StreamId) -> Result<u64, (StreamCode, String)> {
        self.hear(|said| match said {
            ToClient::End { stream: of, stats, .. } if *of == stream => Some(Ok(stats.rows)),
            other => failure(stream, other),
        })
        .await
    }
}

fn failure<T>(stream: StreamId, said: &ToClient) -> Option<Result<T, (StreamCode, String)>> {
    match said {
        ToClient::Failed { stream: of, code, message } if *of == stream => Some(Err((*code, message.clone()))),
        _ => None,
    }
}
