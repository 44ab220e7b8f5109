//! The decoder accepts any split of the bytes. No input makes it panic, allocate announced lengths or forget an error.

use bytes::Bytes;
use proptest::prelude::*;
use thallus_protocol::client::{ClientConfig, ClientInput, ClientOutput};
use thallus_protocol::codec::{
    DecodeError, Decoded, Decoder, EncodeError, FEATURES, FrameLimits, Preface, VERSIONS, VersionRange, encode,
};
use thallus_protocol::message::{Extensions, FromLender, Message, ServerLimits, SortKey, Thresholds};
use thallus_protocol::server::{ServerConfig, ServerInput, ServerOutput};
use thallus_protocol::{
    ClientConnection, ConnectionError, Machine, PeerMisbehaved, ServerConnection, StreamId, Timestamp,
};

const LIMITS: FrameLimits = FrameLimits { message: 1000, payload: 2000 };

fn preface() -> Vec<u8> {
    Preface { versions: VERSIONS, features: FEATURES }.encode().to_vec()
}

fn arb_key() -> impl Strategy<Value = SortKey> {
    (any::<u32>(), any::<bool>(), any::<bool>()).prop_map(|(column, descending, nulls_first)| SortKey {
        column,
        descending,
        nulls_first,
    })
}

/// A message and its payload.
fn arb_message() -> impl Strategy<Value = (Message, Bytes)> {
    let payload = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    prop_oneof![
        any::<u64>().prop_map(|nonce| (Message::Ping(nonce), Bytes::new())),
        (any::<u32>(), any::<u64>(), any::<u64>(), any::<bool>(), payload()).prop_map(
            |(stream, seq, bytes, more, payload)| {
                (Message::Lender(FromLender::Inline { stream: StreamId(stream), seq, bytes, more }), payload)
            }
        ),
        (any::<u32>(), prop::collection::vec(arb_key(), 0..4), payload()).prop_map(|(stream, order, ipc)| {
            let (stream, extensions) = (StreamId(stream), Extensions::none());
            (Message::Lender(FromLender::Schema { stream, order, extensions }), ipc)
        }),
        (any::<u16>(), "\\PC{0,30}")
            .prop_map(|(code, message)| { (Message::Goodbye { code: code.into(), message }, Bytes::new()) }),
    ]
}

fn wire(messages: &[(Message, Bytes)]) -> Vec<u8> {
    let mut bytes = preface();
    for (message, payload) in messages {
        let frame = encode(message, payload.clone(), LIMITS).expect("within the limits");
        assert_eq!(frame.len(), frame.head.len() + frame.payload.len());
        bytes.extend_from_slice(&frame.head);
        bytes.extend_from_slice(&frame.payload);
    }
    bytes
}

/// Decodes bytes that arrive in pieces. The cuts may come in any order and more than once.
fn decode(bytes: &[u8], cuts: &[usize]) -> Result<Vec<(Message, Bytes)>, DecodeError> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    let mut decoder = Decoder::new(LIMITS);
    let mut messages = Vec::new();
    for piece in cuts.windows(2) {
        decoder.push(&bytes[piece[0]..piece[1]]);
        while let Some(decoded) = decoder.decode()? {
            match decoded {
                Decoded::Preface(_) => assert!(messages.is_empty()),
                Decoded::Message(message, payload) => messages.push((message, payload)),
            }
        }
    }
    Ok(messages)
}

/// Removes from the error for a wrong preface the bytes received so far, because they depend on the split.
fn blurred(result: Result<Vec<(Message, Bytes)>, DecodeError>) -> Result<Vec<(Message, Bytes)>, DecodeError> {
    result.map_err(
        |error| if let DecodeError::Magic { .. } = error { DecodeError::Magic { found: [0; 8] } } else { error },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_gives_the_same_messages(
        messages in prop::collection::vec(arb_message(), 0..8),
        cuts in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        let bytes = wire(&messages);
        prop_assert_eq!(decode(&bytes, &cuts), Ok(messages.clone()));
        prop_assert_eq!(decode(&bytes, &(0..bytes.len()).collect::<Vec<_>>()), Ok(messages));
    }

    #[test]
    fn garbage_is_refused_whatever_its_split(
        messages in prop::collection::vec(arb_message(), 0..4),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        flip in (any::<usize>(), 1..=255_u8),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let mut bytes = wire(&messages);
        bytes.extend_from_slice(&garbage);
        let at = flip.0 % bytes.len();
        bytes[at] ^= flip.1;
        // Whole, split and byte by byte: the same messages and then the same error.
        let whole = blurred(decode(&bytes, &[]));
        prop_assert_eq!(blurred(decode(&bytes, &cuts)), whole.clone());
        prop_assert_eq!(blurred(decode(&bytes, &(0..bytes.len()).collect::<Vec<_>>())), whole);
    }

    #[test]
    fn a_wrong_preface_is_refused_at_its_first_wrong_byte(bytes in prop::collection::vec(any::<u8>(), 1..30)) {
        let right = preface();
        let mut decoder = Decoder::new(LIMITS);
        decoder.push(&bytes);
        let common = bytes.len().min(8);
        let refused = matches!(decoder.decode::<Message>(), Err(DecodeError::Magic { .. }));
        prop_assert_eq!(refused, bytes[..common] != right[..common]);
    }
}

fn opened() -> Decoder {
    let mut decoder = Decoder::new(LIMITS);
    decoder.push(&preface());
    assert!(matches!(decoder.decode::<Message>(), Ok(Some(Decoded::Preface(_)))));
    // The frames of these tests have no checksums.
    decoder.verify_checksums(false);
    decoder
}

fn header(message: u32, payload: u32) -> Vec<u8> {
    [message, payload, 0, 0].map(u32::to_le_bytes).concat()
}

/// Checks that the decoder returns the same error again, also after further bytes.
fn refused(mut decoder: Decoder, error: &DecodeError) {
    for _ in 0..3 {
        assert_eq!(decoder.decode::<Message>().as_ref(), Err(error));
        decoder.push(&encode(&Message::Ping(1), Bytes::new(), LIMITS).expect("short").head);
    }
}

#[test]
fn limits_are_checked_as_soon_as_the_lengths_have_arrived() {
    for (message, payload, part, len, limit) in [
        (1001, 0, "message", 1001, 1000),
        (u32::MAX, u32::MAX, "message", u32::MAX, 1000),
        (0, 2001, "payload", 2001, 2000),
        (1000, u32::MAX, "payload", u32::MAX, 2000),
    ] {
        let mut decoder = opened();
        decoder.push(&header(message, payload));
        refused(decoder, &DecodeError::TooLong { part, len, limit });
    }
    let mut decoder = opened();
    decoder.push(&header(1000, 2000));
    assert_eq!(decoder.decode::<Message>(), Ok(None));
}

#[test]
fn trailing_bytes_and_empty_messages_are_refused() {
    let mut decoder = opened();
    let frame = encode(&Message::Ping(1), Bytes::new(), LIMITS).expect("short");
    decoder.push(&header(frame.head.len() as u32 - 16 + 3, 0));
    decoder.push(&frame.head[16..]);
    decoder.push(&[0; 3]);
    refused(decoder, &DecodeError::Trailing { excess: 3 });

    let mut decoder = opened();
    decoder.push(&header(0, 0));
    assert!(matches!(decoder.decode::<Message>(), Err(DecodeError::Malformed { .. })));
}

#[test]
fn a_frame_beyond_the_limits_is_not_encoded() {
    let long = Message::Goodbye { code: 0.into(), message: "x".repeat(1000) };
    let refused = encode(&long, Bytes::new(), LIMITS);
    assert!(matches!(refused, Err(EncodeError::TooLong { part: "message", limit: 1000, .. })), "{refused:?}");
    let refused = encode(&Message::Ping(0), Bytes::from(vec![0; 2001]), LIMITS);
    assert_eq!(refused, Err(EncodeError::TooLong { part: "payload", len: 2001, limit: 2000 }));
}

/// Largest virtual memory size of this process so far, in bytes; `None` if it is not available.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmPeak:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[test]
fn announced_lengths_allocate_no_memory() {
    let Some(before) = peak() else { return };
    let limits = FrameLimits { message: u32::MAX, payload: u32::MAX };
    let decoders: Vec<_> = (0..32)
        .map(|_| {
            let mut decoder = Decoder::new(limits);
            decoder.push(&preface());
            assert!(matches!(decoder.decode::<Message>(), Ok(Some(_))));
            decoder.verify_checksums(false);
            decoder.push(&header(u32::MAX, u32::MAX));
            decoder.push(&[0; 100]);
            assert_eq!(decoder.decode::<Message>(), Ok(None));
            decoder
        })
        .collect();
    let grown = peak().unwrap_or(before) - before;
    assert!(grown < 1 << 30, "{} decoders of 8 GiB each took {grown} bytes", decoders.len());
    // A vector that claims more elements than its message has bytes.
    let mut decoder = opened();
    // A hello with an empty name and a huge number of fabrics.
    let mut claim = vec![0, 0];
    claim.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x7f]);
    decoder.push(&header(claim.len() as u32, 0));
    decoder.push(&claim);
    assert!(matches!(decoder.decode::<Message>(), Err(DecodeError::Malformed { .. })));
}

fn server() -> ServerConnection {
    let config = ServerConfig {
        name: "s".into(),
        fabrics: vec![],
        no_fabric_reason: "none".into(),
        vendor: thallus_protocol::message::Vendor::default(),
        limits: ServerLimits { max_streams: 1, max_loan_bytes: 1, max_sql_bytes: 1 },
        frame: FrameLimits::default(),
        checksum: true,
        thresholds: Thresholds::uniform(0),
        max_leases: 1,
        word_nonce: 0,
        timeouts: Default::default(),
        lease_timeout: Default::default(),
        drain_timeout: Default::default(),
        borrow: ServerConfig::borrower_config(1, Default::default()),
    };
    ServerConnection::new(config, Timestamp::ZERO)
}

fn client() -> ClientConnection {
    let config = ClientConfig {
        name: "c".into(),
        fabrics: vec![],
        frame: FrameLimits::default(),
        checksum: true,
        first_window: 0,
        borrow: ServerConfig::borrower_config(1, Default::default()),
        timeouts: Default::default(),
        max_loan_bytes: 1,
        max_leases: 1,
        word_nonce: 0,
        lease_timeout: Default::default(),
        thresholds: Thresholds::uniform(0),
    };
    ClientConnection::new(config, Timestamp::ZERO).expect("a short hello")
}

/// The error with which the server and the client close after these first bytes.
fn endings(bytes: &[u8]) -> [ConnectionError; 2] {
    let (mut server, mut client) = (server(), client());
    server.handle(Timestamp::ZERO, ServerInput::Received(bytes)).expect("no misuse");
    client.handle(Timestamp::ZERO, ClientInput::Received(bytes)).expect("no misuse");
    let server = std::iter::from_fn(|| match server.poll_output() {
        ServerOutput::Wait(_) => None,
        other => Some(other),
    });
    let client = std::iter::from_fn(|| match client.poll_output() {
        ClientOutput::Wait(_) => None,
        other => Some(other),
    });
    let server = server.filter_map(|output| if let ServerOutput::Closed(error) = output { Some(error) } else { None });
    let client = client.filter_map(|output| if let ClientOutput::Closed(error) = output { Some(error) } else { None });
    [server.last().expect("the server closes"), client.last().expect("the client closes")]
}

#[test]
fn a_version_mismatch_names_both_versions() {
    let theirs = VersionRange { min: 2, max: 9 };
    let bytes = Preface { versions: theirs, features: u64::MAX }.encode();
    for error in endings(&bytes) {
        assert_eq!(error, ConnectionError::Version { ours: VERSIONS, theirs });
        let words = error.to_string();
        assert!(words.contains("speaks 1, the peer 2 to 9"), "{words}");
    }
    assert_eq!(VERSIONS.common(theirs), None);
    assert_eq!(VersionRange { min: 1, max: 4 }.common(VersionRange { min: 2, max: 3 }), Some(3));
    assert_eq!(VersionRange { min: 3, max: 2 }.common(VersionRange { min: 1, max: 9 }), None);
}

#[test]
fn a_peer_of_another_protocol_is_refused_at_once() {
    for error in endings(b"GET") {
        assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Decode(DecodeError::Magic { .. }))), "{error}");
    }
}

/// A frame with any flipped bit is refused as soon as it has arrived, before its message is decoded.
#[test]
fn every_flipped_bit_of_a_frame_is_found() {
    let message = Message::Lender(FromLender::Inline { stream: StreamId(1), seq: 0, bytes: 40, more: false });
    let frame = wire(&[(message, vec![7; 40].into())]);
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match decode(&damaged, &[]) {
            Ok(messages) => panic!("flipped bit {bit} is not noticed: {messages:?}"),
            Err(DecodeError::Malformed { .. } | DecodeError::Trailing { .. }) => {
                panic!("flipped bit {bit} was decoded")
            }
            Err(_) => {}
        }
    }
}

/// An end whose lower layers have checksums does not request them, and receives none after its preface has arrived.
#[test]
fn a_peer_that_does_not_ask_for_checksums_is_sent_none() {
    let mut client = client();
    let mut frames = Vec::new();
    let bytes = Preface { versions: VERSIONS, features: 0 }.encode();
    client.handle(Timestamp::ZERO, ClientInput::Received(&bytes)).expect("no misuse");
    client.handle(Timestamp::ZERO, ClientInput::Received(&[0xff; 16])).expect("no misuse");
    while let ClientOutput::Transmit(frame) = client.poll_output() {
        frames.push(frame.head);
    }
    // The preface, and the hello, which was sent before the peer's preface arrived.
    assert_ne!(frames[1][8..16], [0; 8]);
    let frame = encode(&Message::Ping(7), Bytes::new(), LIMITS).expect("short");
    let mut decoder = opened();
    let mut without = frame.head.to_vec();
    without[8..16].fill(0);
    decoder.push(&without);
    assert_eq!(decoder.decode(), Ok(Some(Decoded::Message(Message::Ping(7), Bytes::new()))));
}

/// Bytes read into the decoder's buffer give the same messages as pushed bytes.
#[test]
fn bytes_may_be_read_into_the_decoders_buffer() {
    let message = Message::Lender(FromLender::Inline { stream: StreamId(1), seq: 0, bytes: 1500, more: false });
    let bytes = wire(&vec![(message.clone(), vec![7; 1500].into()); 200]);
    let mut decoder = Decoder::new(LIMITS);
    let mut found = 0;
    for piece in bytes.chunks(777) {
        decoder.buffer().extend_from_slice(piece);
        while let Some(decoded) = decoder.decode::<Message>().expect("a valid frame") {
            found += usize::from(matches!(decoded, Decoded::Message(got, _) if got == message));
        }
    }
    assert_eq!(found, 200);
}
