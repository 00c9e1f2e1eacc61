//! A disk that forgets: a FUSE file system in memory that drops whatever was not made durable.
//!
//! Kill the processes that use it with SIGKILL, call [`PowerCutFs::power_cut`], start them again: they find what a
//! machine finds after its power was cut. SIGKILL alone cannot show a missing fsync, because the kernel keeps the pages.
//! The tree itself and its rules of durability are in [`tree`]; here is the adapter to the kernel.
//!
//! Node numbers change with a power cut, so handles and cached names from before are stale. Locks are the kernel's own.

mod content;
mod faults;
mod file;
#[cfg(test)]
mod sync_tests;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::after;
use faults::{Faults, Treatment};
pub use faults::{SyncFault, Which};
pub use tree::Dropped;
use tree::{Answer, Attr, Kind, Stat, Tree};

/// The kernel asks again every time: what it remembers must not outlive a power cut.
const NO_CACHE: Duration = Duration::ZERO;

/// A mounted file system; unmounted when dropped.
pub struct PowerCutFs {
    shared: Arc<Shared>,
    dir: PathBuf,
    session: Option<BackgroundSession>,
}

/// Listings of open directory handles: name, node and kind of each entry.
type Listings = HashMap<u64, Vec<(OsString, u64, FileType)>>;

struct Shared {
    tree: Mutex<Tree>,
    lies: AtomicBool,
    fails_with: AtomicI32,
    syncs: AtomicU64,
    faults: Faults,
    /// Listings of open directory handles: one that is read in parts must not change under its reader.
    listings: Mutex<Listings>,
    handles: AtomicU64,
}

impl PowerCutFs {
    /// Mounts an empty file system at `dir`, which must exist.
    pub fn mount(dir: &Path) -> io::Result<PowerCutFs> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let root = Attr { mode: 0o755, uid, gid, mtime: SystemTime::now() };
        let shared = Arc::new(Shared {
            tree: Mutex::new(Tree::new(root)),
            lies: AtomicBool::new(false),
            fails_with: AtomicI32::new(0),
            syncs: AtomicU64::new(0),
            faults: Faults::default(),
            listings: Mutex::default(),
            handles: AtomicU64::new(0),
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("powercut".into()), MountOption::DefaultPermissions];
        config.n_threads = Some(2);
        let session = fuser::spawn_mount(Adapter(Arc::clone(&shared)), dir, &config)?;
        Ok(PowerCutFs { shared, dir: dir.to_owned(), session: Some(session) })
    }

    /// Drops everything that was not durable. The processes that used the file system must be dead.
    pub fn power_cut(&self) -> Dropped {
        self.shared.tree().power_cut(|| false)
    }

    /// As [`PowerCutFs::power_cut`], but every page that was not durable survives with one chance in two: torn writes.
    pub fn power_cut_torn(&self, seed: u64) -> Dropped {
        let mut chance = StdRng::seed_from_u64(seed);
        self.shared.tree().power_cut(|| chance.random_bool(0.5))
    }

    /// The kernel drops its clean pages: what an fsync that failed has lost cannot be read any more. Returns the number of
    /// bytes dropped. A process that holds a file open may still read its own cached pages.
    pub fn drop_caches(&self) -> u64 {
        self.shared.tree().drop_caches()
    }

    /// From here on fsync answers "done" and does nothing (true), or works again (false).
    pub fn set_lie_about_fsync(&self, lies: bool) {
        self.shared.lies.store(lies, Ordering::SeqCst);
    }

    /// From here on every change and every fsync fails with this errno: EIO, EROFS, ENOSPC. `None` heals.
    pub fn set_failure(&self, errno: Option<i32>) {
        self.shared.fails_with.store(errno.unwrap_or(0), Ordering::SeqCst);
    }

    /// Fsyncs answered so far, of files and directories.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::SeqCst)
    }
}

impl Drop for PowerCutFs {
    fn drop(&mut self) {
        // Lazily, as a process that a failed test left behind may hold a file.
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

impl Shared {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listing(&self, dir: u64) -> Answer<Vec<(OsString, u64, FileType)>> {
        let tree = self.tree();
        let dots = [(".".into(), dir, FileType::Directory), ("..".into(), tree::ROOT, FileType::Directory)];
        let typed = |(name, ino)| tree.stat(ino).map(|stat| (name, ino, type_of(stat.kind)));
        Ok(dots.into_iter().chain(tree.list(dir)?.into_iter().flat_map(typed)).collect())
    }

    /// The tree, for a change; fails if the disk is broken.
    fn change(&self) -> Answer<MutexGuard<'_, Tree>> {
        match self.fails_with.load(Ordering::SeqCst) {
            0 => Ok(self.tree()),
            errno => Err(errno),
        }
    }

    /// What the faults do to an fsync that begins now.
    fn treat(&self, ino: u64) -> Treatment {
        self.faults.treat(|| self.tree().path_of(ino))
    }

    fn sync(&self, ino: u64, treatment: Treatment) -> Answer<()> {
        let mut tree = self.change()?;
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if treatment.fails {
            tree.fail_fsync(ino)?;
            return Err(libc::EIO);
        }
        if self.lies.load(Ordering::SeqCst) { tree.stat(ino).map(drop) } else { tree.fsync(ino) }
    }

    /// Answers an fsync. A slow one waits on a thread of its own, so that the file system goes on meanwhile; it writes
    /// what is there when it ends.
    fn answer_sync(self: &Arc<Self>, ino: u64, reply: ReplyEmpty) {
        let treatment = self.treat(ino);
        if treatment.delay.is_zero() {
            return answer_empty(self.sync(ino, treatment), reply);
        }
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            after(treatment.delay);
            answer_empty(shared.sync(ino, treatment), reply);
        });
    }

    /// Makes a node and answers with its attributes.
    fn make(
        &self,
        make: impl FnOnce(&mut Tree, Attr) -> Answer<u64>,
        request: &Request,
        mode: u32,
    ) -> Answer<FileAttr> {
        let mut tree = self.change()?;
        let attr = Attr { mode: mode & 0o7777, uid: request.uid(), gid: request.gid(), mtime: SystemTime::now() };
        let ino = make(&mut tree, attr)?;
        tree.stat(ino).map(attr_of)
    }
}

struct Adapter(Arc<Shared>);

impl Filesystem for Adapter {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.0.tree();
        let found = tree.lookup(parent.0, name).and_then(|ino| tree.stat(ino));
        answer_entry(found.map(attr_of), reply);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        answer_attr(self.0.tree().stat(ino.0), reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changed = self.0.change().and_then(|mut tree| {
            size.map_or(Ok(()), |size| tree.truncate(ino.0, size))?;
            tree.change_attr(ino.0, |attr| {
                attr.mode = mode.map_or(attr.mode, |mode| mode & 0o7777);
                (attr.uid, attr.gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
                match mtime {
                    Some(TimeOrNow::SpecificTime(time)) => attr.mtime = time,
                    Some(TimeOrNow::Now) => attr.mtime = SystemTime::now(),
                    None => {}
                }
            })?;
            tree.stat(ino.0)
        });
        answer_attr(changed, reply);
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.tree().readlink(ino.0) {
            Ok(target) => reply.data(target.as_encoded_bytes()),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let made = self.0.make(|tree, attr| tree.mkdir(parent.0, name, attr), request, mode & !umask);
        answer_entry(made, reply);
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.0.change().and_then(|mut tree| tree.unlink(parent.0, name)), reply);
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer_empty(self.0.change().and_then(|mut tree| tree.rmdir(parent.0, name)), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = |tree: &mut Tree, attr| tree.symlink(parent.0, name, target.as_os_str(), attr);
        answer_entry(self.0.make(make, request, 0o777), reply);
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let keep = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let done = self.0.change().and_then(|mut tree| tree.rename((parent.0, name), (to.0, to_name), keep));
        answer_empty(done, reply);
    }

    fn link(&self, _request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.0.change().and_then(|mut tree| {
            tree.link(ino.0, parent.0, name)?;
            tree.stat(ino.0)
        });
        answer_entry(linked.map(attr_of), reply);
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncates = flags.0 & libc::O_TRUNC != 0;
        let opened = self.0.tree().open(ino.0);
        match opened.and_then(|()| if truncates { self.0.change()?.truncate(ino.0, 0) } else { Ok(()) }) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let make = |tree: &mut Tree, attr| {
            let ino = tree.create(parent.0, name, attr)?;
            tree.open(ino).map(|()| ino)
        };
        match self.0.make(make, request, mode & !umask) {
            Ok(attr) => reply.created(&NO_CACHE, &attr, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.tree().read(ino.0, offset, size as usize);
        match read {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.change().and_then(|mut tree| tree.write(ino.0, offset, data));
        let synchronous = flags.0 & (libc::O_DSYNC | libc::O_SYNC) != 0;
        match written.and_then(|()| if synchronous { self.0.sync(ino.0, self.0.treat(ino.0)) } else { Ok(()) }) {
            // One request carries at most 16 MiB.
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.0.change().and_then(|mut tree| match mode {
            libc::FALLOC_FL_KEEP_SIZE => Ok(()),
            0 => {
                let size = tree.stat(ino.0)?.size;
                tree.truncate(ino.0, size.max(offset + length))
            }
            _ => Err(libc::EOPNOTSUPP),
        });
        answer_empty(done, reply);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // close makes nothing durable.
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.tree().release(ino.0);
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.answer_sync(ino.0, reply);
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.answer_sync(ino.0, reply);
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.listing(ino.0) {
            Ok(listing) => {
                let handle = self.0.handles.fetch_add(1, Ordering::SeqCst);
                self.0.listings().insert(handle, listing);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        // A rewound directory shows what is there now.
        if offset == 0
            && let Ok(listing) = self.0.listing(ino.0)
        {
            self.0.listings().insert(handle.0, listing);
        }
        let listings = self.0.listings();
        let Some(listing) = listings.get(&handle.0) else { return reply.error(Errno::EBADF) };
        for ((name, child, kind), next) in listing.iter().zip(1..).skip(offset as usize) {
            if reply.add(INodeNo(*child), next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.0.listings().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCKS: u64 = 1 << 24;
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, 4096, 255, 4096);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }
}

fn answer_entry(answer: Answer<FileAttr>, reply: ReplyEntry) {
    match answer {
        Ok(attr) => reply.entry(&NO_CACHE, &attr, Generation(0)),
        Err(errno) => reply.error(Errno::from_i32(errno)),
    }
}

fn answer_attr(answer: Answer<Stat>, reply: ReplyAttr) {
    match answer {
        Ok(stat) => reply.attr(&NO_CACHE, &attr_of(stat)),
        Err(errno) => reply.error(Errno::from_i32(errno)),
    }
}

fn answer_empty(answer: Answer<()>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(Errno::from_i32(errno)),
    }
}

fn type_of(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

fn attr_of(stat: Stat) -> FileAttr {
    let time = stat.attr.mtime;
    FileAttr {
        ino: INodeNo(stat.ino),
        size: stat.size,
        blocks: stat.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: type_of(stat.kind),
        perm: stat.attr.mode as u16,
        nlink: stat.links,
        uid: stat.attr.uid,
        gid: stat.attr.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
