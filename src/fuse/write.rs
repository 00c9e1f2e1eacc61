//! Content of files: copied to the staging area before its first change, changed there, and stored at `fsync` or
//! `close`.
//!
//! The base of a change is the newest version at the first write. If the file has another version by the time the
//! change is stored, storing fails with `Stale`, unless all writes were appends. Content that could not be stored stays
//! staged until the last close, so that storing can be retried.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use jindofs_proto::v1::{Attr, FileType, SetAttrRequest};
use tokio::runtime::Handle;

use crate::client::namespace::at_inode;
use crate::client::{OpenFile, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::source::source_of;
use crate::types::version_of;
use crate::ufs::Upload;

use super::fs::Fs;
use super::inodes::Known;
use super::nodes::{extends, inode_of, same_version};
use super::open::other_version;
use super::staging::{Spool, WriteGuard, WritePosition};

/// Bytes fetched at a time, one block.
const STEP: u64 = crate::types::BLOCK_SIZE as u64;
/// Most attempts to fetch content that is replaced concurrently.
const ATTEMPTS: usize = 16;
/// Steps fetched ahead.
const AHEAD: usize = 4;
/// Most attempts to store appended bytes behind versions that other clients keep storing.
const APPENDS: usize = 64;
/// Most attempts to store a file that is renamed meanwhile, or was removed with its session.
const MOVES: usize = 4;
/// Bytes of the appended part that are copied at a time.
const PIECE: u32 = 1 << 20;

/// A write request of the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write<'a> {
    pub(super) place: WritePosition,
    /// The offset that the kernel assumed.
    pub(super) offset: u64,
    /// Pages that were changed through a mapping: they belong to the version that the node stood for.
    pub(super) from_pages: bool,
    pub(super) data: &'a [u8],
}

/// How content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreMode {
    /// Returns after the masters have committed the write.
    Committed,
    /// The commit of a small new file may follow after the answer.
    CommitInBackground,
    /// As `Committed`, but fails instead of waiting, with the guard held, for another change of the file in progress.
    NonBlocking,
}

impl Fs {
    /// *Errors*: `ReadOnly` if the mount is read-only.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ReadOnly, "the mount is read-only: fuse.writable is not set"))
    }

    /// *Errors*: `ReadOnly` if the file lies where nothing can be changed; `Stale` if its mount is gone.
    pub(super) async fn check_changeable(&self, attr: &Attr) -> Result<()> {
        self.check_writable()?;
        if attr.mount_id == 0 {
            return Ok(());
        }
        match self.mounts.get(attr.mount_id).await? {
            Some(mount) if mount.read_only => {
                let path = String::from_utf8_lossy(&mount.path).into_owned();
                Err(Error::new(ErrorKind::ReadOnly, format!("the mount {path} is read-only")))
            }
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::Stale, format!("mount {} does not exist any more", attr.mount_id))),
        }
    }

    /// Writes without blocking if the file is staged and its guard is free.
    pub(super) fn write_now(self: &Arc<Self>, node: u64, write: Write<'_>, on: &Handle) -> Option<Result<()>> {
        if write.from_pages && self.nodes.has_replaced_pages(node) {
            return None;
        }
        let mut guard = self.staging.ready_for(node)?.try_lock()?;
        if write.place == WritePosition::End && !guard.is_dirty() {
            // Another client may have appended since.
            return None;
        }
        let written = {
            let _entered = on.enter();
            self.write_in_turn(&mut guard, write)
        };
        guard.start_upload(&self.staging.upload_permits, |base| self.begin_upload(base), on);
        Some(written)
    }

    /// Opens the multipart upload for a file that is being written, if its mount and path are known.
    fn begin_upload(&self, base: &Attr) -> Option<impl Future<Output = Result<Option<Upload>>> + Send + use<>> {
        let (mount, path) = self.place_of(base)?;
        self.writer.begin_upload(&mount, path, base.version_token.to_vec())
    }

    /// Writes through a handle of a node.
    ///
    /// *Errors*: `Unsupported` outside all mounts; `Stale`; `NoSpace`; those of reading the current content.
    pub(super) async fn write(self: &Arc<Self>, node: u64, write: Write<'_>) -> Result<()> {
        self.check_writable()?;
        if write.place == WritePosition::End {
            self.find_end(node).await?;
        }
        self.check_changed_pages(node, &write).await?;
        let mut guard = self.stage(node, u64::MAX).await?;
        // Staging the newest version may have moved the node to it.
        self.check_changed_pages(node, &write).await?;
        self.write_in_turn(&mut guard, write)
    }

    fn write_in_turn(self: &Arc<Self>, guard: &mut WriteGuard, write: Write<'_>) -> Result<()> {
        let at = guard.write(write.place, write.data)?;
        if at != write.offset {
            // The kernel assumed its own end of file for the append, and keeps a page with the data there.
            self.spoil_pages(guard.node(), at.min(write.offset), false);
        }
        Ok(())
    }

    /// Drops staged content that is stored if another client has stored a newer version: the append goes behind that
    /// version.
    async fn find_end(self: &Arc<Self>, node: u64) -> Result<()> {
        let is_clean = self.staging.ready_for(node).is_some_and(|staged| !staged.has_private_view());
        if is_clean && !self.is_uncommitted(inode_of(node)) {
            let attr = self.ask_attr(inode_of(node)).await?.attr;
            self.give_way(&attr, true).await?;
        }
        Ok(())
    }

    /// Takes the guard of a node, with at least the first `keep` bytes of its content staged.
    pub(super) async fn stage(self: &Arc<Self>, node: u64, keep: u64) -> Result<WriteGuard> {
        let mut guard = self.staging.lock(node).await;
        if guard.node() != node {
            // A change that is not stored has another base.
            return Err(Error::new(
                ErrorKind::Stale,
                format!("inode {} is written through another node", inode_of(node)),
            ));
        }
        if guard.is_ready() {
            return Ok(guard);
        }
        match self.bring(&guard, keep).await {
            Ok((base, content)) => {
                guard.begin(base, content);
                Ok(guard)
            }
            Err(error) => {
                self.staging.remove(guard);
                Err(error)
            }
        }
    }

    async fn bring(self: &Arc<Self>, guard: &WriteGuard, keep: u64) -> Result<(Attr, Arc<Spool>)> {
        let mut attr = self.attr(guard.inode()).await?.attr;
        for _ in 0..ATTEMPTS {
            match self.bring_version(guard, &attr, keep).await {
                Err(error) if error.kind == ErrorKind::Stale => {
                    let newest = self.ask_attr(guard.inode()).await?.attr;
                    if same_version(&newest, &attr) {
                        return Err(error);
                    }
                    // Another client has stored a version in between.
                    attr = newest;
                }
                brought => return brought.map(|content| (attr, content)),
            }
        }
        Err(Error::new(ErrorKind::Stale, format!("inode {} changes faster than it can be read", guard.inode())))
    }

    async fn bring_version(self: &Arc<Self>, guard: &WriteGuard, attr: &Attr, keep: u64) -> Result<Arc<Spool>> {
        let node = guard.node();
        if attr.mount_id == 0 {
            let message = "a file outside any mount holds no data: write below a mount";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.check_changeable(attr).await?;
        if self.may_move(node, attr) {
            self.move_locked(guard, attr).await?;
            self.drop_stale_pages(node);
        }
        if !self.may_stand_for(node, attr) {
            // Also for an older version: the attributes were read before the version of the node was stored.
            return Err(other_version(guard.inode()));
        }
        let content = self.staging.blank();
        if attr.size > 0 && keep > 0 {
            self.copy_version(attr, &content, keep).await?;
        }
        Ok(content)
    }

    /// Copies the first `keep` bytes of a version.
    ///
    /// *Errors*: `Stale` if the version is gone; those of reading it.
    async fn copy_version(self: &Arc<Self>, attr: &Attr, to: &Arc<Spool>, keep: u64) -> Result<()> {
        let file = self.open_version(attr).await?;
        let copied = copy(&self.reader, &file, to, keep).await;
        if copied.as_ref().is_err_and(|error| error.kind == ErrorKind::Stale) {
            self.found_stale(&file.source);
            if let Some(moved) = self.moved(attr.inode, &file.source).await {
                return copy(&self.reader, &moved, to, keep).await;
            }
        }
        copied
    }

    /// True if nothing of a file waits to be stored.
    pub(super) fn is_stored(&self, inode: u64) -> bool {
        self.pending_creates.get(inode).is_none() && self.staging.ready(inode).is_none_or(|staged| !staged.is_dirty())
    }

    /// Stores what was written (`fsync`). The commit of a small new file may follow after the answer.
    ///
    /// *Errors*: as [`crate::client::Writer::store`]. The content stays staged.
    pub(super) async fn sync(self: &Arc<Self>, inode: u64) -> Result<()> {
        match self.staging.lock_if_staged(inode).await {
            Some(mut guard) => self.store_as(&mut guard, StoreMode::CommitInBackground).await,
            None => self.await_empty_create(inode).await,
        }
    }

    /// As [`Fs::sync`], and waits for the commit.
    pub(super) async fn store(self: &Arc<Self>, guard: &mut WriteGuard) -> Result<()> {
        self.store_as(guard, StoreMode::Committed).await
    }

    /// As [`Fs::store`], in the mode `how`.
    pub(super) async fn store_as(self: &Arc<Self>, guard: &mut WriteGuard, how: StoreMode) -> Result<()> {
        let (mut attempts, mut moves) = (0, 0);
        loop {
            match self.store_once(guard, how).await {
                Err(error) if moves < MOVES && self.is_elsewhere_by_now(guard, &error).await => moves += 1,
                Err(error) if error.kind == ErrorKind::Stale && attempts < APPENDS => {
                    if !self.try_adopt_empty(guard).await && !self.append_again(guard).await? {
                        return Err(error);
                    }
                    attempts += 1;
                }
                done => return done,
            }
        }
    }

    /// Moves appended bytes behind a version that another client has stored. Returns false if there were other changes
    /// than appends.
    ///
    /// *Errors*: those of reading that version; then nothing has changed.
    async fn append_again(self: &Arc<Self>, guard: &mut WriteGuard) -> Result<bool> {
        let Some(from) = guard.appended_from().filter(|_| !guard.is_unlinked()) else { return Ok(false) };
        let newest = self.client.lookup(at_inode(guard.base().inode)).await?;
        if newest.version_token == guard.base().version_token || newest.r#type() != FileType::File {
            return Ok(false);
        }
        self.apply_attr_update(newest.clone());
        let content = self.staging.blank();
        match self.copy_version(&newest, &content, u64::MAX).await {
            // The version was replaced in between: the next attempt reads the one that is there then.
            Err(error) if error.kind == ErrorKind::Stale => return Ok(true),
            copied => copied?,
        }
        let (mut at, end) = (from, guard.length());
        while at < end {
            let piece = guard.appended(at, PIECE)?;
            if piece.is_empty() {
                return Err(Error::internal("what was appended is shorter than it says"));
            }
            at += piece.len() as u64;
            content.write(WritePosition::End, &piece)?;
        }
        self.note_stored(guard, &newest);
        let is_replaced = !extends(&newest, guard.base());
        guard.append_to(newest, &content)?;
        // The pages of the kernel hold the appended bytes behind the old end.
        self.spoil_pages(guard.node(), if is_replaced { 0 } else { from }, is_replaced);
        Ok(true)
    }

    /// Processes the outcome of storing what was written.
    pub(super) async fn finish_store(&self, guard: &mut WriteGuard, stored: Result<Attr>) -> Result<()> {
        match stored {
            Ok(attr) => self.note_new_version(guard, attr),
            Err(error) if error.kind == ErrorKind::Stale => {
                self.inodes.expire(guard.inode());
                if guard.is_new() && self.others_have_stored(guard.base()).await {
                    guard.discard_new();
                    return Ok(());
                }
                let attr = self.emptied_already(guard).await.ok_or(error)?;
                self.note_new_version(guard, attr);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Records that the staged content is stored as the version `attr`.
    fn note_new_version(&self, guard: &mut WriteGuard, attr: Attr) {
        self.renewed(guard, attr.clone());
        guard.mark_stored(attr);
    }

    /// True if another client has stored a version of a file that was created here.
    async fn others_have_stored(&self, made: &Attr) -> bool {
        let there = self.client.lookup(at_inode(made.inode)).await;
        there.is_ok_and(|attr| version_of(&attr.version_token) != version_of(&made.version_token))
    }

    /// Records new attributes of the file under `guard` after a change of this client that left the content as it is.
    pub(super) fn renewed(&self, guard: &WriteGuard, attr: Attr) {
        if attr.inode == guard.inode() {
            self.note_stored(guard, &attr);
        }
        self.apply_attr_update(attr);
    }

    /// Records attributes that a change of this client has returned: updates the caches.
    pub(super) fn apply_attr_update(&self, attr: Attr) {
        self.layouts.forget(attr.inode);
        match self.inodes.name_of(attr.inode) {
            Some((parent, name)) if parent == attr.parent => self.listings.insert(parent, &name),
            _ => self.listings.changed(attr.parent),
        }
        // This answer is newer than everything that was asked for before.
        self.inodes.renew(Known::new(attr, Instant::now()));
    }

    /// Sets the length of a file. Through a handle the change is stored with the next close; by name it is stored at
    /// once.
    ///
    /// *Errors*: as [`Fs::write`]; those of storing.
    pub(super) async fn truncate(self: &Arc<Self>, node: u64, length: u64, number: Option<u64>) -> Result<()> {
        self.set_length(node, length, number, false).await
    }

    /// Truncates a file that was just opened with `O_TRUNC`, whatever is staged of it.
    ///
    /// *Errors*: as [`Fs::truncate`].
    pub(super) async fn cut_off(self: &Arc<Self>, node: u64, number: u64) -> Result<()> {
        self.set_length(node, 0, Some(number), true).await
    }

    async fn set_length(self: &Arc<Self>, node: u64, length: u64, number: Option<u64>, opens: bool) -> Result<()> {
        let inode = inode_of(node);
        let attr = self.attr(inode).await?.attr;
        match attr.r#type() {
            FileType::File if attr.mount_id == 0 => return self.truncate_outside(inode, length).await,
            FileType::File => {}
            FileType::Directory => return Err(Error::new(ErrorKind::IsADirectory, "a directory has no length to set")),
            FileType::Symlink | FileType::Unspecified => return Err(Error::invalid("only a file has a length to set")),
        }
        let handle = number.and_then(|number| self.handles.file(number));
        if handle.is_none() {
            self.give_way(&attr, true).await?;
        }
        // By name: the node that is being written, or that has unstored changes, if there is one.
        let written = || self.staging.changed_node(inode).or_else(|| self.nodes.written(inode));
        let node = handle.as_ref().map_or_else(|| written().unwrap_or(node), |handle| handle.node);
        let mut guard = self.stage(node, length).await?;
        let was_due = guard.is_due();
        if opens {
            self.begin_from_newest(&mut guard).await;
        }
        let mut done = guard.truncate(length);
        if done.is_ok() && handle.is_none() {
            done = self.store(&mut guard).await;
        }
        // No caller is left to retry, unless the last close still stores it. A handle must not see a change that was
        // refused.
        let is_refused = done.is_err() && !was_due;
        let is_removed = self.staging.remove_unless(guard, || !is_refused && (was_due || self.nodes.is_open(node)));
        if is_removed && is_refused {
            self.spoil_pages(node, 0, true);
        }
        done
    }

    /// A file outside all mounts has a length and no content.
    async fn truncate_outside(&self, inode: u64, length: u64) -> Result<()> {
        let request = SetAttrRequest { target: Some(at_inode(inode)), size: Some(length), ..SetAttrRequest::default() };
        let attr = self.client.set_attr(request).await?;
        // All lengths of such a file share one version.
        self.reader.forget(&source_of(&attr, Vec::new()));
        self.apply_attr_update(attr);
        Ok(())
    }
}

/// Copies the first `keep` bytes of a file.
async fn copy(reader: &Reader, file: &OpenFile, to: &Arc<Spool>, keep: u64) -> Result<()> {
    let length = file.source.length.min(keep);
    // Reserves the space first: without it nothing is read.
    to.resize(length)?;
    let (mut asked, mut at) = (0, 0);
    let mut under_way = FuturesOrdered::new();
    loop {
        while asked < length && under_way.len() < AHEAD {
            let step = STEP.min(length - asked);
            under_way.push_back(reader.read(file, asked, step));
            asked += step;
        }
        let Some(piece) = under_way.next().await else { break };
        let (piece, to, offset) = (piece?, to.clone(), at);
        at += piece.len() as u64;
        let written = tokio::task::spawn_blocking(move || to.write(WritePosition::At(offset), &piece)).await;
        written.map_err(|error| Error::internal(format!("staging: {error}")))??;
    }
    if at == length {
        return Ok(());
    }
    Err(Error::new(ErrorKind::UnderStorage, format!("{at} bytes came instead of {length}")))
}
