//! Clients that try to fill the server's memory, or to take the places of others. Each test states its bound.

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use thallus_fabric::Fencing;
use thallus_protocol::codec::{FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::{Extensions, FromBorrower, Hello, Message, Open, OpenOptions, Partition, Request};
use thallus_protocol::{GroupId, StreamId};
use thallus_scripted_engine::{Script, ScriptedEngine};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{sleep, timeout};

use crate::raw::Raw;
use crate::world::{World, block_on, within};

const MIB: u64 = 1 << 20;

/// An engine with an endless query, whose batches have a quarter of a MiB, and a short one.
fn engine() -> ScriptedEngine {
    ScriptedEngine::new()
        .with_query("endless", Script::synthetic(u64::MAX, 2100))
        .with_query("short", Script::synthetic(1, 3))
}

fn credit(credit: u64) -> OpenOptions {
    OpenOptions { credit, ..OpenOptions::default() }
}

/// Bytes that the server keeps for its clients.
fn held(world: &World) -> u64 {
    world.server.held_bytes().iter().sum()
}

/// The server still answers an honest client.
async fn serves_others(world: &World) {
    let client = world.client().await;
    let batches: Vec<_> = client.query("short").await.unwrap().try_collect().await.unwrap();
    assert_eq!(batches.len(), 1);
}

#[test]
fn a_query_without_credit_costs_no_batch() {
    block_on(async {
        let world = World::over(engine(), None);
        let mut raw = Raw::new(&world).await;
        let mut streams = Vec::new();
        for _ in 0..64 {
            streams.push(raw.open("endless", credit(0)).await);
        }
        sleep(Duration::from_secs(5)).await;
        assert_eq!((world.engine.started(), world.engine.batches()), (64, 0));
        assert!(held(&world) < MIB / 4, "{} bytes", held(&world));
        serves_others(&world).await;

        let before = world.engine.batches();
        let grant = FromBorrower::Credit { stream: streams[5], total: 300_000 };
        raw.send(Message::Borrower(grant)).await;
        sleep(Duration::from_secs(5)).await;
        // The batch that the credit suffices for, and the one that then waits.
        assert_eq!(world.engine.batches() - before, 2);
    });
}

/// A client that grants a little gets one batch of each query ready, and the engine makes no second one.
#[test]
fn one_batch_of_a_query_waits_for_credit() {
    for fencing in [None, Some(Fencing::LeaseWord)] {
        block_on(async {
            let world = World::over(engine(), fencing);
            let mut raw = Raw::new(&world).await;
            for _ in 0..32 {
                raw.open("endless", credit(300)).await;
            }
            sleep(Duration::from_secs(5)).await;
            assert_eq!((world.engine.running(), world.engine.batches()), (32, 32));
            let bytes = held(&world);
            assert!((7 * MIB..9 * MIB).contains(&bytes), "{bytes} bytes");
            serves_others(&world).await;
        });
    }
}

/// Once waiting batches use up the limit of bytes on loan, a query gets its next batch with credit only.
#[test]
fn no_more_batches_wait_for_credit_than_may_be_on_loan() {
    block_on(async {
        let world = World::over_with(engine(), None, |settings| settings.limits.max_loan_bytes = MIB);
        let mut raw = Raw::new(&world).await;
        for _ in 0..32 {
            // Enough for the first batch.
            raw.open("endless", credit(300_000)).await;
        }
        sleep(Duration::from_secs(5)).await;
        let bytes = held(&world);
        let batches = world.engine.batches();
        // The first batches are sent and not read, and 1 MiB of further ones waits.
        assert!(bytes < 8 * MIB + MIB + MIB / 2 && batches <= 32 + 4, "{bytes} bytes, {batches} batches");
        serves_others(&world).await;
    });
}

/// The answers to a client that never reads take 1 MiB, and what one more read of 256 KiB causes. Then the server reads
/// nothing either.
#[test]
fn a_client_that_does_not_read_is_not_read_either() {
    block_on(async {
        let world = World::over(engine(), None);
        let mut raw = Raw::new(&world).await;
        let mut sent = 0;
        while timeout(Duration::from_secs(1), raw.send(Message::Ping(sent))).await.is_ok() {
            sent += 1;
            assert!(sent < 100_000, "the server reads on");
        }
        let bytes = held(&world);
        assert!((MIB..4 * MIB).contains(&bytes), "{bytes} bytes");
        serves_others(&world).await;
    });
}

/// The same with requests that are refused, and whose answers are longer than they are.
#[test]
fn unread_refusals_are_bounded() {
    block_on(async {
        let world = World::over_with(engine(), None, |settings| settings.limits.max_streams = 1);
        let mut raw = Raw::new(&world).await;
        let opened = async {
            for _ in 0..100_000 {
                raw.open("endless", credit(0)).await;
            }
        };
        assert!(timeout(Duration::from_secs(5), opened).await.is_err(), "the server reads on");
        let bytes = held(&world);
        assert!((MIB..5 * MIB).contains(&bytes), "{bytes} bytes");
        serves_others(&world).await;
    });
}

/// Inline batches that a client does not read take 16 MiB, and one more batch of each query.
#[test]
fn unread_inline_results_are_bounded() {
    block_on(async {
        let world = World::over(engine(), None);
        let mut raw = Raw::new(&world).await;
        for _ in 0..8 {
            raw.open("endless", credit(200 * MIB)).await;
        }
        sleep(Duration::from_secs(5)).await;
        let bytes = held(&world);
        assert!((15 * MIB..19 * MIB).contains(&bytes), "{bytes} bytes");
        serves_others(&world).await;
        let before = world.engine.batches();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(world.engine.batches(), before, "the engine is not polled for a client that does not read");
    });
}

fn frame(message: &Message, payload: Bytes) -> Vec<u8> {
    let frame = encode(message, payload, FrameLimits { message: u32::MAX, payload: u32::MAX }).unwrap();
    [frame.head, frame.payload].concat()
}

fn hello() -> Vec<u8> {
    frame(&Message::Hello(Hello { name: "raw".into(), ..Hello::default() }), Bytes::new())
}

fn open(request: Request) -> Message {
    let options = OpenOptions::default();
    Message::Open(Open { stream: StreamId(1), request, options, extensions: Extensions::none() })
}

/// Sends a preface and `bytes`, and returns the connection and the bytes that the server keeps for it.
async fn sent(world: &World, bytes: &[u8]) -> (DuplexStream, u64) {
    let mut io = world.pipe();
    io.write_all(&Preface { versions: VERSIONS, features: FEATURES }.encode()).await.unwrap();
    // A server that has closed the connection takes no more.
    let _closed = io.write_all(bytes).await;
    sleep(Duration::from_millis(10)).await;
    (io, held(world))
}

async fn is_closed(io: &mut DuplexStream) -> bool {
    let mut unread = Vec::new();
    timeout(Duration::from_millis(100), io.read_to_end(&mut unread)).await.is_ok()
}

/// A frame takes the memory of the bytes that have arrived, up to twice as much. Before the hello a frame has 256 KiB
/// at most, and before an upload 4 KiB of payload.
#[test]
fn half_frames_are_bounded() {
    block_on(async {
        let world = World::over(engine(), None);
        let text = |bytes: usize| frame(&open(Request::Sql("x".repeat(bytes))), Bytes::new());
        let (mut io, held) = sent(&world, &text(200_000)[..150_000]).await;
        assert!((150_000..500_000).contains(&held), "{held} bytes before the hello");
        assert!(!is_closed(&mut io).await);
        drop(io);
        let (mut io, held) = sent(&world, &text(300_000)[..100]).await;
        assert!(held < 1000 && is_closed(&mut io).await, "{held} bytes: longer than a hello");

        let announced = [hello(), text(4_000_000)[..100].to_vec()].concat();
        let (mut io, held) = sent(&world, &announced).await;
        assert!(held < 200_000 && !is_closed(&mut io).await, "{held} bytes of a frame that is only announced");
        drop(io);
        let arrived = [hello(), text(4_000_000)[..3_900_000].to_vec()].concat();
        let (mut io, held) = sent(&world, &arrived).await;
        assert!(
            (3_900_000..8_000_000).contains(&held) && !is_closed(&mut io).await,
            "{held} bytes of an arrived frame"
        );
        drop(io);
        let payload = |bytes: usize| frame(&Message::Ping(1), Bytes::from(vec![0; bytes]));
        let (mut io, held) = sent(&world, &[hello(), payload(5000)[..100].to_vec()].concat()).await;
        assert!(held < 200_000 && is_closed(&mut io).await, "{held} bytes: a payload before an upload");
        let upload = frame(&open(Request::Upload("short".into())), Bytes::new());
        let (mut io, held) = sent(&world, &[hello(), upload, payload(5000)[..100].to_vec()].concat()).await;
        assert!(held < 200_000 && !is_closed(&mut io).await, "{held} bytes: a payload of an upload");
    });
}

/// Connections without a hello have places of their own, and the oldest of them makes room.
#[test]
fn silent_connections_do_not_keep_clients_out() {
    block_on(async {
        let world = World::limited(engine(), 2);
        let mut silent: Vec<_> = (0..200).map(|_| world.pipe()).collect();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(world.server.connections(), 64);
        serves_others(&world).await;
        assert!(is_closed(&mut silent[0]).await && !is_closed(&mut silent[199]).await);
        // The limit of connections holds for those with a hello.
        let clients = [world.client().await, world.client().await];
        let refused = world.try_client(|options| options).await.unwrap_err().to_string();
        assert!(refused.contains("2 connections") && refused.contains("limits.max_connections"), "{refused}");
        drop(clients);
        sleep(Duration::from_secs(11)).await;
        assert_eq!(world.server.connections(), 0, "a hello has a deadline");
    });
}

/// A query in partitions that misses members makes room for another one.
#[test]
fn lone_partitions_do_not_keep_others_from_their_queries() {
    block_on(async {
        let world = World::over(engine(), None);
        let group = |number: u128| GroupId(number.to_le_bytes());
        let mut raw = Raw::new(&world).await;
        let mut lone = Vec::new();
        for number in 0..64 {
            let part = Partition { group: group(number), index: 0, count: 2 };
            lone.push(raw.open_part("short", part).await);
        }
        sleep(Duration::from_millis(10)).await;
        assert_eq!(world.server.partitioned_queries(), 64);
        // Of another client, and the only one of it: not displaced by the next ones.
        let mut honest = Raw::new(&world).await;
        let first = honest.open_part("short", Partition { group: group(100), index: 0, count: 2 }).await;
        sleep(Duration::from_millis(10)).await;
        let mut other = Raw::new(&world).await;
        for number in 200..220 {
            other.open_part("short", Partition { group: group(number), index: 0, count: 2 }).await;
        }
        sleep(Duration::from_millis(10)).await;
        let second = honest.open_part("short", Partition { group: group(100), index: 1, count: 2 }).await;
        within("the partitions to end", async {
            let rows = honest.ended(first).await.unwrap() + honest.ended(second).await.unwrap();
            assert_eq!(rows, 3);
        })
        .await;
        let (code, message) = raw.ended(lone[0]).await.unwrap_err();
        assert_eq!(code, StreamCode::PartitionMissing);
        assert!(message.contains("1 of 2") && message.contains("limits.max_partitioned_queries"), "{message}");
        sleep(Duration::from_secs(11)).await;
        assert_eq!(world.server.partitioned_queries(), 0, "a lone partition has a deadline");
    });
}
