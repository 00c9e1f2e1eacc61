//! The kernel's mount table, read as text: to ask a dead file system anything may fail or block.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use jindofs_packets::unescape_mount_field;

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    id: u64,
    parent: u64,
    /// Number of the device, "major:minor".
    pub(super) device: String,
    /// Kind of the file system.
    kind: String,
    /// Name that the file system was given when it was mounted.
    source: Vec<u8>,
    /// What is mounted on it is mounted on its copies at other places too.
    pub(super) is_shared: bool,
}

impl Mounted {
    /// True for the mount of a FUSE file system, alive or dead.
    pub(super) fn is_fuse(&self) -> bool {
        self.kind.starts_with("fuse")
    }

    /// True for a file system of this kind that was mounted under this name.
    pub(super) fn is(&self, kind: &str, source: &str) -> bool {
        self.kind == kind && self.source == source.as_bytes()
    }
}

/// What is mounted at exactly `path`, the lowest first. Empty where the table cannot be read.
pub(super) fn stack_at(path: &Path) -> Vec<Mounted> {
    match std::fs::read("/proc/self/mountinfo") {
        Ok(table) => stack_in(&table, path),
        Err(error) => {
            tracing::warn!(%error, "the mount table cannot be read");
            Vec::new()
        }
    }
}

fn stack_in(table: &[u8], path: &Path) -> Vec<Mounted> {
    let lines = table.split(|byte| *byte == b'\n');
    let mut found: Vec<Mounted> = lines.filter_map(parse).filter(|(at, _)| at == path).map(|(_, one)| one).collect();
    // A mount that was put beneath another one is listed after it: only the parents tell what covers what.
    let mut stack = Vec::with_capacity(found.len());
    let is_lowest = |one: &Mounted| !found.iter().any(|other| other.id == one.parent && other.id != one.id);
    let mut next = found.iter().position(is_lowest);
    while let Some(at) = next {
        let one = found.swap_remove(at);
        next = found.iter().position(|other| other.parent == one.id);
        stack.push(one);
    }
    stack
}

fn parse(line: &[u8]) -> Option<(PathBuf, Mounted)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = String::from_utf8(fields.next()?.to_owned()).ok()?;
    let at = PathBuf::from(OsString::from_vec(unescape_mount_field(fields.nth(1)?)));
    let mut rest = fields.skip(1);
    let is_shared = rest.by_ref().take_while(|field| *field != b"-").any(|field| field.starts_with(b"shared:"));
    let mut rest = line.split(|byte| *byte == b' ').skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(rest.next()?.to_owned()).ok()?;
    let source = unescape_mount_field(rest.next()?);
    Some((at, Mounted { id, parent, device, kind, source, is_shared }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_at_one_place_are_told_by_their_parents_whatever_their_order() {
        let table = b"25 1 8:1 / / rw - ext4 /dev/sda rw\n\
            40 25 0:50 / /a\\040b ro,nosuid shared:9 - tmpfs jindofs-guard ro\n\
            41 44 0:51 / /a\\040b rw shared:5 master:1 - fuse.jindofs jindofs rw\n\
            42 25 0:52 / /c rw - fuse.other other rw\n\
            44 40 0:53 / /a\\040b rw - fuse.jindofs jindofs rw\n\
            not a line\n";
        let stack = stack_in(table, Path::new("/a b"));
        assert_eq!(stack.iter().map(|one| one.device.as_str()).collect::<Vec<_>>(), ["0:50", "0:53", "0:51"]);
        assert_eq!(stack.iter().map(|one| one.is_shared).collect::<Vec<_>>(), [true, false, true]);
        assert!(stack[0].is("tmpfs", "jindofs-guard") && !stack[0].is_fuse() && stack[1].is_fuse());
        assert_eq!(stack_in(table, Path::new("/")).len(), 1);
        assert!(stack_in(table, Path::new("/a")).is_empty());
    }
}
