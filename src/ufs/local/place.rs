//! A name below the root: the directory that holds it, reached without following any symbolic link, and what has the
//! name there. All changes go through it, so nothing outside the root can be changed.

use std::fs::{File, Metadata};
use std::io;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, openat, renameat, renameat_with, unlinkat};
use rustix::io::Errno;

use super::{Local, entry_of_opened, gone, token_of};
use crate::error::{Error, Result};
use crate::types::check_name;
use crate::ufs::Entry;

/// How names begin under which content is stored before it takes its place. They are not shown.
pub(super) const TEMPORARY: &str = ".jindofs-put-";

/// Is, or lies below, what a put has not brought to its place.
pub(super) fn is_temporary(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name.starts_with(TEMPORARY.as_bytes()))
}

/// Refuses what can be the path of no file.
///
/// *Errors*: `InvalidArgument`, `NameTooLong`.
pub(super) fn check_path(path: &[u8]) -> Result<()> {
    check_name(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default())?;
    if is_temporary(path) {
        let path = String::from_utf8_lossy(path);
        return Err(Error::invalid(format!("{path}: names that begin with {TEMPORARY} are in use by JindoFS itself")));
    }
    Ok(())
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct EntryName<'p> {
    pub(super) directory: File,
    pub(super) name: &'p [u8],
}

impl Local {
    /// Where `path` is, or would be; `None` when there is no such directory, or only behind a symbolic link.
    ///
    /// *Errors*: `InvalidArgument` and `NameTooLong` for what can be no name; `UnderStorage` when the root itself is gone.
    pub(super) fn place<'p>(&self, path: &'p [u8]) -> Result<Option<EntryName<'p>>> {
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        check_path(path)?;
        // Not O_PATH: what changes in it is made durable by it.
        match self.open_below(parent, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => Ok(Some(EntryName { directory, name })),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(self.failed(path, &error)),
        }
    }
}

impl EntryName<'_> {
    /// What has the name, open for looking only; a symbolic link is not followed.
    pub(super) fn open(&self) -> io::Result<Option<File>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&self.directory, self.name, flags, Mode::empty()) {
            Ok(opened) => Ok(Some(opened.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn metadata(&self) -> io::Result<Option<Metadata>> {
        self.open()?.map(|opened| opened.metadata()).transpose()
    }

    /// `None` as well for what is neither file, directory nor symbolic link.
    pub(super) fn entry(&self) -> io::Result<Option<Entry>> {
        self.open()?.map_or(Ok(None), |opened| entry_of_opened(self.name, &opened))
    }

    /// Removes a file or link of this directory; that there is none is no error.
    pub(super) fn unlink(&self, name: &[u8]) -> io::Result<()> {
        self.unlink_as(name, AtFlags::empty())
    }

    /// Removes an empty directory of this directory; that there is none is no error.
    pub(super) fn unlink_directory(&self, name: &[u8]) -> io::Result<()> {
        self.unlink_as(name, AtFlags::REMOVEDIR)
    }

    fn unlink_as(&self, name: &[u8], flags: AtFlags) -> io::Result<()> {
        match unlinkat(&self.directory, name, flags) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives this name to what is called `name` in `directory`, in place of what has it, unless it must be `free`.
    ///
    /// *Errors*: `AlreadyExists` for one that is not.
    pub(super) fn take(&self, directory: &File, name: &[u8], free: bool) -> io::Result<()> {
        if free {
            match renameat_with(directory, name, &self.directory, self.name, RenameFlags::NOREPLACE) {
                // Not every file system can: then a name that appears in this very moment is lost.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    if self.open()?.is_some() {
                        return Err(Errno::EXIST.into());
                    }
                }
                done => return Ok(done?),
            }
        }
        Ok(renameat(directory, name, &self.directory, self.name)?)
    }

    /// Makes durable what was changed in the directory.
    pub(super) fn sync(&self) -> io::Result<()> {
        match rustix::fs::fsync(&self.directory) {
            // A file system that cannot has nothing to offer.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A file of this very version.
pub(super) fn is_version(metadata: &Metadata, token: &[u8]) -> bool {
    metadata.is_file() && token_of(metadata) == token
}

/// As [`is_version`]; an empty token stands for anything that is no file.
pub(super) fn is_thing(metadata: &Metadata, token: &[u8]) -> bool {
    if token.is_empty() { !metadata.is_file() } else { is_version(metadata, token) }
}
