//! Between the kernel and [`Fs`]: what is known is answered at once on the kernel's thread, the rest by a task.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request, TimeOrNow,
};
use jindofs_proto::v1::{Attr, FileType as Kind};
use tokio::runtime::Handle;

use crate::error::Error;

use super::directory::Directory;
use super::errno::Errno;
use super::fs::Fs;
use super::inodes::{Known, PageCache};
use super::saved::Greeting;

/// Read-ahead of the kernel, bytes.
const READ_AHEAD: u32 = 4 << 20;
/// Requests the kernel keeps under way for reading ahead.
const BACKGROUND: u16 = 64;
const GENERATION: Generation = Generation(0);

/// Serves one mount.
pub(super) struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    greeting: Arc<OnceLock<Greeting>>,
}

impl Adapter {
    pub(super) fn new(fs: Arc<Fs>, runtime: Handle) -> Adapter {
        Adapter { fs, runtime, greeting: Arc::default() }
    }

    /// What is agreed with the kernel, once it is.
    pub(super) fn greeting(&self) -> Arc<OnceLock<Greeting>> {
        self.greeting.clone()
    }

    /// Reads through a handle of the process before, which is opened here first.
    fn read_inherited(&self, inode: INodeNo, number: u64, offset: u64, size: u32, reply: ReplyData) {
        if self.fs.handles.inherited(number).is_none() {
            return reply.error(errno(Errno::BAD_HANDLE));
        }
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.read_inherited(number, offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failed("read", inode.0, &error)),
            }
        });
    }
}

fn errno(number: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(number.0)
}

/// The errno of an error; what people must look after is logged.
fn failed(what: &str, inode: u64, error: &Error) -> fuser::Errno {
    let number = Errno::from(error);
    if number.0 == libc::EIO {
        tracing::warn!(what, inode, %error, "the kernel is told EIO");
    }
    errno(number)
}

fn time(ns: i64) -> SystemTime {
    let magnitude = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + magnitude } else { UNIX_EPOCH.checked_sub(magnitude).unwrap_or(UNIX_EPOCH) }
}

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::File | Kind::Unspecified => FileType::RegularFile,
    }
}

fn attributes(attr: &Attr) -> FileAttr {
    let mtime = time(attr.mtime_ns);
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: time(attr.ctime_ns),
        crtime: mtime,
        kind: kind(attr.r#type()),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink.max(1),
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 128 << 10,
        flags: 0,
    }
}

fn enter(fs: &Fs, parent: u64, name: &[u8], known: Known, reply: ReplyEntry) {
    let (ttl, attr) = (fs.ttl_of(&known), attributes(&known.attr));
    fs.inodes.entered(parent, name, known);
    reply.entry(&ttl, &attr, GENERATION);
}

fn opened(number: u64, pages: PageCache, reply: ReplyOpen) {
    // Nothing is written, so a close has nothing to flush.
    let flags = FopenFlags::FOPEN_NOFLUSH
        | match pages {
            PageCache::Keep => FopenFlags::FOPEN_KEEP_CACHE,
            PageCache::Drop => FopenFlags::empty(),
            PageCache::Bypass => FopenFlags::FOPEN_DIRECT_IO,
        };
    reply.opened(FileHandle(number), flags);
}

fn give_plus(fs: &Fs, directory: &Directory, offset: u64, mut reply: ReplyDirectoryPlus) {
    let own = fs.inodes.get(directory.inode);
    directory.give(offset, |given| {
        let (known, dot);
        match (given.attr, &own) {
            (Some(attr), _) => {
                known = Known::new(attr.clone(), given.since);
                dot = false;
            }
            // The kernel takes nothing but the name and number of the dots.
            (None, own) => {
                let attr = own.as_ref().map(|own| own.attr.clone()).unwrap_or_default();
                known = Known::new(Attr { inode: given.inode, ..attr }, given.since);
                dot = true;
            }
        }
        let ttl = fs.ttl_of(&known);
        let name = OsStr::from_bytes(given.name);
        let full = reply.add(INodeNo(given.inode), given.next, name, &ttl, &attributes(&known.attr), GENERATION);
        if !full && !dot {
            fs.inodes.entered(directory.inode, given.name, known);
        }
        full
    });
    if directory.is_at_end(offset) {
        fs.inodes.listed(directory.inode, directory.opened);
    }
    reply.ok();
}

fn give(directory: &Directory, offset: u64, mut reply: ReplyDirectory) {
    directory.give(offset, |given| {
        reply.add(INodeNo(given.inode), given.next, kind(given.kind), OsStr::from_bytes(given.name))
    });
    reply.ok();
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_ASYNC_DIO,
            // Files past the page cache can still be mapped.
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // Requests that a process took with it when it died can be had again.
            InitFlags::FUSE_HAS_RESEND,
        ];
        // These two fuser asks for by itself.
        let mut agreed = config.capabilities() & (InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_BIG_WRITES);
        for flag in wanted {
            match config.add_capabilities(flag) {
                Ok(()) => agreed |= flag,
                Err(_) => tracing::info!(?flag, "the kernel does not know this capability, it is left out"),
            }
        }
        let version = config.kernel_abi();
        // The kernel may allow less: then the most it allows is set.
        let max_readahead = match config.set_max_readahead(READ_AHEAD) {
            Ok(_) => READ_AHEAD,
            Err(most) => config.set_max_readahead(most).map_or(0, |_| most),
        };
        let capabilities = agreed.bits();
        let _ = self.greeting.set(Greeting { version: (version.0, version.1), capabilities, max_readahead });
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.fs.lookup_now(parent.0, name.as_bytes()) {
            Some(Ok(known)) => return enter(&self.fs, parent.0, name.as_bytes(), known, reply),
            Some(Err(())) => return reply.error(errno(Errno::NOT_FOUND)),
            None => {}
        }
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.runtime.spawn(async move {
            match fs.lookup(parent.0, &name).await {
                Ok(known) => enter(&fs, parent.0, &name, known, reply),
                Err(error) => reply.error(failed("lookup", parent.0, &error)),
            }
        });
    }

    fn forget(&self, _: &Request, inode: INodeNo, lookups: u64) {
        self.fs.inodes.forget(inode.0, lookups);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if let Some(known) = self.fs.attr_now(inode.0) {
            return reply.attr(&self.fs.ttl_of(&known), &attributes(&known.attr));
        }
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.attr(inode.0).await {
                Ok(known) => reply.attr(&fs.ttl_of(&known), &attributes(&known.attr)),
                Err(error) => reply.error(failed("getattr", inode.0, &error)),
            }
        });
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.attr(inode.0).await {
                Ok(known) => reply.data(&known.attr.symlink_target),
                Err(error) => reply.error(failed("readlink", inode.0, &error)),
            }
        });
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY || flags.0 & libc::O_TRUNC != 0 {
            return reply.error(errno(Errno::READ_ONLY));
        }
        if let Some((number, pages)) = self.fs.open_now(inode.0) {
            return opened(number, pages, reply);
        }
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.open(inode.0).await {
                Ok((number, pages)) => opened(number, pages, reply),
                Err(error) => reply.error(failed("open", inode.0, &error)),
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
        let Some(handle) = self.fs.handles.file(number.0) else {
            return self.read_inherited(inode, number.0, offset, size, reply);
        };
        let length = handle.file.source.length.saturating_sub(offset).min(u64::from(size));
        if length == 0 {
            return reply.data(&[]);
        }
        self.fs.read_ahead(&handle, offset, length, &self.runtime);
        let mut waiting = Some(reply);
        let given = handle.file.with_local(offset, length, |bytes| {
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
            match fs.read(&handle, offset, length).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(failed("read", inode.0, &error)),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(number.0);
        reply.ok();
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
        self.runtime.spawn(async move {
            match fs.read_directory(number.0, offset).await {
                Ok(directory) => give(&directory, offset, reply),
                Err(error) => reply.error(failed("readdir", inode.0, &error)),
            }
        });
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, number: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        if let Some(directory) = self.fs.handles.directory(number.0) {
            if offset == 0 && directory.has_started() {
                directory.rewind();
            }
            if directory.wanted(offset).is_none() {
                return give_plus(&self.fs, &directory, offset, reply);
            }
        }
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            match fs.read_directory(number.0, offset).await {
                Ok(directory) => give_plus(&fs, &directory, offset, reply),
                Err(error) => reply.error(failed("readdirplus", inode.0, &error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, number: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.fs.handles.take_directory(number.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        self.runtime.spawn(async move {
            let totals = fs.totals().await;
            let block = 4096_u32;
            let blocks = |bytes: u64| bytes / u64::from(block);
            let free = blocks(totals.capacity.saturating_sub(totals.used));
            let files = fs.inodes.len() as u64;
            reply.statfs(blocks(totals.capacity), free, free, files, 0, block, 255, block);
        });
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

    // The mount is read-only and the kernel refuses changes itself; these are for kernels that ask all the same.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn rename(&self, _: &Request, _: INodeNo, _: &OsStr, _: INodeNo, _: &OsStr, _: RenameFlags, reply: ReplyEmpty) {
        reply.error(errno(Errno::READ_ONLY));
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(errno(Errno::READ_ONLY));
    }
}
