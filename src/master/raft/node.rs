//! A member whose Raft runs: proposals, linearizable reads, snapshots.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::{Command, Outcome};
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::metrics::RaftServerMetrics;
use openraft::raft::VoteResponse;
use openraft::{Config, RaftMetrics, ReadPolicy, SnapshotPolicy};
use prost::Message;
use tokio::sync::{Semaphore, watch};

use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, LeaderHint, Result};
use crate::master::state::query;
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{Fail, failpoint, spawn_blocking};
use crate::types::COMMAND_BYTES_MAX;

use super::disk_space::is_out_of_space;
use super::network::Network;
use super::progress::LogHistory;
use super::queue::QueueBound;
use super::read_gate::ReadGate;
use super::state_machine::StateMachine;
use super::types::{self, CommandBytes, LogId, TypeConfig};
use super::wal::LogStore;
use super::wall_clock::WallClock;
use super::wire::Net;
use super::witness::Witness;

pub(crate) type RaftCore = openraft::Raft<TypeConfig, StateMachine>;

/// How often, and how many times, a wait for an entry looks whether it is in vain: ten seconds in all.
const APPLY_POLL_INTERVAL: Duration = Duration::from_millis(250);
const APPLY_POLLS: u32 = 40;
/// Entries that replication sends at once; the log reader bounds their bytes.
const PAYLOAD_ENTRIES_MAX: u64 = 2048;

/// Silence after which the log is no longer kept for a member that lags.
const LAGGARD_TIMEOUT: Duration = Duration::from_secs(60);

/// Everything of a running member.
pub(crate) struct Running {
    pub(crate) raft: RaftCore,
    pub(crate) machine: StateMachine,
    pub(crate) log: LogStore,
    pub(crate) net: Arc<Net>,
    pub(crate) snapshots: PathBuf,
    pub(super) lease: Duration,
    pub(super) history: LogHistory,
    keep_log_for_learners: u64,
    inflight: Semaphore,
    /// What a leader has sent and Raft has not answered yet.
    pub(super) appends: QueueBound,
    inflight_bytes: u64,
    /// Reads of this member.
    reads: Arc<ReadGate<LogId>>,
    pub(super) witness: Witness,
    pub(super) clock: WallClock,
    /// Reads of all members, while this one leads.
    quorum: Arc<ReadGate<LogId>>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("member", &self.net.me.id).finish_non_exhaustive()
    }
}

/// openraft's settings for ours.
pub(crate) fn raft_config(config: &MasterConfig) -> Result<Config> {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let settings = Config {
        cluster_name: "jindofs".to_owned(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(config.election_min),
        election_timeout_max: ms(config.election_max),
        // Our sender has its own deadlines; this one only has to be longer than any honest transfer.
        install_snapshot_timeout: 600_000,
        max_payload_entries: PAYLOAD_ENTRIES_MAX,
        // We promote by our own check of what a learner has applied.
        replication_lag_threshold: 1_000,
        // Snapshots are made by bytes of log and on demand, by our own duty.
        snapshot_policy: SnapshotPolicy::Never,
        // Likewise the log: it is purged by bytes.
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * ms(config.election_max)),
        allow_log_reversion: Some(false),
        // A leader sends entries to its followers before they are on its own disk. One that resumed its term after a crash
        // would give a second entry the log id of one that only the followers have kept.
        enable_leader_restore: Some(is_planted(PlantedFault::LeaderResumed)),
        ..Config::default()
    };
    settings.validate().map_err(|error| Error::invalid(format!("raft timers: {error}")))
}

impl Running {
    pub(crate) async fn start(
        config: &MasterConfig,
        net: Arc<Net>,
        log: LogStore,
        machine: StateMachine,
        snapshots: PathBuf,
    ) -> Result<Running> {
        let settings = Arc::new(raft_config(config)?);
        let network = Network(net.clone());
        let raft = RaftCore::new(net.me.id, settings, network, log.clone(), machine.clone())
            .await
            .map_err(|error| Error::internal(format!("raft does not start: {error}")))?;
        Ok(Running {
            raft,
            machine,
            log,
            net,
            snapshots,
            keep_log_for_learners: config.keep_log_for_learners_bytes,
            lease: config.election_max,
            history: LogHistory::default(),
            appends: QueueBound::new(),
            inflight: Semaphore::new(usize::try_from(config.inflight_bytes).unwrap_or(Semaphore::MAX_PERMITS)),
            inflight_bytes: config.inflight_bytes,
            reads: Arc::default(),
            quorum: Arc::default(),
            witness: Witness::default(),
            clock: WallClock::new(config.clock_skew_max),
        })
    }

    pub(crate) fn vote_to_wire(
        &self,
        request: &wire::VoteRequest,
        answer: &VoteResponse<TypeConfig>,
    ) -> wire::VoteResponse {
        let sender = request.header.as_ref().map_or(0, |header| header.sender_id);
        wire::VoteResponse {
            header: Some(self.net.me.header(sender)),
            vote: Some(types::vote_to_wire(&answer.vote)),
            granted: answer.vote_granted,
            last_log_id: answer.last_log_id.as_ref().map(types::log_id_to_wire),
        }
    }

    /// The leader this member knows.
    pub(crate) fn leader_hint(&self) -> Option<LeaderHint> {
        let (id, node) = self.look(|m| m.current_leader.map(|id| (id, m.membership_config.get_node(&id).cloned())))?;
        let node = self.net.book.get(id).or(node)?;
        Some(LeaderHint { id, address: node.grpc_address })
    }

    /// What a request for the leader is answered with here.
    pub(crate) fn not_leader(&self) -> Error {
        match self.leader_hint().filter(|hint| hint.id != self.net.me.id) {
            Some(hint) => Error {
                kind: ErrorKind::NotLeader,
                message: format!(
                    "member {} is not the leader; member {} at {} is",
                    self.net.me.id, hint.id, hint.address
                ),
                leader: Some(hint),
            },
            None => Error::unavailable(format!(
                "member {} knows no leader: no quorum, or an election is under way",
                self.net.me.id
            )),
        }
    }

    /// Replicates a command and returns what applying it returned.
    ///
    /// *Errors*: `NotLeader`, `Unavailable` (nothing was done), `OutcomeUnknown` (it may yet be committed: ask again with
    /// the same OpId), `ResourceExhausted` (too much in flight).
    ///
    /// *Durability*: on `Ok` the command is on the disks of a quorum.
    pub(crate) async fn propose(&self, mut command: Command) -> Result<Outcome> {
        if command.time_ns == 0 {
            command.time_ns = self.clock.stamp(|| self.recorded_time());
        }
        let bytes = Bytes::from(command.encode_to_vec());
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "a command of {} bytes: at most {COMMAND_BYTES_MAX} are allowed, send less at once",
                    bytes.len()
                ),
            ));
        }
        let weight = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Ok(_permit) = self.inflight.try_acquire_many(weight) else {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!("{} bytes of proposals are in flight: retry", self.inflight_bytes),
            ));
        };
        let written = tokio::time::timeout(self.lease, self.raft.client_write(CommandBytes(bytes))).await;
        if failpoint("propose.reply") == Fail::Skip {
            return Err(Error::new(ErrorKind::OutcomeUnknown, "the reply was dropped by a failpoint"));
        }
        match written {
            Ok(Ok(response)) => {
                response.data.0.ok_or_else(|| Error::internal("a command was applied without an outcome"))
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Err(self.not_leader()),
            Ok(Err(RaftError::Fatal(error))) => Err(Error::unavailable(format!("raft has stopped here: {error}"))),
            Ok(Err(error)) => Err(Error::new(ErrorKind::OutcomeUnknown, format!("not known to be committed: {error}"))),
            Err(_) => Err(Error::new(
                ErrorKind::OutcomeUnknown,
                format!("not committed within {:?}: no quorum answers; ask again with the same OpId", self.lease),
            )),
        }
    }

    /// The leader's read index, by a quorum round that began after this call. Members that ask at the same time share
    /// the round.
    pub(crate) async fn leader_read_index(self: &Arc<Self>) -> Result<LogId> {
        let this = self.clone();
        let round = move || {
            let this = this.clone();
            async move { this.quorum_round().await }
        };
        self.quorum.join(round).await
    }

    async fn quorum_round(&self) -> Result<LogId> {
        if let Some(id) = self.witnessed_round().await {
            return Ok(id);
        }
        let read = tokio::time::timeout(self.lease, self.raft.get_read_log_id(ReadPolicy::ReadIndex)).await;
        match read {
            Ok(Ok((read, _))) => Ok(*read.log_id()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_)))) => Err(self.not_leader()),
            Ok(Err(error)) => Err(Error::unavailable(format!("no quorum confirms the leader: {error}"))),
            Err(_) => Err(Error::unavailable("no quorum confirms the leader in time")),
        }
    }

    async fn ask_read_index(&self, leader: u64) -> Result<LogId> {
        let node = self.net.book.get(leader).ok_or_else(|| self.not_leader())?;
        let ask = async {
            let mut client = self.net.reads_client(leader, &node.raft_address).await?;
            let vouched_term = self.vouched_term(leader).await;
            let request = wire::ReadIndexRequest { header: Some(self.net.me.header(leader)), vouched_term };
            let answer = client.read_index(request).await;
            answer.map_err(|status| crate::rpc::status::from_status(&status))
        };
        let answer = match tokio::time::timeout(self.lease, ask).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(error)) => {
                self.net.forget_reads_client();
                return Err(Error::unavailable(format!("the leader does not confirm a read: {}", error.message)));
            }
            Err(_) => {
                self.net.forget_reads_client();
                return Err(Error::unavailable("the leader does not confirm a read in time"));
            }
        };
        self.net.check(answer.header.as_ref()).map_err(|error| Error::unavailable(error.message))?;
        let id = answer.log_id.as_ref().ok_or_else(|| Error::internal("a read index without a log id"))?;
        Ok(types::log_id_from_wire(id))
    }

    /// Waits until everything acknowledged before this call can be read here.
    pub(crate) async fn read_barrier(self: &Arc<Self>) -> Result<()> {
        if is_planted(PlantedFault::ReadWithoutBarrier) {
            return Ok(());
        }
        let id = if self.look(|m| m.current_leader) == Some(self.net.me.id) {
            self.leader_read_index().await?
        } else {
            let this = self.clone();
            let round = move || {
                let this = this.clone();
                async move {
                    match this.look(|m| m.current_leader) {
                        Some(leader) if leader == this.net.me.id => this.leader_read_index().await,
                        Some(leader) => this.ask_read_index(leader).await,
                        None => Err(this.not_leader()),
                    }
                }
            };
            self.reads.join(round).await?
        };
        self.wait_applied(id.index).await
    }

    /// Waits until `index` is applied here.
    pub(crate) async fn wait_applied(&self, index: u64) -> Result<()> {
        let mut applied = self.machine.applied();
        // Nearly always: then no timer is needed.
        if *applied.borrow_and_update() >= index {
            return Ok(());
        }
        for _ in 0..APPLY_POLLS {
            match tokio::time::timeout(APPLY_POLL_INTERVAL, applied.wait_for(|now| *now >= index)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(Error::unavailable("the state machine has stopped")),
                // Another master may answer at once, while this one waits for as long as its disk is full.
                Err(_) if self.machine.is_waiting_for_room() => {
                    return Err(Error::unavailable("this master waits for room on its disk"));
                }
                Err(_) => {}
            }
        }
        Err(Error::unavailable(format!("entry {index} is not applied here yet")))
    }

    /// Builds a snapshot of everything applied by now; purges the log behind it if asked. Returns the index of the
    /// snapshot and the index up to which the log is purged.
    pub(crate) async fn snapshot(&self, purge_keeping: Option<u64>) -> Result<(u64, u64)> {
        let stopped =
            |error: openraft::errors::Fatal<TypeConfig>| Error::unavailable(format!("raft has stopped: {error}"));
        if let Some(damage) = self.net.integrity.damage() {
            return Err(Error::new(ErrorKind::Corrupted, format!("damaged data is not sealed: {damage}")));
        }
        let applied = *self.machine.applied().borrow();
        let mut given_up = self.machine.snapshots_given_up();
        given_up.mark_unchanged();
        if self.machine.snapshot_id().is_none_or(|id| id.index < applied) {
            let before = self.machine.snapshot_id().map_or(0, |id| id.index);
            self.machine.check_room_for_snapshot(self.log.bytes_after(before))?;
            let machine = self.machine.clone();
            let sealed = spawn_blocking(move || machine.prepare_snapshot()).await;
            sealed.map_err(|error| Error::internal(error.to_string()))?.map_err(|error| match error.kind() {
                std::io::ErrorKind::InvalidData => Error::new(ErrorKind::Corrupted, error.to_string()),
                _ if is_out_of_space(&error) => {
                    Error::new(ErrorKind::NoSpace, format!("the snapshot found no room on the disk: {error}"))
                }
                _ => Error::from(error).context("the snapshot is not sealed"),
            })?;
            self.raft.trigger().snapshot().await.map_err(stopped)?;
        }
        let wait = self.raft.wait(Some(Duration::from_secs(120)));
        let built = tokio::select! {
            built = wait.metrics(|m| m.snapshot.map_or(0, |id| id.index) >= applied, "snapshot is built") => built,
            Ok(()) = given_up.changed() => {
                return Err(Error::new(ErrorKind::NoSpace, "the snapshot found no room on the disk"));
            }
        };
        let index = match built {
            Ok(metrics) => metrics.snapshot.map_or(0, |id| id.index),
            Err(error) => return Err(Error::new(ErrorKind::Timeout, format!("the snapshot is not built: {error}"))),
        };
        if let Some(keep) = purge_keeping
            && let Some(point) = self.log.purge_point(keep)
        {
            // A disk with little room does not keep more for members that lag: they get the snapshot.
            let for_learners = if self.machine.is_room_low() { keep } else { self.keep_log_for_learners };
            let upto = self.purge_limit(point.min(index), for_learners);
            self.raft.trigger().purge_log(upto).await.map_err(stopped)?;
            let wait = self.raft.wait(Some(Duration::from_secs(5)));
            // Not being purged in time loses nothing: it happens with the next snapshot.
            let _ = wait.metrics(|m| m.purged.is_some_and(|id| id.index >= upto), "log is purged").await;
        }
        let purged = self.look(|m| m.purged.map_or(0, |id| id.index));
        Ok((index, purged))
    }

    /// Up to where the log may be purged, at most `upto`: what members lack that lag, or that receive a snapshot, stays
    /// `keep` bytes of log.
    fn purge_limit(&self, upto: u64, keep: u64) -> u64 {
        let me = self.net.me.id;
        let alive = |id: u64| self.net.peers.heard(id).is_some_and(|at| at.elapsed() < LAGGARD_TIMEOUT);
        let lagging = self.look(|m| {
            let known = m.replication.iter().flatten().filter(|(id, _)| **id != me && alive(**id));
            known.filter_map(|(_, matched)| matched.map(|id| id.index)).min()
        });
        let needed = lagging.into_iter().chain(self.net.transfers.lowest_index()).min().unwrap_or(upto);
        let bound = self.log.purge_point(keep).unwrap_or(0);
        let limit = upto.min(needed.max(bound));
        let held = self.log.bytes_after(limit).saturating_sub(self.log.bytes_after(upto));
        self.net.transfers.held.store(held, Ordering::Relaxed);
        limit
    }

    /// `Some(term)` while this member leads.
    pub(crate) fn leading(&self) -> Option<u64> {
        let me = self.net.me.id;
        self.look(|m| {
            (m.current_leader == Some(me) && m.state == openraft::ServerState::Leader).then_some(m.current_term)
        })
    }

    /// The time of the last command applied here, once this member leads and there is one.
    fn recorded_time(&self) -> Option<i64> {
        self.leading()?;
        query::clock_ns(&self.machine.store().view()).ok().filter(|recorded| *recorded > 0)
    }

    /// True if a quorum has answered this leader within `time`; a sole voter is a quorum by itself.
    pub(crate) fn is_heard_by_quorum(&self, time: Duration) -> bool {
        self.look(|m| {
            let heard = m.last_quorum_acked.is_some_and(|at| at.elapsed() < time);
            heard || m.membership_config.voter_ids().count() == 1
        })
    }

    /// True while this member knows a leader that lives: one that it has heard a moment ago, or itself, answered by a quorum
    /// a moment ago.
    pub(super) fn knows_living_leader(&self) -> bool {
        match self.look(|m| m.current_leader) {
            Some(id) if id == self.net.me.id => self.leading().is_some() && self.is_heard_by_quorum(self.lease * 2),
            Some(id) => self.is_heard(id),
            None => false,
        }
    }

    /// As [`Running::leading`], from a change that was just announced.
    pub(crate) fn leading_in(&self, seen: &RaftServerMetrics<TypeConfig>) -> Option<u64> {
        let leads = seen.current_leader == Some(self.net.me.id) && seen.state == openraft::ServerState::Leader;
        leads.then(|| types::vote_to_wire(&seen.vote).term)
    }

    /// Looks at raft's metrics.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&RaftMetrics<TypeConfig>) -> T) -> T {
        let metrics = self.raft.metrics();
        let seen = metrics.borrow_watched();
        at(&seen)
    }

    pub(crate) fn applied_index(&self) -> watch::Receiver<u64> {
        self.machine.applied()
    }

    /// Hands leadership to `target`, or to the voter with the most log of those heard lately. Returns the new leader.
    pub(crate) async fn transfer_leader(&self, target: u64) -> Result<u64> {
        if self.leading().is_none() {
            return Err(self.not_leader());
        }
        let target = self.pick_successor(target)?;
        let stopped =
            |error: openraft::errors::Fatal<TypeConfig>| Error::unavailable(format!("raft has stopped: {error}"));
        self.raft.trigger().transfer_leader(target).await.map_err(stopped)?;
        let me = self.net.me.id;
        let wait = self.raft.wait(Some(self.lease * 2));
        match wait.metrics(|m| m.current_leader.is_some_and(|id| id != me), "another leads").await {
            Ok(metrics) => Ok(metrics.current_leader.unwrap_or(target)),
            Err(_) => Err(Error::unavailable(format!("member {target} did not take over; the leader stays"))),
        }
    }

    fn pick_successor(&self, target: u64) -> Result<u64> {
        let me = self.net.me.id;
        let (matched, voters) = self.look(|m| {
            let voters: Vec<u64> = m.membership_config.voter_ids().filter(|id| *id != me).collect();
            (m.replication.clone().unwrap_or_default(), voters)
        });
        if target != 0 {
            return voters.into_iter().find(|id| *id == target).ok_or_else(|| {
                Error::invalid(format!("member {target} is no other voter: `jindoctl cluster status` lists them"))
            });
        }
        let alive = |id: u64| self.net.peers.heard(id).is_some_and(|at| at.elapsed() < self.lease * 2);
        voters
            .into_iter()
            .max_by_key(|id| (alive(*id), matched.get(id).copied().flatten().map(|log_id| log_id.index)))
            .ok_or_else(|| Error::new(ErrorKind::FailedPrecondition, "there is no other voter to hand leadership to"))
    }
}
