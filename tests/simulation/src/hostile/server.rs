//! A server that lies, and an honest client that must detect it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::Buffer;
use bytes::Bytes;
use futures::TryStreamExt;
use thallus_client::{Client, ClientError, ConnectOptions, QueryOptions};
use thallus_fabric::memory::{LeaseWords, RegisteredMemory};
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::{Endpoint, Fabric, STANDING_LEASE};
use thallus_fabric_sim::SimFabric;
use thallus_protocol::codec::{Decoded, Decoder, FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::StreamCode;
use thallus_protocol::inline::encode_schema;
use thallus_protocol::layout::{BatchDescriptor, Plan, describe};
use thallus_protocol::message::{
    Answer, Extensions, FabricChoice, Failure, Fencing, FromLender, LeaseWord, Lending, LentBatch, Message, Region,
    ServerLimits, StreamStats, Welcome,
};
use thallus_protocol::{FabricKind, LeaseId, RegionId, RemoteRange, StreamId};
use thallus_scripted_engine::{synthetic_batch, synthetic_schema};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use turmoil::net::{TcpListener, TcpStream};

use crate::dice::Dice;
use crate::shared::Shared;

const PORT: u16 = 7808;
/// The lease of all lent batches of this server. The checks do not count it.
pub const HOSTILE_LEASE: LeaseId = LeaseId(1 << 60);
const STREAM: StreamId = StreamId(1);
const SLOTS: usize = 8;

/// A lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    GarbageForASchema,
    BatchBeforeSchema,
    WrongSequence,
    EndOfMoreThanWasSent,
    StreamThatIsNot,
    MoreThanWasGranted,
    WelcomeTwice,
    RegionGoneThatNeverWas,
    AfterTheEnd,
    InlineGarbage,
    UnknownRegion,
    OutsideTheRegion,
    PlacesTooFew,
    PlaceTooShort,
    WordMisaligned,
    WordMissing,
    MoreRowsThanBytes,
    LeaseTwice,
    OffsetsThatDecrease,
    NeverAnswers,
    AnswerOfNoUpload,
}

/// All lies.
pub const LIES: [Lie; 21] = [
    Lie::GarbageForASchema,
    Lie::BatchBeforeSchema,
    Lie::WrongSequence,
    Lie::EndOfMoreThanWasSent,
    Lie::StreamThatIsNot,
    Lie::MoreThanWasGranted,
    Lie::WelcomeTwice,
    Lie::RegionGoneThatNeverWas,
    Lie::AfterTheEnd,
    Lie::InlineGarbage,
    Lie::UnknownRegion,
    Lie::OutsideTheRegion,
    Lie::PlacesTooFew,
    Lie::PlaceTooShort,
    Lie::WordMisaligned,
    Lie::WordMissing,
    Lie::MoreRowsThanBytes,
    Lie::LeaseTwice,
    Lie::OffsetsThatDecrease,
    Lie::NeverAnswers,
    Lie::AnswerOfNoUpload,
];

impl Lie {
    /// Whether the lie violates the protocol. Otherwise it shows as an invalid batch or a timeout.
    fn breaks_the_protocol(self) -> bool {
        !matches!(self, Lie::InlineGarbage | Lie::OffsetsThatDecrease | Lie::NeverAnswers)
    }
}

fn bytes_of(message: &Message, payload: Bytes) -> Vec<u8> {
    let limits = FrameLimits { message: u32::MAX, payload: u32::MAX };
    encode(message, payload, limits).map(|frame| [frame.head, frame.payload].concat()).unwrap_or_default()
}

fn lender(message: FromLender, payload: Bytes) -> Vec<u8> {
    bytes_of(&Message::Lender(message), payload)
}

/// The data plane of the hostile server.
struct Plane {
    endpoint: Box<dyn Endpoint>,
    words: LeaseWords,
    memories: Vec<Arc<RegisteredMemory>>,
}

/// Accepts connections, and tells each of them the next lie.
pub async fn run(shared: Arc<Shared>) -> turmoil::Result {
    shared.record_start("liar");
    let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), PORT)).await?;
    let fabric = shared.network.host();
    let mut number = 0;
    loop {
        let (mut stream, _) = listener.accept().await?;
        let lie = lie_of(&shared, number);
        number += 1;
        let fabric = Arc::clone(&fabric);
        // Ends when the client closes the connection.
        tokio::task::spawn_local(async move { tell(&mut stream, lie, &fabric).await });
    }
}

fn lie_of(shared: &Shared, number: u64) -> Lie {
    Dice::new(shared.options.seed, 6000 + number).pick(&LIES)
}

/// Queries the hostile server repeatedly until the faults are over, and checks the outcome of each lie.
pub async fn victim(shared: Arc<Shared>) -> turmoil::Result {
    shared.record_start("victim");
    let fabric = shared.network.host() as Arc<dyn Fabric>;
    let mut number = 0;
    while !shared.is_healed() {
        let lie = lie_of(&shared, number);
        let Ok(Ok(stream)) = timeout(Duration::from_millis(400), TcpStream::connect(("liar", PORT))).await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        number += 1;
        shared.trace.count("hostile server", format!("{lie:?}"));
        let mut one_sided = false;
        let asked = ask(stream, Arc::clone(&fabric), &mut one_sided);
        let asked = timeout(Duration::from_secs(20), asked).await;
        shared.trace.line("victim", &format_args!("{lie:?}: {asked:?}"));
        match asked {
            Ok(Err(ClientError::Protocol { .. })) => {}
            // The client may find this lie after the whole result. Then the connection ends.
            Ok(Err(ClientError::ConnectionLost { .. })) if lie == Lie::AfterTheEnd => {}
            // Without one-sided reads the client does not check lent batches.
            Ok(Err(ClientError::Read { .. } | ClientError::Query { .. })) if !one_sided => {}
            Ok(Err(_)) if !lie.breaks_the_protocol() => {}
            other => shared.trace.violation("a lie is called a lie", format!("{lie:?}: {other:?}")),
        }
        sleep(Duration::from_millis(20)).await;
    }
    std::future::pending().await
}

async fn ask(stream: TcpStream, fabric: Arc<dyn Fabric>, one_sided: &mut bool) -> Result<usize, ClientError> {
    let options = ConnectOptions::new("liar")
        .with_connect_timeout(Duration::from_secs(4))
        .with_idle_timeout(Duration::from_secs(1))
        .with_keepalive(Duration::from_millis(300))
        .with_read_timeout(Duration::from_secs(5))
        .with_entropy(Some(1));
    let client = Client::connect_over(stream, &[fabric], None, options).await?;
    *one_sided = client.connection().carrier.fallback().is_none();
    let options = QueryOptions::default().with_window(Some(100_000)).with_deadline(Some(Duration::from_secs(10)));
    let result = client.query_with("truth", options).await?;
    let batches: Vec<_> = result.try_collect().await?;
    // A lie that follows the result shows in the connection.
    client.ping().await?;
    Ok(batches.len())
}

async fn tell(stream: &mut TcpStream, lie: Lie, fabric: &Arc<SimFabric>) {
    let mut decoder = Decoder::new(FrameLimits::default());
    let mut plane = None;
    let mut said = Preface { versions: VERSIONS, features: FEATURES }.encode().to_vec();
    let mut read = vec![0; 16 << 10];
    loop {
        if stream.write_all(&said).await.is_err() {
            return;
        }
        said.clear();
        match stream.read(&mut read).await {
            Ok(len @ 1..) => decoder.push(&read[..len]),
            _ => return,
        }
        while let Ok(Some(decoded)) = decoder.decode::<Message>() {
            match decoded {
                Decoded::Message(Message::Hello(hello), _) => {
                    let peer = hello.fabrics.first().map(|offer| offer.address.clone()).unwrap_or_default();
                    let opened = open(fabric, &peer);
                    let choice = opened.as_ref().map(|(_, choice)| choice.clone()).ok_or_else(|| "none".to_owned());
                    plane = opened.map(|(plane, _)| plane);
                    said.extend(bytes_of(&welcome(choice), Bytes::new()));
                }
                Decoded::Message(Message::Open(_), _) => said.extend(answer(lie, fabric, &mut plane)),
                Decoded::Message(Message::Ping(nonce), _) => {
                    said.extend(bytes_of(&Message::Pong(nonce), Bytes::new()));
                }
                _ => {}
            }
        }
    }
}

fn welcome(fabric: Result<FabricChoice, String>) -> Message {
    let limits = ServerLimits { max_streams: 8, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 10 };
    Message::Welcome(Welcome { name: "liar".into(), fabric, limits, extensions: Extensions::none() })
}

fn open(fabric: &Arc<SimFabric>, peer: &[u8]) -> Option<(Plane, FabricChoice)> {
    let mut endpoint = fabric.endpoint().ok()?;
    endpoint.connect(peer).ok()?;
    let words = LeaseWords::new(&**fabric, SLOTS).ok()?;
    (0..SLOTS).try_for_each(|slot| words.open(slot, 77)).ok()?;
    let key = endpoint.expose(words.memory(), 0..words.memory().len()).ok()?;
    let (base, len) = (words.memory().address(), words.memory().len() as u64);
    let region = Region { id: RegionId(1), base, len, key };
    fabric.network().lent(
        &endpoint.address(),
        STANDING_LEASE,
        &[RemoteRange { region: region.id, address: base, len }],
    );
    let lending = Lending {
        fencing: Fencing::LeaseWord,
        probe_at: RemoteRange { region: region.id, address: words.address(SLOTS - 1).ok()?, len: 8 },
        probe_value: 77,
        words: region,
    };
    let choice = FabricChoice { kind: FabricKind::SIM, address: endpoint.address(), lending };
    Some((Plane { endpoint, words, memories: Vec::new() }, choice))
}

/// The frames that tell a lie.
fn answer(lie: Lie, fabric: &Arc<SimFabric>, plane: &mut Option<Plane>) -> Vec<u8> {
    let schema: Bytes = encode_schema(&synthetic_schema()).unwrap_or_default().into();
    let schema_of = |stream, payload| {
        lender(FromLender::Schema { stream, order: Vec::new(), extensions: Extensions::none() }, payload)
    };
    let inline = |seq, len: usize| {
        let message = FromLender::Inline { stream: STREAM, seq, bytes: len as u64, more: false };
        lender(message, vec![7; len].into())
    };
    let end = |batches| {
        let (stats, extensions) = (StreamStats::default(), Extensions::none());
        lender(FromLender::End { stream: STREAM, batches, stats, extensions }, Bytes::new())
    };
    let say = |message: Message| bytes_of(&message, Bytes::new());
    let schema = schema_of(STREAM, schema);
    match lie {
        Lie::GarbageForASchema => schema_of(STREAM, Bytes::from_static(b"no schema")),
        Lie::BatchBeforeSchema => inline(0, 10),
        Lie::WrongSequence => [schema, inline(1, 10)].concat(),
        Lie::EndOfMoreThanWasSent => [schema, end(3)].concat(),
        Lie::StreamThatIsNot => {
            let failure = Failure::new(StreamCode::Internal, "");
            let failed = FromLender::Failed { stream: StreamId(9), failure, extensions: Extensions::none() };
            [lender(failed, Bytes::new()), schema_of(StreamId(9), Bytes::new())].concat()
        }
        Lie::AnswerOfNoUpload => {
            let answer = Answer { stream: STREAM, result: Ok(1), extensions: Extensions::none() };
            [schema, say(Message::Answer(answer))].concat()
        }
        Lie::MoreThanWasGranted => [schema, inline(0, 200_000)].concat(),
        Lie::WelcomeTwice => [schema, say(welcome(Err("again".into())))].concat(),
        Lie::RegionGoneThatNeverWas => [schema, lender(FromLender::RegionGone(RegionId(99)), Bytes::new())].concat(),
        Lie::AfterTheEnd => [schema, end(0), inline(0, 10)].concat(),
        Lie::InlineGarbage => [schema, inline(0, 100)].concat(),
        Lie::NeverAnswers => schema,
        lent => match plane.as_mut().and_then(|plane| lend(lent, fabric, plane)) {
            Some(said) => [schema, said].concat(),
            // Without a fabric no lent batch is possible: tell another lie.
            None => [schema, end(3)].concat(),
        },
    }
}

fn lend(lie: Lie, fabric: &Arc<SimFabric>, plane: &mut Plane) -> Option<Vec<u8>> {
    let batch = synthetic_batch(0, 100);
    let (mut descriptor, mut buffers) = describe(&Plan::new(&batch.schema()).ok()?, &batch).ok()?;
    if lie == Lie::OffsetsThatDecrease {
        spoil_offsets(&descriptor, &mut buffers);
    }
    let (mut places, mut said) = (Vec::new(), Vec::new());
    for buffer in buffers.iter().filter(|buffer| !buffer.is_empty()) {
        let memory = fabric.register(buffer.clone()).ok()?;
        let id = RegionId(2 + plane.memories.len() as u32);
        let key = plane.endpoint.expose(&memory, 0..memory.len()).ok()?;
        let region = Region { id, base: memory.address(), len: memory.len() as u64, key };
        said.extend(lender(FromLender::Region(region), Bytes::new()));
        places.push(RemoteRange { region: id, address: memory.address(), len: buffer.len() as u64 });
        plane.memories.push(memory);
    }
    fabric.network().lent(&plane.endpoint.address(), HOSTILE_LEASE, &places);
    let mut word = Some(LeaseWord {
        at: RemoteRange { region: RegionId(1), address: plane.words.address(0).ok()?, len: 8 },
        value: 77,
    });
    match lie {
        Lie::UnknownRegion => places[0].region = RegionId(1000),
        Lie::OutsideTheRegion => places[0].address += 4096 * 4096,
        Lie::PlacesTooFew => drop(places.pop()),
        Lie::PlaceTooShort => places[0].len -= 1,
        Lie::WordMisaligned => word.iter_mut().for_each(|word| word.at.address += 1),
        Lie::WordMissing => word = None,
        Lie::MoreRowsThanBytes => {
            descriptor.rows *= 1000;
            descriptor.nodes.iter_mut().for_each(|node| node.len *= 1000);
        }
        _ => {}
    }
    let batch = LentBatch { lease: LeaseId(1), word, descriptor, places };
    said.extend(lender(FromLender::Lent { stream: STREAM, seq: 0, batch: batch.clone() }, Bytes::new()));
    if lie == Lie::LeaseTwice {
        said.extend(lender(FromLender::Lent { stream: STREAM, seq: 1, batch }, Bytes::new()));
    }
    Some(said)
}

/// Makes one offset of the last column larger than its successor.
fn spoil_offsets(descriptor: &BatchDescriptor, buffers: &mut [Buffer]) {
    // Offsets of a binary column of 100 rows: the one buffer of 101 four-byte integers.
    debug_assert_eq!(descriptor.rows, 100);
    if let Some(offsets) = buffers.iter_mut().find(|buffer| buffer.len() == 404) {
        let mut bytes = offsets.as_slice().to_vec();
        bytes[40..44].copy_from_slice(&i32::MAX.to_le_bytes());
        *offsets = bytes.into();
    }
}
