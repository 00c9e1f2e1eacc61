//! The node's mount table, read as text: asking a dead file system anything may fail or block.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use jindofs_packets::unescape_mount_field;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// How often a path is looked up that the kernel could not look up.
const TRIES: usize = 100;

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    id: u64,
    parent: u64,
    /// Where.
    pub(super) at: PathBuf,
    /// Number of the device, `major:minor`: another one for each mount of a FUSE process.
    pub(super) device: String,
    /// Kind of the file system.
    pub(super) kind: String,
    /// Writes are refused by this mount, whatever the file system does.
    pub(super) read_only: bool,
}

impl Mounted {
    /// True for the mount of a client.
    pub(super) fn is_fuse(&self) -> bool {
        self.kind.starts_with("fuse")
    }
}

/// The mount table of this process, in the order of mounting.
///
/// *Errors*: when `/proc` is not there.
pub(super) fn table() -> io::Result<Vec<Mounted>> {
    // Somebody else's path that is no text must not hide ours.
    Ok(parse(&String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo")?)))
}

fn parse(table: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let device = fields.next()?.to_owned();
        let at = PathBuf::from(OsString::from_vec(unescape_mount_field(fields.nth(1)?.as_bytes())));
        let read_only = fields.next()?.split(',').any(|option| option == "ro");
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
        Some(Mounted { id, parent, at, device, kind, read_only })
    };
    table.lines().filter_map(line).collect()
}

/// What is on top at exactly this path.
pub(super) fn top<'a>(table: &'a [Mounted], at: &Path) -> Option<&'a Mounted> {
    let here = || table.iter().filter(|mounted| mounted.at == at);
    // What was mounted last may lie beneath what was there before: the one on top is nobody's parent here.
    here().rev().find(|mounted| !here().any(|other| other.parent == mounted.id && other.id != mounted.id))
}

/// Opens a directory of the mount at `volume`, or all of it. Links in the volume may lead anywhere in it, never out of it.
///
/// *Errors*: `EXDEV` and `ELOOP` for a link that leaves, `ENOENT`, `ENOTDIR`.
pub(super) fn open(volume: &Path, directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags, Mode::empty())?;
    if directory.as_os_str().is_empty() {
        return Ok(root);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut opened = Err(Errno::AGAIN);
    // The kernel cannot tell where `..` leads while anything is mounted or renamed on the node, and asks to be asked again.
    for _ in 0..TRIES {
        opened = rustix::fs::openat2(&root, directory, flags, Mode::empty(), resolve);
        if !matches!(opened, Err(Errno::AGAIN)) {
            break;
        }
    }
    Ok(opened?)
}

/// Device of what is open, as the mount table has it. The file system is not asked.
///
/// *Errors*: those of statx(2).
pub(super) fn device(opened: &OwnedFd) -> io::Result<String> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(opened, c"", flags, StatxFlags::empty())?;
    Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
}

/// Shows at `target` a directory that is open.
///
/// *Errors*: those of mount(2).
pub(super) fn bind(source: &OwnedFd, target: &Path, read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind(format!("/proc/self/fd/{}", source.as_raw_fd()), target)?;
    if read_only {
        // The kernel takes this flag of a bind only when it is mounted again.
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount_remount(target, flags, c"").inspect_err(|_| {
            let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
        })?;
    }
    Ok(())
}

/// Takes away what is mounted on top at `target`, alive or dead; nothing, if nothing is.
///
/// *Errors*: those of umount(2).
pub(super) fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes away everything that is mounted at `target`, alive or dead.
///
/// *Errors*: those of umount(2).
pub(super) fn unmount_all(target: &Path) -> io::Result<()> {
    while top(&table()?, target).is_some() {
        unmount(target)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_on_top_is_the_one_that_nothing_at_its_place_is_mounted_on() {
        // The last one was put beneath the one before it.
        let table = parse(
            "36 35 0:50 / /a\\040b rw,relatime shared:5 - fuse.jindofs jindofs ro\n\
             37 39 0:61 / /a\\040b rw,relatime shared:6 master:1 - fuse.jindofs jindofs ro\n\
             39 36 0:62 / /a\\040b rw,relatime shared:7 - fuse.jindofs jindofs ro\n\
             38 35 0:50 / /c ro,nosuid - ext4 /dev/vda rw\n",
        );
        assert_eq!(table.len(), 4);
        assert_eq!(top(&table, Path::new("/a b")).expect("mounted").device, "0:61");
        let c = top(&table, Path::new("/c")).expect("mounted");
        assert_eq!((c.kind.as_str(), c.read_only, table[0].read_only), ("ext4", true, false));
        assert_eq!(top(&table, Path::new("/a")), None);
    }
}
