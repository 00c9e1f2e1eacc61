//! The staging area: content that is being written, until it is stored. Small content is kept in memory, larger content
//! in one file of the staging directory.
//!
//! *Promises.* The total never exceeds `fuse.staging.size`; a write that would exceed it fails before it changes
//! anything. The files have no names, so a process that is killed leaves nothing behind. Content is changed and stored
//! only under its [`WriteGuard`], so that it stays constant while it is stored.
//!
//! An inode is staged from its first change to the close of its last handle. All its handles share the staged content.

mod appends;
mod spool;
mod streaming_upload;
mod superseded;
#[cfg(test)]
mod tests;
mod unsaved;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use jindofs_proto::v1::Attr;
use tokio::sync::OwnedMutexGuard;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{lock, now_ns};
use crate::ufs::Content;

use super::nodes::inode_of;

use appends::Changes;
use spool::StagingQuota;
pub(super) use spool::{Spool, WritePosition};
use streaming_upload::{StreamingUpload, UploadPermits};
use unsaved::{Unsaved, UnsavedCell};

/// State of a staged inode that only the holder of the guard may access.
#[derive(Debug, Default)]
struct Work {
    /// The version that was stored last, or from which the content was made.
    base: Attr,
    /// Bytes by which the content has grown since then.
    grown: u64,
    changes: Changes,
    /// The upload that is already running.
    streaming: Option<StreamingUpload>,
    /// The session in which the file was created, while it is not stored: the masters remove the file with that
    /// session. Empty if the masters were asked to forget the file.
    created_in: Option<Bytes>,
    /// The write intent of the last attempt to store the content, if that attempt failed.
    given_up: Option<u64>,
    /// Set when the entry was removed from the table: a task that waited for the guard has to look the inode up again.
    removed: bool,
}

/// One staged inode.
#[derive(Debug)]
pub(super) struct Staged {
    inode: u64,
    /// The node whose handles share the content.
    node: u64,
    /// The content. While it is not set, readers read as if nothing were staged.
    spool: OnceLock<Arc<Spool>>,
    work: Arc<tokio::sync::Mutex<Work>>,
    /// Copy of `work.base` for readers that do not hold the guard. A `std` mutex: it is never held across an await.
    base: Mutex<Arc<Attr>>,
    unsaved: UnsavedCell,
    /// The content is stored as another inode, because another client created the file at the same time.
    aliased: AtomicBool,
    /// The file has no name any more: only its handles see it, and it is never stored.
    unlinked: AtomicBool,
    /// Set with `unlinked` if the name was not removed through this kernel, which may still have it cached.
    name_is_stale: AtomicBool,
    /// Whether a task stores what is left after a close; see `FinalizeState`.
    finalizing: AtomicU8,
    mtime_ns: AtomicI64,
}

impl Staged {
    fn new(node: u64) -> Staged {
        Staged {
            inode: inode_of(node),
            node,
            spool: OnceLock::new(),
            work: Arc::default(),
            base: Mutex::default(),
            unsaved: UnsavedCell::new(),
            aliased: AtomicBool::new(false),
            unlinked: AtomicBool::new(false),
            name_is_stale: AtomicBool::new(false),
            finalizing: AtomicU8::new(0),
            mtime_ns: AtomicI64::new(0),
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.unsaved.get() != Unsaved::Nothing
    }

    /// True if content waits to be stored, not only the existence or the truncation of the file.
    pub(super) fn is_written(&self) -> bool {
        self.unsaved.get() == Unsaved::Written
    }

    pub(super) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// Marks the file as having no name.
    pub(super) fn mark_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
    }

    /// True if there is something to store. A file without a name is never stored.
    pub(super) fn is_due(&self) -> bool {
        self.is_dirty() && !self.is_unlinked()
    }

    /// Up to `size` bytes; fewer at the end.
    ///
    /// *Errors*: those of the disk.
    pub(super) fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>> {
        self.spool.get().map_or_else(|| Ok(Vec::new()), |spool| spool.read(offset, size))
    }

    /// Takes the guard if it is free and the content is present.
    pub(super) fn try_lock(self: &Arc<Self>) -> Option<WriteGuard> {
        self.spool.get()?;
        let work = self.work.clone().try_lock_owned().ok()?;
        (!work.removed).then(|| WriteGuard { staged: self.clone(), work })
    }

    /// Waits for the guard. Returns `None` if the inode was removed from the staging area in the meantime.
    pub(super) async fn lock(self: Arc<Self>) -> Option<WriteGuard> {
        let work = self.work.clone().lock_owned().await;
        (!work.removed).then_some(WriteGuard { staged: self, work })
    }

    pub(super) fn length(&self) -> u64 {
        self.spool.get().map_or(0, |spool| spool.length())
    }

    fn is_in_memory(&self) -> bool {
        self.spool.get().is_some_and(|spool| spool.is_in_memory())
    }

    /// True if the handles here see a file that differs from what other clients see.
    pub(super) fn has_private_view(&self) -> bool {
        matches!(self.unsaved.get(), Unsaved::Emptied | Unsaved::Written)
            || self.aliased.load(Ordering::Acquire)
            || self.is_unlinked()
    }

    /// True if only the existence of the file waits to be stored.
    pub(super) fn is_new(&self) -> bool {
        self.unsaved.get() == Unsaved::New
    }
}

/// The exclusive right to change the staged content of one inode, and to store it.
#[derive(Debug)]
pub(super) struct WriteGuard {
    staged: Arc<Staged>,
    work: OwnedMutexGuard<Work>,
}

impl WriteGuard {
    pub(super) fn inode(&self) -> u64 {
        self.staged.inode
    }

    /// The node whose handles share the content.
    pub(super) fn node(&self) -> u64 {
        self.staged.node
    }

    /// True once the content is present.
    pub(super) fn is_ready(&self) -> bool {
        self.staged.spool.get().is_some()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.staged.is_dirty()
    }

    /// True if content waits to be stored, not only the existence or the truncation of the file.
    pub(super) fn is_written(&self) -> bool {
        self.staged.is_written()
    }

    pub(super) fn is_unlinked(&self) -> bool {
        self.staged.is_unlinked()
    }

    /// True if there is something to store. A file without a name is never stored.
    pub(super) fn is_due(&self) -> bool {
        self.staged.is_due()
    }

    /// The version from which the content was made.
    pub(super) fn base(&self) -> &Attr {
        &self.work.base
    }

    /// Sets the content, which is that of the version `base`.
    pub(super) fn begin(&mut self, base: Attr, content: Arc<Spool>) {
        self.set_base(base);
        if self.staged.spool.set(content).is_err() {
            tracing::error!(inode = self.inode(), "content was staged twice");
        }
    }

    /// Records a change, also one that leaves the content as it is.
    fn touch(&mut self, unsaved: Unsaved) {
        self.staged.mtime_ns.store(now_ns(), Ordering::Release);
        self.staged.unsaved.set(unsaved);
    }

    /// True if only the existence of the file waits to be stored.
    pub(super) fn is_new(&self) -> bool {
        self.staged.is_new()
    }

    /// Drops what is to be stored of a new file or a truncation, because another client has stored a version.
    pub(super) fn discard_new(&mut self) {
        self.staged.unsaved.set(Unsaved::Nothing);
    }

    fn spool(&self) -> Result<&Arc<Spool>> {
        let missing = || Error::internal(format!("inode {} is not staged", self.inode()));
        self.staged.spool.get().ok_or_else(missing)
    }

    /// Writes, and returns the offset. A gap before it reads as zeros.
    ///
    /// *Errors*: `NoSpace`, with nothing changed; those of the disk.
    pub(super) fn write(&mut self, place: WritePosition, data: &[u8]) -> Result<u64> {
        let spool = self.spool()?;
        let before = spool.length();
        spool.write(place, data)?;
        self.work.grown += self.staged.length() - before;
        self.work.changes.note_write(place, before);
        self.touch(Unsaved::Written);
        Ok(if let WritePosition::At(offset) = place { offset } else { before })
    }

    /// Sets the length. New bytes read as zeros.
    ///
    /// *Errors*: as [`WriteGuard::write`].
    pub(super) fn truncate(&mut self, length: u64) -> Result<()> {
        self.spool()?.resize(length)?;
        self.work.changes.note_length(length);
        self.touch(if length == 0 { Unsaved::Emptied } else { Unsaved::Written });
        Ok(())
    }

    /// Length of the staged content, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.staged.length()
    }

    /// True if the content is small and kept in memory.
    pub(super) fn is_in_memory(&self) -> bool {
        self.staged.is_in_memory()
    }

    /// The content. It stays constant while the guard is held.
    pub(super) fn content(&self) -> Result<Content> {
        Ok(self.spool()?.content())
    }

    /// Records that the content is stored; `attr` are the attributes of the new version.
    pub(super) fn mark_stored(&mut self, attr: Attr) {
        self.work.grown = 0;
        self.work.changes = Changes::default();
        (self.work.created_in, self.work.given_up) = (None, None);
        self.rebase(attr);
        self.staged.unsaved.set(Unsaved::Nothing);
    }

    /// Replaces the base after attributes have changed, which may change the version token, or the inode as which the
    /// content is stored.
    pub(super) fn rebase(&mut self, attr: Attr) {
        self.staged.aliased.store(attr.inode != self.inode(), Ordering::Release);
        self.set_base(attr);
    }

    fn set_base(&mut self, base: Attr) {
        self.staged.mtime_ns.store(base.mtime_ns, Ordering::Release);
        self.staged.publish_base(&base);
        self.work.base = base;
    }

    /// Records that the name is gone: from now on only the handles see the content.
    pub(super) fn mark_unlinked(&mut self) {
        self.staged.mark_unlinked();
        self.work.streaming = None;
    }
}

/// All staged inodes of one mount.
#[derive(Debug)]
pub(super) struct Staging {
    quota: Arc<StagingQuota>,
    pub(super) upload_permits: UploadPermits,
    staged: Mutex<HashMap<u64, Arc<Staged>>>,
    /// Number of entries, so that clients that write nothing take no lock.
    count: AtomicUsize,
}

impl Staging {
    /// Creates an empty staging area; [`Staging::prepare`] creates its directory.
    pub(super) fn new(dir: PathBuf, limit: u64) -> Staging {
        let quota = Arc::new(StagingQuota::new(dir, limit));
        Staging { quota, upload_permits: UploadPermits::new(), staged: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// Creates the directory, accessible to this user only.
    ///
    /// *Errors*: `PermissionDenied` if the directory belongs to another user; those of the disk.
    pub(super) fn prepare(&self) -> Result<()> {
        prepare(&self.quota.dir)
            .map_err(|error| error.context(format!("fuse.staging.dir {}", self.quota.dir.display())))
    }

    /// Removes the directory if it is empty.
    pub(super) fn clear(&self) {
        if let Err(error) = fs::remove_dir(&self.quota.dir) {
            tracing::debug!(%error, dir = %self.quota.dir.display(), "the staging directory stays");
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Arc<Staged>>> {
        lock(&self.staged)
    }

    /// The staged content of an inode, once it is present.
    pub(super) fn ready(&self, inode: u64) -> Option<Arc<Staged>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.table().get(&inode).filter(|staged| staged.spool.get().is_some()).cloned()
    }

    /// The staged content that the handles of a node share, once it is present.
    pub(super) fn ready_for(&self, node: u64) -> Option<Arc<Staged>> {
        self.ready(inode_of(node)).filter(|staged| staged.node == node)
    }

    /// True if the staged content is small and kept in memory.
    pub(super) fn is_in_memory(&self, inode: u64) -> bool {
        self.ready(inode).is_some_and(|staged| staged.is_in_memory())
    }

    /// True if handles here see a file that differs from what other clients see.
    pub(super) fn has_private_view(&self, inode: u64) -> bool {
        self.ready(inode).is_some_and(|staged| staged.has_private_view())
    }

    /// True if the file has no name and only handles here still have it.
    pub(super) fn is_unlinked(&self, inode: u64) -> bool {
        self.ready(inode).is_some_and(|staged| staged.is_unlinked())
    }

    /// Takes the guard of a node and stages it, without content if there is none. Content that another node of the file
    /// holds and has already stored is dropped for it.
    pub(super) async fn lock(&self, node: u64) -> WriteGuard {
        loop {
            let staged = {
                let mut table = self.table();
                let staged = table.entry(inode_of(node)).or_insert_with(|| Arc::new(Staged::new(node))).clone();
                self.count.store(table.len(), Ordering::Release);
                staged
            };
            let Some(guard) = staged.lock().await else { continue };
            if guard.node() == node || guard.staged.has_private_view() {
                return guard;
            }
            self.remove(guard);
        }
    }

    /// As [`Staging::lock`], but only if nothing of the file is staged: another task could hold the guard for long.
    pub(super) fn try_lock(&self, node: u64) -> Option<WriteGuard> {
        let mut table = self.table();
        let Entry::Vacant(vacant) = table.entry(inode_of(node)) else { return None };
        let staged = vacant.insert(Arc::new(Staged::new(node))).clone();
        self.count.store(table.len(), Ordering::Release);
        let work = staged.work.clone().try_lock_owned().ok()?;
        Some(WriteGuard { staged, work })
    }

    /// Takes the guard of an inode that is staged.
    pub(super) async fn lock_if_staged(&self, inode: u64) -> Option<WriteGuard> {
        self.ready(inode)?.lock().await
    }

    /// Removes an inode from the staging area unless it `stays`, which is evaluated under the lock of the table.
    /// Returns true if it was removed.
    pub(super) fn remove_unless(&self, mut guard: WriteGuard, stays: impl FnOnce() -> bool) -> bool {
        let mut table = self.table();
        let stays = stays();
        if !stays {
            guard.work.removed = true;
            table.remove(&guard.inode());
            self.count.store(table.len(), Ordering::Release);
        }
        !stays
    }

    /// Removes an inode from the staging area.
    pub(super) fn remove(&self, guard: WriteGuard) {
        self.remove_unless(guard, || false);
    }

    /// Empty content.
    pub(super) fn blank(&self) -> Arc<Spool> {
        Arc::new(Spool::new(self.quota.clone()))
    }

    /// Stages a new file that was created in `session`. No other task can have found it yet.
    pub(super) fn begin_new(&self, base: Attr, session: Option<Bytes>) {
        let staged = Arc::new(Staged::new(base.inode));
        let mut table = self.table();
        table.insert(base.inode, staged.clone());
        self.count.store(table.len(), Ordering::Release);
        if let Ok(work) = staged.work.clone().try_lock_owned() {
            let mut guard = WriteGuard { staged, work };
            guard.begin(base, self.blank());
            guard.mark_new(session);
        }
    }

    /// Attributes as the handles of a node see them: with the length and times of content that is not stored yet.
    pub(super) fn overlay<'a>(&self, node: u64, attr: &'a Attr) -> Cow<'a, Attr> {
        let Some(staged) = self.ready_for(node).filter(|staged| staged.has_private_view()) else {
            return Cow::Borrowed(attr);
        };
        let Some(spool) = staged.spool.get() else { return Cow::Borrowed(attr) };
        let mut seen = attr.clone();
        seen.size = spool.length();
        seen.mtime_ns = staged.mtime_ns.load(Ordering::Acquire);
        seen.ctime_ns = seen.ctime_ns.max(seen.mtime_ns);
        Cow::Owned(seen)
    }
}

fn prepare(dir: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::symlink_metadata(dir)?;
    if !metadata.is_dir() {
        return Err(Error::new(ErrorKind::NotADirectory, "it is not a directory"));
    }
    // The path is predictable and may lie in a directory that everybody can write to.
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        let message = format!("it belongs to user {}: choose another", metadata.uid());
        return Err(Error::new(ErrorKind::PermissionDenied, message));
    }
    Ok(())
}
