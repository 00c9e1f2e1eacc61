//! `local:///dir`: a directory of this host. Entries below it are opened without following any symbolic link, so that
//! nothing outside is ever read or changed.

mod attributes;
mod names;
mod place;
mod put;
#[cfg(test)]
mod tests;
mod xattrs;

use std::ffi::{CString, OsStr};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2, readlinkat, statvfs};
use rustix::io::Errno;

use self::place::is_temporary;
use super::prepared_put::Prepared;
use super::{
    AttrChange, Content, Deadline, Entry, Expected, Kind, Listing, NewAttr, PreparedPut, Space, Ufs, blocking,
    saturated_ns, stale, tidy,
};
use crate::error::{Error, ErrorKind, Result};

/// A local directory.
#[derive(Debug, Clone)]
pub(super) struct Local {
    root: PathBuf,
}

impl Local {
    pub(super) fn new(root: PathBuf) -> Local {
        Local { root }
    }

    /// Opens something below the root, never by way of a symbolic link.
    ///
    /// *Errors*: of the kind `Other` while the root itself is not there, whoever mirrors what is absent then would remove all
    /// of it; those of openat2(2).
    fn open_below(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let lost = |error: Errno| match error {
            Errno::NOENT | Errno::NOTDIR => io::Error::other("the directory that is mounted is gone: bring it back"),
            error => error.into(),
        };
        let flags = flags | OFlags::CLOEXEC;
        if path.is_empty() {
            let opened = openat2(CWD, &self.root, flags, Mode::empty(), ResolveFlags::empty());
            return Ok(opened.map_err(lost)?.into());
        }
        let root = open(&self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(lost)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(openat2(root, path, flags, Mode::empty(), resolve)?.into())
    }

    fn space_now(&self) -> Result<Space> {
        let figures = statvfs(&self.root).map_err(|error| self.failed(b"", &error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
        let [total, free, available] = [figures.f_blocks, figures.f_bfree, figures.f_bavail].map(bytes);
        Ok(Space { total, free, available })
    }

    /// True if there is anything in the root.
    fn holds_something(&self) -> Result<bool> {
        let mut entries = std::fs::read_dir(&self.root).map_err(|error| self.failed(b"", &error))?;
        Ok(entries.any(|entry| entry.is_ok_and(|entry| !is_temporary(entry.file_name().as_bytes()))))
    }

    fn list_now(&self, path: &[u8]) -> Result<Listing> {
        if is_temporary(path) {
            return Ok(Listing::default());
        }
        let directory = match self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(error) if gone(&error) => return Ok(Listing::default()),
            Err(error) => return Err(self.failed(path, &error)),
        };
        // By its descriptor: a directory renamed meanwhile is still the one that was asked for.
        let (mut entries, mut skipped) = (Vec::new(), 0);
        for item in std::fs::read_dir(by_fd(&directory)).map_err(|error| self.failed(path, &error))? {
            let item = item.map_err(|error| self.failed(path, &error))?;
            let name = item.file_name();
            if is_temporary(name.as_bytes()) {
                continue;
            }
            let metadata = match item.metadata() {
                Ok(metadata) => metadata,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(self.failed(path, &error)),
            };
            match entry_of(name.as_bytes(), &metadata, || readlinkat(&directory, &*name, Vec::<u8>::new())) {
                Some(entry) => entries.push(entry),
                None => skipped += 1,
            }
        }
        // One that is removed while it is read ends like one that is empty.
        let is_removed =
            entries.is_empty() && directory.metadata().map_err(|error| self.failed(path, &error))?.nlink() == 0;
        if is_removed && path.is_empty() {
            return Err(Error::unavailable(format!("under-storage {}: it is being replaced", self.root.display())));
        }
        Ok(tidy(entries, skipped))
    }

    fn stat_now(&self, path: &[u8]) -> Result<Option<Entry>> {
        if is_temporary(path) {
            return Ok(None);
        }
        let opened = match self.open_below(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(opened) => opened,
            Err(error) if gone(&error) => return Ok(None),
            Err(error) => return Err(self.failed(path, &error)),
        };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        entry_of_opened(name, &opened).map_err(|error| self.failed(path, &error))
    }

    fn read_now(&self, path: &[u8], token: &[u8], offset: u64, length: u64) -> Result<Bytes> {
        if is_temporary(path) {
            return Err(stale(path));
        }
        let file = match self.open_below(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(error) if gone(&error) => return Err(stale(path)),
            Err(error) => return Err(self.failed(path, &error)),
        };
        let is_it = || Ok(token_of(&file.metadata()?) == token);
        if !is_it().map_err(|error| self.failed(path, &error))? {
            return Err(stale(path));
        }
        let length = usize::try_from(length).ok().filter(|_| offset.checked_add(length).is_some());
        let mut buffer = vec![0; length.ok_or_else(|| Error::invalid("a range too long to read"))?];
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(path, &error)),
            }
        }
        // A writer in place may have come between: then the bytes may be of two versions.
        if !is_it().map_err(|error| self.failed(path, &error))? {
            return Err(stale(path));
        }
        buffer.truncate(done);
        Ok(buffer.into())
    }

    fn failed(&self, path: &[u8], error: &io::Error) -> Error {
        let at = self.root.join(OsStr::from_bytes(path));
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            io::ErrorKind::NotADirectory => ErrorKind::NotADirectory,
            io::ErrorKind::IsADirectory => ErrorKind::IsADirectory,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::DirectoryNotEmpty => ErrorKind::NotEmpty,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
            io::ErrorKind::InvalidFilename => ErrorKind::NameTooLong,
            io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            io::ErrorKind::CrossesDevices => ErrorKind::CrossMount,
            _ => ErrorKind::UnderStorage,
        };
        Error::new(kind, format!("under-storage {}: {error}", at.display()))
    }
}

/// Not there under this path any more, or behind a symbolic link.
fn gone(error: &io::Error) -> bool {
    let by_link = matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EXDEV));
    by_link || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn token_of(metadata: &Metadata) -> Vec<u8> {
    format!("{}-{}-{}", mtime_of(metadata), metadata.size(), metadata.ino()).into_bytes()
}

/// Nanoseconds since the epoch. File systems keep times that 64 bits of nanoseconds do not hold, as of the year 2300.
fn mtime_of(metadata: &Metadata) -> i128 {
    i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec())
}

/// A path to what is open, whatever it is called by now.
fn by_fd(opened: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(opened)))
}

/// `None` for what is neither file, directory nor symlink.
fn entry_of_opened(name: &[u8], opened: &File) -> io::Result<Option<Entry>> {
    Ok(entry_of(name, &opened.metadata()?, || readlinkat(opened, "", Vec::<u8>::new())))
}

/// `None` for what is neither file, directory nor symlink.
fn entry_of(name: &[u8], metadata: &Metadata, target: impl FnOnce() -> rustix::io::Result<CString>) -> Option<Entry> {
    let kind = metadata.file_type();
    let kind = if kind.is_file() {
        Kind::File
    } else if kind.is_dir() {
        Kind::Directory
    } else if kind.is_symlink() {
        Kind::Symlink
    } else {
        return None;
    };
    let symlink_target = match kind {
        Kind::Symlink => target().ok()?.into_bytes(),
        Kind::File | Kind::Directory => Vec::new(),
    };
    Some(Entry {
        name: name.to_vec(),
        kind,
        size: if kind == Kind::Directory { 0 } else { metadata.size() },
        mtime_ns: saturated_ns(mtime_of(metadata)),
        token: if kind == Kind::File { token_of(metadata) } else { Vec::new() },
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        symlink_target,
    })
}

impl Ufs for Local {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.list_now(&path)))
    }

    fn check_path(&self, path: &[u8]) -> Result<()> {
        place::check_path(path)
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.stat_now(&path)))
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        let (this, path, token) = (self.clone(), path.to_vec(), token.to_vec());
        Box::pin(blocking(move || this.read_now(&path, &token, offset, length)))
    }

    fn put<'a>(
        &'a self,
        path: &'a [u8],
        content: Content,
        expected: Expected<'a>,
        attr: NewAttr,
        intent: u64,
        _deadline: &'a Deadline,
    ) -> BoxFuture<'a, Result<Entry>> {
        let (this, path, expected) = (self.clone(), path.to_vec(), expected.owned());
        Box::pin(blocking(move || this.put_now(&path, &content, Expected::of(&expected), attr, intent)))
    }

    fn prepare<'a>(&'a self, path: &'a [u8], content: Content, attr: NewAttr) -> BoxFuture<'a, PreparedPut> {
        let (this, path) = (self.clone(), path.to_vec());
        let filled = blocking(move || this.fill_now(&path, &content, attr));
        Box::pin(async move {
            match filled.await {
                Ok(Some(filled)) => PreparedPut::new(Prepared::NewFile(filled)),
                Ok(None) => PreparedPut::default(),
                // The put meets it again, and tells.
                Err(error) => {
                    tracing::debug!(%error, "a put is not prepared");
                    PreparedPut::default()
                }
            }
        })
    }

    fn clean<'a>(&'a self, path: &'a [u8], intent: u64) -> BoxFuture<'a, Result<()>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.clean_now(&path, intent)))
    }

    fn sync_name<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.sync_name_now(&path)))
    }

    fn make_directory<'a>(&'a self, path: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.make_directory_now(&path, attr)))
    }

    fn make_symlink<'a>(&'a self, path: &'a [u8], target: &'a [u8], attr: NewAttr) -> BoxFuture<'a, Result<Entry>> {
        let (this, path, target) = (self.clone(), path.to_vec(), target.to_vec());
        Box::pin(blocking(move || this.make_symlink_now(&path, &target, attr)))
    }

    fn remove<'a>(&'a self, path: &'a [u8], token: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let (this, path, token) = (self.clone(), path.to_vec(), token.to_vec());
        Box::pin(blocking(move || this.remove_now(&path, &token)))
    }

    fn remove_directory<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.remove_directory_now(&path)))
    }

    fn rename<'a>(
        &'a self,
        from: &'a [u8],
        token: &'a [u8],
        to: &'a [u8],
        expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        let (this, from, token, to) = (self.clone(), from.to_vec(), token.to_vec(), to.to_vec());
        let expected = expected.owned();
        Box::pin(blocking(move || this.rename_now(&from, &token, &to, Expected::of(&expected))))
    }

    fn copy<'a>(
        &'a self,
        from: &'a [u8],
        _token: &'a [u8],
        _to: &'a [u8],
        _expected: Expected<'a>,
    ) -> BoxFuture<'a, Result<Entry>> {
        let message = format!("{}: a local directory renames in one step", String::from_utf8_lossy(from));
        Box::pin(std::future::ready(Err(Error::new(ErrorKind::Unsupported, message))))
    }

    fn set_attr<'a>(&'a self, path: &'a [u8], change: AttrChange) -> BoxFuture<'a, Result<Option<Entry>>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.set_attr_now(&path, change).map(Some)))
    }

    fn check(&self) -> BoxFuture<'_, Result<bool>> {
        let this = self.clone();
        Box::pin(blocking(move || this.holds_something()))
    }

    fn space(&self) -> BoxFuture<'_, Result<Option<Space>>> {
        let this = self.clone();
        Box::pin(blocking(move || this.space_now().map(Some)))
    }
}
