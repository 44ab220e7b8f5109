//! A client's application. It makes requests, reads, cancels and drops results, and compares them with the scripts.

mod lazy;
mod plan;
mod session;
mod uploads;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow_array::RecordBatch;
use futures::StreamExt;
use futures::future::{join, join_all};
use thallus_client::{Access, Client, ClientError, ConnectOptions, LendFrom, QueryOptions, ResultStream, StreamCode};
use thallus_fabric::observe::SharedObserver;
use thallus_fabric::{Fabric, Fencing};
use thallus_protocol::message::ProcessId;
use tokio::time::{sleep, timeout};
use turmoil::net::TcpStream;

use self::plan::{PartialReads, Plan, Question};
use crate::connection_ends::Side;
use crate::dice::Dice;
use crate::options::Options;
use crate::scripts::{ENDLESS, Ending, PARTITIONS, sql, sql_of_parts};
use crate::shared::{PORT, Shared};
use crate::statements;
use crate::tap::Tap;
use crate::wire::{Wire, connector};

/// Time limit for every operation of a connection, under any faults.
const PATIENCE: Duration = Duration::from_secs(20);
const ATTEMPTS: u32 = 25;

/// The application of one client.
pub struct App {
    shared: Arc<Shared>,
    index: usize,
    who: String,
    dice: Dice,
    /// Choices for partitioned queries. Separate, so that they do not change the other choices.
    parts: Dice,
    /// Choices for uploads. Separate for the same reason.
    uploads: Dice,
    fabric: Arc<dyn Fabric>,
    process: ProcessId,
}

impl App {
    /// The application of the client of this index, in this life of its process.
    pub fn new(shared: Arc<Shared>, index: usize, life: u64, fabric: Arc<dyn Fabric>, process: ProcessId) -> Self {
        let dice = Dice::new(shared.options.seed, 1000 + index as u64 * 100 + life);
        let parts = Dice::new(shared.options.seed, 50_000 + index as u64 * 100 + life);
        let uploads = Dice::new(shared.options.seed, 60_000 + index as u64 * 100 + life);
        App { who: format!("client-{index}"), shared, index, dice, parts, uploads, fabric, process }
    }

    /// Makes requests while faults happen. After the end of the faults, repeats a final set of requests until all
    /// succeed.
    pub async fn run(mut self) {
        for _ in 0..self.shared.options.rounds {
            if self.shared.is_healed() {
                break;
            }
            self.round().await;
            let pause = self.dice.millis(0, 60);
            sleep(pause).await;
        }
        while !self.shared.is_healed() {
            sleep(Duration::from_millis(20)).await;
        }
        for _ in 0..ATTEMPTS {
            if let Some(client) = self.connect().await {
                let query = QueryOptions::default();
                let plan =
                    Plan { index: 0, query, cancel_after: None, pace: Duration::ZERO, lazy: None, statement: None };
                // Leases may be short: a batch that waits for its turn must not outlive its lease.
                let narrow = QueryOptions::default().with_window(Some(20_000));
                let lazily = Plan { lazy: Some(PartialReads::all()), query: narrow, ..plan.clone() };
                let plain = self.plan_upload(true);
                let options = &self.shared.options;
                let queried = options.uploads_only()
                    || self.query(&client, 0, plan).await
                        && self.query(&client, 1, lazily).await
                        && self.drop_one(&client).await;
                let well = queried && (options.queries_only() || self.upload(&client, plain).await);
                self.close(client).await;
                if well {
                    self.shared.finished(self.index);
                    return;
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.shared.trace.violation("once healed, all ends well", format!("{} has no result", self.who));
    }

    /// Drops a result and checks that its query stops at the server while the connection remains.
    async fn drop_one(&self, client: &Client) -> bool {
        let few = QueryOptions::default().with_window(Some(20_000));
        let asked = self.within("an endless query", client.query_with(ENDLESS, few)).await;
        let Some(Ok(mut result)) = asked else { return false };
        self.within("an endless query's batch", result.next()).await;
        drop(result);
        let stopped = async {
            while self.shared.engine.running() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        self.within("a dropped query to stop at the server", stopped).await.is_some()
    }

    async fn round(&mut self) {
        let Some(client) = self.connect().await else { return };
        let options = &self.shared.options;
        let (uploads_only, queries_only) = (options.uploads_only(), options.queries_only());
        let queries = if uploads_only { 0 } else { options.concurrency };
        let plans: Vec<_> = (0..queries).map(|_| self.plan()).collect();
        let offers = if queries_only { Vec::new() } else { self.plan_uploads() };
        let (app, connection) = (&*self, &client);
        let asked = plans.into_iter().enumerate().map(|(at, plan)| app.query(connection, at, plan));
        let uploaded = offers.into_iter().map(|offer| app.upload(connection, offer));
        join(join_all(asked), join_all(uploaded)).await;
        // Partitions have a time limit that counts the time in which a process stands still.
        if !uploads_only && self.parts.percent(40) && !self.shared.options.stands_still() {
            let divided = self.plan_divided();
            self.divided(&client, divided).await;
        }
        if self.dice.percent(30) {
            self.within("a ping", client.ping()).await;
        }
        if !uploads_only && self.dice.percent(30) {
            let question = Question::draw(&mut self.dice);
            self.ask(&client, question).await;
        }
        if self.dice.percent(60) {
            self.close(client).await;
        }
    }

    async fn close(&self, client: Client) {
        self.within("the close", client.close()).await;
    }

    async fn within<T>(&self, what: &str, done: impl Future<Output = T>) -> Option<T> {
        let done = timeout(PATIENCE, done).await.ok();
        if done.is_none() {
            self.shared.trace.violation("nothing hangs", format!("{} waits for {what} since {PATIENCE:?}", self.who));
        }
        done
    }

    async fn connect(&mut self) -> Option<Client> {
        let options = &self.shared.options;
        let connected = timeout(options.timeouts.handshake, TcpStream::connect(("server", PORT))).await;
        let io = match connected {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return self.not_connected(&error),
            Err(late) => return self.not_connected(&late),
        };
        let end = (io.local_addr().ok()?, Side::Client);
        let dice = Dice::new(options.seed, u64::from(self.dice.within(0, u32::MAX)) | 1 << 40);
        let tap = Tap::new(self.shared.trace.clone(), options.upload_window);
        let entropy = u64::from(self.dice.within(0, u32::MAX)) << 32 | u64::from(self.index as u32);
        let io = self.shared.sockets(&self.who).open(io);
        let wire = Wire::new(io, Arc::clone(&self.shared), options.client_wire, dice.clone(), end, Some(tap));
        let more = connector(wire, Arc::clone(&self.shared), dice);
        let connect = ConnectOptions::new("server")
            .with_connect_timeout(options.timeouts.handshake)
            .with_keepalive(options.timeouts.keepalive)
            .with_idle_timeout(options.client_idle)
            .with_read_timeout(options.read_timeout)
            .with_lend_from(LendFrom::Bytes(8 << 10))
            .with_max_upload_loans(options.max_loan_bytes)
            .with_upload_lease(options.lease_timeout)
            .with_entropy(Some(entropy))
            .with_loan_observer(Some(SharedObserver(Arc::new(self.shared.network.clone()))))
            .with_process(Some(self.process));
        let fabrics = vec![Arc::clone(&self.fabric)];
        match self.within("the handshake", Client::connect_through(more, fabrics, None, connect)).await? {
            Ok(client) => {
                self.shared.trace.line(&self.who, &format_args!("connected: {}", client.connection().carrier));
                Some(client)
            }
            Err(error) => {
                self.judge("connect", &error);
                None
            }
        }
    }

    fn not_connected(&self, why: &dyn fmt::Display) -> Option<Client> {
        self.shared.trace.line(&self.who, &format_args!("not connected: {why}"));
        // A process that stood still is too late for the time limit of its connect.
        if self.shared.options.fault_free && !self.shared.options.stands_still() {
            self.shared.trace.violation("fault-free runs go well", format!("{} could not connect: {why}", self.who));
        }
        None
    }

    fn plan(&mut self) -> Plan {
        let (options, dice) = (&self.shared.options, &mut self.dice);
        let index = dice.within(0, options.scripts.len() as u32 - 1) as usize;
        let hangs = options.scripts[index].ending.is_never();
        let deadline = (hangs || !options.fault_free && dice.percent(10)).then(|| dice.millis(30, 500));
        let maps = maps(options);
        let lend_from = dice.pick(&[None, None, Some(LendFrom::Bytes(0)), Some(LendFrom::Never)]);
        let (lend_from, access) = way(lend_from, maps && index.is_multiple_of(2));
        let query = lend_from
            .into_iter()
            .fold(QueryOptions::default(), QueryOptions::with_lend_from)
            .with_access(access)
            .with_batch_rows(dice.pick(&[None, None, Some(64), Some(500)]))
            .with_window(dice.pick(&[None, Some(20_000), Some(200_000), Some(1_000_000)]))
            .with_deadline(deadline);
        Plan {
            index,
            query,
            cancel_after: dice.percent(20).then(|| dice.within(0, 3) as usize),
            pace: if dice.percent(30) { dice.millis(1, 40) } else { Duration::ZERO },
            lazy: dice
                .percent(35)
                .then(|| PartialReads::draw(dice, options.fault_free))
                .filter(|_| access == Access::Read),
            statement: dice.percent(25).then(|| dice.within(1, statements::NUMBERS)),
        }
    }

    /// Makes a query. Whether it succeeded.
    async fn query(&self, client: &Client, number: usize, plan: Plan) -> bool {
        let trace = &self.shared.trace;
        let script = &self.shared.options.scripts[plan.index];
        let expected = script.expected(plan.query.batch_rows);
        let name = format!("{}.{number} {}", self.who, sql(plan.index));
        trace.line(&self.who, &format_args!("{name}: {plan:?}"));
        script.traits().for_each(|what| trace.count("engine", what));
        if let Some(partial_reads) = &plan.lazy {
            return self.query_lazily(client, &name, &plan, partial_reads).await;
        }
        let text = sql(plan.index);
        let mut options = plan.query.clone();
        // A slow network may lead to no data plane without any fault. Then the server refuses mapped results, which is
        // not a failure of this run.
        if self.shared.options.fault_free && client.connection().carrier.fallback().is_some() {
            options.access = Access::Read;
        }
        if let Some(number) = plan.statement {
            trace.count("statement", "with defaults");
            options =
                options.with_defaults(statements::defaults(number)).with_parameters(statements::parameters(number));
        }
        let asked = client.query_with(&text, options);
        let mut result = match self.within(&name, asked).await {
            None => return false,
            Some(Ok(result)) => result,
            Some(Err(error)) => {
                self.query_failed(&name, &plan, script.refused || script.ending == Ending::Fail, &error);
                return false;
            }
        };
        let mut got = 0;
        let mut kept = Kept::new(plan.query.access, self.shared.options.fault_free);
        loop {
            if plan.cancel_after == Some(got) {
                trace.line(&self.who, &format_args!("{name}: dropped after {got} batches"));
                trace.count("stream", "dropped");
                return false;
            }
            if !plan.pace.is_zero() {
                sleep(plan.pace).await;
            }
            let Some(next) = self.within(&name, result.next()).await else { return false };
            match next {
                Some(Ok(batch)) => {
                    if expected.get(got) != Some(&batch) {
                        let how = format!("{name}: batch {got} of {} is not the engine's", expected.len());
                        trace.violation("exact batches in order", how);
                        return false;
                    }
                    got += 1;
                    kept.push(batch);
                }
                Some(Err(error)) => {
                    self.query_failed(&name, &plan, script.ending == Ending::Fail && got == expected.len(), &error);
                    return false;
                }
                None => {
                    trace.line(&self.who, &format_args!("{name}: whole after {got} batches"));
                    trace.count("stream", "whole");
                    trace.count_many("stream", "mapped batches", result.report().batches_mapped);
                    if got != expected.len() || script.ending != Ending::Finish {
                        let how = format!("{name}: ended well after {got} of {}, {:?}", expected.len(), script.ending);
                        trace.violation("exact batches in order", how);
                    }
                    return true;
                }
            }
        }
    }

    fn plan_divided(&mut self) -> Divided {
        let (options, dice) = (&self.shared.options, &mut self.parts);
        let index = dice.within(0, options.scripts.len() as u32 - 1) as usize;
        let hangs = options.scripts[index].ending.is_never();
        let deadline = (hangs || !options.fault_free && dice.percent(10)).then(|| dice.millis(30, 500));
        let count = dice.pick(&PARTITIONS);
        let lend_from = dice.pick(&[None, Some(LendFrom::Bytes(0)), Some(LendFrom::Never)]);
        // Among several connections one may have no data plane without any fault.
        let (lend_from, access) = way(lend_from, maps(options) && !options.fault_free && index.is_multiple_of(2));
        let query = lend_from
            .into_iter()
            .fold(QueryOptions::default(), QueryOptions::with_lend_from)
            .with_access(access)
            .with_partitions(Some(count as u32))
            .with_window(dice.pick(&[None, Some(20_000), Some(200_000)]))
            .with_deadline(deadline);
        let dropped = dice.percent(20).then(|| (dice.within(0, count as u32 - 1) as usize, dice.within(0, 3) as usize));
        Divided { index, count, query, merged: dice.percent(40), dropped }
    }

    /// Makes a query in partitions, which must be whole together or not at all.
    async fn divided(&self, client: &Client, plan: Divided) {
        let (trace, script) = (&self.shared.trace, &self.shared.options.scripts[plan.index]);
        let text = sql_of_parts(plan.index, plan.count);
        let name = format!("{} {text}", self.who);
        trace.line(&self.who, &format_args!("{name}: {plan:?}"));
        let asked = async {
            match plan.merged {
                true => client.query_with(&text, plan.query.clone()).await.map(|whole| vec![whole]),
                false => client.query_partitions_with(&text, plan.query.clone()).await,
            }
        };
        let ends: Vec<_> = match self.within(&name, asked).await {
            None => return,
            Some(Err(error)) => vec![Err(error)],
            Some(Ok(parts)) => {
                let read = parts.into_iter().enumerate().map(|(part, result)| self.part(&name, &plan, part, result));
                join_all(read).await.into_iter().flatten().collect()
            }
        };
        let scripted = script.refused || script.ending == Ending::Fail;
        for error in ends.iter().filter_map(|end| end.as_ref().err()) {
            self.judge(&name, error);
            let as_scripted = scripted && matches!(error, ClientError::Query { kind: StreamCode::Execution, .. });
            if self.shared.options.fault_free && !as_scripted && plan.dropped.is_none() {
                trace.violation("fault-free runs go well", format!("{name} failed without a fault: {error}: {plan:?}"));
            }
        }
        let whole = ends.len() == if plan.merged { 1 } else { plan.count } && ends.iter().all(Result::is_ok);
        trace.count("partitions", if whole { "whole" } else { "not whole" });
        if whole && script.ending != Ending::Finish {
            trace.violation("partitions are whole together", format!("{name} ended well, and {:?}", script.ending));
        }
    }

    /// Reads one partition, or all of them merged. `None` if it was dropped, or a violation was recorded.
    async fn part(
        &self,
        name: &str,
        plan: &Divided,
        part: usize,
        mut result: ResultStream,
    ) -> Option<Result<(), ClientError>> {
        let (trace, script) = (&self.shared.trace, &self.shared.options.scripts[plan.index]);
        // Batches that are still to come, by partition. For a single partition only the next of its batches may come.
        let mut left: Vec<_> = match plan.merged {
            true => (0..plan.count).map(|part| script.part(part, plan.count)).collect(),
            false => vec![script.part(part, plan.count)],
        };
        left.iter_mut().for_each(|batches| batches.reverse());
        let mut kept = Kept::new(plan.query.access, self.shared.options.fault_free);
        for got in 0.. {
            if plan.dropped == Some((part, got)) {
                trace.count("partitions", "dropped");
                return None;
            }
            match self.within(name, result.next()).await? {
                Some(Ok(batch)) => match left.iter_mut().find(|batches| batches.last() == Some(&batch)) {
                    Some(batches) => {
                        batches.pop();
                        kept.push(batch);
                    }
                    None => {
                        let how = format!("{name}: batch {got} of partition {part} is not the engine's");
                        trace.violation("exact batches in order", how);
                        return None;
                    }
                },
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        trace.count_many("partitions", "mapped batches", result.report().batches_mapped);
        if left.iter().any(|batches| !batches.is_empty()) {
            trace.violation("exact batches in order", format!("{name}: partition {part} ended well, and too soon"));
        }
        Some(Ok(()))
    }

    fn query_failed(&self, name: &str, plan: &Plan, scripted: bool, error: &ClientError) {
        self.judge(name, error);
        let as_scripted = scripted && matches!(error, ClientError::Query { kind: StreamCode::Execution, .. });
        if self.shared.options.fault_free && !as_scripted {
            let how = format!("{name} failed without a fault: {error}: {plan:?}");
            self.shared.trace.violation("fault-free runs go well", how);
        }
    }

    /// Counts an error. An error that honest ends never cause is a violation.
    fn judge(&self, what: &str, error: &ClientError) {
        self.judge_as("stream", what, error);
    }

    fn judge_as(&self, counted: &'static str, what: &str, error: &ClientError) {
        let trace = &self.shared.trace;
        trace.line(&self.who, &format_args!("{what}: {error}"));
        let kind = format!("{error:?}");
        let name: String = kind.chars().take_while(|c| c.is_alphanumeric()).collect();
        match error {
            ClientError::Query { kind, .. } => trace.count(counted, format!("failed: {kind:?}")),
            _ => trace.count(counted, format!("error: {name}")),
        }
        // After a bit was flipped in transit, the end that finds it reports a protocol error of its peer.
        let accuses = matches!(error, ClientError::Protocol { .. }) && !self.shared.has_flipped();
        if accuses || error.to_string().contains("bug:") {
            trace.violation("honest ends do not accuse each other", format!("{what}: {error}"));
        }
    }
}

/// Batches that are kept for a while. Mapped memory must not change until they are dropped, which the network checks.
struct Kept {
    batches: VecDeque<RecordBatch>,
    most: usize,
}

impl Kept {
    /// In fault-free runs no batch is kept: an application that keeps many may have to wait until its leases are
    /// revoked.
    fn new(access: Access, fault_free: bool) -> Self {
        Kept { batches: VecDeque::new(), most: if access == Access::Map && !fault_free { 3 } else { 0 } }
    }

    fn push(&mut self, batch: RecordBatch) {
        self.batches.push_back(batch);
        if self.batches.len() > self.most {
            self.batches.pop_front();
        }
    }
}

/// The way of a query's batches: if mapping is possible, some queries that would be inline are mapped instead.
fn way(lend_from: Option<LendFrom>, maps: bool) -> (Option<LendFrom>, Access) {
    match lend_from {
        Some(LendFrom::Never) if maps => (Some(LendFrom::Bytes(0)), Access::Map),
        other => (other, Access::Read),
    }
}

/// Whether batches can be mapped: not on a network that simulates a device.
fn maps(options: &Options) -> bool {
    options.server_fabric && options.network.fencing == Fencing::LeaseWord
}

/// A query in partitions.
#[derive(Clone, Debug)]
struct Divided {
    index: usize,
    count: usize,
    query: QueryOptions,
    merged: bool,
    /// The partition that is dropped, and its number of batches before that.
    dropped: Option<(usize, usize)>,
}
