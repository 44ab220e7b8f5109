//! A driver that breaks the contract gets a typed error, and its connection ends with all leases and streams.

mod pair;

use bytes::Bytes;
use pair::end::Plane;
use pair::memory::{DATA, DATA_BASE};
use pair::script::{Batch, Ending, Knobs, Script, descriptor, schema_message};
use pair::{Op, Pair};
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::{ClientCommand, UploadOptions};
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan};
use thallus_protocol::message::{FabricOffer, Fencing, LendFrom, MAX_SORT_KEYS, OpenOptions, Region, Request, SortKey};
use thallus_protocol::server::{ServerCommand, ServerInput, ServerOutput};
use thallus_protocol::{
    ApiMisuse, ClientConnection, ConnectionError, FabricKind, LeaseEnd, LeaseId, ReadId, RegionId, RemoteRange,
    StreamId, Timestamp,
};

/// A stream with one batch that is being read, and one batch that waits for credit.
fn busy(fencing: Fencing) -> Pair {
    let knobs = Knobs {
        fencing,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        client_lends: true,
        instant: false,
        max_streams: 4,
        max_loan_bytes: 1 << 20,
        max_leases: 4,
        max_batch_bytes: 1 << 20,
    };
    let script = Script { batches: vec![Batch::Lent { rows: 8, own_region: false }; 3], ending: Ending::Finish };
    let mut pair = Pair::new(knobs, vec![script]);
    let all = usize::MAX;
    let options = OpenOptions { lend_from: LendFrom::Bytes(0), credit: 700, ..OpenOptions::default() };
    let open = [Op::ToServer(all), Op::AnswerServer, Op::ToClient(all), Op::AnswerClient];
    let request = [Op::Execute { script: 0, options }, Op::ToServer(all)];
    // The reverse path is not proven yet, so there are no other tasks.
    let run = [Op::Engine(0), Op::Engine(0), Op::Engine(0), Op::ToClient(all)];
    for op in open.into_iter().chain(request).chain(run) {
        pair.apply(op);
    }
    assert_eq!((pair.server.machine.open_leases(), pair.server.lend.leases_held()), (1, 2));
    assert_eq!(pair.client.machine.outstanding_reads(), 1);
    pair
}

const STREAM: StreamId = StreamId(1);

/// With both fencings the machine refuses the command as `misuse`, closes the connection and ends all leases.
fn lender_refuses(misuse: &ApiMisuse, command: impl Fn(&mut Pair) -> LenderCommand) {
    server_refuses(misuse, |pair| ServerCommand::Lender(command(pair)));
}

fn server_refuses(misuse: &ApiMisuse, command: impl Fn(&mut Pair) -> ServerCommand) {
    for fencing in [Fencing::Revocation, Fencing::LeaseWord] {
        let mut pair = busy(fencing);
        let command = command(&mut pair);
        assert_eq!(pair.misuse_server(command).as_ref(), Err(misuse));
        // The connection lends nothing more and ignores all further commands.
        assert_eq!(pair.server.machine.open_streams(), 0);
        assert_eq!(pair.server.lend.ends.get(&LeaseId(2)), Some(&LeaseEnd::Withdrawn));
        assert_eq!(pair.server.lend.ends.get(&LeaseId(1)), None, "the lease stands while the data plane is open");
        assert_eq!(pair.misuse_server(ServerCommand::Drain), Ok(()));
        let mut leases = pair.server.lend.ends.clone();
        pair.apply(Op::AnswerServer);
        leases.extend(pair.server.lend.ends.clone());
        assert_eq!(leases.get(&LeaseId(1)), Some(&LeaseEnd::TornDown));
        let [server, client] = pair.finish();
        assert_eq!(server, ConnectionError::Misuse(misuse.clone()));
        assert!(matches!(client, ConnectionError::Goodbye { .. }), "{client}");
    }
}

fn client_refuses(misuse: &ApiMisuse, command: impl Fn() -> ClientCommand) {
    for fencing in [Fencing::Revocation, Fencing::LeaseWord] {
        let mut pair = busy(fencing);
        assert_eq!(pair.misuse_client(command()).as_ref(), Err(misuse));
        assert!(matches!(&pair.client.borrow.apps[&STREAM].over, Some(Err(_))));
        let [_, client] = pair.finish();
        assert_eq!(client, ConnectionError::Misuse(misuse.clone()));
    }
}

fn loan(lease: u64, rows: u64) -> Loan {
    Loan { lease: LeaseId(lease), descriptor: descriptor(rows), staged: 0, effort: Default::default() }
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
    lender_refuses(&state("schema", "the stream runs"), |_| LenderCommand::Schema {
        stream: STREAM,
        schema: schema_message(),
        order: Vec::new(),
    });
}

#[test]
fn server_too_many_sort_keys() {
    let misuse = ApiMisuse::Encode(format!("{} sort keys, the limit is {MAX_SORT_KEYS}", MAX_SORT_KEYS + 1));
    let key = SortKey { column: 0, descending: false, nulls_first: false };
    lender_refuses(&misuse, |_| LenderCommand::Schema {
        stream: STREAM,
        schema: schema_message(),
        order: vec![key; MAX_SORT_KEYS + 1],
    });
}

#[test]
fn server_unknown_stream() {
    let stream = StreamId(9);
    lender_refuses(&ApiMisuse::UnknownStream(stream), |_| LenderCommand::Finish { stream, execute_nanos: 0 });
    lender_refuses(&ApiMisuse::UnknownStream(stream), |pair| {
        pair.server.lend.lend(stream, 0, 8, false, &mut pair.memory).pop_back().expect("a loan")
    });
    server_refuses(&ApiMisuse::UnknownStream(stream), |_| ServerCommand::Answer { stream, result: Ok(1) });
}

#[test]
fn server_lease_reused() {
    lender_refuses(&ApiMisuse::LeaseReused(LeaseId(1)), |_| LenderCommand::Lend {
        stream: STREAM,
        loan: loan(1, 8),
        rows: 8,
    });
}

#[test]
fn server_not_pulled() {
    lender_refuses(&ApiMisuse::NotPulled(STREAM), |_| LenderCommand::Inline {
        stream: STREAM,
        ipc: Bytes::new(),
        rows: 0,
    });
    lender_refuses(&ApiMisuse::NotPulled(STREAM), |pair| {
        pair.server.lend.lend(STREAM, 2, 8, false, &mut pair.memory).pop_back().expect("a loan")
    });
}

fn announces(lease: u64, region: Region) -> LenderCommand {
    LenderCommand::Exposed { lease: LeaseId(lease), announce: vec![region], places: Vec::new() }
}

#[test]
fn server_region() {
    let region = |id| Region { id, base: 0, len: 1, key: Bytes::new() };
    lender_refuses(&ApiMisuse::Region(DATA), |_| announces(9, region(DATA)));
    lender_refuses(&ApiMisuse::Region(RegionId(77)), |_| LenderCommand::Retire(RegionId(77)));
}

#[test]
fn server_encode() {
    let misuse = ApiMisuse::Encode("a remote key of 4097 bytes, the limit is 4096".into());
    lender_refuses(&misuse, |_| announces(9, Region { id: RegionId(5), base: 0, len: 1, key: vec![0; 4097].into() }));
}

/// An upload is complete only after its end has arrived.
#[test]
fn an_upload_that_has_not_ended_is_not_taken() {
    let mut pair = busy(Fencing::LeaseWord);
    pair.apply(Op::Upload { script: 0, options: UploadOptions::default() });
    pair.apply(Op::ToServer(usize::MAX));
    let misuse = ApiMisuse::State { command: "answer", state: "the upload has not ended" };
    let answer = ServerCommand::Answer { stream: StreamId(2), result: Ok(1) };
    assert_eq!(pair.misuse_server(answer), Err(misuse.clone()));
    assert_eq!(pair.finish()[0], ConnectionError::Misuse(misuse));
}

/// The server refuses a loan for which the client would close the connection.
#[test]
fn a_loan_with_wrong_places_is_refused() {
    for (wrong, misuse) in [
        (place(RegionId(77)), ApiMisuse::Region(RegionId(77))),
        (
            RemoteRange { len: 63, ..place(DATA) },
            ApiMisuse::Encode("the places of LeaseId(2) do not match its buffers".into()),
        ),
    ] {
        let mut pair = busy(Fencing::Revocation);
        pair.server.lend.twist = Some(wrong);
        // The client consumes the first batch, so that the server may announce the second.
        for op in [Op::Read(0), Op::Read(0), Op::Read(0), Op::Take(0)] {
            pair.apply(op);
        }
        let bytes = pair.to_server.take(usize::MAX);
        pair.server.machine.handle(pair.now, ServerInput::Received(&bytes)).expect("bytes are no misuse");
        let opened = loop {
            match pair.server.machine.poll_output() {
                ServerOutput::Lender(task @ LenderTask::OpenLease { .. }) => break task,
                ServerOutput::Lender(task) => drop(pair.server.lend.task(task, Plane::Open, &[], &mut pair.memory)),
                ServerOutput::Wait(_) => panic!("the second batch is not announced"),
                _ => {}
            }
        };
        let exposed = pair.server.lend.task(opened, Plane::Open, &[], &mut pair.memory).remove(0);
        assert_eq!(pair.misuse_server(ServerCommand::Lender(exposed)), Err(misuse.clone()));
        assert_eq!(pair.server.lend.ends.get(&LeaseId(2)), Some(&LeaseEnd::Withdrawn));
        assert_eq!(pair.finish()[0], ConnectionError::Misuse(misuse));
    }
}

#[test]
fn client_state() {
    let misuse = ApiMisuse::State { command: "fabric-closed", state: "no close is pending" };
    client_refuses(&misuse, || ClientCommand::FabricClosed);
    // Before the handshake is done.
    let mut pair = busy(Fencing::Revocation);
    let fresh = Pair::new(pair.server.knobs.clone(), pair.server.scripts.clone());
    let old = std::mem::replace(&mut pair, fresh);
    old.finish();
    let execute = ClientCommand::query(STREAM, "0", OpenOptions::default());
    let misuse = ApiMisuse::State { command: "open", state: "awaiting the welcome" };
    assert_eq!(pair.misuse_client(execute), Err(misuse.clone()));
    assert_eq!(pair.finish()[1], ConnectionError::Misuse(misuse));
}

/// The machine gives up reads whose completion was never reported, and closes the connection.
#[test]
fn client_loses_its_reads() {
    let mut pair = busy(Fencing::LeaseWord);
    pair.apply(Op::ClientCloses);
    assert_eq!(pair.client.plane, Plane::Closing);
    pair.client.plane = Plane::Closed;
    assert_eq!(pair.client.borrow.forget_reads(), 1);
    let misuse = ApiMisuse::State { command: "fabric-closed", state: "reads are outstanding" };
    assert_eq!(pair.misuse_client(ClientCommand::FabricClosed), Err(misuse));
    assert_eq!(pair.client.closed, Some(ConnectionError::Closed));
    pair.finish();
}

#[test]
fn client_streams_and_reads() {
    let execute = |stream| ClientCommand::query(stream, "0", OpenOptions::default());
    let borrower = ClientCommand::Borrower;
    client_refuses(&ApiMisuse::StreamReused(STREAM), || execute(STREAM));
    client_refuses(&ApiMisuse::UnknownStream(StreamId(9)), || {
        borrower(BorrowerCommand::Cancel { stream: StreamId(9) })
    });
    let stream = StreamId(9);
    client_refuses(&ApiMisuse::UnknownStream(stream), || ClientCommand::Withdraw { stream });
    let read = ReadId(99);
    client_refuses(&ApiMisuse::UnknownRead(read), || borrower(BorrowerCommand::ReadDone { read, result: Ok(None) }));
    client_refuses(&ApiMisuse::OverConsumed(STREAM), || {
        borrower(BorrowerCommand::Consumed { stream: STREAM, cost: 1 })
    });
    let upload = Request::Upload("t".into());
    let misuse = ApiMisuse::State { command: "open", state: "the request is an upload" };
    client_refuses(&misuse, || ClientCommand::Open {
        stream: StreamId(2),
        request: upload.clone(),
        options: OpenOptions::default(),
    });
}

#[test]
fn client_encode() {
    let offer = FabricOffer { kind: FabricKind::SIM, address: vec![0; 1 << 20].into() };
    let mut config = pair::end::client_config(&pair::script::plain());
    config.fabrics = vec![offer];
    let refused = ClientConnection::new(config, Timestamp::ZERO);
    assert!(matches!(refused, Err(ApiMisuse::Encode(_))), "{refused:?}");
}
