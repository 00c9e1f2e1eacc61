//! Content that is being written, until it is stored: per inode a little memory, or one file of the staging directory.
//!
//! *Promises.* All of it together is never more than `fuse.staging.size`; who needs more is refused before anything is lost.
//! The files have no names: nothing is left by a process that is killed. Content changes, and is stored, only in turn, so
//! that what is being stored stays as it is.
//!
//! An inode is staged from its first change to the close of its last handle. All its handles share what is staged.

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

/// What may change in turn only.
#[derive(Debug, Default)]
struct Work {
    /// The version that was stored last, or that the content was made from.
    base: Attr,
    /// Bytes that it has grown by since then.
    grown: u64,
    changes: Changes,
    /// It is being sent already.
    streaming: Option<StreamingUpload>,
    /// The session in which a file was made here that is not stored yet: it goes with that at the masters. Empty for one that
    /// they were told to forget.
    created_in: Option<Bytes>,
    /// The intent of the last attempt to store it, if that has failed.
    given_up: Option<u64>,
    /// Out of the table: whoever waited for the turn has to look again.
    removed: bool,
}

/// One inode that is being written.
#[derive(Debug)]
pub(super) struct Staged {
    inode: u64,
    /// Whose handles share it.
    node: u64,
    /// The content, once it is here; until then readers read as if nothing was staged.
    spool: OnceLock<Arc<Spool>>,
    work: Arc<tokio::sync::Mutex<Work>>,
    /// That of `work`, for those who do not have the turn.
    base: Mutex<Arc<Attr>>,
    unsaved: UnsavedCell,
    /// What is written through these handles is stored as another inode, which was made elsewhere at the same time.
    aliased: AtomicBool,
    /// Has no name any more: only its handles see it, and it is never stored.
    unlinked: AtomicBool,
    /// Set with `unlinked` where the kernel was not asked to remove the name.
    name_is_stale: AtomicBool,
    /// Whether somebody stores what is left of it after a close.
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

    /// True if content waits to be stored, and not only that the file is there or empty.
    pub(super) fn is_written(&self) -> bool {
        self.unsaved.get() == Unsaved::Written
    }

    pub(super) fn is_unlinked(&self) -> bool {
        self.unlinked.load(Ordering::Acquire)
    }

    /// It has no name any more.
    pub(super) fn mark_unlinked(&self) {
        self.unlinked.store(true, Ordering::Release);
    }

    /// True if it waits to be stored. What has no name any more never does.
    pub(super) fn is_due(&self) -> bool {
        self.is_dirty() && !self.is_unlinked()
    }

    /// Up to `size` bytes; fewer at the end.
    ///
    /// *Errors*: the disk's.
    pub(super) fn read(&self, offset: u64, size: u32) -> Result<Vec<u8>> {
        self.spool.get().map_or_else(|| Ok(Vec::new()), |spool| spool.read(offset, size))
    }

    /// The turn, if it is nobody's and there is content to change.
    pub(super) fn try_lock(self: &Arc<Self>) -> Option<WriteGuard> {
        self.spool.get()?;
        let work = self.work.clone().try_lock_owned().ok()?;
        (!work.removed).then(|| WriteGuard { staged: self.clone(), work })
    }

    /// The turn; `None` if it is not staged any more when it is ours.
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

    /// True if what others see of the file is not what its handles here see.
    pub(super) fn has_private_view(&self) -> bool {
        matches!(self.unsaved.get(), Unsaved::Emptied | Unsaved::Written)
            || self.aliased.load(Ordering::Acquire)
            || self.is_unlinked()
    }

    /// True if nothing but that the file is there waits to be stored.
    pub(super) fn is_new(&self) -> bool {
        self.unsaved.get() == Unsaved::New
    }
}

/// The right to change what is staged of one inode, and to store it.
#[derive(Debug)]
pub(super) struct WriteGuard {
    staged: Arc<Staged>,
    work: OwnedMutexGuard<Work>,
}

impl WriteGuard {
    pub(super) fn inode(&self) -> u64 {
        self.staged.inode
    }

    /// The node whose handles share what is staged.
    pub(super) fn node(&self) -> u64 {
        self.staged.node
    }

    /// True once there is content.
    pub(super) fn is_ready(&self) -> bool {
        self.staged.spool.get().is_some()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.staged.is_dirty()
    }

    /// True if content waits to be stored, and not only that the file is there or empty.
    pub(super) fn is_written(&self) -> bool {
        self.staged.is_written()
    }

    pub(super) fn is_unlinked(&self) -> bool {
        self.staged.is_unlinked()
    }

    /// True if it waits to be stored. What has no name any more never does.
    pub(super) fn is_due(&self) -> bool {
        self.staged.is_due()
    }

    /// The version that it is made from.
    pub(super) fn base(&self) -> &Attr {
        &self.work.base
    }

    /// The content is here: that of the version `base`.
    pub(super) fn begin(&mut self, base: Attr, content: Arc<Spool>) {
        self.set_base(base);
        if self.staged.spool.set(content).is_err() {
            tracing::error!(inode = self.inode(), "content was staged twice");
        }
    }

    /// Notes a change, also one that leaves the content as it is.
    fn touch(&mut self, unsaved: Unsaved) {
        self.staged.mtime_ns.store(now_ns(), Ordering::Release);
        self.staged.unsaved.set(unsaved);
    }

    /// True if it is due only because it is new.
    pub(super) fn is_new(&self) -> bool {
        self.staged.is_new()
    }

    /// Others have stored something: what is new here, and nothing more, is not needed.
    pub(super) fn discard_new(&mut self) {
        self.staged.unsaved.set(Unsaved::Nothing);
    }

    fn spool(&self) -> Result<&Arc<Spool>> {
        let missing = || Error::internal(format!("inode {} is not staged", self.inode()));
        self.staged.spool.get().ok_or_else(missing)
    }

    /// Writes, and says where; a gap before it reads as zeros.
    ///
    /// *Errors*: `NoSpace`: then nothing has changed; the disk's.
    pub(super) fn write(&mut self, place: WritePosition, data: &[u8]) -> Result<u64> {
        let spool = self.spool()?;
        let before = spool.length();
        spool.write(place, data)?;
        self.work.grown += self.staged.length() - before;
        self.work.changes.note_write(place, before);
        self.touch(Unsaved::Written);
        Ok(if let WritePosition::At(offset) = place { offset } else { before })
    }

    /// Sets the length; what is new reads as zeros.
    ///
    /// *Errors*: as [`WriteGuard::write`].
    pub(super) fn truncate(&mut self, length: u64) -> Result<()> {
        self.spool()?.resize(length)?;
        self.work.changes.note_length(length);
        self.touch(if length == 0 { Unsaved::Emptied } else { Unsaved::Written });
        Ok(())
    }

    /// Bytes that are staged.
    pub(super) fn length(&self) -> u64 {
        self.staged.length()
    }

    /// True for a little content.
    pub(super) fn is_in_memory(&self) -> bool {
        self.staged.is_in_memory()
    }

    /// The content; it stays as it is for as long as the turn is ours.
    pub(super) fn content(&self) -> Result<Content> {
        Ok(self.spool()?.content())
    }

    /// It is stored: `attr` is of the new version.
    pub(super) fn mark_stored(&mut self, attr: Attr) {
        self.work.grown = 0;
        self.work.changes = Changes::default();
        (self.work.created_in, self.work.given_up) = (None, None);
        self.rebase(attr);
        self.staged.unsaved.set(Unsaved::Nothing);
    }

    /// Attributes have changed, and with them maybe the name of the version, or the inode that it is stored as.
    pub(super) fn rebase(&mut self, attr: Attr) {
        self.staged.aliased.store(attr.inode != self.inode(), Ordering::Release);
        self.set_base(attr);
    }

    fn set_base(&mut self, base: Attr) {
        self.staged.mtime_ns.store(base.mtime_ns, Ordering::Release);
        self.staged.publish_base(&base);
        self.work.base = base;
    }

    /// Its name is gone: from now on it is of nobody's concern but its handles'.
    pub(super) fn mark_unlinked(&mut self) {
        self.staged.mark_unlinked();
        self.work.streaming = None;
    }
}

/// Everything that is staged.
#[derive(Debug)]
pub(super) struct Staging {
    quota: Arc<StagingQuota>,
    pub(super) upload_permits: UploadPermits,
    staged: Mutex<HashMap<u64, Arc<Staged>>>,
    /// Number of entries: most clients write nothing, and should not pay for those who do.
    count: AtomicUsize,
}

impl Staging {
    /// An empty one; the directory is made by [`Staging::prepare`].
    pub(super) fn new(dir: PathBuf, limit: u64) -> Staging {
        let quota = Arc::new(StagingQuota::new(dir, limit));
        Staging { quota, upload_permits: UploadPermits::new(), staged: Mutex::default(), count: AtomicUsize::new(0) }
    }

    /// Makes the directory, for us alone.
    ///
    /// *Errors*: `PermissionDenied` for one that belongs to somebody else; the disk's.
    pub(super) fn prepare(&self) -> Result<()> {
        prepare(&self.quota.dir)
            .map_err(|error| error.context(format!("fuse.staging.dir {}", self.quota.dir.display())))
    }

    /// Takes the directory away if nothing is in it.
    pub(super) fn clear(&self) {
        if let Err(error) = fs::remove_dir(&self.quota.dir) {
            tracing::debug!(%error, dir = %self.quota.dir.display(), "the staging directory stays");
        }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<u64, Arc<Staged>>> {
        lock(&self.staged)
    }

    /// What is staged of an inode, once its content is here.
    pub(super) fn ready(&self, inode: u64) -> Option<Arc<Staged>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.table().get(&inode).filter(|staged| staged.spool.get().is_some()).cloned()
    }

    /// What the handles of a node share, once the content is here.
    pub(super) fn ready_for(&self, node: u64) -> Option<Arc<Staged>> {
        self.ready(inode_of(node)).filter(|staged| staged.node == node)
    }

    /// True for a little content that is staged in memory.
    pub(super) fn is_in_memory(&self, inode: u64) -> bool {
        self.ready(inode).is_some_and(|staged| staged.is_in_memory())
    }

    /// True if handles here see another file than everybody else.
    pub(super) fn has_private_view(&self, inode: u64) -> bool {
        self.ready(inode).is_some_and(|staged| staged.has_private_view())
    }

    /// True if only handles here still have it.
    pub(super) fn is_unlinked(&self, inode: u64) -> bool {
        self.ready(inode).is_some_and(|staged| staged.is_unlinked())
    }

    /// The turn of a node, which is staged from now on; without content if nobody has brought it. What another node of the file
    /// has stored and still holds is given up for it.
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

    /// As [`Staging::lock`], if nothing of the file is staged: otherwise another task may have the turn for long.
    pub(super) fn try_lock(&self, node: u64) -> Option<WriteGuard> {
        let mut table = self.table();
        let Entry::Vacant(vacant) = table.entry(inode_of(node)) else { return None };
        let staged = vacant.insert(Arc::new(Staged::new(node))).clone();
        self.count.store(table.len(), Ordering::Release);
        let work = staged.work.clone().try_lock_owned().ok()?;
        Some(WriteGuard { staged, work })
    }

    /// The turn of an inode that is staged.
    pub(super) async fn lock_if_staged(&self, inode: u64) -> Option<WriteGuard> {
        self.ready(inode)?.lock().await
    }

    /// An inode is not staged any more, unless it `stays`, which is asked while nobody can find it. True if it does not.
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

    /// An inode is not staged any more.
    pub(super) fn remove(&self, guard: WriteGuard) {
        self.remove_unless(guard, || false);
    }

    /// No content yet.
    pub(super) fn blank(&self) -> Arc<Spool> {
        Arc::new(Spool::new(self.quota.clone()))
    }

    /// A new file is staged, which is made in `session`: nobody else can have found it yet, and nothing of it is stored.
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

    /// Attributes as handles of a node see them: with length and time of what is not stored yet.
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
    // Its place is predictable and may lie where everybody can write.
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own && metadata.uid() != 0 {
        let message = format!("it belongs to user {}: choose another", metadata.uid());
        return Err(Error::new(ErrorKind::PermissionDenied, message));
    }
    Ok(())
}
