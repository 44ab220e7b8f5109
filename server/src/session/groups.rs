//! Queries in partitions: streams, on one connection or several, that share one run of one query.
//!
//! The members of a group share an id that their client chose: 128 random bits from its operating system. The id cannot
//! be guessed, but a client that learns it could take a partition. The first member has the engine plan and start the
//! query; each member takes its partition once all have joined. From then on they succeed or fail together: an error
//! that ends one member ends the others with the same error, so that no client mistakes a part for the whole.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow_schema::SchemaRef;
use thallus_protocol::GroupId;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::{Failure, OpenOptions, Partition, SortKey};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::source::{Source, failure};
use crate::engine::{BatchStream, Engine, PartitionedQuery, QueryRequest};

/// Limits of queries in partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimits {
    /// Most groups at a time.
    pub max_groups: usize,
    /// Most partitions of one query.
    pub max_partitions: u32,
    /// Limit from the request of the first member to the request of the last.
    pub rendezvous: Duration,
}

/// Progress of a group.
#[derive(Clone, Debug, Default)]
struct Stage {
    all_joined: bool,
    planned: bool,
    failed: Option<Failure>,
}

struct Members {
    joined: Vec<bool>,
    /// Members that have not left.
    present: usize,
    plan: Option<Plan>,
}

struct Plan {
    schema: SchemaRef,
    order: Vec<SortKey>,
    /// Each partition until its member takes it.
    partitions: Vec<Option<BatchStream>>,
}

struct Group {
    /// The connection of the first member.
    founder: u64,
    /// A later group has a higher number.
    number: u64,
    sql: String,
    options: OpenOptions,
    count: u32,
    /// Deadline for all members to join.
    until: Instant,
    stage: watch::Sender<Stage>,
    members: Mutex<Members>,
}

/// The groups of a server.
///
/// Locks are taken in this order: the groups, a group's members, its stage.
#[derive(Debug)]
pub(crate) struct Groups {
    limits: GroupLimits,
    /// Groups with members. Failed groups stay until their deadline, so that late members receive the error.
    groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    /// Numbers of groups and of connections.
    numbers: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(what: String) -> Failure {
    Failure::new(StreamCode::PartitionInvalid, what)
}

/// The options that all members must have in common. The others may differ by connection.
fn common(options: &OpenOptions) -> OpenOptions {
    OpenOptions { partition: None, measured: None, credit: 0, largest_batch: None, ..options.clone() }
}

impl Groups {
    pub(crate) fn new(limits: GroupLimits) -> Self {
        Groups { limits, groups: Mutex::default(), numbers: AtomicU64::new(0) }
    }

    /// A new number, above all earlier ones: for a group, or for a connection that may join groups.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Number of groups that have members.
    pub(crate) fn len(&self) -> usize {
        lock(&self.groups).values().filter(|group| lock(&group.members).present > 0).count()
    }

    /// Joins a group, as the connection of this number. A refused request does not affect members that have already
    /// joined.
    ///
    /// # Errors
    /// The request does not fit the other members or the limits, or the group has failed already.
    pub(crate) fn join(
        self: &Arc<Self>,
        connection: u64,
        partition: Partition,
        sql: &str,
        options: &OpenOptions,
    ) -> Result<GroupMember, Failure> {
        let Partition { group: id, index, count } = partition;
        let limit = self.limits.max_partitions;
        if count == 0 || count > limit {
            return Err(invalid(format!("{count} partitions were requested; this server allows 1 to {limit}")));
        }
        if index >= count {
            return Err(invalid(format!("partition {index} of {count}: partitions are counted from 0")));
        }
        let mut groups = lock(&self.groups);
        let mut displaced = None;
        let (group, plans) = match groups.get(&id) {
            Some(group) => (Arc::clone(group), false),
            None => {
                displaced = self.make_room(&mut groups)?;
                let options = common(options);
                let group = Group::new(sql.to_owned(), options, count, self.limits.rendezvous);
                let group = Arc::new(Group { founder: connection, number: self.next_number(), ..group });
                groups.insert(id, Arc::clone(&group));
                (group, true)
            }
        };
        let joined = group.join(index, count, sql, options);
        drop(groups);
        if let Some(displaced) = displaced {
            displaced.fail(displaced.displaced(self.limits.max_groups));
        }
        joined?;
        Ok(GroupMember { groups: Arc::clone(self), id, group, index, plans })
    }

    /// Makes room for one more group. Returns the group that was displaced and must be failed.
    fn make_room(&self, groups: &mut BTreeMap<GroupId, Arc<Group>>) -> Result<Option<Arc<Group>>, Failure> {
        let (now, limit) = (Instant::now(), self.limits.max_groups);
        groups.retain(|_, group| !group.has_failed() || group.until > now);
        if groups.len() < limit {
            return Ok(None);
        }
        let failed = groups.iter().filter(|(_, group)| group.has_failed()).min_by_key(|(_, group)| group.until);
        match failed.map(|(id, _)| *id).or_else(|| Self::to_displace(groups)) {
            Some(id) => Ok(groups.remove(&id)),
            None => {
                let message = format!(
                    "the server runs at most {limit} queries in partitions at a time \
                     (limits.max_partitioned_queries); try again later"
                );
                Err(Failure::new(StreamCode::TooManyStreams, message))
            }
        }
    }

    /// The group that makes room for another one. It still misses members: a client that requests only some of the
    /// partitions must not keep others from their queries. It is the oldest such group of the connection that has the
    /// most, so that a client that has few is not displaced by one that has many.
    fn to_displace(groups: &BTreeMap<GroupId, Arc<Group>>) -> Option<GroupId> {
        let incomplete = || groups.iter().filter(|(_, group)| !group.stage.borrow().all_joined);
        let of_founder = |founder: u64| incomplete().filter(|(_, group)| group.founder == founder).count();
        let group = incomplete().max_by_key(|(_, group)| (of_founder(group.founder), Reverse(group.number)));
        group.map(|(id, _)| *id)
    }
}

impl Group {
    fn new(sql: String, options: OpenOptions, count: u32, rendezvous: Duration) -> Self {
        let members = Members { joined: vec![false; count as usize], present: 0, plan: None };
        let until = Instant::now() + rendezvous;
        let (stage, members) = (watch::Sender::default(), Mutex::new(members));
        Group { founder: 0, number: 0, sql, options, count, until, stage, members }
    }

    fn has_failed(&self) -> bool {
        self.stage.borrow().failed.is_some()
    }

    fn join(&self, index: u32, count: u32, sql: &str, options: &OpenOptions) -> Result<(), Failure> {
        if count != self.count {
            return Err(invalid(format!(
                "one of {count} partitions was requested, but the others are of {}",
                self.count
            )));
        }
        if sql != self.sql || common(options) != self.options {
            return Err(invalid("the other partitions have another query or other options".into()));
        }
        let mut members = lock(&self.members);
        let joined =
            members.joined.get_mut(index as usize).ok_or_else(|| invalid(format!("there is no partition {index}")))?;
        if *joined {
            return Err(invalid(format!("partition {index} was requested before")));
        }
        if let Some(failed) = self.stage.borrow().failed.clone() {
            return Err(failed);
        }
        *joined = true;
        members.present += 1;
        let all_joined = members.joined.iter().all(|joined| *joined);
        drop(members);
        self.stage.send_modify(|stage| stage.all_joined |= all_joined);
        Ok(())
    }

    /// Ends every member that has not ended, with the first of the errors. Drops partitions that are not taken.
    fn fail(&self, failed: Failure) {
        let mut first = false;
        self.stage.send_if_modified(|stage| {
            first = stage.failed.is_none();
            stage.failed.get_or_insert(failed);
            first
        });
        if first {
            let plan = lock(&self.members).plan.take();
            drop(plan);
        }
    }

    fn planned(&self, query: PartitionedQuery) -> Result<(), Failure> {
        let PartitionedQuery { schema, order, partitions } = query;
        if partitions.len() != self.count as usize {
            let message = format!("bug: the engine made {} partitions of {}", partitions.len(), self.count);
            return Err(Failure::new(StreamCode::Internal, message));
        }
        let plan = Plan { schema, order, partitions: partitions.into_iter().map(Some).collect() };
        let mut members = lock(&self.members);
        if let Some(failed) = self.stage.borrow().failed.clone() {
            return Err(failed);
        }
        members.plan = Some(plan);
        drop(members);
        self.stage.send_modify(|stage| stage.planned = true);
        Ok(())
    }

    fn displaced(&self, limit: usize) -> Failure {
        let joined = lock(&self.members).joined.iter().filter(|joined| **joined).count();
        let message = format!(
            "{joined} of {} partitions were requested when the server reached its limit of {limit} queries in \
             partitions (limits.max_partitioned_queries); request all partitions at once",
            self.count
        );
        Failure::new(StreamCode::PartitionMissing, message)
    }

    fn missing(&self, rendezvous: Duration) -> Failure {
        let joined = lock(&self.members).joined.iter().filter(|joined| **joined).count();
        let message = format!("{joined} of {} partitions were requested within {rendezvous:?}", self.count);
        Failure::new(StreamCode::PartitionMissing, message)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("count", &self.count)
            .field("stage", &*self.stage.borrow())
            .finish_non_exhaustive()
    }
}

/// A member's place in its group. Held by the stream and by its query's task.
#[derive(Debug)]
pub(crate) struct GroupMember {
    groups: Arc<Groups>,
    id: GroupId,
    group: Arc<Group>,
    index: u32,
    /// Whether this member has the query planned.
    plans: bool,
}

impl GroupMember {
    /// Returns this member's partition, once all members have joined and the query runs.
    pub(crate) async fn part(&self, engine: &dyn Engine, request: QueryRequest) -> Result<Source, Failure> {
        let group = &self.group;
        let mut stage = group.stage.subscribe();
        let plan = async {
            match self.plans {
                true => {
                    let count = group.count as usize;
                    group.planned(engine.execute_partitioned(request, count).await.map_err(failure)?)
                }
                false => Ok(()),
            }
        };
        let rendezvous = async {
            // The group, which this member holds, owns the sender.
            let all_joined = stage.wait_for(|stage| stage.all_joined);
            let late = tokio::time::timeout_at(group.until, all_joined).await.is_err();
            if late { Err(group.missing(self.groups.limits.rendezvous)) } else { Ok(()) }
        };
        tokio::try_join!(plan, rendezvous)?;
        // The returned reference locks the stage, so it is dropped before another lock is taken.
        drop(stage.wait_for(|stage| stage.planned || stage.failed.is_some()).await);
        let mut members = lock(&group.members);
        let taken = members.plan.as_mut().and_then(|plan| {
            let batches = plan.partitions.get_mut(self.index as usize)?.take()?;
            Some(Source { schema: Arc::clone(&plan.schema), order: plan.order.clone(), batches })
        });
        taken.ok_or_else(|| {
            group.stage.borrow().failed.clone().unwrap_or_else(|| self.lost("bug: the partition was taken before"))
        })
    }

    /// Waits until the group has failed, and returns the error.
    pub(crate) async fn failed(&self) -> Failure {
        let mut stage = self.group.stage.subscribe();
        let failed = stage.wait_for(|stage| stage.failed.is_some()).await;
        failed.ok().and_then(|stage| stage.failed.clone()).unwrap_or_else(|| self.lost("the group has been dropped"))
    }

    /// Ends the group because this member's query failed. `failure` is the error for the clients.
    pub(crate) fn fail(&self, failure: Failure) {
        self.group.fail(failure);
    }

    /// Ends the group because this member ends before its partition does.
    pub(crate) fn leave(&self, why: &str) {
        debug!(partition = self.index, of = self.group.count, why, "a partition ended early");
        self.group.fail(self.lost(why));
    }

    fn lost(&self, why: &str) -> Failure {
        Failure::new(StreamCode::PartitionLost, format!("partition {} of {}: {why}", self.index, self.group.count))
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        let mut groups = lock(&self.groups.groups);
        let mut members = lock(&self.group.members);
        members.present -= 1;
        // A failed group with missing members stays: late members receive its error, and do not begin another group.
        let done = members.present == 0 && members.joined.iter().all(|joined| *joined);
        if done && groups.get(&self.id).is_some_and(|group| Arc::ptr_eq(group, &self.group)) {
            groups.remove(&self.id);
        }
    }
}
