//! Changes of the namespace: create, mkdir, symlink, unlink, rmdir, rename.
//!
//! A file that is created below a mount is visible to all clients at once, and its content is stored when it is closed.
//! If a file is unlinked or replaced while it is open here, its content is first copied to the staging directory, so
//! that its handles can still read it.

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

/// How long a rename waits for a file that another mount is storing, and the pause between two attempts.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// A directory and a name in it.
pub(super) type Name<'a> = (u64, &'a [u8]);

/// Owner and mode of a new object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Credentials {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Credentials {
    /// The request that creates a file.
    pub(super) fn request(&self, at: Name<'_>) -> CreateRequest {
        let Credentials { mode, uid, gid } = *self;
        CreateRequest { target: Some(at_entry(at.0, at.1)), mode, uid, gid, ..CreateRequest::default() }
    }

    /// Applies the rules of a setgid directory to an object that is created in it.
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
    /// Invalidates the cached attributes and listing of a directory, because this mount has changed it.
    pub(super) fn changed(&self, directory: u64) {
        self.inodes.changed(directory);
        self.listings.changed(directory);
    }

    /// Checks the outcome of a change in a directory. If the directory is gone, another client may have created a new
    /// one of the same path: the error makes the kernel look the path up again.
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
        // Never opens an existing file: nobody has checked yet whether the caller may open it.
        let request = CreateRequest { exclusive: true, ..credentials.request(at) };
        self.flush_pending(at.0).await;
        let attr = self.done_in(at.0, self.client.create(request).await).await;
        self.changed(at.0);
        attr.map_err(|error| match error.kind {
            // The kernel looks the name up again, and opens the file that it finds.
            ErrorKind::AlreadyExists if !exclusive => Error { kind: ErrorKind::Stale, ..error },
            _ => error,
        })
    }

    /// Creates a file and opens it. Returns its attributes and the number of the handle. The create is deferred if
    /// possible.
    ///
    /// *Errors*: `AlreadyExists`; `Stale` unless `exclusive`, if another client created the file: the kernel has to
    /// look it up.
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
            // A caller that has found the file in the meantime may have written to it.
            if !guard.is_ready() {
                guard.begin(attr.clone(), self.staging.blank());
            }
            guard.mark_new(self.client.session().id().await);
        }
        Ok((self.enter_new(at, attr), number))
    }

    /// Opens a handle for a file that was just created.
    ///
    /// *Errors*: too many handles are open.
    pub(super) fn open_new(&self, attr: &Attr) -> Result<u64> {
        let file = self.reader.open(source_of(attr, Vec::new()));
        let (node, version, number) = (attr.inode, file.source.version, self.handles.number());
        self.handles.add_file(number, node, version, true)?;
        // From now on the pages of the kernel belong to the staged content.
        self.nodes.join(node, Opening { number, file, attr: attr.clone(), writes: true, direct: false });
        Ok(number)
    }

    /// Registers the entry of a file that was just created.
    pub(super) fn enter_new(&self, at: Name<'_>, attr: Attr) -> Known {
        let known = Known::new(attr, Instant::now());
        self.inodes.entered(at.0, at.1, known.clone());
        known
    }

    /// Creates an empty file without opening it (MKNOD).
    ///
    /// *Errors*: as [`Fs::create`]; those of storing it, after which the file does not exist.
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

    /// Removes a file that was just created and could not be opened, or could not be stored by the write intent
    /// `intent`.
    async fn undo_create(self: &Arc<Self>, at: Name<'_>, credentials: &Attr, intent: Option<u64>) {
        if credentials.mount_id != 0 && self.abandon_create(credentials.inode, intent).await {
            self.changed(at.0);
        }
    }

    /// Rejects a new file whose path the under-storage cannot hold, since the first close would report it too late.
    ///
    /// *Errors*: `InvalidArgument`, `NameTooLong`.
    pub(super) fn check_storable(&self, at: Name<'_>, directory: &Attr) -> Result<()> {
        let Some((mount, path)) = self.path_of_new(at, directory) else { return Ok(()) };
        self.writer.check_path(&mount, &path)
    }

    /// True if [`Fs::check_storable`] is certain to accept the path. Reads no file and does not block.
    pub(super) fn is_storable_now(&self, at: Name<'_>, directory: &Attr) -> bool {
        let Some((mount, path)) = self.path_of_new(at, directory) else { return directory.mount_id == 0 };
        self.writer.can_be_path_now(&mount, &path).unwrap_or(false)
    }

    /// The mount and the path below it of a new file. If the path of the directory is not known, the path is the name
    /// alone.
    fn path_of_new(&self, at: Name<'_>, directory: &Attr) -> Option<(Mount, Vec<u8>)> {
        let mount = self.mounts.known(directory.mount_id)?;
        let mut path = self.inodes.path_below(mount.root_inode, at.0).unwrap_or_default();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(at.1);
        Some((mount, path))
    }

    /// Creates a directory.
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

    /// Creates a symbolic link.
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

    /// Renames an entry; replaces an existing one unless `no_replace`.
    ///
    /// *Errors*: those of the masters; those of storing the file that is renamed.
    pub(super) async fn rename(self: &Arc<Self>, from: Name<'_>, to: Name<'_>, no_replace: bool) -> Result<()> {
        self.check_writable()?;
        self.flush_pending(from.0).await;
        self.flush_pending(to.0).await;
        if let Some(known) = self.inodes.get_named(from.0, from.1).filter(|known| is_directory(&known.attr)) {
            self.store_closed_below(known.attr.inode).await;
        }
        let (mut moved, mut replaced) = self.lock_for_rename(from, to, no_replace).await;
        if let Some(guard) = &mut moved {
            // Stored under its old name: without an object in the under-storage there is nothing to rename.
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
        // The reader caches by version, and what it has cached names the old path.
        self.reader.forget(&source_of(&attr, Vec::new()));
        match &mut moved {
            Some(guard) => self.rebase(guard, attr, 0),
            None => self.apply_attr_update(attr),
        }
        Ok(())
    }

    /// Retries while another mount is storing the file after its last close: a file cannot be renamed during that.
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

    /// Locks the file that is renamed, if it is staged, and the file that is replaced, if it is open. *Lock order*: by
    /// inode number.
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

    /// Locks a file that is about to lose its name, and stages its content if open handles of this client may still
    /// read it.
    async fn stage_for_handles(self: &Arc<Self>, attr: &Attr) -> Option<WriteGuard> {
        if attr.mount_id == 0 || attr.r#type() != FileType::File {
            return None;
        }
        if let Some(guard) = self.staging.lock_if_staged(attr.inode).await {
            return Some(guard);
        }
        // Of several open versions only the newest can be staged.
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

    /// Checks after a failed rename whether the masters have already forgotten the file that was to be replaced: they
    /// do so for a file that was never stored, before the under-storage can refuse the rename.
    async fn notice_forgotten(&self, guard: &mut WriteGuard) {
        if !guard.base().version_token.is_empty() {
            return;
        }
        let there = self.client.lookup(at_inode(guard.base().inode)).await;
        if there.is_err_and(|error| error.kind == ErrorKind::NotFound) {
            guard.detach_from_session();
        }
    }

    /// Marks a file as unlinked after its name was removed or replaced (`done`). Another file may have had the name, so
    /// the masters are asked.
    async fn finish_unlink(&self, guard: Option<WriteGuard>, done: bool) {
        let Some(mut guard) = guard else { return };
        if done {
            let inode = guard.inode();
            match self.client.lookup(at_inode(guard.base().inode)).await {
                Ok(attr) if attr.parent != 0 => {
                    tracing::debug!(inode, "another file was removed by the name of one that is open");
                }
                Err(error) if error.kind != ErrorKind::NotFound && guard.is_due() => {
                    // The close of the file finds out and reports it.
                    tracing::warn!(inode, %error, "it is not known whether an open file was removed or another one of its name");
                }
                _ => guard.mark_unlinked(),
            }
        }
        // If content is still to be stored, the last close removes the entry.
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
