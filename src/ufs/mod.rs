//! Under-storage: where the files come from and go to. A narrow trait over a local directory and object stores.
//!
//! Every read is pinned to a version token: bytes of another version are never returned in its place. Every change says
//! which version it expects to find, and may be repeated: found done, it is done.

mod assumed_role;
mod bucket;
mod content;
mod deadline;
mod health;
mod local;
mod options;
mod oss;
mod prepared_put;
mod registry;
mod retry;
mod s3;
mod upload;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use content::{Content, Source, Times};
pub use deadline::Deadline;
pub use health::Outage;
pub use options::{Options, validate};
pub use prepared_put::PreparedPut;
pub use registry::Registry;
pub use upload::Upload;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::may_block;
use crate::types::check_name;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file or object.
    File,
    /// A directory or common prefix.
    Directory,
    /// A symbolic link of a local directory.
    Symlink,
}

/// One entry as the under-storage has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name in its directory.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Names this very content: the etag, or mtime, size and inode of a local file. Empty for directories.
    pub token: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Target of a symlink.
    pub symlink_target: Vec<u8>,
}

/// A whole directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// By name, each name once.
    pub entries: Vec<Entry>,
    /// Objects no path can express, left out: `a` beside `a/b`, empty or too long names, special files.
    pub skipped: u64,
}

/// What a change expects to find where it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected<'a> {
    /// Nothing.
    Absent,
    /// This very version.
    Token(&'a [u8]),
}

impl Expected<'_> {
    /// To be kept, or taken to another thread.
    fn owned(self) -> Option<Vec<u8>> {
        match self {
            Expected::Absent => None,
            Expected::Token(token) => Some(token.to_vec()),
        }
    }

    /// What [`Expected::owned`] was made of.
    fn of(owned: &Option<Vec<u8>>) -> Expected<'_> {
        owned.as_deref().map_or(Expected::Absent, Expected::Token)
    }
}

/// Owner and permission bits of something new; object stores keep neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAttr {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Attributes to change; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Nanoseconds since the epoch.
    pub mtime_ns: Option<i64>,
}

/// Room of an under-storage, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All there is.
    pub total: u64,
    /// Not used by anything.
    pub free: u64,
    /// Free for those who are not root.
    pub available: u64,
}

/// An under-storage below one uri. Paths are relative to it, without a leading '/'; empty for its root.
pub trait Ufs: Send + Sync + std::fmt::Debug {
    /// Every entry of a directory. A directory that does not exist is empty: object stores know no other.
    ///
    /// *Errors*: `UnderStorage`, also when the root itself is gone; `PermissionDenied`, `Unavailable`, `Timeout`. Never `NotFound`:
    /// readers of a directory take that for its end.
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>>;

    /// Refuses a path that no file can have here, as far as that is known without asking anybody.
    ///
    /// *Errors*: `InvalidArgument`, `NameTooLong`.
    fn check_path(&self, path: &[u8]) -> Result<()>;

    /// One entry; `None` when there is none.
    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>>;

    /// Bytes `offset..offset+length`, fewer at the end, of exactly the version `token` names.
    ///
    /// *Errors*: `Stale` when the content is another one or gone.
    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>>;

    /// Stores the whole content of a file: readers see the old one or the new one, never a part. `intent` names the attempt:
    /// what it leaves behind when it is cut off, [`Ufs::clean`] removes. A store that is reached over a network is given up at
    /// `deadline`; a disk cannot be.
    ///
    /// *Errors*: `Stale` when something else is there than expected, `Unavailable`, `NoSpace`, `PermissionDenied` and the like:
    /// nothing was changed. `Timeout` when nothing was there when it was looked for, and it may still be stored late.
    /// `OutcomeUnknown` when it may have been stored all the same.
    ///
    /// *Durability*: on `Ok` it survives a power cut, as far as the under-storage does.
    fn put<'a>(
        &'a self,
        path: &'a [u8],
        content: Content,
        expected: Expected<'a>,
        attr: NewAttr,
        intent: u64,
        deadline: &'a Deadline,
    ) -> BoxFuture<'a, Result<Entry>>;

    /// Begins to send content before its end is known; `None` where nothing is gained by that. A put that is given it takes it
    /// over, if both are of the same place and expect the same.
    ///
    /// *Errors*: as [`Ufs::put`].
    fn begin<'a>(&'a self, _path: &'a [u8], _expected: Expected<'a>) -> BoxFuture<'a, Result<Option<Upload>>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Prepares a put of something new as far as can be without being seen; best effort. The put is given what this returns.
    fn prepare<'a>(&'a self, _path: &'a [u8], _content: Content, _attr: NewAttr) -> BoxFuture<'a, PreparedPut> {
        Box::pin(std::future::ready(PreparedPut::default()))
    }

    /// Removes what a put that was cut off has left beside `path`; that there is nothing is no error.
    fn clean<'a>(&'a self, path: &'a [u8], intent: u64) -> BoxFuture<'a, Result<()>>;

    /// Makes durable that there is what has the name `path`, whoever has put it there; that there is nothing is no error.
    fn sync_name<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Makes a directory; one that exists is as good.
    ///
    /// *Errors*: `AlreadyExists` for something that is no directory.
    fn make_directory<'a>(&'a self, path: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>>;

    /// Makes a symbolic link; one that leads to the same place is as good.
    ///
    /// *Errors*: `Unsupported` where there are none; `AlreadyExists`.
    fn make_symlink<'a>(&'a self, path: &'a [u8], target: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>>;

    /// Removes a file of the version `token`, or a symbolic link for an empty one; that it is gone is no error.
    ///
    /// *Errors*: `Stale` when another version is there; `IsADirectory`.
    fn remove<'a>(&'a self, path: &'a [u8], token: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Removes an empty directory; that it is gone is no error.
    ///
    /// *Errors*: `NotEmpty`; `NotADirectory`.
    fn remove_directory<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Moves a file, directory or link in one step; moved already (nothing at `from`, the thing at `to`) it is done. `token`
    /// is that of a file, empty for others. Something at `to` is replaced if it is what is expected; an empty token stands
    /// for an empty directory or a link.
    ///
    /// *Errors*: `Unsupported` where nothing can be moved in one step: then a file is copied with [`Ufs::copy`] and removed.
    /// `Stale` when something else is at either end; `NotEmpty`.
    fn rename<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>>;

    /// Copies a file of the version `token` within the under-storage; returns the copy.
    ///
    /// *Errors*: `Unsupported` where [`Ufs::rename`] does it in one step, or for a file too large to be copied; `Stale` when
    /// something else is at either end.
    fn copy<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>>;

    /// Called before something goes from the directory `path`, in which at most `leaving` names may go at this time: makes sure that
    /// the directory is there without them. There is nothing to do where directories exist by themselves.
    fn keep_directory<'a>(&'a self, _path: &'a [u8], _leaving: usize) -> BoxFuture<'a, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Changes attributes; returns them as they are then, or `None` where none are kept: then nothing was done.
    ///
    /// *Errors*: `NotFound`.
    fn set_attr<'a>(&'a self, path: &'a [u8], change: AttrChange) -> BoxFuture<'a, Result<Option<Entry>>>;

    /// Finds out whether the place exists and may be read; false if it holds nothing.
    ///
    /// *Errors*: as [`Ufs::list`], with what to correct; `NotFound` when there is no such place.
    fn check(&self) -> BoxFuture<'_, Result<bool>>;

    /// How much room there is; `None` where nothing limits it that could be asked for.
    ///
    /// *Errors*: as [`Ufs::list`].
    fn space(&self) -> BoxFuture<'_, Result<Option<Space>>> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// Sorts, drops what no path can express, and lets a directory win over an object of the same name.
fn tidy(mut entries: Vec<Entry>, mut skipped: u64) -> Listing {
    let before = entries.len();
    entries.retain(|entry| check_name(&entry.name).is_ok());
    entries.sort_by(|a, b| {
        a.name.cmp(&b.name).then_with(|| (b.kind == Kind::Directory).cmp(&(a.kind == Kind::Directory)))
    });
    entries.dedup_by(|later, first| later.name == first.name);
    skipped += (before - entries.len()) as u64;
    Listing { entries, skipped }
}

/// Nanoseconds since the epoch; what lies beyond them is told as the first or last moment that can be told.
fn saturated_ns(ns: i128) -> i64 {
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

/// Disks block: off the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if may_block() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal(format!("a disk task: {error}")))?
}

fn stale(path: &[u8]) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::new(ErrorKind::Stale, format!("{path} was replaced or removed in the under-storage since it was listed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: Kind) -> Entry {
        Entry {
            name: name.into(),
            kind,
            size: 0,
            mtime_ns: 0,
            token: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            symlink_target: Vec::new(),
        }
    }

    #[test]
    fn an_object_beside_a_directory_of_its_name_is_skipped_and_counted() {
        let long = "x".repeat(256);
        let given = ["b", "a", "", "..", &long].map(|name| entry(name, Kind::File));
        let listing = tidy([given.to_vec(), vec![entry("a", Kind::Directory)]].concat(), 0);
        let names: Vec<_> = listing.entries.iter().map(|entry| (&entry.name[..], entry.kind)).collect();
        assert_eq!(names, [(&b"a"[..], Kind::Directory), (&b"b"[..], Kind::File)]);
        assert_eq!(listing.skipped, 4);
    }
}
