//! The plan of faults.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::ReadFailure;
use crate::random::SplitMix64;

/// The reason in every injected error.
pub(super) const REASON: &str = "injected by the fault plan";

/// A call that a plan can make fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Fabric::allocate`](crate::Fabric::allocate), with `OutOfMemory`.
    Allocate,
    /// [`Fabric::register`](crate::Fabric::register), with `Registration`.
    Register,
    /// [`Fabric::endpoint`](crate::Fabric::endpoint), with `Unavailable`.
    Endpoint,
    /// [`Endpoint::connect`](crate::Endpoint::connect), with `Connect`.
    Connect,
    /// [`Endpoint::expose`](crate::Endpoint::expose), with `Registration`.
    Expose,
    /// [`Endpoint::import`](crate::Endpoint::import), with `RemoteKey`.
    Import,
    /// [`Endpoint::post_read`](crate::Endpoint::post_read), with `Post`.
    Post,
}

/// A fault that happened. [`FaultInjector::injected`](super::FaultInjector::injected) counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InjectedFault {
    /// A call failed.
    Call(Call),
    /// A read completes in this failure.
    Fail(&'static str),
    /// A read's completion was delayed.
    Delay,
    /// A read's completion is held back until the end.
    Hang,
    /// An endpoint died.
    Death,
}

/// The opportunities at which a fault happens. Opportunities are counted from 0: calls over the whole fabric, reads for
/// each endpoint separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Every time.
    Always,
    /// Only at this opportunity.
    Nth(u64),
    /// At this opportunity and every later one.
    From(u64),
    /// At one of this many opportunities on average, by the plan's seed. 0: never.
    OneIn(u32),
}

/// A fault of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadFault {
    /// It completes with this failure. Some of its bytes, or all, may have landed.
    Fail(ReadFailure),
    /// It completes with its own result, but `polls` polls of its endpoint later.
    Delay {
        /// Number of polls.
        polls: u32,
    },
    /// It completes, as flushed, when its endpoint is closed or dies.
    Hang,
}

/// The rules by which faults happen. The seed and the rules determine everything. The first rule that applies decides.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    seed: u64,
    calls: Vec<(Call, When)>,
    reads: Vec<(When, ReadFault)>,
    dies_after: Option<u64>,
}

impl FaultPlan {
    /// A plan without faults.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        FaultPlan { seed, calls: Vec::new(), reads: Vec::new(), dies_after: None }
    }

    /// Makes calls fail.
    #[must_use]
    pub fn call(mut self, call: Call, when: When) -> Self {
        self.calls.push((call, when));
        self
    }

    /// Makes reads fail, or delays them.
    #[must_use]
    pub fn read(mut self, when: When, fault: ReadFault) -> Self {
        self.reads.push((when, fault));
        self
    }

    /// Each endpoint dies once it has posted `reads` reads: outstanding reads complete as `PeerGone`, and then the
    /// endpoint fails as a whole.
    #[must_use]
    pub fn endpoints_die_after(mut self, reads: u64) -> Self {
        self.dies_after = Some(reads);
        self
    }
}

impl ReadFault {
    pub(super) fn kind(&self) -> InjectedFault {
        match self {
            ReadFault::Fail(failure) => InjectedFault::Fail(failure.name()),
            ReadFault::Delay { .. } => InjectedFault::Delay,
            ReadFault::Hang => InjectedFault::Hang,
        }
    }
}

impl When {
    fn applies(self, count: u64, random: &mut SplitMix64) -> bool {
        match self {
            When::Always => true,
            When::Nth(nth) => count == nth,
            When::From(first) => count >= first,
            When::OneIn(0) => false,
            When::OneIn(times) => random.within(&(1..=times)) == 1,
        }
    }
}

/// Carries out the rules for calls.
#[derive(Debug)]
pub(super) struct CallFaults {
    rules: Vec<(Call, When)>,
    counts: BTreeMap<Call, u64>,
    random: SplitMix64,
    endpoints: u64,
    plan: FaultPlan,
    stopped: bool,
    injected: BTreeMap<InjectedFault, u64>,
}

impl CallFaults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        let random = SplitMix64::split(plan.seed, 0);
        CallFaults {
            rules: plan.calls.clone(),
            counts: BTreeMap::new(),
            random,
            endpoints: 0,
            plan,
            stopped: false,
            injected: BTreeMap::new(),
        }
    }

    /// Whether this call fails.
    pub(super) fn fails(&mut self, call: Call) -> bool {
        let count = self.counts.entry(call).or_default();
        let this = *count;
        *count += 1;
        let random = &mut self.random;
        let fails = self.rules.iter().any(|&(of, when)| of == call && when.applies(this, random)) && !self.stopped;
        if fails {
            self.count(InjectedFault::Call(call));
        }
        fails
    }

    /// Counts a fault.
    pub(super) fn count(&mut self, fault: InjectedFault) {
        *self.injected.entry(fault).or_default() += 1;
    }

    pub(super) fn injected(&self) -> &BTreeMap<InjectedFault, u64> {
        &self.injected
    }

    /// Stops new faults.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The rules for the reads of the next endpoint.
    pub(super) fn for_endpoint(&mut self) -> ReadFaults {
        self.endpoints += 1;
        ReadFaults {
            rules: self.plan.reads.clone(),
            dies_after: self.plan.dies_after,
            posted: 0,
            random: SplitMix64::split(self.plan.seed, self.endpoints),
        }
    }
}

/// Whether `call` fails this time.
pub(super) fn fails(faults: &Mutex<CallFaults>, call: Call) -> bool {
    faults.lock().unwrap_or_else(PoisonError::into_inner).fails(call)
}

/// Carries out the rules for one endpoint's reads.
#[derive(Debug)]
pub(super) struct ReadFaults {
    rules: Vec<(When, ReadFault)>,
    dies_after: Option<u64>,
    posted: u64,
    random: SplitMix64,
}

impl ReadFaults {
    /// The fault of the read that was just posted.
    pub(super) fn next(&mut self) -> Option<ReadFault> {
        let this = self.posted;
        self.posted += 1;
        let random = &mut self.random;
        self.rules.iter().find(|(when, _)| when.applies(this, random)).map(|(_, fault)| fault.clone())
    }

    /// Whether the endpoint has posted the number of reads after which it dies.
    pub(super) fn is_over(&self) -> bool {
        self.dies_after.is_some_and(|reads| self.posted >= reads)
    }
}
