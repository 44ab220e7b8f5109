//! Operations on a pair of machines.

use std::time::Duration;

use thallus_protocol::client::UploadOptions;
use thallus_protocol::message::OpenOptions;

/// One operation. Its numbers choose among the streams, reads or batches that exist when it is applied.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    ToServer(usize),
    ToClient(usize),
    Engine(usize),
    Read(usize),
    Take(usize),
    /// The application reads parts of the buffers of a batch on demand.
    ReadPart(usize, Vec<(usize, u64, u64)>),
    GiveUp(usize),
    AnswerServer,
    AnswerClient,
    Execute {
        script: usize,
        options: OpenOptions,
    },
    Upload {
        script: usize,
        options: UploadOptions,
    },
    /// The server's engine accepts or answers an upload.
    Sink(usize),
    LongSql,
    Ping,
    Advance(Duration),
    // The following operations are faults.
    Cancel(usize),
    /// The server's engine fails an upload.
    Refuse(usize),
    /// The client withdraws an upload.
    Withdraw(usize),
    Reject(usize),
    ReadFails(usize),
    NoMemory(usize),
    Blackhole,
    ServerFabricFails,
    ClientFabricFails,
    /// Bytes are lost, and neither end gets an error.
    Silence {
        to_server: bool,
        to_client: bool,
    },
    /// The connection breaks. Bytes in flight may be lost, and each end notices the cut at its own time.
    Cut {
        lose: bool,
    },
    ServerNoticesCut,
    ClientNoticesCut,
    Drain,
    ServerCloses,
    ClientCloses,
}

impl Op {
    /// Whether streams may end with an error after this operation.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(
            self,
            Op::ToServer(_)
                | Op::ToClient(_)
                | Op::Engine(_)
                | Op::Read(_)
                | Op::Take(_)
                | Op::ReadPart(..)
                | Op::GiveUp(_)
                | Op::AnswerServer
                | Op::AnswerClient
                | Op::Execute { .. }
                | Op::Upload { .. }
                | Op::Sink(_)
                | Op::Ping
                | Op::LongSql
        )
    }
}

/// The operations at the beginning of most connections.
pub(crate) fn open() -> Vec<Op> {
    let all = usize::MAX;
    let handshake = [Op::ToServer(all), Op::AnswerServer, Op::ToClient(all), Op::AnswerClient, Op::ToServer(all)];
    handshake.into_iter().chain([Op::AnswerServer, Op::ToClient(all)]).collect()
}
