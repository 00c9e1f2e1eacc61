//! Snapshots of the state machine: built from the state, installed over it, and its replacement when it is damaged.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::master::store::Store;
use crate::runtime::{die, failpoint_io, spawn_poller, sync_dir};

use super::apply::{apply_entries, read_applied};
use super::current::{self, Current};
use super::disk_space::is_out_of_space;
use super::snapshot::{self, SnapshotData, SnapshotDir};
use super::state_machine::{StateMachine, broken};
use super::types::SnapshotMeta;
use super::wal::LogStore;

/// What a step does that finds no room on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutRoom {
    /// It is repeated until it finds room: its error would end the process.
    Wait,
    /// It fails: its caller has a ballast to spend, or tries again.
    Fail,
}

/// Bytes of log applied in one transaction while a state is rebuilt.
const CATCH_UP_BYTES: u64 = 256 << 10;

/// Opens the image of a state and compares it with what it is said to be.
///
/// *Errors*: `InvalidData` when it is another state.
fn open_image(path: &Path, meta: &SnapshotMeta, open: impl FnOnce(&Path) -> io::Result<Store>) -> io::Result<Store> {
    let store = open(path)?;
    if read_applied(&store)?.0 != meta.last_log_id {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a snapshot is not the state it claims to be"));
    }
    Ok(store)
}

/// Verifies a snapshot that was received or is to be installed: RocksDB opens it, finds the log id that the manifest
/// names, and every block matches its checksum. Nothing in the directory changes.
///
/// *Errors*: `InvalidData` when the snapshot is damaged, others when it could not be read.
pub(super) fn check_image(snapshot: &SnapshotDir) -> io::Result<()> {
    let damaged = |error: io::Error| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", snapshot.path().display()))
    };
    let open = |path: &Path| Store::open_read_only(path).map_err(broken);
    let blame = |error: io::Error| if blames_disk(&error) { damaged(error) } else { error };
    let store = open_image(snapshot.path(), snapshot.meta(), open).map_err(blame)?;
    store.verify().map_err(|error| blame(broken(error)))
}

/// True for an error of the store that blames the disk.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.to_string().contains("Corruption:") || is_unreadable(error)
}

/// True for an error of this disk's medium.
pub(super) fn is_unreadable(error: &io::Error) -> bool {
    error.to_string().contains("Input/output error")
}

/// True for an error that says that the data on a disk is another than what was written, or cannot be read.
pub(super) fn blames_disk(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData || is_damage(error)
}

impl StateMachine {
    /// Seals a snapshot of everything applied by now and makes it the current one.
    ///
    /// *Errors*: `InvalidData` when the state is damaged: such a state is never sealed. The current snapshot stays.
    pub(super) fn build(&self) -> io::Result<SnapshotData> {
        let _building = self.0.building.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(&self.0.snapshots)?;
        let scratch = snapshot::scratch(&self.0.snapshots);
        let built = self.build_in(&scratch);
        if built.is_err()
            && let Err(error) = fs::remove_dir_all(&scratch)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %scratch.display(), %error, "unfinished snapshot not deleted; the next start does it");
        }
        built
    }

    fn build_in(&self, scratch: &Path) -> io::Result<SnapshotData> {
        let store = self.store();
        if let Err(error) = store.checkpoint(scratch) {
            if !is_out_of_space(&error) && store.damage().is_none() {
                // The flush before it has failed: after a failed sync nothing says what the disk has of the state.
                die(&format!("the state cannot be flushed: {error}"));
            }
            return Err(broken(error));
        }
        failpoint_io("snapshot.checkpoint")?;
        // Entries went on being applied meanwhile: only the checkpoint itself knows what it holds.
        let (last_log_id, last_membership) = {
            let copy = Store::open_read_only(scratch).map_err(|error| self.blame_state(broken(error)))?;
            copy.verify().map_err(|error| match copy.damage() {
                Some(_) => self.blame_state(broken(error)),
                None => broken(error),
            })?;
            read_applied(&copy)?
        };
        let meta = SnapshotMeta { last_log_id, last_membership };
        let before = self.current_snapshot();
        let sealed = snapshot::seal(scratch, &self.0.snapshots, &meta, self.0.owner, before.as_deref())?;
        let sealed = Arc::new(sealed);
        let mut current = self.0.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = current.replace(sealed.clone()) {
            old.retire();
        }
        Ok(sealed)
    }

    /// A checkpoint shares its tables with the state and copies the rest of it: its damage is the state's.
    fn blame_state(&self, error: io::Error) -> io::Error {
        if !is_damage(&error) {
            return error;
        }
        self.store().mark_damaged(error.to_string());
        self.0.integrity.report(error.to_string());
        io::Error::new(io::ErrorKind::InvalidData, error)
    }

    /// Replaces the state by a snapshot. One that another member has sealed is moved into place; one of this disk is
    /// copied by hard links, because the log behind it may be gone: until the next one is sealed it is all there is.
    pub(super) fn install(&self, snapshot: &SnapshotDir, without_room: WithoutRoom) -> io::Result<()> {
        let _replacing = self.0.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let _applying = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        failpoint_io("install.begin")?;
        let (number, store) = self.place(snapshot, without_room)?;
        failpoint_io("install.opened")?;
        self.switch(&Current::installed(number, snapshot.meta().last_log_id), store, without_room)?;
        self.with_room(without_room, || self.build())?;
        failpoint_io("install.done")?;
        Ok(())
    }

    fn with_room<T>(&self, without_room: WithoutRoom, mut step: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        match without_room {
            WithoutRoom::Wait => self.0.space.wait_for_room("a snapshot that is installed", step),
            WithoutRoom::Fail => step(),
        }
    }

    /// Puts the image of a snapshot into the next directory of states, opens it there and names the owner of this disk in
    /// it. The caller holds `replacing`.
    fn place(&self, snapshot: &SnapshotDir, without_room: WithoutRoom) -> io::Result<(u64, Store)> {
        let number = self.0.store.read().unwrap_or_else(PoisonError::into_inner).0 + 1;
        let target = self.0.dir.join(number.to_string());
        let remove_earlier = || match target.try_exists()? {
            // An earlier attempt failed behind this point.
            true => fs::remove_dir_all(&target),
            false => Ok(()),
        };
        if snapshot.is_received() {
            remove_earlier()?;
            fs::rename(snapshot.path(), &target)?;
        } else {
            self.with_room(without_room, || {
                remove_earlier()?;
                snapshot::link_copy(snapshot, &target)
            })?;
        }
        sync_dir(&self.0.dir)?;
        failpoint_io("install.renamed")?;
        let open = |path: &Path| self.with_room(without_room, || Store::open(path, &self.0.options).map_err(broken));
        let store = open_image(&target, snapshot.meta(), open)?;
        // Before `state/CURRENT` points to it: a state that names another member is refused at the next start.
        self.with_room(without_room, || store.set_owner(&self.0.owner.encode()).map_err(broken))?;
        Ok((number, store))
    }

    /// Makes `store`, in the directory that `current` names, the state. The caller holds `replacing` and `applying`.
    fn switch(&self, current: &Current, store: Store, without_room: WithoutRoom) -> io::Result<()> {
        let number = current.number;
        let (applied, _) = read_applied(&store)?;
        if let Err(error) = self.with_room(without_room, || current::write(&self.0.dir, current)) {
            if !is_out_of_space(&error) {
                // It may name the new directory by now, which another attempt would delete.
                die(&format!("state/CURRENT cannot be written: {error}"));
            }
            return Err(error);
        }
        failpoint_io("install.pointed")?;
        let (old_number, old) = {
            let mut current = self.0.store.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, (number, Arc::new(store)))
        };
        self.0.applied.send_replace(applied.map_or(0, |id| id.index));
        // The rows of the two states are not compared: subscribers have to read everything again.
        self.0.invalidations.reset();
        self.learn_members()?;
        remove_when_unused(old, self.0.dir.join(old_number.to_string()));
        Ok(())
    }

    /// Replaces a damaged state by `image` and the log behind it. Votes and log stay as they are: the log has checksums
    /// of its own, and what it holds up to `goal` is committed. Entries go on being applied meanwhile, to the old state.
    ///
    /// `goal` is the last entry to apply, where no Raft runs; otherwise the replacement ends at the entry applied last.
    ///
    /// *Errors*: `InvalidData` when the log does not continue the image; `WouldBlock` when the image is ahead of what is
    /// applied here.
    pub(super) fn rebuild(&self, image: &SnapshotDir, log: &LogStore, goal: Option<u64>) -> io::Result<()> {
        let _replacing = self.0.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        // Within the lock: an install may have moved the beginning of the log.
        check_continues(image, log)?;
        let applied = || goal.unwrap_or_else(|| *self.0.applied.borrow());
        let ahead = || io::Error::new(io::ErrorKind::WouldBlock, "the snapshot is ahead of what is applied here");
        if goal.is_none() && image.index() > applied() {
            return Err(ahead());
        }
        // Its caller tries again, and a wait would hold up the entries that are applied meanwhile.
        let without_room = WithoutRoom::Fail;
        let (number, store) = self.place(image, without_room)?;
        // Without the lock at first: this is most of the work.
        catch_up(&store, log, applied())?;
        {
            let _applying = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
            catch_up(&store, log, applied())?;
            store.flush().map_err(broken)?;
            let last = image.meta().last_log_id;
            // Before Raft runs, the image may be ahead of the log; entries that were applied on top of it are in the log.
            let current = match read_applied(&store)?.0 == last {
                true => Current::installed(number, last),
                false => Current::begun(number),
            };
            self.switch(&current, store, without_room)?;
        }
        self.0.integrity.repairs.fetch_add(1, Ordering::Relaxed);
        self.build().map(|_| ())
    }

    /// Directories with tables that a snapshot may share.
    pub(super) fn table_dirs(&self) -> Vec<PathBuf> {
        let snapshot = self.current_snapshot().map(|snapshot| snapshot.path().to_path_buf());
        snapshot.into_iter().chain([self.store().dir().to_path_buf()]).collect()
    }

    /// Bytes of the tables in `store` that the current snapshot does not share.
    pub(super) fn unsealed_table_bytes(&self, store: &Store) -> io::Result<u64> {
        let snapshot = self.current_snapshot();
        snapshot::unshared_table_bytes(store.dir(), snapshot.as_deref())
    }

    /// Replaces a state that is older than this disk's own snapshot: it was lost, or is an older copy.
    pub(super) fn restore(&self) -> io::Result<()> {
        let applied = read_applied(&self.store())?.0;
        match self.current_snapshot() {
            Some(snapshot) if snapshot.meta().last_log_id > applied => {
                tracing::warn!(index = snapshot.index(), "the state is rebuilt from this disk's snapshot and log");
                snapshot.verify()?;
                check_image(&snapshot)?;
                self.install(&snapshot, WithoutRoom::Fail)
            }
            _ => Ok(()),
        }
    }
}

/// The log must hold everything behind the image, and the same entry at its end.
fn check_continues(image: &SnapshotDir, log: &LogStore) -> io::Result<()> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let (index, purged) = (image.index(), log.purged().map_or(0, |id| id.index));
    if index < purged {
        return Err(invalid(format!("the snapshot ends at {index}, but the log begins behind {purged}")));
    }
    let entry = log.read(index, index + 1, u64::MAX)?.pop();
    if entry.is_some_and(|entry| Some(entry.log_id) != image.meta().last_log_id) {
        return Err(invalid(format!("the snapshot and the log hold different entries at {index}")));
    }
    Ok(())
}

/// Applies the log up to `goal`.
fn catch_up(store: &Store, log: &LogStore, goal: u64) -> io::Result<()> {
    loop {
        let next = read_applied(store)?.0.map_or(0, |id| id.index + 1);
        if next > goal {
            return Ok(());
        }
        let entries = log.read(next, goal + 1, CATCH_UP_BYTES)?;
        if entries.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("the log does not hold entry {next}")));
        }
        apply_entries(store, &entries, None, None)?;
    }
}

/// Readers may still hold the old store, a scrub of a large one for hours: its files go once the last of them is done, or at
/// the next start.
fn remove_when_unused(store: Arc<Store>, dir: PathBuf) {
    let mut store = Some(store);
    let spawned = spawn_poller("old-state", Duration::from_millis(100), move || {
        if let Some(Err(shared)) = store.take().map(Arc::try_unwrap) {
            store = Some(shared);
            return false;
        }
        if let Err(error) = fs::remove_dir_all(&dir) {
            tracing::warn!(path = %dir.display(), %error, "old state not deleted; the next start does it");
        }
        true
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "old state not deleted; the next start does it");
    }
}
