//! One master's place in the cluster, from an empty disk to a serving member, and the handle the rest of it uses.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::{Command, Outcome};
use jindofs_proto::v1::{MemberStatus, StatusResponse};
use tokio::sync::watch;

use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::master::store::{Store, TableDigest};
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{random_id, spawn_blocking};

use super::admission;
use super::compaction;
use super::discovery::Discovery;
use super::disk_parts::{self, DiskVerdict, Part};
use super::disk_space::{DiskLimits, DiskSpace};
use super::identity::{Identity, MetaDir, Stage};
use super::inspection::inspect;
use super::membership;
use super::node::Running;
use super::peers::Peers;
use super::promise::Promise;
use super::snapshot::Transfers;
use super::state_machine::StateMachine;
use super::types::Membership;
use super::wal::{self, LogStamp, LogStore, Recovered};
use super::wire::{Me, Net, Resolver, check_address, check_id};

/// A cheap handle on this master's Raft member; clones share everything.
#[derive(Debug, Clone)]
pub struct Handle(pub(crate) Arc<Inner>);

/// What the handle stands for.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: MasterConfig,
    pub(crate) dir: MetaDir,
    pub(crate) space: Arc<DiskSpace>,
    pub(crate) nonce: [u8; 16],
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) discovery: Discovery,
    identity: RwLock<Option<Identity>>,
    /// The log as it was read when the disk was judged, until it is opened.
    recovered: Mutex<Option<Recovered>>,
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

/// Longest wait for what still uses a state that was set aside: requests and transfers end within it.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(30);
const CLEAR_POLL_INTERVAL: Duration = Duration::from_millis(10);

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
        let inspection = inspect(&dir)?;
        let mut identity = match (disk_parts::judge(&inspection.parts), inspection.parts.identity) {
            (DiskVerdict::Refused(why), _) => return Err(dir.refuse(why)),
            (DiskVerdict::Usable, Part::Present(identity)) => Some(identity),
            (DiskVerdict::Usable | DiskVerdict::Empty, _) => None,
        };
        // Once the disk was judged: nothing of one that is refused changes, its ballast included.
        let limits = DiskLimits { reserve: config.disk_reserve_bytes, ballast: config.ballast_bytes };
        let space = DiskSpace::open(&config.meta_dir, limits);
        space.watch()?;
        if let Some(identity) = &mut identity {
            // Counted before anything of the disk is used, so that no two starts of it look alike; but only after it was
            // judged, or an old IDENTITY would count itself up to the boot that its log knows.
            identity.boot = identity.boot.checked_add(1).ok_or_else(|| dir.refuse("its boot counter is exhausted"))?;
            space.at_start(|| dir.store(identity))?;
        }
        let promise = match &identity {
            // Fulfilled, or void: the identity says where the disk belongs.
            Some(identity) if !identity.is_unadmitted() => Promise::remove(&dir).map(|()| None)?,
            // A disk that its cluster does not admit is empty again, and bound by what it has promised.
            _ => Promise::load(&dir)?,
        };
        Ok(Handle(Arc::new(Inner {
            config,
            dir,
            space,
            nonce: random_id(),
            resolver: Arc::default(),
            discovery: Discovery::new(promise),
            identity: RwLock::new(identity),
            recovered: Mutex::new(inspection.log),
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
        self.0.space.at_start(|| self.0.dir.store(&identity))?;
        write(&self.0.identity, Some(identity));
        Ok(())
    }

    /// Stores a change of the identity as it is now, then shows it. Without an identity nothing changes.
    pub(crate) fn change_identity(&self, change: impl FnOnce(&mut Identity)) -> Result<()> {
        let Some(mut identity) = self.identity() else { return Ok(()) };
        change(&mut identity);
        self.set_identity(identity)
    }

    /// Forgets a disk that was set aside, and waits until nothing uses its state any more: this master is empty again.
    ///
    /// *Errors*: something still uses it. RocksDB refuses a new state at the path of one that is open in the same process.
    pub(crate) async fn clear(&self) -> Result<()> {
        let state = self.opened().map(|opened| Arc::downgrade(&opened.machine.store()));
        self.forget();
        let Some(state) = state else { return Ok(()) };
        let unused = async {
            while state.strong_count() > 0 {
                tokio::time::sleep(CLEAR_POLL_INTERVAL).await;
            }
        };
        let waited = tokio::time::timeout(CLEAR_TIMEOUT, unused).await;
        waited.map_err(|_| Error::unavailable("the state that was set aside is still in use: a restart begins anew"))
    }

    fn forget(&self) {
        write(&self.0.running, None);
        write(&self.0.opened, None);
        *self.0.recovered.lock().unwrap_or_else(PoisonError::into_inner) = None;
        write(&self.0.identity, None);
        self.0.leadership.send_replace(None);
        self.0.discovery.forget_silence();
    }

    /// Makes a disk that no cluster has admitted an empty one again, on the disk first.
    ///
    /// *Errors*: `Internal` for a disk that may have voted.
    pub(super) fn forget_joining(&self, identity: &Identity) -> Result<()> {
        self.0.dir.remove_unadmitted(identity)?;
        write(&self.0.identity, None);
        Ok(())
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
        let (dir, owner, space) = (&self.0.dir, identity.owner(), &self.0.space);
        let log = space.at_start(|| {
            // A second attempt reads the log anew: the first one may have written to it.
            let recovered = self.0.recovered.lock().unwrap_or_else(PoisonError::into_inner).take();
            let recovered = recovered.map_or_else(|| wal::recover(&dir.wal()), Ok).map_err(at)?;
            let stamp = LogStamp { owner, boot: identity.boot };
            LogStore::start(&dir.wal(), recovered, stamp, space.clone()).map_err(at)
        })?;
        // From here on a log that does not know this start is an older copy.
        if !is_planted(PlantedFault::LogBootNotRecorded) {
            self.change_identity(|identity| identity.log_boot = identity.boot)?;
        }
        let (state, snapshots) = (dir.state(), dir.snapshots());
        let options = compaction::store_options(&self.0.config, space);
        let machine = space.at_start(|| {
            let (flushed, options) = (log.flushed(), options.clone());
            StateMachine::open(&state, &snapshots, peers.clone(), owner, flushed, space.clone(), options).map_err(at)
        })?;
        log.guard_applied(machine.applied());
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
            alive_timeout: self.0.config.election_max * 2,
            confirmations: Default::default(),
            refusals: Default::default(),
            refused: Default::default(),
            integrity: machine.integrity(),
            transfers: Arc::new(Transfers::new(self.0.config.snapshot_send_bytes_per_second)),
            reads: Default::default(),
            disks: Default::default(),
        });
        match space.at_start(|| machine.replay(&log).map_err(at)) {
            // A member may be repaired by the others, before its Raft runs.
            Err(error) if identity.stage == Stage::Member && machine.integrity().damage().is_some() => {
                tracing::error!(%error, "the state is damaged");
            }
            replayed => replayed?,
        }
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
    /// `ResourceExhausted` (too much in flight), `NoSpace` (no quorum of the masters has room on its disk),
    /// `Corrupted` (the state of a sole master is damaged).
    ///
    /// *Durability*: on `Ok` the command is on the disks of a quorum.
    pub async fn propose(&self, command: Command) -> Result<Outcome> {
        let running = self.must_run()?;
        if let Some(refusal) = self.refusal_while_damaged(&running) {
            return Err(refusal);
        }
        let grows = command.command.as_ref().is_some_and(admission::grows);
        if let Some(refusal) = grows.then(|| self.refusal_of_growth()).flatten() {
            return self.refuse(&running, &command, refusal).await;
        }
        running.propose(command).await
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

    /// True while this member leads and a quorum has answered it lately.
    pub fn has_quorum(&self) -> bool {
        let lease = self.0.config.election_max;
        self.running().is_some_and(|running| running.leading().is_some() && running.is_heard_by_quorum(lease * 2))
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

    /// True for a voter that has recovered, knows a leader and is refused by no peer; the text says what is missing.
    pub fn readiness(&self) -> Result<(), String> {
        let running = self.running().ok_or_else(|| self.phase())?;
        if let Some(reason) = running.net.refusals.reason() {
            return Err(format!("a peer refuses this disk: {reason}"));
        }
        // A sole voter has to go on answering reads of what is intact.
        if let Some(damage) = running.net.integrity.damage()
            && running.look(|m| m.membership_config.voter_ids().count()) > 1
        {
            return Err(format!("damaged: {damage}"));
        }
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

    /// Messages of other masters that were refused since this disk was opened.
    pub fn refused_messages(&self) -> u64 {
        self.opened().map_or(0, |opened| opened.net.refused.load(Ordering::Relaxed))
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
        let digest = spawn_blocking(move || machine.digest()).await;
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
            disk_full: self.0.space.usage().full,
            ..MemberStatus::default()
        };
        // A cluster that has not admitted this disk may never do so: nothing is to be concluded from it, such as that it lives.
        let joined = self.identity().filter(|identity| !identity.is_unadmitted());
        let mut status = StatusResponse {
            cluster_uuid: joined.map(|identity| identity.cluster_bytes().to_vec().into()).unwrap_or_default(),
            ..StatusResponse::default()
        };
        if let Some(running) = self.running() {
            super::status::fill_status(&running, &mut own, &mut status, self.0.config.election_max);
        }
        status.self_ = Some(own);
        status
    }

    /// What a leader knows a member to have stored.
    pub(super) fn acknowledged_by(&self, id: u64) -> u64 {
        let Some(running) = self.running() else { return 0 };
        running.look(|m| {
            let matched = m.replication.as_ref().and_then(|all| all.get(&id).copied().flatten());
            let committed = m.local_committed.map_or(0, |id| id.index);
            matched.map_or(0, |id| id.index).min(committed)
        })
    }

    pub(crate) async fn admit(&self, request: wire::AdmitRequest) -> Result<wire::AdmitResponse> {
        check_id("incarnation", &request.incarnation)?;
        check_address("Raft address", &request.raft_address)?;
        check_address("gRPC address", &request.grpc_address)?;
        // Without the phase of this master: a disk that is joining shows the answer as its own phase, and two of them that ask each
        // other would make it longer each time.
        let not_serving = || Error::unavailable("the master that was asked does not serve yet");
        membership::admit(&self.running().ok_or_else(not_serving)?, &self.0.config, request).await
    }
}
