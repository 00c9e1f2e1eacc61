//! Making, removing and moving names. A change that is found done is done, and made durable all the same: the attempt
//! that made it may have been cut off before.

use std::fs::File;
use std::io;

use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;

use super::Local;
use super::attributes::{give, give_link};
use super::place::{EntryName, is_thing, is_version};
use crate::error::{Error, ErrorKind, Result};
use crate::ufs::{Entry, Expected, Kind, NewAttr, stale};

impl Local {
    pub(super) fn make_directory_now(&self, path: &[u8], attr: NewAttr) -> Result<Entry> {
        let failed = |error: io::Error| self.failed(path, &error);
        let place = self.place_for_new(path)?;
        // Closed to others until it has its owner.
        match mkdirat(&place.directory, place.name, Mode::RWXU) {
            Ok(()) => own(&place, attr).map_err(failed)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        self.made(path, &place, |entry| entry.kind == Kind::Directory)
    }

    pub(super) fn make_symlink_now(&self, path: &[u8], target: &[u8], attr: NewAttr) -> Result<Entry> {
        let failed = |error: io::Error| self.failed(path, &error);
        let place = self.place_for_new(path)?;
        match symlinkat(target, &place.directory, place.name) {
            Ok(()) => give_link(&place.directory, place.name, attr).map_err(failed)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        self.made(path, &place, |entry| entry.kind == Kind::Symlink && entry.symlink_target == target)
    }

    pub(super) fn remove_now(&self, path: &[u8], token: &[u8]) -> Result<()> {
        let failed = |error: io::Error| self.failed(path, &error);
        let Some(place) = self.place(path)? else { return Ok(()) };
        match place.metadata().map_err(failed)? {
            None => {}
            Some(found) if found.is_dir() => return Err(failed(io::ErrorKind::IsADirectory.into())),
            Some(found) if found.is_symlink() && token.is_empty() || is_version(&found, token) => {
                place.unlink(place.name).map_err(failed)?;
            }
            Some(_) => return Err(stale(path)),
        }
        place.sync().map_err(failed)
    }

    pub(super) fn remove_directory_now(&self, path: &[u8]) -> Result<()> {
        let failed = |error: io::Error| self.failed(path, &error);
        let Some(place) = self.place(path)? else { return Ok(()) };
        place.unlink_directory(place.name).and_then(|()| place.sync()).map_err(failed)
    }

    pub(super) fn rename_now(&self, from: &[u8], token: &[u8], to: &[u8], expected: Expected<'_>) -> Result<Entry> {
        let look = |path: &[u8], place: &EntryName<'_>| place.metadata().map_err(|error| self.failed(path, &error));
        let (source, target) = (self.place(from)?, self.place_for_new(to)?);
        let there = look(to, &target)?;
        let moving = match &source {
            Some(source) => look(from, source)?.map(|moving| (source, moving)),
            None => None,
        };
        match moving {
            Some((_, moving)) if !is_thing(&moving, token) => return Err(stale(from)),
            Some((source, _)) => {
                let as_expected = match expected {
                    Expected::Absent => there.is_none(),
                    Expected::Token(token) => there.as_ref().is_some_and(|there| is_thing(there, token)),
                };
                if !as_expected {
                    return Err(stale(to));
                }
                self.move_into(to, &target, source, expected == Expected::Absent)?;
            }
            // Moved already.
            None if there.as_ref().is_some_and(|there| is_thing(there, token)) => {}
            None => return Err(stale(from)),
        }
        let synced = target.sync().and_then(|()| source.as_ref().map_or(Ok(()), EntryName::sync));
        synced.map_err(|error| Error { kind: ErrorKind::OutcomeUnknown, ..self.failed(to, &error) })?;
        target.entry().map_err(|error| self.failed(to, &error))?.ok_or_else(|| stale(to))
    }

    fn move_into(&self, path: &[u8], target: &EntryName<'_>, source: &EntryName<'_>, free: bool) -> Result<()> {
        match target.take(&source.directory, source.name, free) {
            Err(error) if free && error.kind() == io::ErrorKind::AlreadyExists => Err(stale(path)),
            // It went, or was replaced, between the look and the move.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(stale(path)),
            taken => taken.map_err(|error| self.failed(path, &error)),
        }
    }

    /// *Errors*: `NotFound` when the directory is not there.
    fn place_for_new<'p>(&self, path: &'p [u8]) -> Result<EntryName<'p>> {
        self.place(path)?.ok_or_else(|| self.failed(path, &io::ErrorKind::NotFound.into()))
    }

    /// What was made, or found made.
    ///
    /// *Errors*: `AlreadyExists` when it is something else.
    fn made(&self, path: &[u8], place: &EntryName<'_>, is_it: impl FnOnce(&Entry) -> bool) -> Result<Entry> {
        let failed = |error: io::Error| self.failed(path, &error);
        place.sync().map_err(failed)?;
        let entry = place.entry().map_err(failed)?;
        entry.filter(is_it).ok_or_else(|| failed(io::ErrorKind::AlreadyExists.into()))
    }
}

/// Gives a directory that was just made to its owner; one that cannot be given is taken away again.
fn own(place: &EntryName<'_>, attr: NewAttr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(&place.directory, place.name, flags, Mode::empty());
    let given = opened.map_err(io::Error::from).map(File::from).and_then(|directory| {
        give(&directory, attr)?;
        directory.sync_all()
    });
    // The reason is of more use than a second error.
    given.inspect_err(|_| drop(place.unlink_directory(place.name)))
}
