//! The end of a test: a pair runs until all streams have ended, closes, and has nothing left.

use std::time::Duration;

use thallus_protocol::client::{ClientCommand, ClientInput};
use thallus_protocol::server::ServerInput;
use thallus_protocol::{ConnectionError, StreamId};

use super::script::{Batch, Ending};
use super::{MOMENT, Op, Pair};

impl Pair {
    /// Runs both ends without further faults until `done`. Time passes only when no other step is possible.
    fn settle(&mut self, what: &str, done: impl Fn(&Pair) -> bool) {
        let started = self.now;
        for _ in 0..100_000 {
            if self.anything() {
                continue;
            }
            if done(self) {
                return;
            }
            let wake = [self.server.wake, self.client.wake].into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| panic!("{what}: stuck without a timer: {}", self.state()));
            // A lender without free leases waits until the borrower sends held-back releases.
            let is_soon = wake <= self.now + MOMENT;
            assert!(self.faults || is_soon, "{what}: stuck without a fault: {}", self.state());
            self.now = self.now.max(wake);
            self.server(ServerInput::Time);
            self.client(ClientInput::Time);
            let took = self.now - started;
            assert!(took < Duration::from_secs(120), "{what}: not done after {took:?}: {}", self.state());
        }
        panic!("{what}: too many steps");
    }

    /// Passes the time for which releases are held back.
    fn a_moment_passes(&mut self) {
        self.apply(Op::Advance(MOMENT));
        while self.anything() {}
    }

    fn state(&self) -> String {
        let apps = (&self.client.borrow.apps, &self.server.borrow.apps, &self.client.uploads);
        format!("{apps:#?}\n{:#?}\n{:#?}", self.client.machine, self.server.machine)
    }

    /// Runs until every stream has ended. Returns for each result whether it ended without an error.
    pub(crate) fn streams_end(&mut self) -> Vec<bool> {
        self.settle("streams end", |pair| {
            let answered = pair.client.uploads.values().all(Option::is_some);
            pair.waiting.is_empty() && pair.client.borrow.all_over() && answered
        });
        self.client.borrow.apps.values().map(|app| matches!(app.over, Some(Ok(())))).collect()
    }

    /// Ends all streams, closes both ends and checks that nothing is left. Returns the reasons for which the server and
    /// the client closed.
    pub(crate) fn finish(mut self) -> [ConnectionError; 2] {
        // Waiting requests are sent, or fail if the connection never opens.
        self.streams_end();
        self.a_moment_passes();
        if !self.faults {
            self.all_well();
        }
        self.uploads_agree();
        let connected = [&self.to_server, &self.to_client].iter().all(|pipe| !pipe.discards && !pipe.ended);
        if connected {
            // All bytes have arrived, so an open connection must have nothing left over.
            let streams = [self.client.machine.open_streams(), self.server.machine.open_streams()];
            assert_eq!(streams, [0, 0], "streams are left: {}", self.state());
            let reads = self.client.machine.outstanding_reads() + self.server.borrow.readings();
            let held = self.server.lend.leases_held() + self.client.lend.leases_held();
            assert!(self.memory.blackhole || (reads, held) == (0, 0), "{}", self.state());
        }
        self.faults = true;
        self.client_command(ClientCommand::Close);
        self.settle("both close", |pair| pair.server.closed.is_some() && pair.client.closed.is_some());
        assert_eq!(self.server.lend.leases_held() + self.client.lend.leases_held(), 0);
        assert_eq!(self.client.machine.open_streams(), 0);
        [self.server.closed, self.client.closed].map(|closed| closed.expect("both ends are closed"))
    }

    /// Checks that each successful upload at the client has succeeded at the server with all its batches.
    fn uploads_agree(&self) {
        for (stream, answer) in &self.client.uploads {
            if let Some(Ok(rows)) = answer {
                let app = &self.server.borrow.apps[stream];
                assert_eq!((app.answered, &app.over, *rows), (Some(true), &Some(Ok(())), app.next), "{stream:?}");
            }
        }
    }

    /// Checks that, without faults, streams end as scripted, unless they exceed a limit.
    fn all_well(&self) {
        let knobs = &self.server.knobs;
        let most = knobs.max_loan_bytes.min(knobs.max_batch_bytes);
        let large = |batch: &Batch| batch.bytes(true).max(batch.bytes(false)) > most;
        let refused = self.last_stream > knobs.max_streams;
        let results = self.client.borrow.apps.iter().map(|(id, app)| (id, &app.script, app.over.clone()));
        let of = |stream: &StreamId| self.server.borrow.apps.get(stream).map(|app| &app.script);
        let uploads = self.client.uploads.iter().filter_map(|(id, answer)| {
            let answer = answer.clone().map(|answer| answer.map(drop));
            Some((id, of(id)?, answer))
        });
        for (stream, script, over) in results.chain(uploads) {
            let large = script.batches.iter().any(large);
            match (script.ending, &over) {
                (Ending::Finish, Some(Ok(()))) | (Ending::Fail, Some(Err(_))) => {}
                (_, Some(Err(error))) if large || refused || error.to_string().contains("SQL") => {}
                (_, over) => panic!("{stream:?} ended as {over:?}: {script:?}"),
            }
        }
        assert_eq!((self.server.machine.open_streams(), self.server.machine.open_leases()), (0, 0));
    }
}
