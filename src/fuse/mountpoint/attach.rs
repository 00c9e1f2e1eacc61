//! Mounts that are made first and given their place afterwards, so that a mount point is never without one.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use rustix::process::{getegid, geteuid};

use crate::runtime::{Fail, failpoint, failpoint_io};

/// Name under which clients are mounted.
pub(in crate::fuse) const CLIENT: &str = "jindofs";
/// Name under which mount points are guarded.
pub(super) const GUARD: &str = "jindofs-guard";
/// Kind of the file system of a guard.
pub(super) const GUARD_KIND: &str = "tmpfs";
/// The mount point is to be a directory.
const ROOT_MODE: &str = "40000";

/// A FUSE file system that is mounted nowhere yet.
#[derive(Debug)]
pub(in crate::fuse) struct Detached {
    /// Where the kernel sends its requests.
    pub(in crate::fuse) fuse: OwnedFd,
    /// The mount.
    pub(in crate::fuse) mount: OwnedFd,
}

/// Makes a FUSE file system.
///
/// *Errors*: `EPERM` for those who may not mount, `ENOSYS` before Linux 5.2; those of `/dev/fuse`.
pub(in crate::fuse) fn make_client(writable: bool, allow_other: bool) -> io::Result<Detached> {
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (user, group) = (geteuid().as_raw().to_string(), getegid().as_raw().to_string());
    let fuse_number = fuse.as_raw_fd().to_string();
    let texts = [
        ("source", CLIENT),
        ("subtype", CLIENT),
        ("fd", fuse_number.as_str()),
        ("rootmode", ROOT_MODE),
        ("user_id", user.as_str()),
        ("group_id", group.as_str()),
    ];
    for (key, value) in texts {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    // The kernel checks permissions.
    fsconfig_set_flag(context.as_fd(), "default_permissions")?;
    if allow_other {
        fsconfig_set_flag(context.as_fd(), "allow_other")?;
    }
    let mount = finish(context.as_fd(), writable)?;
    Ok(Detached { fuse: fuse.into(), mount })
}

/// Makes an empty file system that cannot be written.
///
/// *Errors*: as [`make_client`].
pub(super) fn make_guard() -> io::Result<OwnedFd> {
    failpoint_io("fuse.guard")?;
    let context = fsopen(GUARD_KIND, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", GUARD), ("mode", "555"), ("nr_inodes", "1")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    finish(context.as_fd(), false)
}

fn finish(context: BorrowedFd<'_>, writable: bool) -> io::Result<OwnedFd> {
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if !writable {
        fsconfig_set_flag(context, "ro")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(context)?;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Mounts on top of whatever is at `path`.
///
/// *Errors*: those of move_mount(2).
pub(super) fn attach(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Mounts directly beneath what is on top at `path`.
///
/// *Errors*: `EINVAL` where the kernel cannot (before Linux 6.5), or the mount on top cannot be moved from there.
pub(super) fn attach_beneath(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    if failpoint("fuse.mount.beneath") == Fail::Error {
        return Err(rustix::io::Errno::INVAL.into());
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    Ok(move_mount(mount, "", CWD, path, flags)?)
}

/// Takes away what is on top at `path`, in use or not.
///
/// *Errors*: those of umount(2).
pub(super) fn detach(path: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}
