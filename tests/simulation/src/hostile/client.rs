//! A client that breaks the rules: each time the server must hang up, and nobody else must notice.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thallus_protocol::codec::{FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::CancelReason;
use thallus_protocol::message::{ClientHello, ExecuteOptions, ToServer};
use thallus_protocol::{LeaseId, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use crate::dice::Dice;
use crate::scripts::ENDLESS;
use crate::world::{PORT, Shared};

/// A way to break the rules.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Garbage,
    Silence,
    HalfAFrame,
    TooLongAFrame,
    HelloTwice,
    AskBeforeHello,
    StreamUsedTwice,
    CreditShrinks,
    CreditWithoutEnd,
    TooMuchCreditAtOnce,
    CreditForNoStream,
    LeasesOfOthers,
    CancelOfNoStream,
    FabricUpWithoutFabric,
    PayloadWhereNoneBelongs,
    GrantsAndNeverReads,
}

/// All of them.
pub const ACTS: [Act; 16] = [
    Act::Garbage,
    Act::Silence,
    Act::HalfAFrame,
    Act::TooLongAFrame,
    Act::HelloTwice,
    Act::AskBeforeHello,
    Act::StreamUsedTwice,
    Act::CreditShrinks,
    Act::CreditWithoutEnd,
    Act::TooMuchCreditAtOnce,
    Act::CreditForNoStream,
    Act::LeasesOfOthers,
    Act::CancelOfNoStream,
    Act::FabricUpWithoutFabric,
    Act::PayloadWhereNoneBelongs,
    Act::GrantsAndNeverReads,
];

fn bytes_of(message: &ToServer, payload: Bytes) -> Vec<u8> {
    let limits = FrameLimits { message: u32::MAX, payload: u32::MAX };
    // Whatever is made here is shorter.
    encode(message, payload, limits).map(|frame| [frame.head, frame.payload].concat()).unwrap_or_default()
}

fn hello() -> Vec<u8> {
    bytes_of(&ToServer::Hello(ClientHello { name: "mallory".into(), fabrics: Vec::new() }), Bytes::new())
}

fn execute(stream: u32, credit: u64) -> Vec<u8> {
    let options = ExecuteOptions { credit, ..ExecuteOptions::default() };
    bytes_of(&ToServer::Execute { stream: StreamId(stream), sql: ENDLESS.into(), options }, Bytes::new())
}

impl Act {
    /// What it says.
    fn bytes(self) -> Vec<u8> {
        let preface = Preface { versions: VERSIONS, features: 0 }.encode().to_vec();
        let say = |message: ToServer| bytes_of(&message, Bytes::new());
        let credit = |stream, total| say(ToServer::Credit { stream: StreamId(stream), total });
        let greeted = || [preface.clone(), hello()].concat();
        let then = |rest: Vec<Vec<u8>>| [greeted(), rest.concat()].concat();
        match self {
            Act::Garbage => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Act::Silence => Vec::new(),
            Act::HalfAFrame => then(vec![execute(1, 1000)[..7].to_vec()]),
            Act::TooLongAFrame => then(vec![[0xFF; 8].to_vec()]),
            Act::HelloTwice => then(vec![hello()]),
            Act::AskBeforeHello => [preface, execute(1, 1000)].concat(),
            Act::StreamUsedTwice => then(vec![execute(1, 1000), execute(1, 1000)]),
            Act::CreditShrinks => then(vec![execute(1, 5000), credit(1, 10)]),
            Act::CreditWithoutEnd => then(vec![execute(1, 5000), credit(1, u64::MAX)]),
            Act::TooMuchCreditAtOnce => then(vec![execute(1, u64::MAX)]),
            Act::CreditForNoStream => then(vec![credit(7, 1000)]),
            Act::LeasesOfOthers => then(vec![say(ToServer::Release { leases: (1..20).map(LeaseId).collect() })]),
            Act::CancelOfNoStream => {
                then(vec![say(ToServer::Cancel { stream: StreamId(3), reason: CancelReason::Dropped })])
            }
            Act::FabricUpWithoutFabric => then(vec![say(ToServer::FabricUp { transport: "none".into() })]),
            Act::PayloadWhereNoneBelongs => then(vec![bytes_of(&ToServer::Ping(1), Bytes::from_static(b"x"))]),
            Act::GrantsAndNeverReads => then(vec![execute(1, 250_000)]),
        }
    }
}

/// Acts, again and again, until all is healed.
pub async fn run(shared: Arc<Shared>) -> turmoil::Result {
    let life = shared.born("mallory");
    let mut dice = Dice::new(shared.options.seed, 5000 + life);
    while !shared.is_healed() {
        let act = dice.pick(&ACTS);
        if let Ok(Ok(stream)) = timeout(Duration::from_millis(400), TcpStream::connect(("server", PORT))).await {
            shared.trace.line("mallory", &format_args!("{act:?}"));
            shared.trace.count("hostile client", format!("{act:?}"));
            let over = timeout(Duration::from_secs(20), play(stream, act)).await;
            if over.is_err() {
                shared.trace.violated("who breaks the rules is hung up on", format!("{act:?}"));
            }
        }
        let pause = dice.millis(1, 100);
        sleep(pause).await;
    }
    std::future::pending().await
}

/// Ends when the server has hung up, or has died.
async fn play(mut stream: TcpStream, act: Act) {
    if stream.write_all(&act.bytes()).await.is_err() {
        return;
    }
    if matches!(act, Act::GrantsAndNeverReads) {
        // The server takes its peer for dead, which answers no ping; it takes no answer to know.
        sleep(Duration::from_secs(2)).await;
    }
    let mut read = [0; 4096];
    while matches!(stream.read(&mut read).await, Ok(1..)) {}
}
