//! Between openraft and the deterministic core: entries in, one transaction per run of entries, answers afterwards.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::{FutureExt, Stream, StreamExt};
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::Command;
use jindofs_proto::store::v1::command::Command as Kind;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use tokio::sync::watch;

use crate::master::state::{self, StoreError, Table, Txn, View, query};
use crate::master::store::{Store, StoreOptions, TableDigest};
use crate::runtime::{die, failpoint_io, sync_dir};

use super::current::{self, Current};
use super::disk_parts::Part;
use super::identity::Owner;
use super::peers::Peers;
use super::snapshot::{self, SnapshotData, SnapshotDir};
use super::types::{self, Applied, LogId, SnapshotMeta, StoredMembership, TypeConfig};
use super::wal::LogStore;

/// Row of the last applied log id.
const APPLIED: &[u8] = b"applied";
/// Row of the last applied membership.
const MEMBERSHIP: &[u8] = b"membership";
/// Most entries applied in one transaction.
const CHUNK_ENTRIES: usize = 512;
/// Most entries applied without handing the thread over.
const CHUNK_INLINE: usize = 64;
/// Bytes of log replayed in one transaction.
const REPLAY_BYTES: u64 = 256 << 10;
/// Bytes of commands applied in one transaction; an entry that is larger has one of its own.
const CHUNK_BYTES: usize = 4 << 20;

/// An entry to apply, and where its outcome goes.
type ChunkItem = Result<EntryResponder<TypeConfig>, io::Error>;

type SnapshotOf = Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, types::Node, SnapshotData>;

/// The state machine, and the handle others read it through.
#[derive(Debug, Clone)]
pub(crate) struct StateMachine(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    snapshots: PathBuf,
    options: StoreOptions,
    owner: Owner,
    /// Index up to which the log is on this disk.
    flushed: watch::Receiver<u64>,
    store: RwLock<(u64, Arc<Store>)>,
    snapshot: Mutex<Option<(SnapshotMeta, SnapshotData)>>,
    applied: watch::Sender<u64>,
    peers: Arc<Peers>,
}

fn broken(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

impl StateMachine {
    /// Opens the state of `owner` in `dir`, creating it if it is not there, and the newest snapshot in `snapshots`. A
    /// state that is older than this snapshot is replaced by it. Entries are applied once `flushed` has reached them.
    pub(crate) fn open(
        dir: &Path,
        snapshots: &Path,
        peers: Arc<Peers>,
        owner: Owner,
        flushed: watch::Receiver<u64>,
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
            // What a crash left of a store that was being made holds nothing: a new one must not begin among its files.
            if path.is_dir() && !(is_current && Store::is_begun(&path)) {
                fs::remove_dir_all(path)?;
            }
        }
        let options = StoreOptions::default();
        let store = Store::open(&dir.join(number.to_string()), &options).map_err(broken)?;
        if store.owner().map_err(broken)?.is_none() {
            store.set_owner(&owner.encode()).map_err(broken)?;
        }
        let snapshot = snapshot::newest(snapshots)?.map(|(meta, dir)| (meta, Arc::new(dir)));
        let (applied, _) = read_applied(&store)?;
        let shared = Shared {
            dir: dir.to_path_buf(),
            snapshots: snapshots.to_path_buf(),
            options,
            owner,
            flushed,
            store: RwLock::new((number, Arc::new(store))),
            snapshot: Mutex::new(snapshot),
            applied: watch::Sender::new(applied.map_or(0, |id| id.index)),
            peers,
        };
        let machine = StateMachine(Arc::new(shared));
        machine.restore_own_snapshot()?;
        machine.learn_members()?;
        Ok(machine)
    }

    /// A state that was lost, or is older than this disk's own snapshot, begins again from it; the log does the rest.
    fn restore_own_snapshot(&self) -> io::Result<()> {
        let newest = self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some((meta, snapshot)) = newest else { return Ok(()) };
        let (applied, _) = read_applied(&self.store())?;
        if meta.last_log_id <= applied {
            return Ok(());
        }
        let upto = meta.last_log_id.map_or(0, |id| id.index);
        tracing::warn!(upto, "the state is missing or stale: it is rebuilt from this disk's own snapshot and log");
        self.install(&meta, &snapshot)
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

    /// The newest snapshot's log id.
    pub(crate) fn snapshot_id(&self) -> Option<LogId> {
        let snapshot = self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        snapshot.as_ref().and_then(|(meta, _)| meta.last_log_id)
    }

    /// The membership as of the last applied entry.
    pub(crate) fn membership(&self) -> io::Result<StoredMembership> {
        Ok(read_applied(&self.store())?.1)
    }

    /// Applies what the log knows to be committed, before Raft runs: what is not yet flushed was lost with the process, and
    /// peers that start need to be judged by member records that are as new as this disk allows.
    pub(crate) fn replay(&self, log: &LogStore) -> io::Result<()> {
        let committed = log.committed().map_or(0, |id| id.index);
        loop {
            let next = match read_applied(&self.store())?.0 {
                Some(id) => id.index + 1,
                None => 0,
            };
            let entries = log.read(next, committed + 1, REPLAY_BYTES)?;
            if next > committed || entries.is_empty() {
                return Ok(());
            }
            self.apply_chunk(entries.into_iter().map(|entry| Ok((entry, None))).collect())?;
        }
    }

    /// Waits until the log is on this disk up to `index`.
    ///
    /// A quorum may commit an entry before this disk holds it. If such an entry were applied, a crash could leave a state
    /// that is ahead of its own log, which is what a disk with a reverted log looks like. The wait has no deadline of
    /// its own: the log writer syncs, or it ends the process.
    async fn wait_flushed(&self, index: u64) -> io::Result<()> {
        let mut flushed = self.0.flushed.clone();
        if *flushed.borrow_and_update() >= index {
            return Ok(());
        }
        flushed
            .wait_for(|upto| *upto >= index)
            .await
            .map(|_| ())
            .map_err(|_| io::Error::other("the log writer has stopped"))
    }

    fn learn_members(&self) -> io::Result<()> {
        let store = self.store();
        let members = query::members(&store.view()).map_err(|error| io::Error::other(error.message))?;
        self.0.peers.learn(&members);
        Ok(())
    }

    fn apply_chunk(&self, chunk: Vec<ChunkItem>) -> io::Result<()> {
        let store = self.store();
        let mut txn = store.begin();
        let mut answers = Vec::with_capacity(chunk.len());
        let (mut last, mut members_changed) = (None, false);
        for item in chunk {
            let (entry, responder) = item?;
            let outcome = match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(command) => {
                    let command = Command::decode(command.0).map_err(io::Error::other)?;
                    members_changed |= changes_members(&command);
                    Some(state::apply(&mut txn, entry.log_id.index, &command).map_err(broken)?)
                }
                EntryPayload::Membership(membership) => {
                    if membership.get_joint_config().len() > 1 {
                        failpoint_io("members.joint")?;
                    }
                    let stored = StoredMembership::new(Some(entry.log_id), membership);
                    txn.put(Table::Meta, MEMBERSHIP, types::stored_membership_to_wire(&stored).encode_to_vec());
                    None
                }
            };
            last = Some(entry.log_id);
            answers.push((responder, outcome));
        }
        let Some(last) = last else { return Ok(()) };
        txn.put(Table::Meta, APPLIED, types::log_id_to_wire(&last).encode_to_vec());
        failpoint_io("state.commit")?;
        store.commit(txn).map_err(broken)?;
        self.0.applied.send_replace(last.index);
        if members_changed {
            self.learn_members()?;
        }
        for (responder, outcome) in answers {
            if let Some(responder) = responder {
                responder.send(Applied(outcome));
            }
        }
        Ok(())
    }

    fn build(&self) -> io::Result<SnapshotOf> {
        fs::create_dir_all(&self.0.snapshots)?;
        let scratch = snapshot::scratch(&self.0.snapshots, "building");
        self.store().checkpoint(&scratch).map_err(broken)?;
        failpoint_io("snapshot.checkpoint")?;
        // Entries went on being applied meanwhile: only the checkpoint itself knows what it holds.
        let (last_log_id, last_membership) = {
            let copy = Store::open_read_only(&scratch, &self.0.options).map_err(broken)?;
            read_applied(&copy)?
        };
        let meta = SnapshotMeta { last_log_id, last_membership };
        let dir = Arc::new(snapshot::seal(&scratch, &self.0.snapshots, &meta, &self.0.owner)?);
        let mut current = self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, old)) = current.replace((meta.clone(), dir.clone()))
            && old.path() != dir.path()
        {
            old.retire();
        }
        Ok(Snapshot { meta, snapshot: dir })
    }

    fn install(&self, meta: &SnapshotMeta, snapshot: &SnapshotDir) -> io::Result<()> {
        let number = self.0.store.read().unwrap_or_else(PoisonError::into_inner).0 + 1;
        let target = self.0.dir.join(number.to_string());
        failpoint_io("install.begin")?;
        if target.exists() {
            // An earlier attempt failed behind this point.
            fs::remove_dir_all(&target)?;
        }
        snapshot.place(&target)?;
        sync_dir(&self.0.dir)?;
        failpoint_io("install.renamed")?;
        let store = Store::open(&target, &self.0.options).map_err(broken)?;
        store.set_owner(&self.0.owner.encode()).map_err(broken)?;
        let (applied, _) = read_applied(&store)?;
        if applied != meta.last_log_id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot is not the state it claims to be"));
        }
        failpoint_io("install.opened")?;
        current::write(&self.0.dir, &Current::installed(number, applied))?;
        failpoint_io("install.pointed")?;
        let (old_number, old) = {
            let mut current = self.0.store.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, (number, Arc::new(store)))
        };
        self.0.applied.send_replace(applied.map_or(0, |id| id.index));
        self.learn_members()?;
        self.build()?;
        failpoint_io("install.done")?;
        remove_when_unused(old, self.0.dir.join(old_number.to_string()));
        Ok(())
    }
}

/// Readers may still hold the old store: its files go once the last of them is done, or at the next start.
fn remove_when_unused(store: Arc<Store>, dir: PathBuf) {
    let spawned = std::thread::Builder::new().name("old-state".into()).spawn(move || {
        let mut store = Some(store);
        for _ in 0..600 {
            match store.take().map(Arc::try_unwrap) {
                Some(Err(shared)) => store = Some(shared),
                Some(Ok(_)) | None => {
                    if let Err(error) = fs::remove_dir_all(&dir) {
                        tracing::warn!(path = %dir.display(), %error, "old state not deleted; the next start does it");
                    }
                    return;
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "old state not deleted; the next start does it");
    }
}

/// `first` and what is ready behind it, bounded in entries and bytes.
fn ready_chunk<S: Stream<Item = ChunkItem> + Unpin>(first: ChunkItem, entries: &mut S) -> Vec<ChunkItem> {
    let mut bytes = payload_bytes(&first);
    let mut chunk = vec![first];
    while chunk.len() < CHUNK_ENTRIES
        && bytes < CHUNK_BYTES
        && let Some(Some(item)) = entries.next().now_or_never()
    {
        bytes += payload_bytes(&item);
        chunk.push(item);
    }
    chunk
}

fn payload_bytes(item: &ChunkItem) -> usize {
    match item {
        Ok((entry, _)) => match &entry.payload {
            EntryPayload::Normal(command) => command.0.len(),
            _ => 0,
        },
        Err(_) => 0,
    }
}

fn changes_members(command: &Command) -> bool {
    matches!(
        command.command,
        Some(
            Kind::Found(_)
                | Kind::AdmitMember(_)
                | Kind::RecordBoot(_)
                | Kind::RetireMember(_)
                | Kind::ExpectMembers(_)
                | Kind::RemoveMembers(_)
                | Kind::PromoteMember(_)
        )
    )
}

pub(super) fn read_applied(store: &Store) -> io::Result<(Option<LogId>, StoredMembership)> {
    let view = store.view();
    let applied = match view.get(Table::Meta, APPLIED).map_err(broken)? {
        Some(row) => Some(types::log_id_from_wire(&wire::LogId::decode(row).map_err(io::Error::other)?)),
        None => None,
    };
    let membership = match view.get(Table::Meta, MEMBERSHIP).map_err(broken)? {
        Some(row) => {
            let stored = wire::StoredMembership::decode(row).map_err(io::Error::other)?;
            types::stored_membership_from_wire(&stored).map_err(io::Error::other)?
        }
        None => StoredMembership::default(),
    };
    Ok((applied, membership))
}

/// Runs blocking work without holding up the other tasks of this thread, where the runtime allows it.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
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
        let machine = self.clone();
        let built = tokio::task::spawn_blocking(move || machine.build()).await.map_err(io::Error::other)?;
        Ok(must(built, "the snapshot cannot be written"))
    }
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
            must(applied, "the state cannot be written");
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        must(blocking(|| self.install(meta, &snapshot)), "the snapshot cannot be installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf>, io::Error> {
        let current = self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(current.as_ref().map(|(meta, dir)| Snapshot { meta: meta.clone(), snapshot: dir.clone() }))
    }
}
