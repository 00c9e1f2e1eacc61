//! `local:///dir`: a directory of this host. Entries below it are opened without following any symbolic link, so that
//! nothing outside is ever read.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::BoxFuture;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, open, openat2};

use super::{Entry, Kind, Listing, Ufs, stale, tidy};
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
    fn open_below(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let root = open(&self.root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if path.is_empty() {
            return Ok(openat2(CWD, &self.root, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?.into());
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?.into())
    }

    fn check_root(&self) -> Result<()> {
        std::fs::read_dir(&self.root).map(drop).map_err(|error| self.failed(b"", &error))
    }

    fn list_now(&self, path: &[u8]) -> Result<Listing> {
        let directory = match self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(error) if gone(&error) && !path.is_empty() => {
                self.check_root()?;
                return Ok(Listing::default());
            }
            Err(error) => return Err(self.failed(path, &error)),
        };
        // By its descriptor: a directory renamed meanwhile is still the one that was asked for.
        let by_fd = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory)));
        let (mut entries, mut skipped) = (Vec::new(), 0);
        for item in std::fs::read_dir(&by_fd).map_err(|error| self.failed(path, &error))? {
            let item = item.map_err(|error| self.failed(path, &error))?;
            let metadata = match item.metadata() {
                Ok(metadata) => metadata,
                Err(error) if gone(&error) => continue,
                Err(error) => return Err(self.failed(path, &error)),
            };
            match entry_of(item.file_name().as_bytes(), &metadata, &item.path()) {
                Some(entry) => entries.push(entry),
                None => skipped += 1,
            }
        }
        Ok(tidy(entries, skipped))
    }

    fn stat_now(&self, path: &[u8]) -> Result<Option<Entry>> {
        let opened = match self.open_below(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(opened) => opened,
            Err(error) if gone(&error) => {
                self.check_root()?;
                return Ok(None);
            }
            Err(error) => return Err(self.failed(path, &error)),
        };
        let metadata = opened.metadata().map_err(|error| self.failed(path, &error))?;
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        Ok(entry_of(name, &metadata, &self.root.join(OsStr::from_bytes(path))))
    }

    fn read_now(&self, path: &[u8], token: &[u8], offset: u64, length: u64) -> Result<Bytes> {
        let file = match self.open_below(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(error) if gone(&error) => {
                self.check_root()?;
                return Err(stale(path));
            }
            Err(error) => return Err(self.failed(path, &error)),
        };
        let is_it = || Ok(token_of(&file.metadata()?) == token);
        if !is_it().map_err(|error| self.failed(path, &error))? {
            return Err(stale(path));
        }
        let mut buffer = vec![0; usize::try_from(length).map_err(|_| Error::invalid("a range too long to read"))?];
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
    let mtime = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
    format!("{mtime}-{}-{}", metadata.size(), metadata.ino()).into_bytes()
}

/// `None` for what is neither file, directory nor symlink.
fn entry_of(name: &[u8], metadata: &Metadata, path: &Path) -> Option<Entry> {
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
        Kind::Symlink => std::fs::read_link(path).ok()?.into_os_string().as_bytes().to_vec(),
        Kind::File | Kind::Directory => Vec::new(),
    };
    Some(Entry {
        name: name.to_vec(),
        kind,
        size: if kind == Kind::Directory { 0 } else { metadata.size() },
        mtime_ns: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        token: if kind == Kind::File { token_of(metadata) } else { Vec::new() },
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        symlink_target,
    })
}

/// Disks block: off the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal(format!("a disk task: {error}")))?
}

impl Ufs for Local {
    fn list<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Listing>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.list_now(&path)))
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<Option<Entry>>> {
        let (this, path) = (self.clone(), path.to_vec());
        Box::pin(blocking(move || this.stat_now(&path)))
    }

    fn read<'a>(&'a self, path: &'a [u8], token: &'a [u8], offset: u64, length: u64) -> BoxFuture<'a, Result<Bytes>> {
        let (this, path, token) = (self.clone(), path.to_vec(), token.to_vec());
        Box::pin(blocking(move || this.read_now(&path, &token, offset, length)))
    }

    fn check(&self) -> BoxFuture<'_, Result<()>> {
        let this = self.clone();
        Box::pin(blocking(move || this.check_root()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_stale_and_links_never_lead_outside() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("d")).expect("mkdir");
        std::fs::write(dir.path().join("d/f"), b"hello").expect("write");
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).expect("symlink");
        let ufs = Local::new(dir.path().to_owned());
        let entry = ufs.stat_now(b"d/f").expect("stat").expect("there");
        assert_eq!(&ufs.read_now(b"d/f", &entry.token, 1, 10).expect("read")[..], b"ello");
        std::fs::write(dir.path().join("d/f2"), b"other").expect("write");
        std::fs::rename(dir.path().join("d/f2"), dir.path().join("d/f")).expect("rename");
        assert_eq!(ufs.read_now(b"d/f", &entry.token, 0, 5).expect_err("replaced").kind, ErrorKind::Stale);
        assert_eq!(ufs.stat_now(b"out/passwd").expect("stat"), None);
        assert_eq!(ufs.read_now(b"out/passwd", b"", 0, 1).expect_err("outside").kind, ErrorKind::Stale);
        let names: Vec<_> =
            ufs.list_now(b"").expect("list").entries.into_iter().map(|one| (one.name, one.kind)).collect();
        assert_eq!(names, [(b"d".to_vec(), Kind::Directory), (b"out".to_vec(), Kind::Symlink)]);
        assert_eq!(ufs.list_now(b"nothing").expect("empty").entries.len(), 0);
        drop(dir);
        assert_eq!(ufs.list_now(b"d").expect_err("the root is gone").kind, ErrorKind::NotFound);
    }
}
