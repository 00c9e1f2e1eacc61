//! Changes of names: what comes, moves and goes.
//!
//! A file that is made below a mount is seen by everybody at once, and stored when it is closed. A file that goes while it is
//! open here is brought to the staging directory first, so that its handles go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jindofs_proto::v1::{Attr, CreateRequest, FileType, MkdirRequest, Mount, SymlinkRequest};
use tokio::runtime::Handle;

use crate::client::namespace::{at_entry, at_inode};
use crate::client::writer::WriteIntent;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::source::source_of;
use crate::types::version_of;
use crate::ufs::{Content, Deadline};

use super::fs::{Fs, with_name};
use super::inodes::Known;
use super::nodes::Opening;
use super::staging::WriteGuard;

/// How long a rename waits for a file that is not stored yet, and the pause between two attempts.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// A name in a directory.
pub(super) type Name<'a> = (u64, &'a [u8]);

/// Who makes something, and with which mode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credentials {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Credentials {
    /// What makes a file.
    pub(super) fn request(&self, at: Name<'_>) -> CreateRequest {
        let Credentials { mode, uid, gid } = *self;
        CreateRequest { target: Some(at_entry(at.0, at.1)), mode, uid, gid, ..CreateRequest::default() }
    }

    /// What a directory with the setgid bit gives to those in it.
    pub(super) fn inherit_from(mut self, directory: &Attr, is_directory: bool) -> Credentials {
        self.mode &= PERMISSIONS;
        if directory.mode & libc::S_ISGID != 0 {
            self.gid = directory.gid;
            if is_directory {
                self.mode |= libc::S_ISGID;
            }
        }
        self
    }
}

impl Fs {
    /// What the kernel is to see of a directory, or of something in it, is not what it was.
    pub(super) fn changed(&self, directory: u64) {
        self.inodes.changed(directory);
        self.listings.changed(directory);
    }

    /// What came of a change in a directory. One that is gone was maybe made again by others: the kernel looks its path up again.
    async fn done_in<T>(&self, directory: u64, done: Result<T>) -> Result<T> {
        let Err(error) = done else { return done };
        if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Stale) {
            return Err(error);
        }
        let there = self.client.lookup(at_inode(directory)).await.and_then(with_name);
        match there.is_err_and(|error| error.kind == ErrorKind::NotFound) {
            true => Err(self.gone_directory(directory).await),
            false => Err(error),
        }
    }

    async fn make_file(self: &Arc<Self>, at: Name<'_>, credentials: Credentials, exclusive: bool) -> Result<Attr> {
        let directory = self.attr(at.0).await?.attr;
        if directory.mount_id != 0 {
            self.mounts.get(directory.mount_id).await?;
        }
        self.check_storable(at, &directory)?;
        let credentials = credentials.inherit_from(&directory, false);
        // Never one that exists: nobody has checked yet whether the caller may open it.
        let request = CreateRequest { exclusive: true, ..credentials.request(at) };
        self.flush_pending(at.0).await;
        let attr = self.done_in(at.0, self.client.create(request).await).await;
        self.changed(at.0);
        attr.map_err(|error| match error.kind {
            // The kernel looks the name up again, and opens what it finds.
            ErrorKind::AlreadyExists if !exclusive => Error { kind: ErrorKind::Stale, ..error },
            _ => error,
        })
    }

    /// Makes a file and opens it: its attributes, and the number of the handle, both of which the kernel has to be told. Behind
    /// its answer where that can be, as soon as it can.
    ///
    /// *Errors*: `AlreadyExists`; `Stale` unless `exclusive`, when the file has come from elsewhere: it is to be looked up.
    pub(super) async fn create(
        self: &Arc<Self>,
        at: Name<'_>,
        credentials: Credentials,
        exclusive: bool,
    ) -> Result<(Known, u64)> {
        self.check_writable()?;
        if !exclusive
            && self.can_defer_create(at).await
            && let Some(created) = self.create_deferred(at, credentials, true, &Handle::current())
        {
            return created;
        }
        let attr = self.make_file(at, credentials, exclusive).await?;
        let number = match self.open_new(&attr) {
            Ok(number) => number,
            Err(error) => {
                self.undo_create(at, &attr, None).await;
                return Err(error);
            }
        };
        if attr.mount_id != 0 {
            let mut guard = self.staging.lock(attr.inode).await;
            // Whoever has found it meanwhile may have written to it.
            if !guard.is_ready() {
                guard.begin(attr.clone(), self.staging.blank());
            }
            guard.mark_new(self.client.session().id().await);
        }
        Ok((self.enter_new(at, attr), number))
    }

    /// The number of a handle for a file that was just made.
    ///
    /// *Errors*: too many are open.
    pub(super) fn open_new(&self, attr: &Attr) -> Result<u64> {
        let file = self.reader.open(source_of(attr, Vec::new()));
        let (node, version, number) = (attr.inode, file.source.version, self.handles.number());
        self.handles.add_file(number, node, version, true)?;
        // From now on the kernel's pages are of what is staged.
        self.nodes.join(node, Opening { number, file, attr: attr.clone(), writes: true, direct: false });
        Ok(number)
    }

    /// The kernel is told of a file that was just made.
    pub(super) fn enter_new(&self, at: Name<'_>, attr: Attr) -> Known {
        let known = Known::new(attr, Instant::now());
        self.inodes.entered(at.0, at.1, known.clone());
        known
    }

    /// Makes an empty file without opening it.
    ///
    /// *Errors*: as [`Fs::create`]; those of storing, then there is no file.
    pub(super) async fn make_node(self: &Arc<Self>, at: Name<'_>, credentials: Credentials) -> Result<Known> {
        self.check_writable()?;
        let attr = self.make_file(at, credentials, true).await?;
        if attr.mount_id == 0 {
            return Ok(Known::new(attr, Instant::now()));
        }
        let begun = self.writer.begin(&attr, false).await;
        let intent = begun.as_ref().ok().map(WriteIntent::intent);
        let stored = match begun {
            Ok(begun) => {
                let nothing = Content::in_memory(Bytes::new());
                self.writer.store(&attr, begun, nothing, &Deadline::for_store()).await
            }
            Err(error) => Err(error),
        };
        match stored {
            Ok(attr) => Ok(Known::new(attr, Instant::now())),
            Err(error) => {
                self.undo_create(at, &attr, intent).await;
                Err(error)
            }
        }
    }

    /// A file that was just made cannot be opened, or stored by the attempt `intent`, and is not to be left.
    async fn undo_create(self: &Arc<Self>, at: Name<'_>, credentials: &Attr, intent: Option<u64>) {
        if credentials.mount_id != 0 && self.abandon_create(credentials.inode, intent).await {
            self.changed(at.0);
        }
    }

    /// Refuses a new file whose path the under-storage cannot hold: its first close would be too late to say so.
    ///
    /// *Errors*: `InvalidArgument`, `NameTooLong`.
    pub(super) fn check_storable(&self, at: Name<'_>, directory: &Attr) -> Result<()> {
        let Some((mount, path)) = self.path_of_new(at, directory) else { return Ok(()) };
        self.writer.check_path(&mount, &path)
    }

    /// True if [`Fs::check_storable`] is sure to let a file through, which is known without reading anything.
    pub(super) fn is_storable_now(&self, at: Name<'_>, directory: &Attr) -> bool {
        let Some((mount, path)) = self.path_of_new(at, directory) else { return directory.mount_id == 0 };
        self.writer.can_be_path_now(&mount, &path).unwrap_or(false)
    }

    /// The mount in which a file is to be made, and its path there: where that is not known, at least its name.
    fn path_of_new(&self, at: Name<'_>, directory: &Attr) -> Option<(Mount, Vec<u8>)> {
        let mount = self.mounts.known(directory.mount_id)?;
        let mut path = self.inodes.path_below(mount.root_inode, at.0).unwrap_or_default();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(at.1);
        Some((mount, path))
    }

    /// Makes a directory.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn make_directory(self: &Arc<Self>, at: Name<'_>, credentials: Credentials) -> Result<Known> {
        self.check_writable()?;
        let credentials = credentials.inherit_from(&self.attr(at.0).await?.attr, true);
        let request = MkdirRequest {
            op: None,
            target: Some(at_entry(at.0, at.1)),
            mode: credentials.mode,
            uid: credentials.uid,
            gid: credentials.gid,
            parents: false,
        };
        self.flush_pending(at.0).await;
        let attr = self.done_in(at.0, self.client.mkdir(request).await).await;
        self.changed(at.0);
        let attr = attr?;
        Ok(Known::new(attr, Instant::now()))
    }

    /// Makes a symbolic link.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn make_symlink(
        self: &Arc<Self>,
        at: Name<'_>,
        to: &[u8],
        credentials: Credentials,
    ) -> Result<Known> {
        self.check_writable()?;
        let credentials = credentials.inherit_from(&self.attr(at.0).await?.attr, false);
        let request = SymlinkRequest {
            op: None,
            target: Some(at_entry(at.0, at.1)),
            link_target: to.to_vec().into(),
            uid: credentials.uid,
            gid: credentials.gid,
        };
        self.flush_pending(at.0).await;
        let attr = self.done_in(at.0, self.client.symlink(request).await).await;
        self.changed(at.0);
        Ok(Known::new(attr?, Instant::now()))
    }

    /// Removes a directory.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn remove_directory(&self, at: Name<'_>) -> Result<()> {
        self.check_writable()?;
        self.flush_pending(at.0).await;
        if let Some(known) = self.inodes.get_named(at.0, at.1) {
            self.flush_pending(known.attr.inode).await;
        }
        let removed = self.done_in(at.0, self.client.rmdir(at_entry(at.0, at.1), false).await).await;
        self.changed(at.0);
        removed?;
        self.inodes.removed(at.0, at.1);
        Ok(())
    }

    /// Removes a file or symbolic link.
    ///
    /// *Errors*: those of the masters.
    pub(super) async fn remove_file(self: &Arc<Self>, at: Name<'_>) -> Result<()> {
        self.check_writable()?;
        self.flush_pending(at.0).await;
        let guard = match self.inodes.get_named(at.0, at.1) {
            Some(known) => self.stage_for_handles(&known.attr).await,
            None => None,
        };
        let removed = self.done_in(at.0, self.client.unlink(at_entry(at.0, at.1)).await).await;
        self.changed(at.0);
        if removed.is_ok() {
            self.inodes.removed(at.0, at.1);
        }
        self.finish_unlink(guard, removed.is_ok()).await;
        removed
    }

    /// Moves something, over what is there unless `no_replace`.
    ///
    /// *Errors*: those of the masters; those of storing what moves.
    pub(super) async fn rename(self: &Arc<Self>, from: Name<'_>, to: Name<'_>, no_replace: bool) -> Result<()> {
        self.check_writable()?;
        self.flush_pending(from.0).await;
        self.flush_pending(to.0).await;
        if let Some(known) = self.inodes.get_named(from.0, from.1).filter(|known| is_directory(&known.attr)) {
            self.store_closed_below(known.attr.inode).await;
        }
        let (mut moved, mut replaced) = self.lock_for_rename(from, to, no_replace).await;
        if let Some(guard) = &mut moved {
            // Under its old name: what has no content in the under-storage cannot be moved there.
            self.store(guard).await?;
        }
        let renamed = self.rename_stored(from, to, no_replace).await;
        self.changed(from.0);
        self.changed(to.0);
        if let Some(guard) = replaced.as_mut().filter(|_| renamed.is_err()) {
            self.notice_forgotten(guard).await;
        }
        self.finish_unlink(replaced, renamed.is_ok()).await;
        let attr = self.done_in(to.0, self.done_in(from.0, renamed).await).await?;
        self.inodes.moved(attr.inode, to.0, to.1);
        // Kept by version, it knows the old path.
        self.reader.forget(&source_of(&attr, Vec::new()));
        match &mut moved {
            Some(guard) => self.rebase(guard, attr, 0),
            None => self.apply_attr_update(attr),
        }
        Ok(())
    }

    /// A file that another mount stores right now, after its last close, cannot be moved before that has ended.
    async fn rename_stored(&self, from: Name<'_>, to: Name<'_>, no_replace: bool) -> Result<Attr> {
        let started = Instant::now();
        loop {
            let renamed = self.client.rename(at_entry(from.0, from.1), at_entry(to.0, to.1), no_replace).await;
            match renamed {
                Err(error) if error.kind == ErrorKind::Busy && started.elapsed() < STORE_TIMEOUT => {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
                renamed => return renamed,
            }
        }
    }

    /// The turns of what moves, if it is staged, and of what is replaced, if it is open: always in the order of inodes.
    async fn lock_for_rename(
        self: &Arc<Self>,
        from: Name<'_>,
        to: Name<'_>,
        no_replace: bool,
    ) -> (Option<WriteGuard>, Option<WriteGuard>) {
        let Some(moved) = self.inodes.get_named(from.0, from.1) else { return (None, None) };
        let moved = moved.attr.inode;
        let replaced = self.inodes.get_named(to.0, to.1).filter(|known| known.attr.inode != moved && !no_replace);
        match replaced {
            None => (self.staging.lock_if_staged(moved).await, None),
            Some(replaced) if moved < replaced.attr.inode => {
                let moved = self.staging.lock_if_staged(moved).await;
                (moved, self.stage_for_handles(&replaced.attr).await)
            }
            Some(replaced) => {
                let replaced = self.stage_for_handles(&replaced.attr).await;
                (self.staging.lock_if_staged(moved).await, replaced)
            }
        }
    }

    /// The turn of a file whose name is about to go, with its content staged if handles of this client may still want it.
    async fn stage_for_handles(self: &Arc<Self>, attr: &Attr) -> Option<WriteGuard> {
        if attr.mount_id == 0 || attr.r#type() != FileType::File {
            return None;
        }
        if let Some(guard) = self.staging.lock_if_staged(attr.inode).await {
            return Some(guard);
        }
        // Of several versions only the newest can be kept.
        let newest = self.nodes.open_for(attr.inode, version_of(&attr.version_token));
        let follows = || self.nodes.open_nodes(attr.inode).into_iter().find(|node| self.may_move(*node, attr));
        let node = newest.or_else(follows)?;
        match self.stage(node, u64::MAX).await {
            Ok(guard) => Some(guard),
            Err(error) => {
                tracing::warn!(inode = attr.inode, %error, "a file that is open goes; its handles keep what is cached");
                None
            }
        }
    }

    /// After a rename over a file has failed: masters forget one that is not stored before the under-storage refuses to put
    /// another in its place.
    async fn notice_forgotten(&self, guard: &mut WriteGuard) {
        if !guard.base().version_token.is_empty() {
            return;
        }
        let there = self.client.lookup(at_inode(guard.base().inode)).await;
        if there.is_err_and(|error| error.kind == ErrorKind::NotFound) {
            guard.detach_from_session();
        }
    }

    /// The name of a file was removed or taken, if `done`. By the name it may have been another file than the one that is staged.
    async fn finish_unlink(&self, guard: Option<WriteGuard>, done: bool) {
        let Some(mut guard) = guard else { return };
        if done {
            let inode = guard.inode();
            match self.client.lookup(at_inode(guard.base().inode)).await {
                Ok(attr) if attr.parent != 0 => {
                    tracing::debug!(inode, "another file was removed by the name of one that is open");
                }
                Err(error) if error.kind != ErrorKind::NotFound && guard.is_due() => {
                    // Its close finds out, and tells.
                    tracing::warn!(inode, %error, "it is not known whether an open file was removed or another one of its name");
                }
                _ => guard.mark_unlinked(),
            }
        }
        // What still waits to be stored after its last close is that one's to give up.
        let (node, is_due) = (guard.node(), guard.is_due());
        self.staging.remove_unless(guard, || is_due || self.nodes.is_open(node));
    }
}

fn is_directory(attr: &Attr) -> bool {
    attr.r#type() == FileType::Directory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setgid_directory_gives_its_group_and_the_bit_to_directories() {
        let credentials = Credentials { mode: 0o100644, uid: 7, gid: 8 };
        let plain = Attr { mode: 0o755, gid: 9, ..Attr::default() };
        let setgid = Attr { mode: 0o2755, ..plain.clone() };
        let inside = |directory, is_directory| {
            let credentials = credentials.inherit_from(directory, is_directory);
            (credentials.mode, credentials.uid, credentials.gid)
        };
        assert_eq!(inside(&plain, false), (0o644, 7, 8));
        assert_eq!(inside(&setgid, false), (0o644, 7, 9));
        assert_eq!(inside(&setgid, true), (0o2644, 7, 9));
    }
}
