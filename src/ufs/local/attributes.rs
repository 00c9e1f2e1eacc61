//! Owner, mode and times. No symbolic link is followed: what was opened is what is changed.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown, utimensat,
};
use rustix::process::geteuid;

use super::place::is_temporary;
use super::{Local, by_fd, entry_of_opened, gone};
use crate::error::Result;
use crate::ufs::{AttrChange, Entry, NewAttr};

/// Owner and mode of what was just made.
pub(super) fn give(file: &File, attr: NewAttr) -> io::Result<()> {
    as_far_as_we_may(fchown(file, Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid))))?;
    // After the owner, whose change takes set-user-id away.
    Ok(fchmod(file, Mode::from_raw_mode(attr.mode))?)
}

/// Owner of a symbolic link that was just made.
pub(super) fn give_link(directory: &File, name: &[u8], attr: NewAttr) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)));
    as_far_as_we_may(chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
}

/// Whoever is not root keeps what it makes.
fn as_far_as_we_may(given: rustix::io::Result<()>) -> io::Result<()> {
    match given {
        Err(rustix::io::Errno::PERM) if !geteuid().is_root() => Ok(()),
        given => Ok(given?),
    }
}

impl Local {
    /// *Errors*: `NotFound`.
    pub(super) fn set_attr_now(&self, path: &[u8], change: AttrChange) -> Result<Entry> {
        let failed = |error: io::Error| self.failed(path, &error);
        let nothing = || failed(io::ErrorKind::NotFound.into());
        if is_temporary(path) {
            return Err(nothing());
        }
        // The root may be configured as a link, of which the directory is meant.
        let follow = if path.is_empty() { OFlags::DIRECTORY } else { OFlags::NOFOLLOW };
        let opened = match self.open_below(path, OFlags::PATH | follow) {
            Ok(opened) => opened,
            Err(error) if gone(&error) => return Err(nothing()),
            Err(error) => return Err(failed(error)),
        };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        entry_of_opened(name, &opened).map_err(failed)?.ok_or_else(nothing)?;
        apply(&opened, change).map_err(failed)?;
        entry_of_opened(name, &opened).map_err(failed)?.ok_or_else(nothing)
    }
}

fn apply(opened: &File, change: AttrChange) -> io::Result<()> {
    let link = opened.metadata()?.is_symlink();
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        chownat(opened, "", uid, gid, AtFlags::EMPTY_PATH)?;
    }
    // After the owner, whose change takes set-user-id away. A link has no mode of its own.
    if let Some(mode) = change.mode.filter(|_| !link) {
        std::fs::set_permissions(by_fd(opened), Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some(mtime) = change.mtime_ns {
        set_mtime(opened, mtime)?;
    }
    if link { Ok(()) } else { sync(opened) }
}

/// Gives content a time, nanoseconds since the epoch.
pub(super) fn set_mtime(opened: &File, mtime: i64) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mtime.div_euclid(1_000_000_000),
            tv_nsec: mtime.rem_euclid(1_000_000_000),
        },
    };
    Ok(utimensat(opened, "", &times, AtFlags::EMPTY_PATH)?)
}

/// A file's token holds its time: neither may go back in a power cut.
fn sync(opened: &File) -> io::Result<()> {
    match File::open(by_fd(opened)) {
        Ok(file) => file.sync_all(),
        // Changing attributes takes no right to read.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}
