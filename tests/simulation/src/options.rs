//! All parameters of a run, drawn from its seed.

use std::time::Duration;

use thallus_fabric::fault::{Call, FaultPlan, ReadFault, When};
use thallus_fabric::{Fencing, ReadFailure};
use thallus_fabric_sim::SimOptions;
use thallus_protocol::LinkTimeouts;
use thallus_protocol::credit::batch_cost;
use thallus_server::PeerBudget;

use crate::dice::Dice;
use crate::scripts::{LARGE_BYTES, Script};

/// Idle timeout of most ends.
const IDLE: Duration = Duration::from_millis(500);
/// Idle timeout of an end that is patient.
const PATIENT: Duration = Duration::from_secs(5);
/// Time for which a link is dead in one direction: long enough for both ends to notice it.
const HALF_DEAD: Duration = Duration::from_secs(8);

/// A kind of fault. It happens to one client or to the server, at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// No bytes pass between server and client.
    Partition,
    /// Messages from the client are lost.
    OneWayToServer,
    /// Messages from the server are lost.
    OneWayToClient,
    /// Messages are held until the fault ends.
    Hold,
    /// Messages are slow.
    Latency,
    /// Both ends find the control connection reset.
    Reset,
    /// The control connection ends at the server. The client does not notice, and its one-sided reads still work.
    ControlCutAtServer,
    /// The control connection ends at the client. The server does not notice.
    ControlCutAtClient,
    /// One-sided reads have no path; the control connection works.
    DataCut,
    /// Neither plane has a path.
    BothCut,
    /// The client's fabric dies; its process lives on.
    ClientFabricDies,
    /// The server's fabric dies; its process lives on.
    ServerFabricDies,
    /// The client's process dies and starts again.
    ClientCrash,
    /// The server's process dies and starts again.
    ServerCrash,
    /// The server's machine dies. Its peers receive no notice.
    ServerPowerLoss,
    /// The server is asked to shut down, and starts again.
    ServerDrains,
    /// The client's clock jumps forward.
    ClientClockJumps,
    /// The server's clock jumps forward.
    ServerClockJumps,
    /// The client stands still for longer than its idle timeout, and its sockets fill. Then it continues.
    ClientStandsStill,
    /// The server stands still.
    ServerStandsStill,
}

impl Fault {
    /// Faults after which one end does not learn that the other's leases have ended, and continues to read.
    pub const FENCING: [Fault; 5] =
        [Fault::OneWayToClient, Fault::Hold, Fault::Latency, Fault::ControlCutAtServer, Fault::Partition];

    /// Faults that a connection must survive.
    pub const HARMLESS: [Fault; 2] = [Fault::ClientStandsStill, Fault::ServerStandsStill];

    /// Faults of one direction of a link.
    pub const ONE_WAY: [Fault; 2] = [Fault::OneWayToServer, Fault::OneWayToClient];

    /// All other faults.
    pub const ALL: [Fault; 18] = [
        Fault::Partition,
        Fault::OneWayToServer,
        Fault::OneWayToClient,
        Fault::Hold,
        Fault::Latency,
        Fault::Reset,
        Fault::ControlCutAtServer,
        Fault::ControlCutAtClient,
        Fault::DataCut,
        Fault::BothCut,
        Fault::ClientFabricDies,
        Fault::ServerFabricDies,
        Fault::ClientCrash,
        Fault::ServerCrash,
        Fault::ServerPowerLoss,
        Fault::ServerDrains,
        Fault::ClientClockJumps,
        Fault::ServerClockJumps,
    ];
}

/// A fault with its time and target.
#[derive(Clone, Copy, Debug)]
pub struct TimedFault {
    /// Time since the start of the run.
    pub at: Duration,
    /// Kind of fault.
    pub fault: Fault,
    /// Index of the affected client.
    pub client: usize,
    /// Duration of the fault, or distance of a clock's jump.
    pub duration: Duration,
}

impl TimedFault {
    /// A link that is dead in one direction.
    fn half_dead(dice: &mut Dice, clients: usize) -> Self {
        TimedFault {
            at: dice.millis(20, 400),
            fault: dice.pick(&Fault::ONE_WAY),
            client: dice.within(0, clients as u32 - 1) as usize,
            duration: HALF_DEAD,
        }
    }

    /// A process that stands still. The duration is that of its deafness before; see [`Options::still`].
    fn harmless(dice: &mut Dice, clients: usize) -> Self {
        TimedFault {
            at: dice.millis(20, 700),
            fault: dice.pick(&Fault::HARMLESS),
            client: dice.within(0, clients as u32 - 1) as usize,
            duration: dice.millis(10, 90),
        }
    }
}

/// Failure rates of a fabric's calls and completions: one in this number fails; 0: none.
#[derive(Clone, Debug, Default)]
pub struct FabricFaults {
    allocate: u32,
    register: u32,
    endpoint: u32,
    connect: u32,
    expose: u32,
    import: u32,
    post: u32,
    fail: u32,
    failure: usize,
    delay: u32,
    hang: u32,
    dies_after: Option<u64>,
}

const FAILURES: [ReadFailure; 5] = [
    ReadFailure::RetryExceeded,
    ReadFailure::ReceiverNotReady,
    ReadFailure::RemoteAccess,
    ReadFailure::Flushed,
    ReadFailure::LocalProtection,
];

impl FabricFaults {
    fn draw(dice: &mut Dice) -> Self {
        FabricFaults {
            allocate: dice.sometimes(10, 2, 6),
            register: dice.sometimes(15, 2, 6),
            endpoint: dice.sometimes(5, 2, 3),
            connect: dice.sometimes(5, 2, 3),
            expose: dice.sometimes(8, 2, 20),
            import: dice.sometimes(8, 2, 20),
            post: dice.sometimes(8, 5, 40),
            fail: dice.sometimes(25, 5, 60),
            failure: dice.within(0, FAILURES.len() as u32 - 1) as usize,
            delay: dice.sometimes(25, 2, 20),
            hang: dice.sometimes(20, 5, 60),
            dies_after: dice.percent(10).then(|| u64::from(dice.within(1, 60))),
        }
    }

    /// The plan for the fault injector.
    #[must_use]
    pub fn plan(&self, seed: u64) -> FaultPlan {
        let calls = [
            (Call::Allocate, self.allocate),
            (Call::Register, self.register),
            (Call::Endpoint, self.endpoint),
            (Call::Connect, self.connect),
            (Call::Expose, self.expose),
            (Call::Import, self.import),
            (Call::Post, self.post),
        ];
        let plan =
            calls.into_iter().fold(FaultPlan::new(seed), |plan, (call, times)| plan.call(call, When::OneIn(times)));
        let plan = plan
            .read(When::OneIn(self.fail), ReadFault::Fail(FAILURES[self.failure].clone()))
            .read(When::OneIn(self.hang), ReadFault::Hang)
            .read(When::OneIn(self.delay), ReadFault::Delay { polls: 5 });
        match self.dies_after {
            Some(reads) => plan.endpoints_die_after(reads),
            None => plan,
        }
    }
}

/// Faults of a byte stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct WireFaults {
    /// Most bytes that one write accepts. 0: no limit.
    pub max_write: usize,
    /// Most bytes that one read returns. 0: no limit.
    pub max_read: usize,
    /// One read in this number is delayed. 0: none.
    pub slow_one_in: u32,
    /// Delay of a slow read.
    pub slow: Duration,
    /// One write in this number has a bit flipped. 0: none.
    pub flip_one_in: u32,
}

impl WireFaults {
    fn draw(dice: &mut Dice) -> Self {
        WireFaults {
            max_write: dice.sometimes(25, 1, 4000) as usize,
            max_read: dice.sometimes(25, 1, 4000) as usize,
            slow_one_in: dice.sometimes(20, 2, 10),
            slow: dice.millis(1, 120),
            flip_one_in: dice.sometimes(15, 10, 80),
        }
    }
}

/// Kinds of streams in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Streams {
    /// Results and uploads.
    #[default]
    All,
    /// Results only.
    Results,
    /// Uploads only.
    Uploads,
}

/// All parameters of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seed from which everything else is drawn.
    pub seed: u64,
    /// Kinds of streams.
    pub streams: Streams,
    /// No faults are injected, apart from [`Fault::HARMLESS`] ones. Then every request must succeed.
    pub fault_free: bool,
    /// Time for which a process stands still. First its sockets are deaf for a short time while the others run, so that
    /// the sockets fill. Then its clock jumps by this time.
    pub still: Duration,
    /// The only fault is a link that is dead in one direction for so long that both ends must notice it.
    pub half_dead: bool,
    /// Number of clients.
    pub clients: usize,
    /// Rounds of queries of each client.
    pub rounds: u32,
    /// Queries of one client at a time.
    pub concurrency: u32,
    /// Whether the server has the fabric.
    pub server_fabric: bool,
    /// Properties of the simulated network.
    pub network: SimOptions,
    /// Faults of the server's fabric.
    pub server_faults: FabricFaults,
    /// Faults of the clients' fabrics.
    pub client_faults: FabricFaults,
    /// Faults of the server's ends of control connections.
    pub server_wire: WireFaults,
    /// Faults of the clients' ends.
    pub client_wire: WireFaults,
    /// Least and greatest latency of the control connections.
    pub latency: (Duration, Duration),
    /// Scripts of the queries.
    pub scripts: Vec<Script>,
    /// Most streams open at once on a connection.
    pub max_streams: u32,
    /// Most bytes on loan to one client.
    pub max_loan_bytes: u64,
    /// Most bytes on loan to all clients.
    pub max_loan_total: u64,
    /// Most connections at once.
    pub max_connections: usize,
    /// Timeouts of the server's ends of control connections.
    pub timeouts: LinkTimeouts,
    /// Idle timeout of the clients' ends.
    pub client_idle: Duration,
    /// Time after which the lender revokes a lease.
    pub lease_timeout: Duration,
    /// Time limit for the reads of one batch.
    pub read_timeout: Duration,
    /// Largest window of an upload, in bytes.
    pub upload_window: u64,
    /// Whether there is a hostile client, and a hostile server.
    pub hostile: (bool, bool),
    /// Faults with their times.
    pub faults: Vec<TimedFault>,
    /// Time at which all faults end.
    pub faults_end_at: Duration,
}

impl Options {
    /// Limits of the bytes that wait to be written to one client: so small that a hostile client reaches them in a
    /// short run.
    pub const BUDGET: PeerBudget = PeerBudget { messages: 64 << 10, unsent: 256 << 10 };

    /// Most bytes that the server may keep for one client, besides batches on loan: one batch of each query that waits
    /// for credit, bytes that wait to be written, and up to 1.25 MiB for the answers to one more read, the batches that
    /// were requested before, and a message that has arrived in part.
    #[must_use]
    pub fn most_held_bytes(&self) -> u64 {
        let waiting = u64::from(self.max_streams) * batch_cost(LARGE_BYTES);
        waiting + Self::BUDGET.unsent as u64 + (1 << 20) + (1 << 18)
    }

    /// Whether the run has no queries.
    #[must_use]
    pub fn uploads_only(&self) -> bool {
        self.streams == Streams::Uploads
    }

    /// Returns whether processes stand still in this run, and nothing else happens.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        self.fault_free && !self.faults.is_empty()
    }

    /// Whether the run has no uploads.
    #[must_use]
    pub fn queries_only(&self) -> bool {
        self.streams == Streams::Results
    }

    /// Draws the parameters of a run with these kinds of streams.
    #[must_use]
    pub fn draw(seed: u64, streams: Streams) -> Self {
        let dice = &mut Dice::new(seed, 0);
        let fault_free = dice.percent(12);
        // Separate, so that these do not change the other choices.
        let liveness = &mut Dice::new(seed, 3);
        let half_dead = !fault_free && liveness.percent(6);
        let stands_still = fault_free && liveness.percent(60);
        let fencing = dice.pick(&[Fencing::Revocation, Fencing::LeaseWord, Fencing::LeaseWord]);
        let clients = dice.within(1, 3) as usize;
        let stormy = |dice: &mut Dice, percent| !fault_free && dice.percent(percent) && !half_dead;
        let network = draw_network(dice, fencing, &stormy);
        // Leases that expire while their bytes are being read, and an end that does not learn of it.
        let fencing_profile = stormy(dice, 15);
        let network = if fencing_profile {
            let (one_in, most) = (dice.within(2, 4), dice.within(100, 300));
            SimOptions {
                fencing: Fencing::LeaseWord,
                exposes_ranges: false,
                straggler_one_in: one_in,
                straggler: 60..=most,
                ..network
            }
        } else {
            network
        };
        let wild = |dice: &mut Dice, percent| {
            if stormy(dice, percent) { FabricFaults::draw(dice) } else { FabricFaults::default() }
        };
        let (server_faults, client_faults) = (wild(dice, 30), wild(dice, 50));
        let wire = |dice: &mut Dice| if stormy(dice, 40) { WireFaults::draw(dice) } else { WireFaults::default() };
        let (server_wire, client_wire) = (wire(dice), wire(dice));
        let faults_end_at = if half_dead { HALF_DEAD * 11 / 10 } else { dice.millis(800, 1800) };
        let number = if fault_free { 0 } else { dice.within(u32::from(fencing_profile), 4) };
        let mut faults: Vec<_> = (0..number)
            .map(|_| TimedFault {
                at: dice.millis(20, 700),
                fault: if fencing_profile { dice.pick(&Fault::FENCING) } else { dice.pick(&Fault::ALL) },
                client: dice.within(0, clients as u32 - 1) as usize,
                duration: dice.millis(10, 700),
            })
            .collect();
        if half_dead {
            faults = vec![TimedFault::half_dead(liveness, clients)];
        } else if stands_still {
            faults.extend((0..liveness.within(1, 2)).map(|_| TimedFault::harmless(liveness, clients)));
        }
        faults.sort_by_key(|timed| timed.at);
        // One end of a half-dead link is patient, so that it keeps on sending pings for a long time.
        let idle_timeouts = [(PATIENT, IDLE), (IDLE, PATIENT)];
        let (idle, client_idle) = if half_dead { liveness.pick(&idle_timeouts) } else { (IDLE, IDLE) };
        Options {
            seed,
            streams,
            fault_free,
            still: liveness.millis(600, 4000),
            half_dead,
            client_idle,
            clients,
            rounds: dice.within(1, 3),
            concurrency: if fencing_profile { 4 } else { dice.within(1, 4) },
            server_fabric: dice.percent(90),
            network,
            server_faults,
            client_faults,
            server_wire,
            client_wire,
            latency: (Duration::ZERO, Duration::from_millis(dice.pick(&[0, 2, 20]))),
            scripts: Script::draw_all(dice, fault_free),
            max_streams: if fault_free { 16 } else { dice.pick(&[1, 4, 16]) },
            max_loan_bytes: dice.pick::<u64>(&[300_000, 1 << 20, 16 << 20]),
            max_loan_total: dice.pick::<u64>(&[400_000, 64 << 20]),
            max_connections: if fault_free { 64 } else { dice.pick(&[2, 64, 64, 64]) },
            timeouts: LinkTimeouts {
                handshake: Duration::from_millis(400),
                keepalive: Duration::from_millis(150),
                idle,
            },
            lease_timeout: match (fault_free, fencing_profile) {
                (true, _) => Duration::from_secs(60),
                (_, true) => dice.millis(30, 120),
                _ => dice.millis(150, 900),
            },
            read_timeout: match (fault_free, fencing_profile) {
                (true, _) => Duration::from_secs(60),
                (_, true) => Duration::from_millis(600),
                _ => dice.millis(200, 600),
            },
            hostile: (stormy(dice, 15), stormy(dice, 15)),
            faults,
            faults_end_at,
            upload_window: dice.pick(&[20_000, 200_000, 1 << 20]),
        }
    }
}

/// Draws the data plane. `stormy`: whether a fault of this probability in percent is drawn.
fn draw_network(dice: &mut Dice, fencing: Fencing, stormy: &dyn Fn(&mut Dice, u32) -> bool) -> SimOptions {
    SimOptions {
        fencing,
        exposes_ranges: fencing == Fencing::Revocation,
        latency: 0..=dice.pick(&[0, 4, 40, 200]),
        completion_lag: 0..=dice.pick(&[0, 2, 30]),
        reorder: dice.percent(70),
        peer_death_delay: 0..=dice.pick(&[0, 8, 400]),
        max_read: dice.pick::<u64>(&[1 << 30, 1 << 30, 1 << 14, 4096]),
        max_outstanding_reads: dice.pick(&[1, 2, 16, 16]),
        foreign_memory: dice.percent(75),
        max_registered: if stormy(dice, 10) { 3 << 20 } else { 1 << 36 },
        pace: Some(Duration::from_millis(1)),
        bytes_per_step: dice.pick::<u64>(&[0, 0, 100_000, 10_000]),
        straggler_one_in: if stormy(dice, 40) { dice.within(2, 12) } else { 0 },
        straggler: 20..=dice.pick(&[100, 400, 900]),
        early_completion_one_in: if stormy(dice, 8) { dice.within(4, 20) } else { 0 },
        retry: dice.within(50, 300),
        loans: true,
        record: true,
    }
}
