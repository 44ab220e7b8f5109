//! The steps of a pair: each moves bytes, a source, a read or an application of one end.

use thallus_protocol::StreamId;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::ClientInput;
use thallus_protocol::message::Failure;
use thallus_protocol::server::{ServerCommand, ServerInput};

use super::end::Memories;
use super::script::FAILURE;
use super::{At, Pair};

impl Pair {
    pub(super) fn deliver_to_server(&mut self, most: usize, tell: bool) -> bool {
        let bytes = self.to_server.take(most);
        if !bytes.is_empty() && !self.to_server.end_reported {
            self.server(ServerInput::Received(&bytes));
        }
        if tell
            && self.to_server.bytes.is_empty()
            && self.to_server.ended
            && !std::mem::replace(&mut self.to_server.end_reported, true)
        {
            self.server(ServerInput::ControlLost("end of file".into()));
            return true;
        }
        !bytes.is_empty()
    }

    pub(super) fn deliver_to_client(&mut self, most: usize, tell: bool) -> bool {
        let bytes = self.to_client.take(most);
        if !bytes.is_empty() && !self.to_client.end_reported {
            self.client(ClientInput::Received(&bytes));
        }
        if tell
            && self.to_client.bytes.is_empty()
            && self.to_client.ended
            && !std::mem::replace(&mut self.to_client.end_reported, true)
        {
            self.client(ClientInput::ControlLost("end of file".into()));
            return true;
        }
        !bytes.is_empty()
    }

    /// Does a step of the `k`th source of batches of both ends.
    pub(super) fn engine(&mut self, k: usize) -> bool {
        let at = |at: At| move |stream| (at, stream);
        let able: Vec<_> = self.server.lend.able().into_iter().map(at(At::Server)).collect();
        let able: Vec<_> = able.into_iter().chain(self.client.lend.able().into_iter().map(at(At::Client))).collect();
        let Some(&(at, stream)) = able.get(k % able.len().max(1)) else { return false };
        let commands = match at {
            At::Server => self.server.lend.step(stream, &mut self.memory),
            At::Client => self.client.lend.step(stream, &mut self.client_memory),
        };
        for command in commands.unwrap_or_default() {
            self.lender_command(at, command);
        }
        true
    }

    /// Advances the `k`th read of both ends.
    pub(super) fn read(&mut self, k: usize, fail: bool) -> bool {
        let (ours, theirs) = (self.client.borrow.readings(), self.server.borrow.readings());
        if ours + theirs == 0 {
            return false;
        }
        let k = k % (ours + theirs);
        let at = if k < ours { At::Client } else { At::Server };
        let (memory, broken) = match at {
            At::Client => (&self.memory, self.client.broken),
            At::Server => (&self.client_memory, self.server.broken),
        };
        if memory.blackhole {
            return false;
        }
        let refused = fail || broken || memory.refuses;
        let completed = match at {
            At::Client => self.client.borrow.step(k, refused, memory),
            At::Server => self.server.borrow.step(k - ours, refused, memory),
        };
        if let Some((read, result)) = completed {
            self.borrower_command(at, BorrowerCommand::ReadDone { read, result });
        }
        true
    }

    pub(super) fn no_memory(&mut self, k: usize) {
        for at in [At::Client, At::Server] {
            let borrow = if at == At::Client { &mut self.client.borrow } else { &mut self.server.borrow };
            if let Some((read, result)) = borrow.no_memory(k) {
                return self.borrower_command(at, BorrowerCommand::ReadDone { read, result });
            }
        }
    }

    /// Consumes a batch in the `k`th application of both ends.
    pub(super) fn take(&mut self, k: usize) -> bool {
        let mut full = Vec::new();
        for (at, borrow) in [(At::Client, &self.client.borrow), (At::Server, &self.server.borrow)] {
            full.extend(borrow.apps.iter().filter(|(_, app)| !app.untaken.is_empty()).map(|(id, _)| (at, *id)));
        }
        let Some(&(at, stream)) = full.get(k % full.len().max(1)) else { return false };
        let borrow = if at == At::Client { &mut self.client.borrow } else { &mut self.server.borrow };
        let cost = borrow.apps.get_mut(&stream).and_then(|app| app.untaken.pop_front());
        if let Some(cost) = cost {
            self.borrower_command(at, BorrowerCommand::Consumed { stream, cost });
        }
        true
    }

    /// The server's engine accepts or answers the `k`th upload.
    pub(super) fn sink(&mut self, k: usize) -> bool {
        let Some(command) = self.server.sink(k) else { return false };
        self.server_command(command);
        true
    }

    /// The server's engine fails the `k`th upload.
    pub(super) fn refuse(&mut self, k: usize) {
        let open = self.server.borrow.apps.iter().filter(|(_, app)| app.answered.is_none() && !app.withdrawn);
        let open: Vec<_> = open.map(|(id, _)| *id).collect();
        let Some(&stream) = open.get(k % open.len().max(1)) else { return };
        if let Some(app) = self.server.borrow.apps.get_mut(&stream) {
            app.answered = Some(false);
        }
        let result = Err(Failure::new(FAILURE, "the table is full"));
        self.server_command(ServerCommand::Answer { stream, result });
    }

    pub(super) fn give_up(&mut self, batch: (StreamId, u64)) {
        let command = self.client.borrow.giving_up(batch, &self.memory);
        self.borrower_command(At::Client, command);
        self.client.borrow.given_up(batch);
        self.client.borrow.check_held(self.client.machine.borrower());
    }

    fn lazy_step(&mut self) -> bool {
        match self.client.borrow.lazy_step() {
            Some(Ok(command)) => self.borrower_command(At::Client, command),
            Some(Err(batch)) => self.give_up(batch),
            None => return false,
        }
        true
    }

    pub(super) fn answer_server(&mut self) -> bool {
        let mut memories = Memories { mine: &mut self.memory, theirs: &self.client_memory };
        let answered = self.server.answer(self.now, &mut memories);
        self.server(ServerInput::Time);
        answered
    }

    pub(super) fn answer_client(&mut self) -> bool {
        let mut memories = Memories { mine: &mut self.client_memory, theirs: &self.memory };
        let answered = self.client.answer(self.now, &mut memories);
        self.client(ClientInput::Time);
        answered
    }

    /// Does every step that needs no time to pass. Returns whether there was any.
    pub(super) fn anything(&mut self) -> bool {
        self.execute_waiting();
        let moved = [
            self.deliver_to_server(usize::MAX, true),
            self.deliver_to_client(usize::MAX, true),
            self.answer_server(),
            self.answer_client(),
            self.engine(0),
            self.read(0, false),
            self.take(0),
            self.lazy_step(),
            self.sink(0),
        ];
        moved.contains(&true)
    }

    pub(super) fn reject(&mut self, k: usize) {
        let mut taken = Vec::new();
        for (at, borrow) in [(At::Client, &self.client.borrow), (At::Server, &self.server.borrow)] {
            taken.extend(borrow.apps.iter().filter(|(_, app)| app.next > 0).map(|(id, app)| (at, *id, app.next - 1)));
        }
        if let Some((at, stream, seq)) = taken.get(k % taken.len().max(1)).copied() {
            self.borrower_command(at, BorrowerCommand::Rejected { stream, seq, reason: "it is not UTF-8".into() });
        }
    }
}
