//! Content is stored beside its place under a name of its own, and takes the place in one step when all is on disk.

use std::fs::File;
use std::io;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;

use super::attributes::{give, set_mtime};
use super::place::{EntryName, TEMPORARY, is_version};
use super::{Local, by_fd, entry_of_opened, gone, xattrs};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::failpoint_io;
use crate::ufs::prepared_put::{Prepared, UnnamedFile};
use crate::ufs::{Content, Entry, Expected, NewAttr, stale};

/// What content is called until it takes its place.
fn temporary_name(intent: u64) -> Vec<u8> {
    format!("{TEMPORARY}{intent}").into_bytes()
}

impl Local {
    pub(super) fn put_now(
        &self,
        path: &[u8],
        content: &Content,
        expected: Expected<'_>,
        attr: NewAttr,
        intent: u64,
    ) -> Result<Entry> {
        let failed = |error: io::Error| self.failed(path, &error);
        let Some(place) = self.place(path)? else { return Err(self.no_place(path, expected)) };
        if let Some(Prepared::NewFile(filled)) = content.prepared.take()
            && expected == Expected::Absent
            && filled.attr == attr
            && self.link(path, &place, &filled.file)?
        {
            return self.in_place(path, &place, &filled.file);
        }
        // Told before anything is copied, and once more when all is.
        self.must_be(path, &place, expected)?;
        let replaced = self.replaced(path, expected)?;
        let temporary = temporary_name(intent);
        let file = create(&place, &temporary).map_err(failed)?;
        let placed = fill(&file, content, attr, replaced.as_ref())
            .and_then(|()| failpoint_io("local.filled").map(drop))
            .map_err(failed)
            .and_then(|()| self.put_in_place(path, &place, &temporary, expected));
        if let Err(error) = placed {
            // What stays is removed by a clean; the reason is of more use than a second error.
            let _ = place.unlink(&temporary);
            return Err(error);
        }
        self.in_place(path, &place, &file)
    }

    /// The file that is replaced; `None` if it is gone, which is told when the new one takes its place.
    fn replaced(&self, path: &[u8], expected: Expected<'_>) -> Result<Option<File>> {
        if expected == Expected::Absent {
            return Ok(None);
        }
        match self.open_below(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(file) => Ok(Some(file)),
            Err(error) if gone(&error) => Ok(None),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    /// Makes durable that a file has its place.
    fn in_place(&self, path: &[u8], place: &EntryName<'_>, file: &File) -> Result<Entry> {
        let stored = place.sync().and_then(|()| entry_of_opened(place.name, file));
        let unknown = |error: io::Error| Error { kind: ErrorKind::OutcomeUnknown, ..self.failed(path, &error) };
        stored.map_err(unknown)?.ok_or_else(|| Error::internal("a stored file is none"))
    }

    /// Fills a file that has no name; `None` where there are none.
    pub(super) fn fill_now(&self, path: &[u8], content: &Content, attr: NewAttr) -> Result<Option<UnnamedFile>> {
        let Some(place) = self.place(path)? else { return Ok(None) };
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = match openat(&place.directory, ".", flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => File::from(file),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(self.failed(path, &error.into())),
        };
        fill(&file, content, attr, None).map_err(|error| self.failed(path, &error))?;
        Ok(Some(UnnamedFile { file, attr }))
    }

    /// Gives a file without a name its place; false if that cannot be.
    ///
    /// *Errors*: `Stale` when something else is there.
    fn link(&self, path: &[u8], place: &EntryName<'_>, file: &File) -> Result<bool> {
        failpoint_io("local.filled").map_err(|error| self.failed(path, &error))?;
        match linkat(CWD, by_fd(file), &place.directory, place.name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Err(stale(path)),
            // The directory may be on another file system by now.
            Err(error) => {
                tracing::debug!(%error, "a file that was filled gets no name");
                Ok(false)
            }
        }
    }

    pub(super) fn clean_now(&self, path: &[u8], intent: u64) -> Result<()> {
        let Some(place) = self.place(path)? else { return Ok(()) };
        let cleaned = place.unlink(&temporary_name(intent)).and_then(|()| place.sync());
        cleaned.map_err(|error| self.failed(path, &error))
    }

    pub(super) fn sync_name_now(&self, path: &[u8]) -> Result<()> {
        let Some(place) = self.place(path)? else { return Ok(()) };
        let synced = failpoint_io("local.sync-name").and_then(|_| place.sync());
        synced.map_err(|error| self.failed(path, &error))
    }

    fn put_in_place(&self, path: &[u8], place: &EntryName<'_>, temporary: &[u8], expected: Expected<'_>) -> Result<()> {
        self.must_be(path, place, expected)?;
        match place.take(&place.directory, temporary, expected == Expected::Absent) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(stale(path)),
            taken => taken.map_err(|error| self.failed(path, &error)),
        }
    }

    /// *Errors*: `Stale` when something else is there than expected.
    fn must_be(&self, path: &[u8], place: &EntryName<'_>, expected: Expected<'_>) -> Result<()> {
        let found = place.metadata().map_err(|error| self.failed(path, &error))?;
        let is = match (found, expected) {
            (None, Expected::Absent) => true,
            (Some(found), Expected::Token(token)) => is_version(&found, token),
            _ => false,
        };
        if is { Ok(()) } else { Err(stale(path)) }
    }

    /// The directory is gone: with it the file that should be there, or the place for a new one.
    fn no_place(&self, path: &[u8], expected: Expected<'_>) -> Error {
        match expected {
            Expected::Absent => self.failed(path, &io::ErrorKind::NotFound.into()),
            Expected::Token(_) => stale(path),
        }
    }
}

/// Brings content and attributes of a new file to disk; its name is another matter. What it replaces leaves it its extended
/// attributes.
fn fill(file: &File, content: &Content, attr: NewAttr, replaced: Option<&File>) -> io::Result<()> {
    content.copy_to(file)?;
    if let Some(replaced) = replaced {
        // Before the mode, which an access control list is a part of.
        xattrs::copy(replaced, file)?;
    }
    if let Some(times) = content.times {
        // Before the owner: only who owns a file may say its time.
        set_mtime(file, times.mtime_ns)?;
    }
    give(file, attr)?;
    file.sync_all()
}

/// A new file, in place of what an attempt of the same intent has left when it was cut off.
fn create(place: &EntryName<'_>, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let create = || openat(&place.directory, name, flags, Mode::RUSR | Mode::WUSR);
    let created = match create() {
        Err(Errno::EXIST) => {
            place.unlink(name)?;
            create()
        }
        created => created,
    };
    Ok(created?.into())
}
