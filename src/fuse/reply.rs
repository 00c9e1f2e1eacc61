//! Replies to the kernel: attributes, times, error numbers, directory entries.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEntry, ReplyOpen, Request, TimeOrNow,
};
use jindofs_proto::v1::{Attr, FileType as Kind};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::now_ns;

use super::directory::Directory;
use super::errno::Errno;
use super::fs::Fs;
use super::inodes::Known;
use super::namespace_ops::Credentials;
use super::nodes::{PageCache, inode_of, is_secondary, same_version};

pub(super) const GENERATION: Generation = Generation(0);

pub(super) fn errno(number: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(number.0)
}

/// The errno of an error. Logs an `EIO`, which an operator should see, and the reason why a `flush` or `fsync` did not
/// store the content.
pub(super) fn failed(what: &str, inode: u64, error: &Error) -> fuser::Errno {
    let number = Errno::from(error);
    if number.0 == libc::EIO {
        tracing::warn!(what, inode, kind = ?error.kind, %error, "the kernel is told EIO");
    } else if matches!(what, "flush" | "fsync") {
        tracing::warn!(what, inode, kind = ?error.kind, %error, "what was written is not stored");
    }
    errno(number)
}

/// As [`failed`], for an inode that was reached by a name: if the inode is gone, another file may have the name by now.
/// `ESTALE` makes the kernel look the name up again before it reports an error.
pub(super) fn failed_at_inode(what: &str, inode: u64, error: &Error) -> fuser::Errno {
    if error.kind == ErrorKind::NotFound {
        return errno(Errno::STALE);
    }
    failed(what, inode, error)
}

fn time(ns: i64) -> SystemTime {
    let magnitude = Duration::from_nanos(ns.unsigned_abs());
    if ns >= 0 { UNIX_EPOCH + magnitude } else { UNIX_EPOCH.checked_sub(magnitude).unwrap_or(UNIX_EPOCH) }
}

/// Nanoseconds since the epoch, saturated at the limits of `i64`.
pub(super) fn nanoseconds(time: TimeOrNow) -> i64 {
    let time = match time {
        TimeOrNow::Now => return now_ns(),
        TimeOrNow::SpecificTime(time) => time,
    };
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// The credentials of the caller, with the mode for a new object.
pub(super) fn credentials_of(request: &Request, mode: u32) -> Credentials {
    Credentials { mode, uid: request.uid(), gid: request.gid() }
}

fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::File | Kind::Unspecified => FileType::RegularFile,
    }
}

/// Attributes as the handles of a node see them, including content that is not stored yet.
fn attributes(fs: &Fs, node: u64, attr: &Attr) -> FileAttr {
    let attr = fs.staging.overlay(node, attr);
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
        nlink: if fs.staging.is_unlinked(attr.inode) { 0 } else { attr.nlink },
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 128 << 10,
        flags: 0,
    }
}

/// Replies with an entry, with the node of its newest version.
///
/// fuser takes the number of a node for `st_ino`, which is right for all but a few nodes. For those the attribute TTL
/// is zero, so that the kernel asks for the attributes before it shows any.
pub(super) fn enter(fs: &Fs, parent: u64, name: &[u8], known: Known, reply: ReplyEntry) {
    let known = fs.newest(known);
    let node = fs.enter_node(&known.attr);
    let shown = fs.view_of(node, known.clone());
    let attr = FileAttr { ino: INodeNo(node), ..attributes(fs, node, &shown.attr) };
    // Before the TTLs are computed: the module `invalidation` explains why.
    fs.learn_entry(parent, name, known.clone());
    let (name_ttl, ttl) = (fs.ttl_of_entry(parent, name, &known), fs.ttl_of(&known));
    // A node that has to move to the newest version does so at the GETATTR that follows.
    let is_asked = is_secondary(node) || !same_version(&shown.attr, &known.attr);
    let attr_ttl = if is_asked { Duration::ZERO } else { ttl };
    reply.entry_with_ttls(&attr_ttl, &name_ttl, &attr, GENERATION);
}

pub(super) fn show(fs: &Fs, node: u64, known: Known, reply: ReplyAttr) {
    let ttl = if fs.is_expired_by_events(inode_of(node)) { fs.ttl_of(&known) } else { Duration::ZERO };
    reply.attr(&ttl, &attributes(fs, node, &known.attr));
}

/// Replies to an open. `flushes`: the kernel sends a FLUSH for each close of a file descriptor.
pub(super) fn opened(number: u64, pages: PageCache, flushes: bool, reply: ReplyOpen) {
    let flush = if flushes { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
    let flags = flush
        | match pages {
            PageCache::Keep => FopenFlags::FOPEN_KEEP_CACHE,
            PageCache::Drop => FopenFlags::empty(),
            PageCache::Bypass => FopenFlags::FOPEN_DIRECT_IO,
        };
    reply.opened(FileHandle(number), flags);
}

/// Replies to a CREATE.
pub(super) fn created_as(fs: &Fs, parent: INodeNo, created: Result<(Known, u64)>, reply: ReplyCreate) {
    match created {
        Ok((known, number)) => {
            let (ttl, attr) = (fs.ttl_of_name(parent.0, &known), attributes(fs, known.attr.inode, &known.attr));
            reply.created(&ttl, &attr, GENERATION, FileHandle(number), FopenFlags::empty());
        }
        Err(error) => reply.error(failed("create", parent.0, &error)),
    }
}

/// Attributes and TTL of one entry of READDIRPLUS. An entry can name the first node of an inode only. If the newest
/// version has another node, the entry shows what the first node stands for, with a TTL of zero, so that the kernel
/// looks the name up before it uses it.
fn entry_of(fs: &Fs, (directory, name): (u64, &[u8]), known: &Known, is_dot: bool) -> (Duration, FileAttr) {
    let attr = &known.attr;
    let first = attr.inode;
    if is_dot || !fs.nodes.is_open(first) && !is_secondary(fs.choose_node(attr)) {
        return (fs.ttl_of_entry(directory, name, known), attributes(fs, first, attr));
    }
    let shown = fs.view_of(first, known.clone());
    let is_newest = same_version(&shown.attr, attr) && !is_secondary(fs.choose_node(attr));
    let ttl = if is_newest { fs.ttl_of_entry(directory, name, known) } else { Duration::ZERO };
    (ttl, attributes(fs, first, &shown.attr))
}

pub(super) fn reply_readdirplus(fs: &Fs, directory: &Directory, offset: u64, mut reply: ReplyDirectoryPlus) {
    let (own, begun, mut entered) = (fs.inodes.get(directory.inode), Instant::now(), Vec::new());
    directory.for_each_from(offset, |given| {
        let (known, dot);
        match (given.attr, &own) {
            (Some(attr), _) => {
                known = fs.newest(Known::new(attr.clone(), given.since));
                dot = false;
            }
            // Of the dot entries the kernel uses only the name and the number.
            (None, own) => {
                let attr = own.as_ref().map(|own| own.attr.clone()).unwrap_or_default();
                known = Known::new(Attr { inode: given.inode, ..attr }, given.since);
                dot = true;
            }
        }
        let (ttl, attr) = entry_of(fs, (directory.inode, given.name), &known, dot);
        let full = reply.add(INodeNo(given.inode), given.next, OsStr::from_bytes(given.name), &ttl, &attr, GENERATION);
        if !full && !dot {
            fs.learn_entry(directory.inode, given.name, known);
            entered.push(given.inode);
        }
        full
    });
    if directory.is_at_end(offset) {
        fs.inodes.listed(directory);
    }
    reply.ok();
    // An entry is registered after its TTL was computed, because only then it is known to fit into the reply:
    // invalidations that arrived in between are checked again.
    fs.invalidation.recheck(directory.inode, &entered, begun);
}

pub(super) fn reply_readdir(directory: &Directory, offset: u64, mut reply: ReplyDirectory) {
    directory.for_each_from(offset, |given| {
        reply.add(INodeNo(given.inode), given.next, kind(given.kind), OsStr::from_bytes(given.name))
    });
    reply.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_and_beyond_counting_stay_what_they_are_as_far_as_they_reach() {
        for ns in [0, 1, -1, 1_700_000_000_123_456_789, -5_000_000_001, i64::MAX] {
            assert_eq!(nanoseconds(TimeOrNow::SpecificTime(time(ns))), ns);
        }
        let far = UNIX_EPOCH + Duration::from_secs(u64::MAX >> 2);
        assert_eq!(nanoseconds(TimeOrNow::SpecificTime(far)), i64::MAX);
        assert!(nanoseconds(TimeOrNow::Now) > 1_700_000_000_000_000_000);
    }
}
