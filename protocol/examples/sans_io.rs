//! Both ends of a connection in one loop, without a socket, a clock or a thread. It shows the order in which a driver
//! calls a machine.
//!
//! There is no data plane here, so batches travel inline. With a data plane the same rule holds: the lender's driver
//! answers `OpenLease` and `EndLease`; the borrower's driver posts the reads of `Read` and reports them by `ReadDone`.

use std::time::Duration;

use arrow_array::{Int64Array, RecordBatch};
use bytes::Bytes;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, Payload};
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientEvent, ClientOutput};
use thallus_protocol::connection::{Input, Machine, Output};
use thallus_protocol::inline::{InlineDecoder, InlineEncoder, InlineLimits};
use thallus_protocol::lender::{LenderCommand, LenderTask};
use thallus_protocol::message::{LendFrom, OpenOptions, Request, ServerLimits, Thresholds};
use thallus_protocol::server::{ServerCommand, ServerConfig, ServerEvent, ServerOutput};
use thallus_protocol::{ApiMisuse, ClientConnection, ServerConnection, StreamId, Timestamp};

/// The whole contract. After every input: take outputs until `Wait`, and carry out each before anything else. A command
/// answers the request of an output, immediately or later. Returns the time at which `Input::Time` is due.
fn run<M: Machine>(
    machine: &mut M,
    (now, input): (Timestamp, Input<'_, M::Command>),
    wire: &mut Vec<u8>,
    mut act: impl FnMut(Output<M::Event>) -> Option<M::Command>,
) -> Result<Option<Timestamp>, ApiMisuse> {
    machine.handle(now, input)?;
    loop {
        match machine.poll_output() {
            Output::Wait(due) => return Ok(due.map(|(at, _why)| at)),
            // A frame's parts go out in order, after all that went out before.
            Output::Transmit(frame) => wire.extend(frame.head.iter().chain(&frame.payload)),
            output => {
                if let Some(command) = act(output) {
                    machine.handle(now, Input::Command(command))?;
                }
            }
        }
    }
}

/// The server's application: every query has the same few batches. The machine pulls them, so none waits in memory.
fn serve(
    output: ServerOutput,
    left: &mut Vec<RecordBatch>,
    encoder: &mut InlineEncoder,
    schema: &Bytes,
) -> Option<ServerCommand> {
    let command = match output {
        ServerOutput::Event(ServerEvent::Query { stream, sql, .. }) => {
            println!("server: query {sql:?}");
            LenderCommand::Schema { stream, schema: schema.clone(), order: Vec::new() }
        }
        ServerOutput::Lender(LenderTask::Pull { stream, .. }) => match left.pop() {
            Some(batch) => {
                let ipc = encoder.encode(&batch).expect("a batch of the schema").into();
                LenderCommand::Inline { stream, ipc, rows: batch.num_rows() as u64 }
            }
            None => LenderCommand::Finish { stream, execute_nanos: 0 },
        },
        ServerOutput::Closed(reason) => {
            println!("server: {reason}");
            return None;
        }
        _ => return None,
    };
    Some(ServerCommand::Lender(command))
}

/// The client's application: it queries once the connection stands, and gives credit back for what it has taken.
fn consume(output: ClientOutput, decoder: &mut Option<InlineDecoder>, rows: &mut usize) -> Option<ClientCommand> {
    match output {
        // No fabric was offered: the connection is open, inline.
        ClientOutput::Event(ClientEvent::FabricDown { .. }) => {
            let options = OpenOptions { lend_from: LendFrom::Never, credit: 1 << 20, ..OpenOptions::default() };
            Some(ClientCommand::Open { stream: StreamId(1), request: Request::Sql("numbers".into()), options })
        }
        ClientOutput::Stream(BorrowerEvent::Schema { plan, .. }) => {
            *decoder = Some(InlineDecoder::of(plan, InlineLimits::default()));
            None
        }
        ClientOutput::Stream(BorrowerEvent::Batch { stream, cost, payload: Payload::Inline(ipc), .. }) => {
            let batch =
                decoder.as_mut().expect("a schema comes first").decode(ipc).expect("a batch that was encoded here");
            *rows += batch.num_rows();
            Some(ClientCommand::Borrower(BorrowerCommand::Consumed { stream, cost }))
        }
        ClientOutput::Stream(BorrowerEvent::End { .. }) => Some(ClientCommand::Ping),
        ClientOutput::Event(ClientEvent::Pong) => Some(ClientCommand::Close),
        ClientOutput::Closed(reason) => {
            println!("client: {reason}");
            None
        }
        _ => None,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let batch = RecordBatch::try_from_iter([("n", std::sync::Arc::new(Int64Array::from_iter_values(0..1000)) as _)])?;
    let (mut encoder, schema) = InlineEncoder::new(&batch.schema())?;
    let (schema, mut left) = (Bytes::from(schema), vec![batch; 3]);
    let (mut decoder, mut rows) = (None, 0);

    // Time is whatever the driver says. Here it only moves when nothing else does.
    let mut now = Timestamp::ZERO;
    let mut client = ClientConnection::new(client_config(), now)?;
    let mut server = ServerConnection::new(server_config(), now);
    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let mut due = [None; 2];
    while client.state_names()[0] != "closed" || server.state_names()[0] != "closed" {
        let quiet = to_client.is_empty() && to_server.is_empty();
        if quiet && due.iter().any(Option::is_some) {
            now = due.iter().flatten().min().copied().unwrap_or(now);
        }
        let received = std::mem::take(&mut to_client);
        let input = if received.is_empty() { Input::Time } else { Input::Received(&received) };
        due[0] = run(&mut client, (now, input), &mut to_server, |output| consume(output, &mut decoder, &mut rows))?;
        let received = std::mem::take(&mut to_server);
        let input = if received.is_empty() { Input::Time } else { Input::Received(&received) };
        due[1] =
            run(&mut server, (now, input), &mut to_client, |output| serve(output, &mut left, &mut encoder, &schema))?;
    }
    println!("{rows} rows");
    assert_eq!(rows, 3000);
    Ok(())
}

const TIMEOUT: Duration = Duration::from_secs(30);

fn client_config() -> ClientConfig {
    ClientConfig {
        name: "client".into(),
        fabrics: Vec::new(),
        frame: Default::default(),
        checksum: true,
        first_window: 1 << 20,
        borrow: ServerConfig::borrower_config(1 << 20, TIMEOUT),
        timeouts: Default::default(),
        max_loan_bytes: 1 << 20,
        max_leases: 8,
        word_nonce: 1,
        lease_timeout: TIMEOUT,
        thresholds: Thresholds::uniform(0),
    }
}

fn server_config() -> ServerConfig {
    ServerConfig {
        name: "server".into(),
        fabrics: Vec::new(),
        no_fabric_reason: "there is none in this example".into(),
        vendor: thallus_protocol::message::Vendor::default(),
        limits: ServerLimits { max_streams: 1, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 10 },
        frame: Default::default(),
        checksum: true,
        thresholds: Thresholds::uniform(0),
        max_leases: 8,
        word_nonce: 2,
        timeouts: Default::default(),
        lease_timeout: TIMEOUT,
        drain_timeout: TIMEOUT,
        borrow: ServerConfig::borrower_config(1 << 20, TIMEOUT),
    }
}
