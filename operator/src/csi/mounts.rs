//! The node's mount table, read as text: asking a dead file system anything may fail or block.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where.
    pub(super) at: PathBuf,
    /// Number of the device, `major:minor`: another one for each mount of a FUSE process.
    pub(super) device: String,
    /// Kind of the file system.
    pub(super) kind: String,
}

/// The mount table of this process, in the order of mounting.
///
/// *Errors*: when `/proc` is not there.
pub(super) fn table() -> io::Result<Vec<Mounted>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(table: &str) -> Vec<Mounted> {
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?.to_owned();
        let at = PathBuf::from(unescape(fields.nth(1)?));
        let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
        Some(Mounted { at, device, kind })
    };
    table.lines().filter_map(line).collect()
}

/// `\040` and the like.
fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// What is on top at exactly this path.
pub(super) fn top<'a>(table: &'a [Mounted], at: &Path) -> Option<&'a Mounted> {
    table.iter().rev().find(|mounted| mounted.at == at)
}

/// Shows at `target` what is at `source`.
///
/// *Errors*: those of mount(2).
pub(super) fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind(source, target)?;
    if read_only {
        // The kernel takes this flag of a bind only when it is mounted again.
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount_remount(target, flags, c"").inspect_err(|_| {
            let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
        })?;
    }
    Ok(())
}

/// Takes away everything that is mounted at `target`, alive or dead.
///
/// *Errors*: those of umount(2).
pub(super) fn unmount_all(target: &Path) -> io::Result<()> {
    while top(&table()?, target).is_some() {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_on_top_is_the_last_one_of_the_table() {
        let table = parse(
            "36 35 0:50 / /a\\040b rw,relatime shared:5 - fuse.jindofs jindofs ro\n\
             37 36 0:61 / /a\\040b rw,relatime shared:6 master:1 - fuse.jindofs jindofs ro\n\
             38 35 0:50 / /c rw - ext4 /dev/vda rw\n",
        );
        assert_eq!(table.len(), 3);
        assert_eq!(top(&table, Path::new("/a b")).expect("mounted").device, "0:61");
        assert_eq!(top(&table, Path::new("/c")).expect("mounted").kind, "ext4");
        assert_eq!(top(&table, Path::new("/a")), None);
    }
}
