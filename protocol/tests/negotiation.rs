//! The server opens the first fabric that both ends have, and the next one if that fails.

use std::time::Duration;

use bytes::Bytes;
use thallus_protocol::codec::{Decoded, Decoder, FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::connection::{Input, Output};
use thallus_protocol::message::{FabricOffer, Hello, Message, ServerLimits, Thresholds};
use thallus_protocol::server::{ServerCommand, ServerConfig, ServerEvent};
use thallus_protocol::{FabricKind, LinkTimeouts, Machine, ServerConnection, Timestamp};

fn server(fabrics: &[FabricKind]) -> ServerConnection {
    let config = ServerConfig {
        name: "server".into(),
        fabrics: fabrics.to_vec(),
        no_fabric_reason: "none".into(),
        vendor: thallus_protocol::message::Vendor::default(),
        limits: ServerLimits { max_streams: 4, max_loan_bytes: 1 << 20, max_sql_bytes: 100 },
        frame: FrameLimits::default(),
        checksum: true,
        thresholds: Thresholds::uniform(64),
        max_leases: 4,
        word_nonce: 42,
        timeouts: LinkTimeouts::default(),
        lease_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(1),
        borrow: ServerConfig::borrower_config(1 << 20, Duration::from_secs(30)),
    };
    ServerConnection::new(config, Timestamp::ZERO)
}

/// The fabric that the server opens next, or the reason in its Welcome.
fn outcome(server: &mut ServerConnection, decoder: &mut Decoder) -> Result<(FabricKind, Bytes), String> {
    loop {
        match server.poll_output() {
            Output::Event(ServerEvent::OpenFabric { kind, peer }) => return Ok((kind, peer)),
            Output::Transmit(frame) => {
                decoder.push(&frame.head);
                decoder.push(&frame.payload);
            }
            Output::Wait(_) => break,
            _ => {}
        }
    }
    while let Some(decoded) = decoder.decode::<Message>().unwrap() {
        if let Decoded::Message(Message::Welcome(welcome), _) = decoded {
            return Err(welcome.fabric.unwrap_err());
        }
    }
    panic!("neither a fabric nor a Welcome");
}

fn offer(kind: FabricKind, address: &'static [u8]) -> FabricOffer {
    FabricOffer { kind, address: Bytes::from_static(address) }
}

#[test]
fn the_next_common_fabric_is_opened_and_every_reason_is_reported() {
    let mut server = server(&[FabricKind::UCX, FabricKind::SHM]);
    let fabrics =
        vec![offer(FabricKind::SHM, b"one"), offer(FabricKind::VERBS, b"two"), offer(FabricKind::UCX, b"three")];
    let hello = Message::Hello(Hello { name: "c".into(), fabrics, max_loan_bytes: 1 << 20, ..Hello::default() });
    let frame = encode(&hello, Bytes::new(), FrameLimits::default()).unwrap();
    let preface = Preface { versions: VERSIONS, features: FEATURES }.encode();
    server.handle(Timestamp::ZERO, Input::Received(&preface)).unwrap();
    server.handle(Timestamp::ZERO, Input::Received(&frame.head)).unwrap();

    let mut decoder = Decoder::new(FrameLimits::default());
    // The client's order decides, and fabrics that the server does not have are skipped.
    assert_eq!(outcome(&mut server, &mut decoder), Ok((FabricKind::SHM, Bytes::from_static(b"one"))));
    let unavailable = |reason: &str| Input::Command(ServerCommand::FabricUnavailable { reason: reason.into() });
    server.handle(Timestamp::ZERO, unavailable("another host")).unwrap();
    assert_eq!(outcome(&mut server, &mut decoder), Ok((FabricKind::UCX, Bytes::from_static(b"three"))));
    server.handle(Timestamp::ZERO, unavailable("no device")).unwrap();
    assert_eq!(outcome(&mut server, &mut decoder), Err("another host; no device".into()));
}
