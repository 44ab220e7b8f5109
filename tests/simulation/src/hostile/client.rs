//! A client that breaks the rules. Each time the server must close the connection, and other clients must not be
//! affected.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thallus_protocol::codec::{FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::CancelReason;
use thallus_protocol::inline::encode_schema;
use thallus_protocol::message::{
    Answer, CRITICAL, Extensions, FromBorrower, FromLender, Hello, Message, Open, OpenOptions, Request, StreamStats,
};
use thallus_protocol::{LeaseId, StreamId};
use thallus_scripted_engine::synthetic_schema;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use crate::dice::Dice;
use crate::scripts::{ENDLESS, LARGE, Sink, UNPAID, table};
use crate::shared::{PORT, Shared};

/// Pings of a client that never reads. The answers to all of them would exceed most limits.
const PINGS: u64 = 50_000;

/// A violation of the protocol.
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
    AsksWithoutCredit,
    GrantsTooLittle,
    PingsAndNeverReads,
    AnswersItself,
    UploadsWithoutCredit,
    EndOfMoreThanWasSent,
    LendsForNoStream,
    CriticalExtension,
    FlippedBit,
}

/// All violations.
pub const ACTS: [Act; 25] = [
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
    Act::AsksWithoutCredit,
    Act::GrantsTooLittle,
    Act::PingsAndNeverReads,
    Act::AnswersItself,
    Act::UploadsWithoutCredit,
    Act::EndOfMoreThanWasSent,
    Act::LendsForNoStream,
    Act::CriticalExtension,
    Act::FlippedBit,
];

fn bytes_of(message: &Message, payload: Bytes) -> Vec<u8> {
    let limits = FrameLimits { message: u32::MAX, payload: u32::MAX };
    // Every message of this file is shorter than the limits.
    encode(message, payload, limits).map(|frame| [frame.head, frame.payload].concat()).unwrap_or_default()
}

fn hello(extensions: Extensions) -> Vec<u8> {
    let hello = Hello { name: "mallory".into(), max_loan_bytes: 1 << 20, extensions, ..Hello::default() };
    bytes_of(&Message::Hello(hello), Bytes::new())
}

fn open(stream: u32, request: Request, credit: u64) -> Vec<u8> {
    let options = OpenOptions { credit, ..OpenOptions::default() };
    let open = Open { stream: StreamId(stream), request, options, extensions: Extensions::none() };
    bytes_of(&Message::Open(open), Bytes::new())
}

fn execute(stream: u32, credit: u64) -> Vec<u8> {
    open(stream, Request::Sql(ENDLESS.into()), credit)
}

/// Requests of this query in 16 streams, the most that any server of a run allows.
fn many(sql: &str, credit: u64) -> Vec<Vec<u8>> {
    (1..=16).map(|stream| open(stream, Request::Sql(sql.into()), credit)).collect()
}

/// The frames of an upload with its schema, followed by `then`.
fn upload(then: FromLender, payload: &'static [u8]) -> Vec<u8> {
    let schema: Bytes = encode_schema(&synthetic_schema()).unwrap_or_default().into();
    let extensions = Extensions::none();
    let begin = FromLender::Schema { stream: StreamId(1), order: Vec::new(), extensions };
    [
        open(1, Request::Upload(table(Sink::IsSlow).into()), 0),
        bytes_of(&Message::Lender(begin), schema),
        bytes_of(&Message::Lender(then), Bytes::from_static(payload)),
    ]
    .concat()
}

impl Act {
    /// The bytes that the client sends.
    fn bytes(self) -> Vec<u8> {
        let preface = Preface { versions: VERSIONS, features: FEATURES }.encode().to_vec();
        let say = |message: FromBorrower| bytes_of(&Message::Borrower(message), Bytes::new());
        let credit = |stream, total| say(FromBorrower::Credit { stream: StreamId(stream), total });
        let greeted = || [preface.clone(), hello(Extensions::none())].concat();
        let then = |rest: Vec<Vec<u8>>| [greeted(), rest.concat()].concat();
        match self {
            Act::Garbage => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            Act::Silence => Vec::new(),
            Act::HalfAFrame => then(vec![execute(1, 1000)[..7].to_vec()]),
            Act::TooLongAFrame => {
                // Without checksums, so that the server has to check the lengths.
                let preface = Preface { versions: VERSIONS, features: 0 }.encode().to_vec();
                [preface, hello(Extensions::none()), [0xFF; 16].to_vec()].concat()
            }
            Act::HelloTwice => then(vec![hello(Extensions::none())]),
            Act::AskBeforeHello => [preface, execute(1, 1000)].concat(),
            Act::StreamUsedTwice => then(vec![execute(1, 1000), execute(1, 1000)]),
            Act::CreditShrinks => then(vec![execute(1, 5000), credit(1, 10)]),
            Act::CreditWithoutEnd => then(vec![execute(1, 5000), credit(1, u64::MAX)]),
            Act::TooMuchCreditAtOnce => then(vec![execute(1, u64::MAX)]),
            Act::CreditForNoStream => then(vec![credit(7, 1000)]),
            Act::LeasesOfOthers => then(vec![say(FromBorrower::Release { leases: (1..20).map(LeaseId).collect() })]),
            Act::CancelOfNoStream => {
                then(vec![say(FromBorrower::Cancel { stream: StreamId(3), reason: CancelReason::Dropped })])
            }
            Act::FabricUpWithoutFabric => {
                let (transport, extensions) = ("none".into(), Extensions::none());
                then(vec![say(FromBorrower::PathUp { transport, lending: None, extensions })])
            }
            Act::PayloadWhereNoneBelongs => then(vec![bytes_of(&Message::Ping(1), Bytes::from_static(b"x"))]),
            Act::GrantsAndNeverReads => then(vec![execute(1, 250_000)]),
            Act::AsksWithoutCredit => then(many(UNPAID, 0)),
            // Enough for an empty batch.
            Act::GrantsTooLittle => then(many(LARGE, 300)),
            Act::PingsAndNeverReads => then((0..PINGS).map(|n| bytes_of(&Message::Ping(n), Bytes::new())).collect()),
            Act::AnswersItself => {
                let answer = Answer { stream: StreamId(1), result: Ok(0), extensions: Extensions::none() };
                then(vec![execute(1, 1000), bytes_of(&Message::Answer(answer), Bytes::new())])
            }
            Act::UploadsWithoutCredit => {
                let (stream, bytes) = (StreamId(1), 1 << 20);
                then(vec![upload(FromLender::Inline { stream, seq: 0, bytes, more: true }, b"much more to come")])
            }
            Act::EndOfMoreThanWasSent => {
                let (stats, extensions) = (StreamStats::default(), Extensions::none());
                then(vec![upload(FromLender::End { stream: StreamId(1), batches: 3, stats, extensions }, b"")])
            }
            Act::LendsForNoStream => {
                let wanted = FromLender::CreditWanted { stream: StreamId(8), bytes: 100 };
                then(vec![bytes_of(&Message::Lender(wanted), Bytes::new())])
            }
            Act::CriticalExtension => {
                let extensions = Extensions::none().with(CRITICAL | 77, "must be understood");
                [preface, hello(extensions)].concat()
            }
            Act::FlippedBit => {
                let mut flipped = execute(1, 1000);
                *flipped.last_mut().unwrap_or(&mut 0) ^= 4;
                then(vec![flipped])
            }
        }
    }
}

/// Breaks rules repeatedly until the faults are over.
pub async fn run(shared: Arc<Shared>) -> turmoil::Result {
    let life = shared.record_start("mallory");
    let mut dice = Dice::new(shared.options.seed, 5000 + life);
    while !shared.is_healed() {
        let act = dice.pick(&ACTS);
        if let Ok(Ok(stream)) = timeout(Duration::from_millis(400), TcpStream::connect(("server", PORT))).await {
            shared.trace.line("mallory", &format_args!("{act:?}"));
            shared.trace.count("hostile client", format!("{act:?}"));
            let never_reads = matches!(act, Act::GrantsAndNeverReads | Act::PingsAndNeverReads);
            let address = stream.local_addr().ok().map(|address| address.ip());
            shared.set_deaf(address.filter(|_| never_reads));
            let over = timeout(Duration::from_secs(20), play(stream, act)).await;
            shared.set_deaf(None);
            if over.is_err() {
                shared.trace.violation("a peer that breaks the rules is disconnected", format!("{act:?}"));
            }
        }
        let pause = dice.millis(1, 100);
        sleep(pause).await;
    }
    std::future::pending().await
}

/// Ends when the server has closed the connection, or has died.
async fn play(mut stream: TcpStream, act: Act) {
    if stream.write_all(&act.bytes()).await.is_err() {
        return;
    }
    if matches!(act, Act::GrantsAndNeverReads | Act::PingsAndNeverReads) {
        // Until the idle timeout of the server: this client reads no ping, and so answers none.
        sleep(Duration::from_secs(2)).await;
    }
    let mut read = [0; 4096];
    while matches!(stream.read(&mut read).await, Ok(1..)) {}
}
