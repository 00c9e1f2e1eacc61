//! Content of files: brought to the staging directory before its first change, changed there, and stored when it is synced
//! or closed.
//!
//! What is changed is the newest version at the first change; a file that is of another version by the time it is stored is
//! `Stale`, unless all that was written to it was appended. What could not be stored stays staged until the last handle is
//! closed, so that it can be tried again.

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

/// Bytes of a file brought here at a time, one block.
const STEP: u64 = crate::types::BLOCK_SIZE as u64;
/// How often content is brought here that is replaced at this very moment.
const ATTEMPTS: usize = 16;
/// Steps asked for ahead.
const AHEAD: usize = 4;
/// Most attempts to store what was appended behind what others have stored meanwhile.
const APPENDS: usize = 64;
/// Most attempts to store a file that moves meanwhile, or has gone with its session.
const MOVES: usize = 4;
/// Bytes of it that are copied at a time.
const PIECE: u32 = 1 << 20;

/// What the kernel has written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write<'a> {
    pub(super) place: WritePosition,
    /// Where the kernel took it to be written.
    pub(super) offset: u64,
    /// Pages that a mapping has changed: they are of the version that the node stood for.
    pub(super) from_pages: bool,
    pub(super) data: &'a [u8],
}

/// How content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreMode {
    /// Everything is recorded when it is.
    Committed,
    /// What the masters record of a small new file may come behind the answer.
    CommitInBackground,
    /// As `Committed`, but a change of the file that is under way is an error, and not waited for with the turn held.
    NonBlocking,
}

impl Fs {
    /// *Errors*: `ReadOnly`, if nothing can be changed through this mount.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.writable {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ReadOnly, "the mount is read-only: fuse.writable is not set"))
    }

    /// *Errors*: `ReadOnly`, if the file lies where nothing can be changed; `Stale` when its mount is gone.
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

    /// Writes, if the file is staged and nobody is at work on it.
    pub(super) fn write_now(self: &Arc<Self>, node: u64, write: Write<'_>, on: &Handle) -> Option<Result<()>> {
        if write.from_pages && self.nodes.has_replaced_pages(node) {
            return None;
        }
        let mut guard = self.staging.ready_for(node)?.try_lock()?;
        if write.place == WritePosition::End && !guard.is_dirty() {
            // Others may have appended since.
            return None;
        }
        let written = {
            let _entered = on.enter();
            self.write_in_turn(&mut guard, write)
        };
        guard.start_upload(&self.staging.upload_permits, |base| self.begin_upload(base), on);
        Some(written)
    }

    /// Begins the object that a file becomes when it is stored, where that is known.
    fn begin_upload(&self, base: &Attr) -> Option<impl Future<Output = Result<Option<Upload>>> + Send + use<>> {
        let (mount, path) = self.place_of(base)?;
        self.writer.begin_upload(&mount, path, base.version_token.to_vec())
    }

    /// Writes through a handle of a node.
    ///
    /// *Errors*: `Unsupported` outside any mount, `Stale`, `NoSpace`; those of reading what is there.
    pub(super) async fn write(self: &Arc<Self>, node: u64, write: Write<'_>) -> Result<()> {
        self.check_writable()?;
        if write.place == WritePosition::End {
            self.find_end(node).await?;
        }
        self.check_changed_pages(node, &write).await?;
        let mut guard = self.stage(node, u64::MAX).await?;
        // To stage the newest version may have moved the node to it.
        self.check_changed_pages(node, &write).await?;
        self.write_in_turn(&mut guard, write)
    }

    fn write_in_turn(self: &Arc<Self>, guard: &mut WriteGuard, write: Write<'_>) -> Result<()> {
        let at = guard.write(write.place, write.data)?;
        if at != write.offset {
            // The kernel took its own end of the file for where it is appended, and keeps a page with it there.
            self.spoil_pages(guard.node(), at.min(write.offset), false);
        }
        Ok(())
    }

    /// Gives up what is staged of a file and was stored, if others have stored it since: what is appended comes behind that.
    async fn find_end(self: &Arc<Self>, node: u64) -> Result<()> {
        let is_clean = self.staging.ready_for(node).is_some_and(|staged| !staged.has_private_view());
        if is_clean && !self.is_uncommitted(inode_of(node)) {
            let attr = self.ask_attr(inode_of(node)).await?.attr;
            self.give_way(&attr, true).await?;
        }
        Ok(())
    }

    /// The turn of a node, with the first `keep` bytes of its content staged, or more.
    pub(super) async fn stage(self: &Arc<Self>, node: u64, keep: u64) -> Result<WriteGuard> {
        let mut guard = self.staging.lock(node).await;
        if guard.node() != node {
            // Something that is not stored yet is made from another version.
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
                    // Others have stored in between.
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
            // Also for an older version: the attributes were read before the one that the node stands for was stored.
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
    /// *Errors*: `Stale` if it is not there any more; those of reading it.
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

    /// Stores what was written, if anything was. What the masters record of a small new file comes behind the answer.
    ///
    /// *Errors*: as [`crate::client::Writer::store`]. What was written stays staged.
    pub(super) async fn sync(self: &Arc<Self>, inode: u64) -> Result<()> {
        match self.staging.lock_if_staged(inode).await {
            Some(mut guard) => self.store_as(&mut guard, StoreMode::CommitInBackground).await,
            None => self.await_empty_create(inode).await,
        }
    }

    /// As [`Fs::sync`], with everything recorded.
    pub(super) async fn store(self: &Arc<Self>, guard: &mut WriteGuard) -> Result<()> {
        self.store_as(guard, StoreMode::Committed).await
    }

    /// As [`Fs::store`], as far as `how` says.
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

    /// Puts what was appended behind what others have stored meanwhile; false if more than that was changed.
    ///
    /// *Errors*: those of reading what they have stored; then nothing has changed.
    async fn append_again(self: &Arc<Self>, guard: &mut WriteGuard) -> Result<bool> {
        let Some(from) = guard.appended_from().filter(|_| !guard.is_unlinked()) else { return Ok(false) };
        let newest = self.client.lookup(at_inode(guard.base().inode)).await?;
        if newest.version_token == guard.base().version_token || newest.r#type() != FileType::File {
            return Ok(false);
        }
        self.apply_attr_update(newest.clone());
        let content = self.staging.blank();
        match self.copy_version(&newest, &content, u64::MAX).await {
            // Replaced in between: the next attempt finds what is there then.
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
        // Pages hold what was written behind the old end.
        self.spoil_pages(guard.node(), if is_replaced { 0 } else { from }, is_replaced);
        Ok(true)
    }

    /// Notes what came of storing what was written.
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

    /// What is staged is stored: `attr` is of the version that it has become.
    fn note_new_version(&self, guard: &mut WriteGuard, attr: Attr) {
        self.renewed(guard, attr.clone());
        guard.mark_stored(attr);
    }

    /// True if a file that was made here is there, with what somebody else has stored in it.
    async fn others_have_stored(&self, made: &Attr) -> bool {
        let there = self.client.lookup(at_inode(made.inode)).await;
        there.is_ok_and(|attr| version_of(&attr.version_token) != version_of(&made.version_token))
    }

    /// The file of `guard` has new attributes by a change of ours; its content is still what is staged.
    pub(super) fn renewed(&self, guard: &WriteGuard, attr: Attr) {
        if attr.inode == guard.inode() {
            self.note_stored(guard, &attr);
        }
        self.apply_attr_update(attr);
    }

    /// A change of ours was answered with the attributes of what it changed.
    pub(super) fn apply_attr_update(&self, attr: Attr) {
        self.layouts.forget(attr.inode);
        match self.inodes.name_of(attr.inode) {
            Some((parent, name)) if parent == attr.parent => self.listings.insert(parent, &name),
            _ => self.listings.changed(attr.parent),
        }
        // Whatever was asked for before now is older.
        self.inodes.renew(Known::new(attr, Instant::now()));
    }

    /// Sets the length of a file: through a handle it is stored with everything else, by its name at once.
    ///
    /// *Errors*: as [`Fs::write`]; those of storing.
    pub(super) async fn truncate(self: &Arc<Self>, node: u64, length: u64, number: Option<u64>) -> Result<()> {
        self.set_length(node, length, number, false).await
    }

    /// Cuts off a file that was just opened for that, whatever is staged of it.
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
        // By its name it is the file that is being written, or was and is not stored, if it is.
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
        // Nobody is left who could try again, unless its last close still does; who has it open is not to see what is refused.
        let is_refused = done.is_err() && !was_due;
        let is_removed = self.staging.remove_unless(guard, || !is_refused && (was_due || self.nodes.is_open(node)));
        if is_removed && is_refused {
            self.spoil_pages(node, 0, true);
        }
        done
    }

    /// A file outside any mount has a length and no content.
    async fn truncate_outside(&self, inode: u64, length: u64) -> Result<()> {
        let request = SetAttrRequest { target: Some(at_inode(inode)), size: Some(length), ..SetAttrRequest::default() };
        let attr = self.client.set_attr(request).await?;
        // All its lengths are one version.
        self.reader.forget(&source_of(&attr, Vec::new()));
        self.apply_attr_update(attr);
        Ok(())
    }
}

/// Copies the first `keep` bytes of a file.
async fn copy(reader: &Reader, file: &OpenFile, to: &Arc<Spool>, keep: u64) -> Result<()> {
    let length = file.source.length.min(keep);
    // Refused before anything is read, where there is no room for it.
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
