//! One master's place in the cluster, from an empty disk to a serving member, and the handle the rest of it uses.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::{Command, Outcome};
use jindofs_proto::v1::{MemberStatus, Role, StatusResponse};
use openraft::async_runtime::Instant as _;
use tokio::sync::watch;

use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::master::store::{Store, TableDigest};
use crate::runtime::random_id;

use super::identity::{Identity, MetaDir};
use super::membership;
use super::node::Running;
use super::peers::{Peers, Start};
use super::state_machine::StateMachine;
use super::types::Membership;
use super::wal::LogStore;
use super::wire::{Me, Net, Resolver};

/// A cheap handle on this master's Raft member; clones share everything.
#[derive(Debug, Clone)]
pub struct Handle(pub(crate) Arc<Inner>);

/// What the handle stands for.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: MasterConfig,
    pub(crate) dir: MetaDir,
    pub(crate) nonce: [u8; 16],
    pub(crate) resolver: Arc<Resolver>,
    identity: RwLock<Option<Identity>>,
    opened: RwLock<Option<Arc<Opened>>>,
    running: RwLock<Option<Arc<Running>>>,
    phase: watch::Sender<String>,
    pub(crate) leadership: watch::Sender<Option<u64>>,
    /// Held by whoever changes the stage: the life loop or a call to provision.
    pub(crate) life: tokio::sync::Mutex<()>,
}

/// The stores of a member, open before its Raft runs: announcements of others are judged by them.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) log: LogStore,
    pub(crate) machine: StateMachine,
    pub(crate) net: Arc<Net>,
}

impl Opened {
    /// The newest membership on this disk, committed or not.
    pub(crate) fn voters_in_log(&self) -> Result<Membership> {
        let at = |error: std::io::Error| Error::new(ErrorKind::Corrupted, error.to_string());
        match self.log.newest_membership().map_err(at)? {
            Some(membership) => Ok(membership),
            None => Ok(self.machine.membership().map_err(at)?.membership().clone()),
        }
    }
}

fn read<T: Clone>(lock: &RwLock<T>) -> T {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

fn write<T>(lock: &RwLock<T>, value: T) {
    *lock.write().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Handle {
    /// Locks the meta-dir and reads who this disk is.
    ///
    /// *Errors*: `Busy` when another process has the directory; `FailedPrecondition` for half a disk; `InvalidArgument`
    /// for settings that contradict each other.
    pub fn open(mut config: MasterConfig) -> Result<Handle> {
        let own = format!("{}:{}", config.host, config.raft_port);
        if config.peers.is_empty() {
            config.peers.push(own.clone());
        }
        super::node::raft_config(&config)?;
        let dir = MetaDir::open(&config.meta_dir)?;
        let mut identity = dir.load()?;
        if let Some(identity) = &mut identity {
            // Counted before anything else happens, so that no two starts of one disk look alike.
            identity.boot += 1;
            dir.store(identity)?;
        }
        Ok(Handle(Arc::new(Inner {
            config,
            dir,
            nonce: random_id(),
            resolver: Arc::default(),
            identity: RwLock::new(identity),
            opened: RwLock::new(None),
            running: RwLock::new(None),
            phase: watch::Sender::new("starting".to_owned()),
            leadership: watch::Sender::new(None),
            life: tokio::sync::Mutex::new(()),
        })))
    }

    pub(super) fn config(&self) -> &MasterConfig {
        &self.0.config
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        read(&self.0.identity)
    }

    /// Stores a new stage of life, then shows it.
    pub(crate) fn set_identity(&self, identity: Identity) -> Result<()> {
        self.0.dir.store(&identity)?;
        write(&self.0.identity, Some(identity));
        Ok(())
    }

    /// Forgets a disk that was set aside: this master is empty again.
    pub(crate) fn clear(&self) {
        write(&self.0.running, None);
        write(&self.0.opened, None);
        write(&self.0.identity, None);
        self.0.leadership.send_replace(None);
    }

    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        read(&self.0.running)
    }

    pub(crate) fn set_running(&self, running: Arc<Running>) {
        write(&self.0.running, Some(running));
    }

    pub(crate) fn opened(&self) -> Option<Arc<Opened>> {
        read(&self.0.opened)
    }

    pub(crate) fn set_phase(&self, phase: impl Into<String>) {
        let phase = phase.into();
        self.0.phase.send_if_modified(|old| {
            let changed = *old != phase;
            if changed {
                tracing::info!(phase, "master phase");
                *old = phase;
            }
            changed
        });
    }

    pub(crate) fn raft_address(&self) -> String {
        format!("{}:{}", self.0.config.host, self.0.config.raft_port)
    }

    pub(crate) fn grpc_address(&self) -> String {
        format!("{}:{}", self.0.config.host, self.0.config.grpc_port)
    }

    /// Opens log and state of the identity, once.
    pub(crate) fn open_stores(&self, identity: &Identity) -> Result<Arc<Opened>> {
        if let Some(opened) = self.opened() {
            return Ok(opened);
        }
        let at = |error: std::io::Error| {
            Error::new(ErrorKind::Corrupted, format!("namespace.meta-dir {}: {error}", self.0.dir.path().display()))
        };
        let peers = Arc::new(Peers::default());
        let log = LogStore::open(&self.0.dir.wal()).map_err(at)?;
        let machine = StateMachine::open(&self.0.dir.state(), &self.0.dir.snapshots(), peers.clone()).map_err(at)?;
        let me = Me {
            cluster: identity.cluster_bytes(),
            id: identity.member_id,
            incarnation: identity.incarnation_bytes(),
            boot: identity.boot,
            nonce: self.0.nonce,
        };
        let net = Arc::new(Net {
            me,
            peers,
            book: Default::default(),
            resolver: self.0.resolver.clone(),
            append_timeout: (self.0.config.election_max * 4).max(Duration::from_secs(3)),
            reads: Default::default(),
        });
        machine.replay(&log).map_err(at)?;
        let opened = Arc::new(Opened { log, machine, net });
        write(&self.0.opened, Some(opened.clone()));
        Ok(opened)
    }

    /// What a request is answered with while no Raft runs here.
    pub(crate) fn not_ready(&self) -> Error {
        Error::unavailable(format!("this master is not serving yet: {}", self.phase()))
    }

    pub(super) fn must_run(&self) -> Result<Arc<Running>> {
        self.running().ok_or_else(|| self.not_ready())
    }

    /// Replicates a command and returns what applying it returned.
    ///
    /// *Errors*: `NotLeader`, `Unavailable` (nothing was done), `OutcomeUnknown` (ask again with the same OpId),
    /// `ResourceExhausted` (too much in flight).
    ///
    /// *Durability*: on `Ok` the command is on the disks of a quorum.
    pub async fn propose(&self, command: Command) -> Result<Outcome> {
        self.must_run()?.propose(command).await
    }

    /// The store, at least as new as every write acknowledged before this call.
    ///
    /// *Errors*: `Unavailable` when no quorum confirms it in time.
    pub async fn read(&self) -> Result<Arc<Store>> {
        let running = self.must_run()?;
        running.read_barrier().await?;
        Ok(running.machine.store())
    }

    /// The store as it is, possibly behind; `None` while the disk belongs to no cluster.
    pub fn store(&self) -> Option<Arc<Store>> {
        self.opened().map(|opened| opened.machine.store())
    }

    /// True while this member leads.
    pub fn is_leader(&self) -> bool {
        self.running().is_some_and(|running| running.leading().is_some())
    }

    /// Follows leadership: the term while this member leads.
    pub fn leadership(&self) -> watch::Receiver<Option<u64>> {
        self.0.leadership.subscribe()
    }

    /// The error for a request that only the leader can answer.
    pub fn not_leader(&self) -> Error {
        self.running().map_or_else(|| self.not_ready(), |running| running.not_leader())
    }

    /// The cluster this disk belongs to.
    pub fn cluster_uuid(&self) -> Option<[u8; 16]> {
        self.identity().map(|identity| identity.cluster_bytes())
    }

    /// This member's id; 0 before it is admitted.
    pub fn member_id(&self) -> u64 {
        self.identity().map_or(0, |identity| identity.member_id)
    }

    /// Client gRPC addresses of all members.
    pub fn member_grpc_addresses(&self) -> Vec<String> {
        let Some(running) = self.running() else { return vec![self.grpc_address()] };
        running.look(|m| m.membership_config.nodes().map(|(_, node)| node.grpc_address.clone()).collect())
    }

    /// Where this master is on its way to serving.
    pub fn phase(&self) -> String {
        self.0.phase.borrow().clone()
    }

    /// True for a voter that has recovered and knows a leader; the text says what is missing.
    pub fn readiness(&self) -> Result<(), String> {
        let running = self.running().ok_or_else(|| self.phase())?;
        let me = running.net.me.id;
        let applied = *running.applied_index().borrow();
        running.look(|m| {
            if !m.membership_config.voter_ids().any(|id| id == me) {
                return Err("not a voter yet".to_owned());
            }
            if m.current_leader.is_none() {
                return Err("no leader is known".to_owned());
            }
            let committed = m.local_committed.map_or(0, |id| id.index);
            if applied + 10_000 < committed {
                return Err(format!("recovering: {applied} of {committed} entries applied"));
            }
            Ok(())
        })
    }

    /// True when [`Handle::readiness`] is.
    pub fn is_ready(&self) -> bool {
        self.readiness().is_ok()
    }

    /// Hands leadership to `target`, or to the most caught-up voter for 0. Returns the new leader.
    pub async fn transfer_leader(&self, target: u64) -> Result<u64> {
        self.must_run()?.transfer_leader(target).await
    }

    /// Builds a snapshot now; with `purge` deletes the whole log behind it. Returns both indexes.
    pub async fn snapshot(&self, purge: bool) -> Result<(u64, u64)> {
        self.must_run()?.snapshot(purge.then_some(0)).await
    }

    /// Waits until `index` is applied here.
    pub async fn wait_applied(&self, index: u64) -> Result<()> {
        self.must_run()?.wait_applied(index).await
    }

    /// Index of the last entry applied here.
    pub fn applied_index(&self) -> u64 {
        self.opened().map_or(0, |opened| *opened.machine.applied().borrow())
    }

    /// Tells of every entry that is applied here; `None` while the disk belongs to no cluster.
    pub fn applied(&self) -> Option<watch::Receiver<u64>> {
        self.opened().map(|opened| opened.machine.applied())
    }

    /// Checksums of all tables, and the index of the last entry they include.
    ///
    /// *Errors*: `Unavailable` while the disk belongs to no cluster.
    pub async fn digest(&self) -> Result<(u64, Vec<TableDigest>)> {
        let machine = self.opened().ok_or_else(|| self.not_ready())?.machine.clone();
        let digest = tokio::task::spawn_blocking(move || machine.digest()).await;
        digest
            .map_err(|error| Error::internal(format!("digest: {error}")))?
            .map_err(|error| Error::internal(format!("digest: {error}")))
    }

    /// What this master knows of the cluster. Needs no leader; `workers` is left to others.
    pub fn status(&self) -> StatusResponse {
        let (used, free) = self.0.dir.disk();
        let mut own = MemberStatus {
            id: self.member_id(),
            address: self.grpc_address(),
            raft_address: self.raft_address(),
            state: self.phase(),
            meta_dir: self.0.dir.path().display().to_string(),
            disk_used_bytes: used,
            disk_free_bytes: free,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot: self.identity().map_or(0, |identity| identity.boot),
            ..MemberStatus::default()
        };
        let mut status = StatusResponse {
            cluster_uuid: self.cluster_uuid().map(|uuid| uuid.to_vec().into()).unwrap_or_default(),
            ..StatusResponse::default()
        };
        if let Some(running) = self.running() {
            fill_status(&running, &mut own, &mut status, self.0.config.election_max);
        }
        status.self_ = Some(own);
        status
    }

    pub(crate) fn probe_answer(&self) -> wire::ProbeResponse {
        let identity = self.identity();
        let leader = self.running().and_then(|running| {
            let id = running.look(|m| m.current_leader)?;
            running.net.book.get(id).map(|node| node.raft_address)
        });
        wire::ProbeResponse {
            state: identity.as_ref().map_or("empty", |identity| identity.stage.name()).to_owned(),
            cluster_uuid: identity.as_ref().map(|i| i.cluster_bytes().to_vec().into()).unwrap_or_default(),
            member_id: identity.as_ref().map_or(0, |identity| identity.member_id),
            incarnation: identity.as_ref().map(|i| i.incarnation_bytes().to_vec().into()).unwrap_or_default(),
            peers: self.0.config.peers.clone(),
            grpc_address: self.grpc_address(),
            raft_address: self.raft_address(),
            leader_raft_address: leader.unwrap_or_default(),
        }
    }

    /// Compares what a starting member says of its disk with what is known here.
    pub(crate) fn judge_announcement(&self, news: wire::AnnounceRequest) -> Result<wire::AnnounceResponse> {
        use wire::AnnounceVerdict as Verdict;
        let opened = self.opened().ok_or_else(|| self.not_ready())?;
        let answer = |verdict: Verdict, reason: String| {
            Ok(wire::AnnounceResponse { verdict: verdict.into(), reason, member_id: opened.net.me.id })
        };
        if news.cluster_uuid != opened.net.me.cluster[..] {
            return answer(Verdict::Foreign, "this is another cluster".to_owned());
        }
        let members = query::members(&opened.machine.store().view())?;
        let Some(member) = members.iter().find(|member| member.id == news.member_id) else {
            // Its admission is in the log at least, or this disk is far behind.
            return match opened.voters_in_log()?.get_node(&news.member_id) {
                Some(node) if node.incarnation == news.incarnation => answer(Verdict::Welcome, String::new()),
                _ => Err(Error::unavailable("the member is not known here yet")),
            };
        };
        if member.retired {
            return answer(Verdict::Retired, format!("member {} was replaced", member.id));
        }
        let start = Start { incarnation: news.incarnation.to_vec(), boot: news.boot, nonce: news.boot_nonce.to_vec() };
        if let Err(disbelief) = opened.net.peers.judge(news.member_id, &start) {
            return answer(Verdict::Reverted, disbelief.to_string());
        }
        let acked = self.acknowledged_by(news.member_id).max(member.acked_index);
        if news.last_log_index < acked {
            let reason = format!(
                "its log ends at {}, but it has acknowledged {acked}: its disk is an old copy",
                news.last_log_index
            );
            return answer(Verdict::Reverted, reason);
        }
        if let Err(disbelief) = opened.net.peers.believe(news.member_id, &start) {
            return answer(Verdict::Reverted, disbelief.to_string());
        }
        match self.running().filter(|running| running.leading().is_some()) {
            Some(running) => {
                tokio::spawn(async move {
                    if let Err(error) = membership::take_announcement(&running, &news).await {
                        tracing::warn!(member = news.member_id, %error, "announcement not recorded; it is repeated");
                    }
                });
            }
            // Members that have all moved can only elect a leader, who records it, where each of them is now.
            None => opened.net.book.set(news.member_id, &membership::announced(&news)),
        }
        answer(Verdict::Welcome, String::new())
    }

    /// What a leader knows a member to have stored.
    fn acknowledged_by(&self, id: u64) -> u64 {
        let Some(running) = self.running() else { return 0 };
        running.look(|m| {
            let matched = m.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            let committed = m.local_committed.map_or(0, |id| id.index);
            matched.map_or(0, |id| id.index).min(committed)
        })
    }

    pub(crate) async fn admit(&self, request: wire::AdmitRequest) -> Result<wire::AdmitResponse> {
        membership::admit(&self.must_run()?, &self.0.config, request).await
    }
}

fn fill_status(running: &Running, own: &mut MemberStatus, status: &mut StatusResponse, lease: Duration) {
    let me = running.net.me.id;
    let applied = *running.applied_index().borrow();
    running.look(|m| {
        let index = |id: Option<super::types::LogId>| id.map_or(0, |id| id.index);
        let voters: Vec<u64> = m.membership_config.voter_ids().collect();
        let role = |id: u64| match (m.current_leader == Some(id), voters.contains(&id)) {
            (true, _) => Role::Leader,
            (false, true) => Role::Voter,
            (false, false) => Role::Learner,
        };
        status.leader_id = m.current_leader.unwrap_or(0);
        status.term = m.current_term;
        status.committed = index(m.local_committed);
        let heard = m.last_quorum_acked.is_some_and(|at| at.elapsed() < lease * 2);
        status.quorum = m.current_leader == Some(me) && (heard || voters.len() == 1);
        own.role = role(me).into();
        own.last_log = m.last_log_index.unwrap_or(0);
        own.applied = applied;
        own.snapshot = index(m.snapshot);
        for (id, node) in m.membership_config.nodes() {
            let node = running.net.book.get(*id).unwrap_or_else(|| node.clone());
            let matched = m.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
            status.members.push(MemberStatus {
                id: *id,
                address: node.grpc_address,
                raft_address: node.raft_address,
                role: role(*id).into(),
                last_log: if *id == me { own.last_log } else { index(matched) },
                ..MemberStatus::default()
            });
        }
    });
    if let Ok(Some(cluster)) = query::cluster(&running.machine.store().view()) {
        status.expected = cluster.expected;
    }
}
