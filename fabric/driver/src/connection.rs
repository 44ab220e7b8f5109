//! The loop of a connection, the same at both ends: inputs go into the machine, and its outputs are carried out in
//! order.

use std::task::{Context, Poll};

use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask, ReadError};
use thallus_protocol::connection::{Input, Machine, Output};
use thallus_protocol::lender::{LenderCommand, LenderTask};
use thallus_protocol::{ApiMisuse, ConnectionError};
use tokio::task::coop::has_budget_remaining;
use tracing::{error, trace};

use crate::budget::PeerBudget;
use crate::clock::Clock;
use crate::control::{Control, ControlEvent, ControlIo};
use crate::plane::{Plane, PlaneEvent, Proof};

/// One input of a connection.
#[derive(Debug)]
pub enum ConnectionInput {
    /// A deadline has passed.
    Time,
    /// The control connection received bytes, or was lost.
    Control(ControlEvent),
    /// An event of the data plane.
    Plane(PlaneEvent),
}

/// A task that the end (server session or client driver) carries out itself.
#[derive(Debug)]
pub enum EndTask<E> {
    /// A lender's task: request a batch from its source, or stop the source.
    Lender(LenderTask),
    /// An event of a stream, for the application.
    Stream(BorrowerEvent),
    /// An event that only this kind of end has.
    Event(E),
    /// The connection has ended.
    Closed(ConnectionError),
}

/// A machine with its clock, its control connection and its data plane.
#[derive(Debug)]
pub struct Connection<M, S> {
    machine: M,
    clock: Clock,
    control: Control<S>,
    /// The data plane, once it exists.
    pub plane: Option<Plane>,
    /// The name of this end in traces.
    end: &'static str,
    /// The machine's state in the last trace event.
    state: [&'static str; 2],
    /// Inputs since a deadline has passed that the machine has not handled yet.
    overdue: u32,
}

/// Most inputs that are read after a deadline has passed, before the machine learns of it. Reads that fill
/// their 64 KiB empty a socket of 64 MiB, which is more than one holds, unless the peer continues to send. A peer that
/// always sends must not suspend deadlines.
const CATCH_UP: u32 = 1024;

impl<M: Machine, S: ControlIo> Connection<M, S> {
    /// A connection over a connected byte stream. `clock` must be the clock that gave the machine its start time.
    pub fn new(end: &'static str, machine: M, clock: Clock, io: S, budget: PeerBudget) -> Self {
        let state = machine.state_names();
        Connection { machine, clock, control: Control::new(io, budget), plane: None, end, state, overdue: 0 }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// Returns whether the peer reads fast enough that further batches may be requested for it.
    pub fn may_request_batches(&self) -> bool {
        self.control.has_room()
    }

    /// Bytes of memory that the peer makes this connection keep, besides batches on loan.
    pub fn held_bytes(&self) -> u64 {
        self.machine.held_bytes().saturating_add(self.control.unsent_bytes() as u64)
    }

    /// Writes queued bytes, reads the bytes that have arrived, and waits for the next deadline. If a deadline has
    /// passed, the control connection and the data plane are read first: a peer is not silent, and a read not late,
    /// while its bytes or its completion wait in this host.
    pub fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionInput> {
        let due = self.clock.poll(cx).is_ready();
        if !due || self.overdue < CATCH_UP {
            let control = self.control.poll(cx, self.machine.receive_buffer()).map(ConnectionInput::Control);
            let polled = if due && control.is_pending() { self.poll_plane(cx) } else { control };
            self.overdue = if due { self.overdue + 1 } else { 0 };
            if !due || polled.is_ready() {
                return polled;
            }
            if !has_budget_remaining() {
                // A task without budget is told that nothing has arrived.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        self.overdue = 0;
        Poll::Ready(ConnectionInput::Time)
    }

    /// Drives the data plane.
    pub fn poll_plane(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionInput> {
        match &mut self.plane {
            Some(plane) => plane.poll(self.clock.now(), cx).map(ConnectionInput::Plane),
            None => Poll::Pending,
        }
    }

    /// Passes an input to the machine. Returns the result of the proof of the peer's memory, which the end handles
    /// itself.
    pub fn handle(&mut self, happened: ConnectionInput) -> Option<Result<Proof, String>> {
        match happened {
            ConnectionInput::Time => self.input(Input::Time),
            ConnectionInput::Control(ControlEvent::Received) => {
                self.input(Input::Buffered);
                trace!(end = self.end, state = self.state[0], "received");
            }
            ConnectionInput::Control(ControlEvent::Relieved) => self.input(Input::Relieved),
            ConnectionInput::Control(ControlEvent::Disconnected(reason)) => self.input(Input::ControlLost(reason)),
            ConnectionInput::Plane(PlaneEvent::Read(done)) => done.into_iter().for_each(|done| self.borrower(done)),
            ConnectionInput::Plane(PlaneEvent::ProofCompleted(result)) => return Some(result),
            ConnectionInput::Plane(PlaneEvent::Failed(reason)) => self.command(M::fabric_failed(reason)),
            ConnectionInput::Plane(PlaneEvent::Closed) => self.command(M::fabric_closed()),
        }
        None
    }

    /// Passes a command of the end to the machine.
    pub fn command(&mut self, command: M::Command) {
        self.input(Input::Command(command));
    }

    /// Passes a command to the lender's half.
    pub fn lender(&mut self, command: LenderCommand) {
        self.command(M::lender_command(command));
    }

    /// Passes a command to the borrower's half.
    pub fn borrower(&mut self, command: BorrowerCommand) {
        self.command(M::borrower_command(command));
    }

    /// Lets go of the memory that this end has announced to the peer, that no loan uses, and that its owner wants to
    /// free.
    pub fn let_go(&mut self) {
        let regions = self.plane.as_mut().map(Plane::let_go).unwrap_or_default();
        regions.into_iter().for_each(|region| self.lender(LenderCommand::Retire(region)));
    }

    fn input(&mut self, input: Input<'_, M::Command>) {
        let taken = self.machine.handle(self.clock.now(), input);
        self.check(taken);
    }

    fn check(&mut self, taken: Result<(), ApiMisuse>) {
        let state = self.machine.state_names();
        if state != self.state {
            trace!(end = self.end, from = ?self.state, to = ?state, "state");
            self.state = state;
        }
        if let Err(misuse) = taken {
            // This is a bug of the driver. The machine closes this connection; other connections are not affected.
            error!(%misuse, "bug: the protocol's contract was broken");
        }
    }

    /// Carries out the machine's outputs in order, up to the next task that the end carries out itself. `None`: no
    /// output is left.
    pub fn next_task(&mut self) -> Option<EndTask<M::Event>> {
        loop {
            match self.machine.poll_output() {
                Output::Wait(deadline) => {
                    self.clock.arm(deadline.map(|(at, _)| at));
                    return None;
                }
                Output::Transmit(frame) => self.control.send(frame),
                Output::Lender(task) => {
                    if let Some(task) = self.lender_task(task) {
                        return Some(EndTask::Lender(task));
                    }
                }
                Output::Borrower(task) => self.borrower_task(task),
                Output::Stream(event) => return Some(EndTask::Stream(event)),
                Output::Event(event) => return Some(EndTask::Event(event)),
                Output::CloseFabric => match &mut self.plane {
                    Some(plane) => plane.close(),
                    None => self.command(M::fabric_closed()),
                },
                Output::Closed(error) => return Some(EndTask::Closed(error)),
            }
        }
    }

    fn lender_task(&mut self, task: LenderTask) -> Option<LenderTask> {
        let Some(plane) = &mut self.plane else { return Some(task) };
        let mut answers = Vec::new();
        let rest = plane.lender_task(task, |answer| answers.push(answer));
        answers.into_iter().for_each(|answer| self.lender(answer));
        rest
    }

    fn borrower_task(&mut self, task: BorrowerTask) {
        let now = self.clock.now();
        let answer = match (&mut self.plane, task) {
            (Some(plane), task) => plane.borrower_task(now, task),
            (None, BorrowerTask::Read(batch) | BorrowerTask::Map(batch)) => {
                let result = Err(ReadError::failed("there is no data plane"));
                Some(BorrowerCommand::ReadDone { read: batch.read, result })
            }
            (None, _) => None,
        };
        if let Some(answer) = answer {
            self.borrower(answer);
        }
    }

    /// Writes queued bytes, and waits a short time for the peer to close as well.
    pub async fn finish(self) {
        self.control.finish().await;
    }
}
