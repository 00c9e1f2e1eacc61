//! Between openraft and the deterministic core: entries in, one transaction per run of entries, answers afterwards.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::{Stream, StreamExt};
use jindofs_proto::raft::v1 as wire;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use tokio::sync::watch;

use crate::error::Error;
use crate::master::invalidations::Invalidations;
use crate::master::state::{StoreError, query};
use crate::master::store::{Store, StoreOptions, TableDigest};
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{die, spawn_blocking};

use super::apply::{ChunkItem, Run, apply_entries, read_applied, ready_chunk};
use super::compaction;
use super::current::{self, Current};
use super::disk_parts::Part;
use super::disk_space::DiskSpace;
use super::identity::Owner;
use super::install::{WithoutRoom, blames_disk, is_damage};
use super::integrity::Integrity;
use super::peers::Peers;
use super::snapshot::{self, SnapshotData};
use super::types::{self, Applied, Entry, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use super::wal::LogStore;

/// Most entries applied without handing the thread over.
const CHUNK_INLINE: usize = 64;
/// Bytes of log replayed in one transaction.
const REPLAY_BYTES: u64 = 256 << 10;
/// Pause between two looks whether a damaged state has been replaced.
const REPAIR_POLL_INTERVAL: Duration = Duration::from_millis(200);

type SnapshotOf = Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, types::Node, SnapshotData>;

/// The state machine, and the handle others read it through.
#[derive(Debug, Clone)]
pub(crate) struct StateMachine(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) snapshots: PathBuf,
    pub(super) options: StoreOptions,
    pub(super) owner: Owner,
    /// Index up to which the log is on this disk.
    flushed: watch::Receiver<u64>,
    /// The state, and the number of its directory.
    pub(super) store: RwLock<(u64, Arc<Store>)>,
    /// The snapshot sealed last.
    pub(super) snapshot: Mutex<Option<SnapshotData>>,
    /// Sealed, and not yet handed to openraft.
    prepared: Mutex<Option<SnapshotData>>,
    /// Held while the state is replaced, from the choice of the directory on. Taken before `applying`.
    pub(super) replacing: Mutex<()>,
    /// Held while entries are applied or the state is replaced. Taken before `store`.
    pub(super) applying: Mutex<()>,
    /// Held while a snapshot is built. Taken before `snapshot`.
    pub(super) building: Mutex<()>,
    pub(super) applied: watch::Sender<u64>,
    pub(super) integrity: Arc<Integrity>,
    closing: AtomicBool,
    peers: Arc<Peers>,
    pub(super) space: Arc<DiskSpace>,
    /// The changes that are applied, for clients that cache the tree.
    pub(super) invalidations: Arc<Invalidations>,
    /// Snapshots that found no room.
    pub(super) given_up: watch::Sender<u64>,
}

pub(super) fn broken(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

impl StateMachine {
    /// Opens the state of `owner` in `dir`, creating it if it is not there, and the newest snapshot in `snapshots`.
    /// Entries are applied once `flushed` has reached them.
    pub(crate) fn open(
        dir: &Path,
        snapshots: &Path,
        peers: Arc<Peers>,
        owner: Owner,
        flushed: watch::Receiver<u64>,
        space: Arc<DiskSpace>,
        options: StoreOptions,
    ) -> io::Result<StateMachine> {
        fs::create_dir_all(dir)?;
        let current = match current::read(dir)? {
            Part::Present(current) => current,
            Part::Missing => Current::default(),
            Part::Damaged(why) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
        };
        // Also one that was read: its name may stand in the page cache only, after a sync of the directory that failed.
        current::write(dir, &current)?;
        let number = current.number;
        // Half-installed states of earlier lives.
        for item in fs::read_dir(dir)? {
            let path = item?.path();
            let is_current = path == dir.join(number.to_string());
            // Without RocksDB's own pointer what is left there is no database: a new one must not begin among its files.
            if path.is_dir() && !(is_current && Store::is_begun(&path)?) {
                fs::remove_dir_all(path)?;
            }
        }
        let (number, store) = open_or_begin_anew(dir, number, &options, owner)?;
        let snapshot = snapshot::newest(snapshots)?.map(Arc::new);
        let integrity = Arc::<Integrity>::default();
        let opened = name_owner(&store, owner).and_then(|()| read_applied(&store));
        let applied = match (opened, store.damage()) {
            (Ok((applied, _)), _) => applied,
            // Replaced before Raft starts.
            (Err(_), Some(damage)) => {
                integrity.report(damage);
                None
            }
            (Err(error), None) => return Err(error),
        };
        let shared = Shared {
            dir: dir.to_path_buf(),
            snapshots: snapshots.to_path_buf(),
            options,
            owner,
            flushed,
            store: RwLock::new((number, Arc::new(store))),
            snapshot: Mutex::new(snapshot),
            prepared: Mutex::new(None),
            replacing: Mutex::new(()),
            applying: Mutex::new(()),
            building: Mutex::new(()),
            applied: watch::Sender::new(applied.map_or(0, |id| id.index)),
            integrity,
            closing: AtomicBool::new(false),
            peers,
            space,
            invalidations: Arc::default(),
            given_up: watch::Sender::new(0),
        };
        let machine = StateMachine(Arc::new(shared));
        if let Err(error) = machine.learn_members() {
            let damage = machine.store().damage().map(str::to_owned);
            machine.0.integrity.report(damage.ok_or(error)?);
        }
        Ok(machine)
    }

    /// The store as it is now; a snapshot install replaces it.
    pub(crate) fn store(&self) -> Arc<Store> {
        self.0.store.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Follows the index of the last applied entry.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.0.applied.subscribe()
    }

    /// Checksums of all tables, and the index of the last entry they include: both from one view.
    pub(crate) fn digest(&self) -> io::Result<(u64, Vec<TableDigest>)> {
        let digest = self.store().digest().map_err(broken)?;
        let applied = match digest.applied.is_empty() {
            true => 0,
            false => wire::LogId::decode(digest.applied).map_err(io::Error::other)?.index,
        };
        Ok((applied, digest.tables))
    }

    /// What is known of damage on this disk.
    pub(crate) fn integrity(&self) -> Arc<Integrity> {
        self.0.integrity.clone()
    }

    /// The newest sealed snapshot.
    pub(crate) fn current_snapshot(&self) -> Option<SnapshotData> {
        self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The newest snapshot's log id.
    pub(crate) fn snapshot_id(&self) -> Option<LogId> {
        self.current_snapshot().and_then(|snapshot| snapshot.meta().last_log_id)
    }

    /// Seals a snapshot, for openraft to take it up when it asks for one. A failure is the caller's to retry; a failure
    /// inside openraft would end the process.
    pub(crate) fn prepare_snapshot(&self) -> io::Result<()> {
        let sealed = self.build();
        self.note_given_up(&sealed);
        let sealed = sealed?;
        *self.0.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(sealed);
        Ok(())
    }

    /// Ends the wait of entries for a damaged state to be replaced: Raft is about to stop.
    pub(crate) fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    /// The membership as of the last applied entry.
    pub(crate) fn membership(&self) -> io::Result<StoredMembership> {
        Ok(read_applied(&self.store())?.1)
    }

    /// Applies what the log knows to be committed, before Raft runs: what is not yet flushed was lost with the process, and
    /// peers that start need to be judged by member records that are as new as this disk allows.
    ///
    /// *Errors*: `InvalidData` when neither state nor snapshot reaches the beginning of the log. When the state or the
    /// snapshot it has to be rebuilt from is damaged, that is reported to [`Integrity`] too.
    pub(crate) fn replay(&self, log: &LogStore) -> io::Result<()> {
        let purged = log.purged().map_or(0, |id| id.index);
        if let Err(error) = self.restore() {
            if !blames_disk(&error) {
                return Err(error);
            }
            if *self.0.applied.borrow() < purged {
                self.0.integrity.report(error.to_string());
                return Err(error);
            }
            // The log is whole behind the state: the snapshot is not needed.
            tracing::error!(%error, "the state is not rebuilt from this disk's snapshot, but from its log");
            self.quarantine_snapshot(&error)?;
        }
        let committed = log.committed().map_or(0, |id| id.index);
        let replayed = self.replay_to(log, committed, purged);
        if let (Err(error), Some(_)) = (&replayed, self.store().damage()) {
            self.0.integrity.report(error.to_string());
        }
        replayed?;
        // Raft must be able to send a snapshot to a member that lacks the purged entries. An install that was interrupted
        // leaves a snapshot that is older than what it has installed, and behind which Raft purges what the log lacks.
        let applied = *self.0.applied.borrow();
        let last = log.last_log_id().map_or(0, |id| id.index);
        let begins_behind = if applied > last { applied } else { purged };
        if self.current_snapshot().map_or(0, |snapshot| snapshot.index()) < begins_behind {
            self.build()?;
        }
        Ok(())
    }

    fn replay_to(&self, log: &LogStore, committed: u64, purged: u64) -> io::Result<()> {
        loop {
            let store = self.store();
            let next = match read_applied(&store)?.0 {
                Some(id) => id.index + 1,
                None => 0,
            };
            if next <= purged && purged > 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "the state is lost or too old: it lacks entry {next}, the log begins behind {purged}, and no \
                         snapshot of this disk covers what is between. Way out: move the directory aside and start with \
                         an empty one; the cluster then admits this master as a new member"
                    ),
                ));
            }
            let entries = log.read(next, committed + 1, REPLAY_BYTES)?;
            if next > committed || entries.is_empty() {
                return Ok(());
            }
            // No client subscribes before Raft runs.
            let run = apply_entries(&store, &entries, Some(&self.0.space), None)?;
            self.0.applied.send_replace(entries.last().map_or(next, |entry| entry.log_id.index));
            if run.members_changed {
                self.learn_members()?;
            }
        }
    }

    /// Waits until the log is on this disk up to `index`.
    ///
    /// A quorum may commit an entry before this disk holds it. If such an entry were applied, a crash could leave a state
    /// that is ahead of its own log, which is what a disk with a reverted log looks like. The wait has no deadline of
    /// its own: the log writer syncs, or it ends the process.
    async fn wait_flushed(&self, index: u64) -> io::Result<()> {
        let mut flushed = self.0.flushed.clone();
        if *flushed.borrow_and_update() >= index || is_planted(PlantedFault::ApplyBeforeFlush) {
            return Ok(());
        }
        flushed
            .wait_for(|upto| *upto >= index)
            .await
            .map(|_| ())
            .map_err(|_| io::Error::other("the log writer has stopped"))
    }

    /// Sets the current snapshot aside: it is damaged, and not needed.
    pub(super) fn quarantine_snapshot(&self, why: &dyn std::fmt::Display) -> io::Result<()> {
        let current = self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner).take();
        current.map_or(Ok(()), |snapshot| snapshot::quarantine(&self.0.snapshots, snapshot.path(), why))
    }

    pub(super) fn learn_members(&self) -> io::Result<()> {
        let store = self.store();
        let members = query::members(&store.view()).map_err(|fault| io::Error::other(Error::from(fault).message))?;
        self.0.peers.learn(&members);
        Ok(())
    }

    fn apply_chunk(&self, chunk: Vec<ChunkItem>) -> io::Result<()> {
        let (mut entries, mut responders) = (Vec::with_capacity(chunk.len()), Vec::with_capacity(chunk.len()));
        for item in chunk {
            let (entry, responder) = item?;
            entries.push(entry);
            responders.push(responder);
        }
        let run = self.apply_or_wait(&entries)?;
        if run.members_changed {
            self.learn_members()?;
        }
        for (responder, outcome) in responders.into_iter().zip(run.outcomes) {
            if let Some(responder) = responder {
                responder.send(Applied(outcome));
            }
        }
        Ok(())
    }

    /// Applies entries. If they meet damage, nothing of them is applied until the state is replaced: by the duty that
    /// keeps it sound, which runs beside this. If they find no room on the disk, they wait for it.
    fn apply_or_wait(&self, entries: &[Entry]) -> io::Result<Run> {
        loop {
            let (number, damaged, applied) = {
                let _applying = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
                let (number, store) = self.0.store.read().unwrap_or_else(PoisonError::into_inner).clone();
                let applied = apply_entries(&store, entries, Some(&self.0.space), Some(&self.0.invalidations));
                if let (Ok(_), Some(last)) = (&applied, entries.last()) {
                    // Within the lock: a replacement of the state ends at this index.
                    self.0.applied.send_replace(last.log_id.index);
                }
                (number, store.damage().map(str::to_owned), applied)
            };
            match (applied, damaged) {
                (Err(error), Some(damage)) => {
                    self.0.integrity.report(damage);
                    blocking(|| self.wait_replaced(number)).then_some(()).ok_or(error)?;
                }
                // RocksDB says of a table that its own work could not read only that it takes no more writes.
                (Err(error), None) if is_damage(&error) && blocking(|| self.is_state_damaged()) => {}
                (applied, _) => return applied,
            }
        }
    }

    /// Reads the whole state. It is marked if it is damaged.
    fn is_state_damaged(&self) -> bool {
        let store = self.store();
        store.verify().is_err() && store.damage().is_some()
    }

    /// Waits until the state is another one than that in directory `number`; false when this process ends.
    fn wait_replaced(&self, number: u64) -> bool {
        while self.0.store.read().unwrap_or_else(PoisonError::into_inner).0 == number {
            if self.0.closing.load(Ordering::Acquire) {
                return false;
            }
            std::thread::sleep(REPAIR_POLL_INTERVAL);
        }
        true
    }
}

/// Opens the state in directory `number`. One that RocksDB finds damaged is left, and an empty one begun in the next
/// directory: the snapshot and the log of this disk fill it, or another member's snapshot does.
fn open_or_begin_anew(dir: &Path, number: u64, options: &StoreOptions, owner: Owner) -> io::Result<(u64, Store)> {
    let open = |number: u64| Store::open(&dir.join(number.to_string()), options).map_err(broken);
    match open(number) {
        // A disk that returns EIO is not to be written to: that ends the process.
        Err(error) if error.to_string().contains("Corruption:") => {
            tracing::error!(%error, "the state is damaged: it is begun anew");
            let store = open(number + 1)?;
            name_owner(&store, owner)?;
            current::write(dir, &Current::begun(number + 1))?;
            Ok((number + 1, store))
        }
        opened => Ok((number, opened?)),
    }
}

/// Names `owner` in a state that was just begun.
fn name_owner(store: &Store, owner: Owner) -> io::Result<()> {
    match store.owner().map_err(broken)? {
        Some(_) => Ok(()),
        None => store.set_owner(&owner.encode()).map_err(broken),
    }
}

/// Runs blocking work without holding up the other tasks of this thread, where the runtime allows it.
pub(super) fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// A state that cannot be written must not be answered from: the process ends.
fn must<T>(result: io::Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| die(&format!("{what}: {error}")))
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf, io::Error> {
        loop {
            let prepared = self.0.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(prepared) = prepared {
                return Ok(to_openraft(prepared));
            }
            let machine = self.clone();
            let built = spawn_blocking(move || machine.build()).await.map_err(io::Error::other)?;
            let is_full = self.note_given_up(&built);
            // An error would end raft here. The snapshot before this one changes nothing for it.
            match (built, self.current_snapshot()) {
                (Err(error), Some(current)) => {
                    tracing::warn!(%error, "no snapshot is built: the one before stays");
                    return Ok(to_openraft(current));
                }
                (Err(error), None) if is_full => {
                    tracing::warn!(%error, "the first snapshot found no room: it is tried again later");
                    tokio::time::sleep(compaction::RETRY_DELAY).await;
                }
                (built, _) => return Ok(to_openraft(must(built, "the first snapshot cannot be written"))),
            }
        }
    }
}

fn to_openraft(snapshot: SnapshotData) -> SnapshotOf {
    Snapshot { meta: snapshot.meta().clone(), snapshot }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        read_applied(&self.store())
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        // Fused: a chunk may find the end of the stream before the loop does.
        let mut entries = entries.fuse();
        while let Some(first) = entries.next().await {
            let chunk = ready_chunk(first, &mut entries);
            if let Some(Ok((entry, _))) = chunk.last() {
                must(self.wait_flushed(entry.log_id.index).await, "the raft log cannot be written");
            }
            // A few entries only touch memory: handing the thread's other tasks over would cost more than they take.
            let applied = match chunk.len() {
                0..=CHUNK_INLINE => self.apply_chunk(chunk),
                _ => blocking(|| self.apply_chunk(chunk)),
            };
            if self.0.closing.load(Ordering::Acquire) {
                // A damaged state was not replaced in time: the next start does it.
                applied?;
                continue;
            }
            must(applied, "the state cannot be written");
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        must(blocking(|| self.install(&snapshot, WithoutRoom::Wait)), "the snapshot cannot be installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        Ok(self.current_snapshot().map(to_openraft))
    }
}
