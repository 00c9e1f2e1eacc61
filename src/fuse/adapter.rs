//! Between the kernel and [`Fs`]: what is known is answered at once on the kernel's thread, the rest by a task.

mod async_reply;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLock, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::error::Result;

use super::attributes::Change;
use super::errno::Errno;
use super::fs::Fs;
use super::handover_state::Negotiated;
use super::init::negotiate;
use super::locks::Request as LockRequest;
use super::nodes::inode_of;
use super::open::OpenMode;
use super::reply::{
    created_as, credentials_of, enter, errno, failed, failed_at_inode, nanoseconds, opened, reply_readdir,
    reply_readdirplus, show,
};
use super::staging::WritePosition;
use super::write::Write;

/// Serves one mount.
pub(super) struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    negotiated: Arc<OnceLock<Negotiated>>,
    /// Who may have a thread of its own.
    dedicated: Arc<Semaphore>,
}

impl Adapter {
    pub(super) fn new(fs: Arc<Fs>, runtime: Handle) -> Adapter {
        let dedicated = Arc::new(Semaphore::new(async_reply::DEDICATED_MAX));
        Adapter { fs, runtime, negotiated: Arc::default(), dedicated }
    }

    /// What is agreed with the kernel, once it is.
    pub(super) fn negotiated(&self) -> Arc<OnceLock<Negotiated>> {
        self.negotiated.clone()
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = self.negotiated.set(negotiate(config, self.fs.writable, self.fs.locks.are_shared()));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup_now(parent.0, name.as_bytes()) {
            Some(Ok(known)) => return enter(&self.fs, parent.0, name.as_bytes(), known, reply),
            Some(Err(())) => return reply.error(errno(Errno::NOT_FOUND)),
            None => {}
        }
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let what = ("lookup", parent, name.clone());
        self.spawn_entry_reply(what, reply, async move { fs.lookup(parent.0, &name).await });
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        self.fs.forget(inode.0, lookups);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(known) = self.fs.attr_of_node_now(inode.0) {
            return show(&self.fs, inode.0, known, reply);
        }
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.attr_of_node(inode.0).await {
                Ok(known) => show(&fs, inode.0, known, reply),
                Err(error) => reply.error(failed_at_inode("getattr", inode.0, &error)),
            }
        });
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        self.reply_symlink_target(inode, reply);
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.0 & libc::O_ACCMODE != libc::O_RDONLY;
        let cuts = flags.0 & libc::O_TRUNC != 0;
        if (writes || cuts) && !self.fs.writable {
            return reply.error(errno(Errno::READ_ONLY));
        }
        // Where nothing is written or locked a close has nothing to flush.
        let flushes = writes || self.fs.locks.are_shared();
        if !writes
            && !cuts
            && let Some((number, pages)) = self.fs.open_now(inode.0)
        {
            return opened(number, pages, flushes, reply);
        }
        let (fs, mode) = (self.fs.clone(), OpenMode { writes, truncates: cuts, thread: request.pid() });
        self.runtime.spawn(async move {
            match fs.open(inode.0, mode).await {
                Ok((number, pages)) => opened(number, pages, flushes, reply),
                Err(error) => reply.error(failed_at_inode("open", inode.0, &error)),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        number: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(staged) = self.fs.staging.ready_for(inode.0) {
            return match staged.read(offset, size) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failed("read", inode.0, &error)),
            };
        }
        let Some((handle, file)) = self.fs.handles.file(number.0).zip(self.fs.nodes.file(inode.0)) else {
            return self.read_restored(inode, number.0, offset, size, reply);
        };
        let length = file.source.length.saturating_sub(offset).min(u64::from(size));
        if length == 0 {
            return reply.data(&[]);
        }
        self.fs.read_ahead(&handle, &file, offset, length, &self.runtime);
        let mut waiting = Some(reply);
        let given = file.with_local(offset, length, |bytes| {
            if let Some(reply) = waiting.take() {
                reply.data(bytes);
            }
        });
        if given.is_some() {
            self.fs.count_local(length);
        }
        let Some(reply) = waiting else { return };
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.read(inode.0, &file, offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failed("read", inode.0, &error)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // What comes from the page cache later has its place, whatever handle it comes by.
        let appends = flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let place = if appends { WritePosition::End } else { WritePosition::At(offset) };
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let answer = move |written: Result<()>, reply: ReplyWrite| match written {
            Ok(()) => reply.written(length),
            Err(error) => reply.error(failed("write", inode.0, &error)),
        };
        if let Some(written) = self.fs.write_now(inode.0, Write { place, offset, from_pages, data }, &self.runtime) {
            return answer(written, reply);
        }
        let (fs, data) = (self.fs.clone(), data.to_vec());
        self.runtime.spawn(async move {
            let written = fs.write(inode.0, Write { place, offset, from_pages, data: &data }).await;
            answer(written, reply);
        });
    }

    fn flush(&self, _: &Request, inode: INodeNo, number: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        self.fs.locks.flush(number.0);
        let file = inode_of(inode.0);
        if !self.fs.locks.concern(file, owner.0) {
            return match self.fs.handles.file(number.0).is_none_or(|handle| handle.may_write()) {
                true => self.flush_file(inode, reply),
                // What others have written is for their close to store, and to be told of.
                false => reply.ok(),
            };
        }
        // Whoever closes a file gives up its locks, after what was written under them is stored.
        let fs = self.fs.clone();
        self.spawn_reply(("flush", inode), reply, async move {
            let stored = fs.flush(file, true).await;
            fs.give_up((file, owner.0), fs.resolved_inode_now(file)).await;
            stored
        });
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync_file(inode, reply);
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        number: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let known = self.fs.resolved_inode_now(inode_of(inode.0));
        let (node, owners) = (self.fs.release(number.0), self.fs.locks.release(number.0));
        if node.is_none() && owners.is_empty() {
            return reply.ok();
        }
        // Nobody waits for it, and of what is not answered the kernel lets few be under way, reads ahead among them.
        reply.ok();
        let fs = self.fs.clone();
        self.poll_then_spawn(async move {
            for owner in owners {
                fs.give_up_stored(owner, known).await;
            }
            if let Some(node) = node {
                fs.finalize_last_close(node).await;
            }
        });
    }

    fn getlk(
        &self,
        _: &Request,
        inode: INodeNo,
        number: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let asked = LockRequest { inode, number, owner, start, end, kind, pid };
        let fs = self.fs.clone();
        self.runtime.spawn(async move { fs.tell_lock(asked, reply).await });
    }

    fn setlk(
        &self,
        request: &Request,
        inode: INodeNo,
        number: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let asked = LockRequest { inode, number, owner, start, end, kind, pid };
        let (fs, waits) = (self.fs.clone(), waits.then(|| request.pid()));
        self.runtime.spawn(async move {
            match fs.set_lock(asked, waits).await {
                Ok(()) => reply.ok(),
                Err(number) => reply.error(errno(number)),
            }
        });
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.open_directory(inode.0).await {
                Ok((number, keep)) => {
                    let keep = if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
                    reply.opened(FileHandle(number), FopenFlags::FOPEN_CACHE_DIR | keep);
                }
                Err(error) => reply.error(failed("opendir", inode.0, &error)),
            }
        });
    }

    fn readdir(&self, _: &Request, inode: INodeNo, number: FileHandle, offset: u64, reply: ReplyDirectory) {
        let fs = self.fs.clone();
        self.spawn_holding(inode, async move {
            match fs.read_directory(number.0, offset).await {
                Ok(directory) => reply_readdir(&directory, offset, reply),
                Err(error) => reply.error(failed_at_inode("readdir", inode.0, &error)),
            }
        });
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, number: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        if let Some(directory) = self.fs.handles.directory(number.0) {
            if offset == 0 && directory.has_started() {
                directory.rewind();
            }
            if directory.wanted(offset).is_none() {
                return reply_readdirplus(&self.fs, &directory, offset, reply);
            }
        }
        let fs = self.fs.clone();
        self.spawn_holding(inode, async move {
            match fs.read_directory(number.0, offset).await {
                Ok(directory) => reply_readdirplus(&fs, &directory, offset, reply),
                Err(error) => reply.error(failed_at_inode("readdirplus", inode.0, &error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, number: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.fs.handles.take_directory(number.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let fs = self.fs.clone();
        self.spawn_reply(("fsyncdir", inode), reply, async move { fs.sync_directory(inode.0).await });
    }

    fn statfs(&self, _: &Request, inode: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            let space = fs.space(inode.0).await;
            let block = 4096_u32;
            let [total, free, available] =
                [space.total, space.free, space.available].map(|bytes| bytes / u64::from(block));
            // No inodes in all is how file systems say that nothing limits them.
            reply.statfs(total, free, available, 0, 0, block, 255, block);
        });
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        // Many programs ask every file whether it is a terminal.
        reply.error(fuser::Errno::ENOTTY);
    }

    // Nothing has extended attributes; with this answer the kernel does not ask again.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        length: Option<u64>,
        _: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        number: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // A new length sets the time by itself.
        let mtime = mtime.filter(|time| length.is_none() || !matches!(time, TimeOrNow::Now));
        let mtime_ns = mtime.map(nanoseconds);
        let change = Change { mode: mode.map(|mode| mode & 0o7777), uid, gid, length, mtime_ns };
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.set_attr(inode.0, number.map(|number| number.0), change).await {
                Ok(known) => show(&fs, inode.0, known, reply),
                // Through a handle nothing is looked up again.
                Err(error) if number.is_some() => reply.error(failed("setattr", inode.0, &error)),
                Err(error) => {
                    fs.forget_path_if_gone(inode.0, &error);
                    reply.error(failed_at_inode("setattr", inode.0, &error));
                }
            }
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, name, credentials) = (self.fs.clone(), name.as_bytes().to_vec(), credentials_of(request, mode));
        let exclusive = flags & libc::O_EXCL != 0;
        let now =
            (!exclusive).then(|| fs.create_deferred((parent.0, &name), credentials, false, &self.runtime)).flatten();
        if let Some(created) = now {
            return created_as(&fs, parent, created, reply);
        }
        self.runtime.spawn(async move {
            let created = fs.create((parent.0, &name), credentials, exclusive).await;
            created_as(&fs, parent, created, reply);
        });
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, _: u32, reply: ReplyEntry) {
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG) {
            return reply.error(fuser::Errno::EPERM);
        }
        let (fs, name, credentials) = (self.fs.clone(), name.as_bytes().to_vec(), credentials_of(request, mode));
        let what = ("mknod", parent, name.clone());
        self.spawn_entry_reply(what, reply, async move { fs.make_node((parent.0, &name), credentials).await });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (fs, name, credentials) = (self.fs.clone(), name.as_bytes().to_vec(), credentials_of(request, mode));
        let what = ("mkdir", parent, name.clone());
        self.spawn_entry_reply(what, reply, async move { fs.make_directory((parent.0, &name), credentials).await });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, to: &Path, reply: ReplyEntry) {
        let (fs, name, credentials) = (self.fs.clone(), name.as_bytes().to_vec(), credentials_of(request, 0o777));
        let (to, what) = (to.as_os_str().as_bytes().to_vec(), ("symlink", parent, name.clone()));
        self.spawn_entry_reply(what, reply, async move { fs.make_symlink((parent.0, &name), &to, credentials).await });
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(fuser::Errno::EPERM);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.spawn_reply(("unlink", parent), reply, async move { fs.remove_file((parent.0, &name)).await });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.spawn_reply(("rmdir", parent), reply, async move { fs.remove_directory((parent.0, &name)).await });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.bits() & !RenameFlags::RENAME_NOREPLACE.bits() != 0 {
            return reply.error(fuser::Errno::EINVAL);
        }
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let (fs, from, to) = (self.fs.clone(), name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.spawn_reply(("rename", parent), reply, async move {
            fs.rename((parent.0, &from), (new_parent.0, &to), no_replace).await
        });
    }
}
