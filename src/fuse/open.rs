//! Opens of files: which version a handle stands for, and what the kernel may keep in its page cache.
//!
//! An open sees everything that was closed before it began, through any mount (close-to-open consistency): a writable
//! mount asks the masters for the version, a read-only mount accepts attributes as old as `fuse.attr-ttl`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jindofs_proto::v1::{Attr, FileSource, FileType};

use crate::client::OpenFile;
use crate::client::namespace::{at_inode, at_path};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::source::source_of;
use crate::runtime::lock;
use crate::types::{ROOT_INODE, version_of};

use super::fs::Fs;
use super::inodes::DEPTH_MAX;
use super::nodes::{Joined, Opening, PageCache, inode_of, supersedes};
use super::staging::WriteGuard;

/// Most attempts to open a file whose version changes concurrently.
const ATTEMPTS: usize = 5;
/// How long after a thread was told that a node is stale it may open that node all the same.
const SECOND_OPEN: Duration = Duration::from_secs(1);
/// Most threads for which this is remembered.
const TOLD_MAX: usize = 4096;

/// Number of the new handle, and its use of the page cache.
pub(super) type Opened = (u64, PageCache);

/// How a file is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenMode {
    pub(super) writes: bool,
    /// `O_TRUNC`.
    pub(super) truncates: bool,
    /// The thread that opens the file.
    pub(super) thread: u32,
}

/// Threads that were told that a node does not stand for the newest version. The kernel then looks the name up again,
/// once. A thread that opens the same node again has no name to look up, as through `/proc/self/fd`, and means the
/// version of the node, or its lookup returned a version that became outdated after its open began.
#[derive(Debug, Default)]
pub(super) struct StaleOpens(Mutex<HashMap<(u64, u32), Instant>>);

impl StaleOpens {
    /// True for the second time within a second.
    fn is_second(&self, inode: u64, thread: u32) -> bool {
        // Threads of other PID namespaces have no number here.
        if thread == 0 {
            return false;
        }
        let mut told = lock(&self.0);
        if told.remove(&(inode, thread)).is_some_and(|at| at.elapsed() < SECOND_OPEN) {
            return true;
        }
        if told.len() >= TOLD_MAX {
            told.retain(|_, at| at.elapsed() < SECOND_OPEN);
        }
        if told.len() < TOLD_MAX {
            told.insert((inode, thread), Instant::now());
        }
        false
    }

    /// Forgets a thread after it has opened the file.
    fn forget(&self, inode: u64, thread: u32) {
        lock(&self.0).remove(&(inode, thread));
    }
}

/// The error for a version that the file does not have any more.
pub(super) fn other_version(inode: u64) -> Error {
    Error::new(ErrorKind::Stale, format!("inode {inode} is of another version by now"))
}

impl Fs {
    /// Opens a file for reading without blocking, if everything needed is cached.
    pub(super) fn open_now(&self, node: u64) -> Option<Opened> {
        if self.writable {
            return None;
        }
        let known = self.attr_now(inode_of(node))?;
        if known.attr.r#type() != FileType::File {
            return None;
        }
        let file = self.reader.open(self.source_now(&known.attr)?);
        if self.is_large(&file.source) && !file.is_local() || self.nodes.has_other_pages(node, file.source.version) {
            return None;
        }
        // If this fails, the regular open reports the error.
        self.join(node, file, &known.attr, false).ok().flatten()
    }

    fn is_large(&self, source: &FileSource) -> bool {
        self.direct_min > 0 && source.length >= self.direct_min
    }

    /// Opens a file.
    ///
    /// *Errors*: `IsADirectory`; `ReadOnly` for writing on a read-only mount; `InvalidArgument` for `O_RDONLY |
    /// O_TRUNC`; `Stale` once, if the newest version has another node; those of [`Fs::truncate`].
    pub(super) async fn open(self: &Arc<Self>, node: u64, mode: OpenMode) -> Result<Opened> {
        if mode.truncates && !mode.writes {
            self.check_nothing_to_cut(node).await?;
        }
        let opened = self.open_whole(node, mode).await?;
        self.stale_opens.forget(inode_of(node), mode.thread);
        if mode.truncates
            && mode.writes
            && let Err(error) = self.cut_off(node, opened.0).await
        {
            if let Some(node) = self.release(opened.0) {
                // The caller gets the error now, however long the under-storage delays the rest.
                let this = self.clone();
                tokio::spawn(async move { this.finalize_last_close(node).await });
            }
            return Err(error);
        }
        Ok(opened)
    }

    /// `O_TRUNC` starts from the newest version: it discards staged content of an older version, which was or would be
    /// refused.
    pub(super) async fn begin_from_newest(&self, guard: &mut WriteGuard) {
        let is_old = guard.is_due() && !guard.is_unlinked() && !guard.base().version_token.is_empty();
        if !is_old || self.is_uncommitted(guard.inode()) {
            return;
        }
        // Without an answer it continues with the staged content; the close reports a conflict.
        let Ok(newest) = self.fast_client.lookup(at_inode(guard.base().inode)).await else { return };
        if !newest.version_token.is_empty() && supersedes(&newest, guard.base()) {
            guard.rebase(newest);
        }
    }

    /// The kernel refuses this open of a running program only after it was truncated, and drops its pages even if it
    /// was not: then the program dies.
    async fn check_nothing_to_cut(self: &Arc<Self>, node: u64) -> Result<()> {
        let attr = self.attr(inode_of(node)).await?.attr;
        match self.staging.overlay(node, &attr).size {
            0 => Ok(()),
            _ => Err(Error::invalid("O_RDONLY | O_TRUNC: what is to be cut off has to be opened for writing")),
        }
    }

    async fn open_whole(self: &Arc<Self>, node: u64, mode: OpenMode) -> Result<Opened> {
        let inode = inode_of(node);
        for _ in 0..ATTEMPTS {
            let Some(attr) = self.attr_to_open(node).await? else { return self.open_behind(node, mode) };
            if attr.r#type() == FileType::Directory {
                return Err(Error::new(ErrorKind::IsADirectory, format!("inode {inode} is a directory")));
            }
            if mode.writes {
                self.check_changeable(&attr).await?;
            }
            if self.writable {
                self.give_way(&attr, true).await?;
                self.stale_pages_dropped(node, self.channel.timeout()).await?;
            }
            if let Some(opened) = self.join_staged(node, mode.writes)? {
                return Ok(opened);
            }
            if self.staging.changed_node(inode).is_some_and(|changed| changed != node) {
                return self.open_behind(node, mode);
            }
            let file = self.open_source(&attr).await?;
            if self.is_large(&file.source) && !file.is_local() {
                self.reader.look_local(&file).await;
            }
            if self.nodes.has_other_pages(node, file.source.version) {
                // Before the kernel may keep what is read from now on.
                self.drop_pages(node).await?;
            }
            if let Some(opened) = self.join(node, file, &attr, mode.writes)? {
                return Ok(opened);
            }
            if self.may_move(node, &attr) {
                self.move_node(node, &attr).await?;
            } else if self.is_behind(node, &attr) || self.nodes.written(inode).is_some_and(|written| written != node) {
                return self.open_behind(node, mode);
            }
        }
        Err(Error::new(ErrorKind::Stale, format!("inode {inode} changes faster than it can be opened")))
    }

    /// Attributes of the version that an open must see; `None` if the inode has no name any more and is open here.
    async fn attr_to_open(self: &Arc<Self>, node: u64) -> Result<Option<Attr>> {
        let inode = inode_of(node);
        if self.staging.ready(inode).is_some_and(|staged| staged.has_stale_name()) {
            // An open by a name that the kernel still has cached means the file that has the name now.
            self.forget_path(inode);
            return Ok(None);
        }
        if !self.writable || self.is_uncommitted(inode) || self.staging.has_private_view(inode) {
            let attr = self.attr(inode).await;
            if let Err(error) = &attr {
                self.forget_path_if_gone(inode, error);
            }
            return Ok(Some(attr?.attr));
        }
        let before = self.inodes.get(inode);
        let attr = match self.ask_attr_of_name(inode).await {
            Ok(known) => known.attr,
            Err(error) if error.kind == ErrorKind::NotFound => {
                self.forget_path(inode);
                return if self.nodes.is_open(node) { Ok(None) } else { Err(error) };
            }
            Err(error) => return Err(error),
        };
        let same = |known: &Attr| known.version_token == attr.version_token && known.size == attr.size;
        if before.is_none_or(|before| !same(&before.attr)) {
            self.kernel.expire_attributes(node);
        }
        Ok(Some(attr))
    }

    /// Forgets the name of an inode that is gone: the name belongs to another file or to none, and the kernel is about
    /// to look it up again.
    pub(super) fn forget_name(&self, inode: u64) {
        self.inodes.expire(inode);
        let Some((parent, name)) = self.inodes.name_of(inode) else { return };
        if self.inodes.get_named(parent, &name).is_some_and(|known| known.attr.inode == inode) {
            self.inodes.removed(parent, &name);
        }
        self.changed(parent);
    }

    /// As [`Fs::forget_name`], for the whole path of an inode: a directory on the path may have been replaced, and the
    /// kernel is about to look up all of it.
    pub(super) fn forget_path(&self, inode: u64) {
        let mut at = inode;
        for _ in 0..DEPTH_MAX {
            let Some((parent, name)) = self.inodes.name_of(at).filter(|_| at != ROOT_INODE) else { break };
            self.inodes.expire(parent);
            self.listings.insert(parent, &name);
            at = parent;
        }
        self.forget_name(inode);
    }

    /// As [`Fs::forget_path`], if `error` says that the node is gone.
    pub(super) fn forget_path_if_gone(&self, node: u64, error: &Error) {
        if error.kind == ErrorKind::NotFound {
            self.forget_path(inode_of(node));
        }
    }

    /// The error for a directory that is gone. It is `Stale` only if another directory has its path by now, since not
    /// every system call repeats the lookup after `ESTALE`.
    pub(super) async fn gone_directory(&self, inode: u64) -> Error {
        let path = self.inodes.path_below(ROOT_INODE, inode);
        self.forget_path(inode);
        let there = match path {
            Some(path) => self.client.lookup(at_path([b"/", &path[..]].concat())).await,
            None => Err(Error::new(ErrorKind::NotFound, "its path is not known")),
        };
        let kind = match there {
            // A symbolic link in its place continues the path.
            Err(error) if error.kind == ErrorKind::NotADirectory => ErrorKind::Stale,
            Err(error) if error.kind != ErrorKind::NotFound => return error,
            Ok(attr) if attr.inode != inode => ErrorKind::Stale,
            _ => ErrorKind::NotFound,
        };
        Error::new(kind, format!("the directory with inode {inode} was removed"))
    }

    /// Opens a node with staged content: its handles share that content, whatever other clients have stored since.
    fn join_staged(&self, node: u64, writes: bool) -> Result<Option<Opened>> {
        if self.staging.ready_for(node).is_none() {
            return Ok(None);
        }
        let number = self.handles.number();
        let Some((file, pages)) = self.nodes.join_as_is(node, number, writes) else { return Ok(None) };
        // Joined before the check: content that is staged while a handle is open stays staged.
        if self.staging.ready_for(node).is_none() {
            self.nodes.leave(node, number);
            return Ok(None);
        }
        self.add_handle(node, number, file.source.version, writes)?;
        Ok(Some((number, pages)))
    }

    fn add_handle(&self, node: u64, number: u64, version: u64, writes: bool) -> Result<()> {
        if let Err(error) = self.handles.add_file(number, node, version, writes) {
            self.nodes.leave(node, number);
            return Err(error.into());
        }
        Ok(())
    }

    /// Opens a handle for `file`; `None` if the node stands for another version, or if another version was stored here
    /// meanwhile.
    fn join(&self, node: u64, file: Arc<OpenFile>, attr: &Attr, writes: bool) -> Result<Option<Opened>> {
        let version = file.source.version;
        if version != version_of(&attr.version_token) {
            // The content was asked for after the attributes.
            return Ok(None);
        }
        // Writes go through the page cache, because mappings must see them.
        let direct = !writes && self.is_large(&file.source) && file.is_local();
        let number = self.handles.number();
        let Joined::Here(pages) = self.nodes.join(node, Opening { number, file, attr: attr.clone(), writes, direct })
        else {
            return Ok(None);
        };
        let newest = self.inodes.get(inode_of(node)).filter(|_| self.writable);
        if newest.is_some_and(|known| version_of(&known.attr.version_token) != version) {
            self.nodes.leave(node, number);
            return Ok(None);
        }
        self.add_handle(node, number, version, writes)?;
        Ok(Some((number, pages)))
    }

    /// Handles an open of a node that does not stand for the newest version: the first time the kernel is made to look
    /// the name up again. A thread that opens the node again gets the version of the node, for reading only.
    fn open_behind(&self, node: u64, mode: OpenMode) -> Result<Opened> {
        let stale = || Error::new(ErrorKind::Stale, format!("node {node:#x} stands for a version that was replaced"));
        if !self.stale_opens.is_second(inode_of(node), mode.thread) {
            return Err(stale());
        }
        if let Some(opened) = self.join_staged(node, mode.writes)? {
            return Ok(opened);
        }
        if mode.writes {
            return Err(stale());
        }
        let number = self.handles.number();
        let (file, pages) = self.nodes.join_as_is(node, number, false).ok_or_else(stale)?;
        self.add_handle(node, number, file.source.version, false)?;
        Ok((number, pages))
    }

    /// The content that attributes name.
    pub(super) async fn open_source(&self, attr: &Attr) -> Result<Arc<OpenFile>> {
        let source = match self.source_now(attr) {
            Some(source) => source,
            None => self.source(attr).await?,
        };
        Ok(self.reader.open(source))
    }

    /// As [`Fs::open_source`], for exactly the version that the attributes name.
    ///
    /// *Errors*: `Stale` if the version has changed; those of finding it.
    pub(super) async fn open_version(&self, attr: &Attr) -> Result<Arc<OpenFile>> {
        let file = self.open_source(attr).await?;
        if file.source.version == version_of(&attr.version_token) { Ok(file) } else { Err(other_version(attr.inode)) }
    }

    /// As [`Fs::open_source`], without a request: an unknown path is resolved at the first read.
    pub(super) fn open_source_now(&self, attr: &Attr) -> Arc<OpenFile> {
        self.reader.open(self.source_now(attr).unwrap_or_else(|| source_of(attr, Vec::new())))
    }

    fn source_now(&self, attr: &Attr) -> Option<FileSource> {
        if attr.mount_id == 0 {
            return Some(source_of(attr, Vec::new()));
        }
        if let Some(source) = self.layouts.get(attr.inode, &attr.version_token, attr.size) {
            return Some(source);
        }
        let mount = self.mounts.known(attr.mount_id)?;
        Some(source_of(attr, self.inodes.path_below(mount.root_inode, attr.inode)?))
    }

    async fn source(&self, attr: &Attr) -> Result<FileSource> {
        if let Some(mount) = self.mounts.get(attr.mount_id).await?
            && let Some(path) = self.inodes.path_below(mount.root_inode, attr.inode)
        {
            return Ok(source_of(attr, path));
        }
        let source = self.client.layout(attr.inode).await?.source;
        let source = source.ok_or_else(|| Error::new(ErrorKind::Stale, "the file has moved out of its mount"))?;
        if source.version != version_of(&attr.version_token) {
            self.inodes.expire(attr.inode);
        }
        self.layouts.put(source.clone());
        Ok(source)
    }

    /// Drops everything cached about content that was not found where it should be.
    pub(super) fn found_stale(&self, source: &FileSource) {
        self.inodes.expire(source.file_id);
        self.layouts.forget(source.file_id);
        self.reader.forget(source);
    }

    /// Finds the same content under its new path, after the file or a directory above was renamed.
    pub(super) async fn moved(&self, inode: u64, before: &FileSource) -> Option<Arc<OpenFile>> {
        let source = self.fast_client.layout(inode).await.ok()?.source?;
        if source.version != before.version || source.ufs_path == before.ufs_path {
            return None;
        }
        self.layouts.put(source.clone());
        Some(self.reader.open(source))
    }

    /// Closes a file. Returns the node if it has to be finalized: at the last close, and at each close of a handle that
    /// may have written.
    pub(super) fn release(&self, number: u64) -> Option<u64> {
        let (node, writes) = self.handles.take_file(number)?;
        let is_last = self.nodes.leave(node, number);
        if !self.nodes.is_inode_open(inode_of(node)) {
            self.pending_creates.closed(inode_of(node));
        }
        let staged = self.staging.ready_for(node)?;
        (is_last || writes && staged.is_dirty()).then_some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INODE: u64 = 7;
    const THREAD: u32 = 100;

    #[test]
    fn a_thread_is_told_once_that_a_node_is_stale_and_means_it_when_it_comes_back_at_once() {
        let told = StaleOpens::default();
        assert!(!told.is_second(INODE, THREAD), "the kernel looks the name up again");
        assert!(!told.is_second(INODE, THREAD + 1) && !told.is_second(INODE + 1, THREAD), "another open");
        assert!(told.is_second(INODE, THREAD), "it has no name to look up");
        assert!(!told.is_second(INODE, THREAD), "the next open begins anew");
        told.forget(INODE, THREAD);
        assert!(!told.is_second(INODE, THREAD), "it has opened the file in between");
        assert!(!told.is_second(INODE, 0) && !told.is_second(INODE, 0), "nobody knows whether it is the same thread");
    }
}
