//! A driver that breaks the contract hears what it did; its connection ends, and every lease and stream with it.

mod pair;

use bytes::Bytes;
use pair::lender::Plane;
use pair::memory::{DATA, DATA_BASE};
use pair::script::{Batch, Ending, Knobs, Script, descriptor, schema_message};
use pair::{Op, Pair};
use thallus_protocol::client::{ClientCommand, ClientConfig};
use thallus_protocol::message::{Delivery, ExecuteOptions, FabricOffer, Fencing, MAX_SORT_KEYS, Region, SortKey};
use thallus_protocol::server::{Loan, ServerCommand};
use thallus_protocol::{
    ApiMisuse, ClientConnection, ConnectionError, FabricKind, LeaseEnd, LeaseId, ReadId, RegionId, RemoteRange,
    StreamId, Timestamp,
};

/// A stream with one batch on loan and being read, and one that waits for credit.
fn busy(fencing: Fencing) -> Pair {
    let knobs = Knobs {
        fencing,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        instant: false,
        max_streams: 4,
        max_loan_bytes: 1 << 20,
        max_leases: 4,
        max_batch_bytes: 1 << 20,
    };
    let script = Script { batches: vec![Batch::Lent { rows: 8, own_region: false }; 3], ending: Ending::Finish };
    let mut pair = Pair::new(knobs, vec![script]);
    let all = usize::MAX;
    let options = ExecuteOptions { delivery: Delivery::Lent, credit: 700, ..ExecuteOptions::default() };
    let open = [Op::ToServer(all), Op::AnswerServer, Op::ToClient(all), Op::AnswerClient];
    let ask = [Op::Execute { script: 0, options }, Op::ToServer(all)];
    let run = [Op::Engine(0), Op::Engine(0), Op::Engine(0), Op::ToClient(all)];
    for op in open.into_iter().chain(ask).chain(run) {
        pair.apply(op);
    }
    assert_eq!((pair.server.machine.open_leases(), pair.server.leases_held()), (1, 2));
    assert_eq!(pair.client.machine.outstanding_reads(), 1);
    pair
}

const STREAM: StreamId = StreamId(1);

/// Both fencings: the command is refused as `misuse`, poisons the connection, and all leases end.
fn server_refuses(misuse: &ApiMisuse, command: impl Fn(&mut Pair) -> ServerCommand) {
    for fencing in [Fencing::Revocation, Fencing::LeaseWord] {
        let mut pair = busy(fencing);
        let command = command(&mut pair);
        assert_eq!(pair.misuse_server(command).as_ref(), Err(misuse));
        // Poisoned: nothing is executed or lent any more, and what comes is ignored.
        assert_eq!(pair.server.machine.open_streams(), 0);
        assert_eq!(pair.server.ends.get(&LeaseId(2)), Some(&LeaseEnd::Withdrawn));
        assert_eq!(pair.server.ends.get(&LeaseId(1)), None, "while the data plane is open");
        assert_eq!(pair.misuse_server(ServerCommand::Drain), Ok(()));
        let mut leases = pair.server.ends.clone();
        while !pair.server.answer(pair.now, &mut pair.memory) {}
        pair.server(thallus_protocol::server::ServerInput::Time);
        leases.extend(pair.server.ends.clone());
        assert_eq!(leases.get(&LeaseId(1)), Some(&LeaseEnd::TornDown));
        let [server, client] = pair.finish();
        assert_eq!(server, ConnectionError::Misuse(misuse.clone()));
        assert!(matches!(client, ConnectionError::Goodbye { .. }), "{client}");
    }
}

fn client_refuses(misuse: &ApiMisuse, command: ClientCommand) {
    for fencing in [Fencing::Revocation, Fencing::LeaseWord] {
        let mut pair = busy(fencing);
        assert_eq!(pair.misuse_client(command.clone_for_test()).as_ref(), Err(misuse));
        assert!(matches!(&pair.client.apps[&STREAM].over, Some(Err(_))));
        let [_, client] = pair.finish();
        assert_eq!(client, ConnectionError::Misuse(misuse.clone()));
    }
}

/// Commands are not `Clone`, because nobody should say them twice.
trait CloneForTest {
    fn clone_for_test(&self) -> Self;
}

impl CloneForTest for ClientCommand {
    fn clone_for_test(&self) -> Self {
        match self {
            ClientCommand::FabricClosed => ClientCommand::FabricClosed,
            ClientCommand::Cancel { stream } => ClientCommand::Cancel { stream: *stream },
            ClientCommand::Consumed { stream, cost } => ClientCommand::Consumed { stream: *stream, cost: *cost },
            ClientCommand::ReadDone { read, result } => ClientCommand::ReadDone { read: *read, result: result.clone() },
            ClientCommand::WordRead { read, result } => ClientCommand::WordRead { read: *read, result: result.clone() },
            ClientCommand::Execute { stream, sql, options } => {
                ClientCommand::Execute { stream: *stream, sql: sql.clone(), options: options.clone() }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn loan(lease: u64, rows: u64, place: RemoteRange) -> Loan {
    Loan {
        lease: LeaseId(lease),
        descriptor: descriptor(rows),
        places: vec![place; 2],
        staged: 0,
        effort: Default::default(),
    }
}

fn place(region: RegionId) -> RemoteRange {
    RemoteRange { region, address: DATA_BASE, len: 64 }
}

#[test]
fn server_state() {
    let state = |command, state| ApiMisuse::State { command, state };
    server_refuses(&state("fabric-closed", "open"), |_| ServerCommand::FabricClosed);
    server_refuses(&state("fabric-unavailable", "open"), |_| ServerCommand::FabricUnavailable {
        reason: String::new(),
    });
    server_refuses(&state("schema", "the stream runs"), |_| ServerCommand::Schema {
        stream: STREAM,
        schema: schema_message(),
        order: Vec::new(),
    });
}

#[test]
fn server_sort_keys_without_end() {
    let said = ApiMisuse::Encode(format!("{} sort keys, the limit is {MAX_SORT_KEYS}", MAX_SORT_KEYS + 1));
    let key = SortKey { column: 0, descending: false, nulls_first: false };
    server_refuses(&said, |_| ServerCommand::Schema {
        stream: STREAM,
        schema: schema_message(),
        order: vec![key; MAX_SORT_KEYS + 1],
    });
}

#[test]
fn server_unknown_stream() {
    let stream = StreamId(9);
    server_refuses(&ApiMisuse::UnknownStream(stream), |_| ServerCommand::Finish { stream, execute_nanos: 0 });
    server_refuses(&ApiMisuse::UnknownStream(stream), |pair| {
        pair.server.lend(stream, 0, 8, false, &mut pair.memory).pop_back().expect("a loan")
    });
}

#[test]
fn server_lease_reused() {
    server_refuses(&ApiMisuse::LeaseReused(LeaseId(1)), |_| ServerCommand::Lend {
        stream: STREAM,
        loan: loan(1, 8, place(DATA)),
        rows: 8,
    });
}

#[test]
fn server_not_pulled() {
    server_refuses(&ApiMisuse::NotPulled(STREAM), |_| ServerCommand::Inline {
        stream: STREAM,
        ipc: Bytes::new(),
        rows: 0,
    });
    server_refuses(&ApiMisuse::NotPulled(STREAM), |pair| {
        pair.server.lend(STREAM, 2, 8, false, &mut pair.memory).pop_back().expect("a loan")
    });
}

#[test]
fn server_region() {
    server_refuses(&ApiMisuse::Region(DATA), |_| {
        ServerCommand::Announce(Region { id: DATA, base: 0, len: 1, key: Bytes::new() })
    });
    server_refuses(&ApiMisuse::Region(RegionId(77)), |_| ServerCommand::Retire(RegionId(77)));
}

#[test]
fn server_encode() {
    let misuse = ApiMisuse::Encode("a remote key of 4097 bytes, the limit is 4096".into());
    server_refuses(&misuse, |_| {
        ServerCommand::Announce(Region { id: RegionId(5), base: 0, len: 1, key: vec![0; 4097].into() })
    });
}

/// A loan that the client would refuse, and end the connection for, is refused here.
#[test]
fn a_loan_must_be_what_it_says() {
    for (wrong, misuse) in [
        (place(RegionId(77)), ApiMisuse::Region(RegionId(77))),
        (
            RemoteRange { len: 63, ..place(DATA) },
            ApiMisuse::Encode("the places of LeaseId(3) do not match its buffers".into()),
        ),
    ] {
        let mut pair = busy(Fencing::Revocation);
        // The first batch is taken, so that the second goes out and the third is asked for.
        for op in [Op::Read(0), Op::Read(0), Op::Read(0), Op::Take(0), Op::ToServer(usize::MAX)] {
            pair.apply(op);
        }
        let command = pair.server.lend(STREAM, 2, 8, false, &mut pair.memory).pop_back();
        let Some(ServerCommand::Lend { stream, mut loan, rows }) = command else { panic!("a loan") };
        loan.places = vec![wrong; 2];
        assert_eq!(pair.misuse_server(ServerCommand::Lend { stream, loan, rows }), Err(misuse.clone()));
        assert_eq!(pair.server.ends.get(&LeaseId(3)), Some(&LeaseEnd::Withdrawn));
        assert_eq!(pair.finish()[0], ConnectionError::Misuse(misuse));
    }
}

#[test]
fn client_state() {
    let misuse = ApiMisuse::State { command: "fabric-closed", state: "nobody asked for it" };
    client_refuses(&misuse, ClientCommand::FabricClosed);
    // Before the handshake is done.
    let mut pair = busy(Fencing::Revocation);
    let fresh = Pair::new(pair.server.knobs.clone(), pair.server.scripts.clone());
    let old = std::mem::replace(&mut pair, fresh);
    old.finish();
    let execute = ClientCommand::Execute { stream: STREAM, sql: "0".into(), options: ExecuteOptions::default() };
    let misuse = ApiMisuse::State { command: "execute", state: "awaiting the welcome" };
    assert_eq!(pair.misuse_client(execute), Err(misuse.clone()));
    assert_eq!(pair.finish()[1], ConnectionError::Misuse(misuse));
}

/// Reads that were never reported are given up, and the connection closes all the same.
#[test]
fn client_loses_its_reads() {
    let mut pair = busy(Fencing::LeaseWord);
    pair.apply(Op::ClientCloses);
    assert_eq!(pair.client.plane, Plane::Closing);
    assert_eq!(pair.client.forget_reads(), 1);
    let misuse = ApiMisuse::State { command: "fabric-closed", state: "reads are outstanding" };
    assert_eq!(pair.misuse_client(ClientCommand::FabricClosed), Err(misuse));
    assert_eq!(pair.client.closed, Some(ConnectionError::Closed));
    pair.finish();
}

#[test]
fn client_streams_and_reads() {
    let execute = |stream| ClientCommand::Execute { stream, sql: "0".into(), options: ExecuteOptions::default() };
    client_refuses(&ApiMisuse::StreamReused(STREAM), execute(STREAM));
    client_refuses(&ApiMisuse::UnknownStream(StreamId(9)), ClientCommand::Cancel { stream: StreamId(9) });
    let read = ReadId(99);
    client_refuses(&ApiMisuse::UnknownRead(read), ClientCommand::ReadDone { read, result: Ok(()) });
    client_refuses(&ApiMisuse::UnknownRead(ReadId(1)), ClientCommand::WordRead { read: ReadId(1), result: Ok(1) });
    client_refuses(&ApiMisuse::OverConsumed(STREAM), ClientCommand::Consumed { stream: STREAM, cost: 1 });
}

#[test]
fn client_encode() {
    let offer = FabricOffer { kind: FabricKind::SIM, address: vec![0; 1 << 20].into() };
    let config = ClientConfig {
        name: "c".into(),
        fabrics: vec![offer],
        frame: pair::frame(),
        max_batch_bytes: 1,
        max_regions: 1,
        layout: Default::default(),
        inline: Default::default(),
        timeouts: pair::timeouts(),
        first_window: u64::MAX,
        read_timeout: pair::READ_TIMEOUT,
    };
    let refused = ClientConnection::new(config, Timestamp::ZERO);
    assert!(matches!(refused, Err(ApiMisuse::Encode(_))), "{refused:?}");
}
