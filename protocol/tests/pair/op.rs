//! What can happen to a pair of machines.

use std::time::Duration;

use thallus_protocol::client::UploadOptions;
use thallus_protocol::message::OpenOptions;

/// One thing that happens. Numbers pick among what there is, whatever that is then.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    ToServer(usize),
    ToClient(usize),
    Engine(usize),
    Read(usize),
    Take(usize),
    /// A lazy batch is asked for parts of its buffers.
    Ask(usize, Vec<(usize, u64, u64)>),
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
    /// The engine at the server does something for an upload.
    Sink(usize),
    LongSql,
    Ping,
    Advance(Duration),
    // From here on: whatever disturbs.
    Cancel(usize),
    /// The engine at the server fails an upload.
    Refuse(usize),
    /// The client does not want an upload any more.
    Withdraw(usize),
    Reject(usize),
    ReadFails(usize),
    NoMemory(usize),
    Blackhole,
    ServerFabricFails,
    ClientFabricFails,
    /// Bytes vanish, and nobody is told.
    Silence {
        to_server: bool,
        to_client: bool,
    },
    /// The connection breaks: what is under way arrives or not, and each end hears of it when it does.
    Cut {
        lose: bool,
    },
    ServerHearsCut,
    ClientHearsCut,
    Drain,
    ServerCloses,
    ClientCloses,
}

impl Op {
    /// Whether what follows must still end well.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(
            self,
            Op::ToServer(_)
                | Op::ToClient(_)
                | Op::Engine(_)
                | Op::Read(_)
                | Op::Take(_)
                | Op::Ask(..)
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

/// As most connections begin, so that operations are not spent on it.
pub(crate) fn open() -> Vec<Op> {
    let all = usize::MAX;
    let handshake = [Op::ToServer(all), Op::AnswerServer, Op::ToClient(all), Op::AnswerClient, Op::ToServer(all)];
    handshake.into_iter().chain([Op::AnswerServer, Op::ToClient(all)]).collect()
}
