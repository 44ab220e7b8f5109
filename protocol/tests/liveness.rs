//! When a connection counts as dead: only signs of life that prove both directions postpone the idle timeout, and only
//! `Input::Time` makes a deadline expire.

use std::time::Duration;

use bytes::Bytes;
use thallus_protocol::client::{ClientCommand, ClientConfig};
use thallus_protocol::codec::{FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::connection::{Input, Output};
use thallus_protocol::message::{Extensions, FromLender, Hello, Message, ServerLimits, Thresholds, Welcome};
use thallus_protocol::server::ServerConfig;
use thallus_protocol::{
    ClientConnection, ConnectionError, LinkTimeouts, Machine, ServerConnection, StreamId, Timestamp,
};

const KEEPALIVE: u64 = 10;
const IDLE: u64 = 30;

fn timeouts() -> LinkTimeouts {
    let [keepalive, idle] = [KEEPALIVE, IDLE].map(Duration::from_secs);
    LinkTimeouts { handshake: Duration::from_secs(10), keepalive, idle }
}

fn limits() -> ServerLimits {
    ServerLimits { max_streams: 4, max_loan_bytes: 1 << 20, max_sql_bytes: 100 }
}

fn bytes_of(message: &Message, payload: Bytes) -> Vec<u8> {
    let frame = encode(message, payload, FrameLimits::default()).unwrap();
    [frame.head, frame.payload].concat()
}

/// One end, and what it sends.
struct End<M> {
    machine: M,
    seconds: u64,
    pings: u64,
    closed: Option<ConnectionError>,
}

impl<M: Machine> End<M> {
    fn new(machine: M) -> Self {
        End { machine, seconds: 0, pings: 0, closed: None }
    }

    fn input(&mut self, input: Input<'_, M::Command>) {
        self.machine.handle(Timestamp::ZERO + Duration::from_secs(self.seconds), input).unwrap();
        loop {
            match self.machine.poll_output() {
                Output::Wait(_) => return,
                // The number of a ping is its last byte here.
                Output::Transmit(frame) if frame.head.len() == 18 && frame.head[16] == 6 => {
                    self.pings = u64::from(frame.head[17]);
                }
                Output::Closed(error) => self.closed = Some(error),
                _ => {}
            }
        }
    }

    fn receive(&mut self, message: &Message) {
        self.input(Input::Received(&bytes_of(message, Bytes::new())));
    }

    /// Lets a second pass.
    fn tick(&mut self) {
        self.seconds += 1;
        self.input(Input::Time);
    }

    /// The second in which the end ends the connection, if `each` happens in every second.
    fn dies(&mut self, each: impl Fn(&mut Self)) -> Option<u64> {
        for _ in 0..10 * IDLE {
            self.tick();
            if self.closed.is_some() {
                assert!(matches!(self.closed, Some(ConnectionError::IdleTimeout(_))), "{:?}", self.closed);
                return Some(self.seconds);
            }
            each(self);
        }
        None
    }
}

fn client() -> End<ClientConnection> {
    let config = ClientConfig {
        name: "client".into(),
        fabrics: Vec::new(),
        frame: FrameLimits::default(),
        checksum: true,
        first_window: 1 << 20,
        borrow: ServerConfig::borrower_config(1 << 20, Duration::from_secs(30)),
        timeouts: timeouts(),
        max_loan_bytes: 1 << 20,
        max_leases: 4,
        word_nonce: 42,
        lease_timeout: Duration::from_secs(60),
        thresholds: Thresholds::uniform(64),
    };
    let mut end = End::new(ClientConnection::new(config, Timestamp::ZERO).unwrap());
    let fabric = Err("none".into());
    let welcome = Welcome { name: "server".into(), fabric, limits: limits(), extensions: Extensions::none() };
    end.input(Input::Received(&Preface { versions: VERSIONS, features: FEATURES }.encode()));
    end.receive(&Message::Welcome(welcome));
    end
}

fn server() -> End<ServerConnection> {
    let config = ServerConfig {
        name: "server".into(),
        fabrics: Vec::new(),
        no_fabric_reason: "none".into(),
        vendor: thallus_protocol::message::Vendor::default(),
        limits: limits(),
        frame: FrameLimits::default(),
        checksum: true,
        thresholds: Thresholds::uniform(64),
        max_leases: 4,
        word_nonce: 42,
        timeouts: timeouts(),
        lease_timeout: Duration::from_secs(60),
        drain_timeout: Duration::from_secs(1),
        borrow: ServerConfig::borrower_config(1 << 20, Duration::from_secs(30)),
    };
    let mut end = End::new(ServerConnection::new(config, Timestamp::ZERO));
    end.input(Input::Received(&Preface { versions: VERSIONS, features: FEATURES }.encode()));
    end.receive(&Message::Hello(Hello { name: "client".into(), ..Hello::default() }));
    end
}

#[test]
fn a_silent_peer_is_pinged_and_then_counts_as_dead() {
    let mut end = client();
    assert_eq!(end.dies(|_| {}), Some(IDLE));
    assert_eq!(end.pings, IDLE / KEEPALIVE);
    let mut end = server();
    assert_eq!(end.dies(|_| {}), Some(IDLE));
    assert_eq!(end.pings, IDLE / KEEPALIVE);
}

#[test]
fn a_peer_that_answers_pings_lives() {
    fn answers<M: Machine>(end: &mut End<M>) {
        end.receive(&Message::Pong(end.pings));
    }
    assert_eq!(client().dies(answers), None);
    assert_eq!(server().dies(answers), None);
}

#[test]
fn a_peer_that_sends_pings_and_answers_none_counts_as_dead() {
    fn pings<M: Machine>(end: &mut End<M>) {
        end.receive(&Message::Ping(7));
    }
    assert_eq!(client().dies(pings), Some(IDLE));
    assert_eq!(server().dies(pings), Some(IDLE));
}

#[test]
fn an_old_pong_and_the_pong_of_no_ping_prove_nothing() {
    assert_eq!(client().dies(|end| end.receive(&Message::Pong(1))), Some(KEEPALIVE + IDLE));
    assert_eq!(client().dies(|end| end.receive(&Message::Pong(end.pings + 1))), Some(IDLE));
}

/// The pongs of a slow link wait behind data. Here one payload takes minutes.
#[test]
fn a_peer_whose_data_arrives_slowly_lives_until_no_more_arrives() {
    let mut end = client();
    let schema = FromLender::Schema { stream: StreamId(1), order: Vec::new(), extensions: Extensions::none() };
    let slow = bytes_of(&Message::Lender(schema), Bytes::from(vec![0; 4 << 20]));
    let mut data = slow.chunks(16 << 10).take(200);
    for chunk in data.by_ref() {
        end.tick();
        assert!(end.closed.is_none(), "dead after {} seconds", end.seconds);
        end.input(Input::Received(chunk));
    }
    let last = end.seconds;
    assert!(last > 5 * IDLE, "the data took {last} seconds only");
    let died = end.dies(|_| {}).unwrap();
    // The last 64 KiB were complete up to three seconds earlier.
    assert!((last + IDLE - 3..=last + IDLE).contains(&died), "dead {} seconds after the data", died - last);
}

/// The pings of a slow link wait behind data that this host has accepted.
#[test]
fn a_peer_that_takes_data_slowly_lives() {
    assert_eq!(client().dies(|end| end.input(Input::Relieved)), None);
    assert_eq!(server().dies(|end| end.input(Input::Relieved)), None);
}

/// A process that stood still has other inputs first: none of them may end the connection.
#[test]
fn only_time_makes_a_deadline_expire() {
    let mut end = client();
    end.seconds = 10 * IDLE;
    end.input(Input::Command(ClientCommand::Ping));
    end.receive(&Message::Ping(1));
    assert!(end.closed.is_none());
    end.receive(&Message::Pong(1));
    end.tick();
    assert!(end.closed.is_none(), "the pong came before the time");
}

#[test]
fn pings_and_pongs_are_urgent_but_the_welcome_comes_first() {
    fn urgent<M: Machine>(machine: &mut M, seconds: u64, input: Input<'_, M::Command>) -> Vec<(u8, bool)> {
        machine.handle(Timestamp::ZERO + Duration::from_secs(seconds), input).unwrap();
        let mut sent = Vec::new();
        loop {
            match machine.poll_output() {
                Output::Wait(_) => return sent,
                Output::Transmit(frame) => sent.push((frame.head[16], frame.urgent)),
                _ => {}
            }
        }
    }
    let (ping, pong) = (6, 7);
    let mut server = server().machine;
    assert_eq!(urgent(&mut server, 10, Input::Time), [(ping, false)], "the client may wait for the Welcome");
    let from_client = bytes_of(&Message::Ping(1), Bytes::new());
    assert_eq!(urgent(&mut server, 11, Input::Received(&from_client)), [(pong, true)]);
    assert_eq!(urgent(&mut server, 20, Input::Time), [(ping, true)]);
    assert_eq!(urgent(&mut client().machine, 10, Input::Time), [(ping, true)]);
}
