//! The loop of a connection, the same at both ends: what happens goes into the machine, and what it wants done is done
//! in order.

use std::task::{Context, Poll};

use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask, ReadProblem};
use thallus_protocol::connection::{Input, Machine, Output};
use thallus_protocol::lender::{LenderCommand, LenderTask};
use thallus_protocol::{ApiMisuse, ConnectionError};
use tracing::{error, trace};

use crate::clock::Clock;
use crate::control::{Control, ControlEvent, ControlIo};
use crate::plane::{Plane, PlaneEvent, Proof};

/// One thing that happened to a connection.
#[derive(Debug)]
pub enum Happened {
    /// A deadline has passed.
    Time,
    /// Something came on the control connection, or it was lost.
    Control(ControlEvent),
    /// The data plane reports something.
    Plane(PlaneEvent),
}

/// What an end has to do itself.
#[derive(Debug)]
pub enum EndTask<E> {
    /// A lender's task: to ask a source for a batch, or to stop it.
    Lender(LenderTask),
    /// Tell the application of a stream.
    Stream(BorrowerEvent),
    /// For this end alone.
    Event(E),
    /// The connection is over.
    Closed(ConnectionError),
}

/// A machine with its clock, its control connection and its data plane.
#[derive(Debug)]
pub struct Connection<M, S> {
    machine: M,
    clock: Clock,
    control: Control<S>,
    /// Once there is one.
    pub plane: Option<Plane>,
    /// Which end it is, for traces.
    end: &'static str,
    /// The machine's state, as it was traced last.
    state: [&'static str; 2],
}

impl<M: Machine, S: ControlIo> Connection<M, S> {
    /// Over a connected byte stream; the clock is the one that the machine was made by.
    pub fn new(end: &'static str, machine: M, clock: Clock, io: S) -> Self {
        let state = machine.state_names();
        Connection { machine, clock, control: Control::new(io), plane: None, end, state }
    }

    /// The machine.
    pub fn machine(&self) -> &M {
        &self.machine
    }

    /// The connection's time.
    pub fn now(&self) -> thallus_protocol::Timestamp {
        self.clock.now()
    }

    /// Bytes queued for the peer and not written yet.
    pub fn backlog(&self) -> usize {
        self.control.backlog()
    }

    /// Writes what is queued, and takes in what has come.
    pub fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        self.control.poll(cx, self.machine.receive_buffer()).map(Happened::Control)
    }

    /// Drives the data plane.
    pub fn poll_plane(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        match &mut self.plane {
            Some(plane) => plane.poll(self.clock.now(), cx).map(Happened::Plane),
            None => Poll::Pending,
        }
    }

    /// Waits for the next deadline.
    pub fn poll_clock(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        self.clock.poll(cx).map(|()| Happened::Time)
    }

    /// Takes in what happened. What came of the proof of the peer's memory is for the end to judge.
    pub fn handle(&mut self, happened: Happened) -> Option<Result<Proof, String>> {
        match happened {
            Happened::Time => self.input(Input::Time),
            Happened::Control(ControlEvent::Received) => self.input(Input::Buffered),
            Happened::Control(ControlEvent::Lost(reason)) => self.input(Input::ControlLost(reason)),
            Happened::Plane(PlaneEvent::Read(done)) => done.into_iter().for_each(|done| self.borrower(done)),
            Happened::Plane(PlaneEvent::Proven(result)) => return Some(result),
            Happened::Plane(PlaneEvent::Failed(reason)) => self.command(M::fabric_failed(reason)),
            Happened::Plane(PlaneEvent::Closed) => self.command(M::fabric_closed()),
        }
        None
    }

    /// The end reports or asks something.
    pub fn command(&mut self, command: M::Command) {
        self.input(Input::Command(command));
    }

    /// Something for the lender's half.
    pub fn lender(&mut self, command: LenderCommand) {
        self.command(M::lender_command(command));
    }

    /// Something for the borrower's half.
    pub fn borrower(&mut self, command: BorrowerCommand) {
        self.command(M::borrower_command(command));
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
            // A bug of the driver. The machine tears the connection down, and no other connection suffers.
            error!(%misuse, "bug: the protocol's contract was broken");
        }
    }

    /// Does what the machine wants done, in order, up to the next thing that the end has to do itself. `None`: that was
    /// all for now.
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
                let result = Err(ReadProblem::failed("there is no data plane"));
                Some(BorrowerCommand::ReadDone { read: batch.read, result })
            }
            (None, _) => None,
        };
        if let Some(answer) = answer {
            self.borrower(answer);
        }
    }

    /// Writes what is queued, and waits a moment for the peer to close, too.
    pub async fn finish(self) {
        self.control.finish().await;
    }
}
