//! The directory a mount lies on: whether it can be used, what a killed process left there, and how it is cleared.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::UnmountFlags;

use crate::error::{Error, ErrorKind, Result};

/// How long a mount may take to answer before it counts as one that lives.
const ANSWER: Duration = Duration::from_secs(5);

/// Makes a directory fit to be mounted on: what a killed process left there is cleared, and if `create`, it is made.
///
/// *Errors*: `NotFound`, `NotADirectory`; `Busy` when something is mounted there that lives.
pub(super) fn prepare(mount: &Path, create: bool) -> Result<()> {
    if is_mounted(mount) {
        // Attributes may come from the kernel's cache; this goes to the process, if there is one.
        match ask(mount) {
            Some(Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)) => {
                tracing::info!(mount = %mount.display(), "a mount whose process is gone is cleared");
                unmount(mount)?;
                return prepare(mount, create);
            }
            _ => {
                let message =
                    format!("fuse.mount {} is mounted already: unmount it, or choose another", mount.display());
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
    }
    if create {
        std::fs::create_dir_all(mount)
            .map_err(|error| Error::from(error).context(format!("fuse.mount {}", mount.display())))?;
    }
    match std::fs::metadata(mount) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => {
            let message = format!("fuse.mount {} is not a directory", mount.display());
            Err(Error::new(ErrorKind::NotADirectory, message))
        }
        Err(error) => {
            Err(Error::from(error).context(format!("fuse.mount {}: make the directory first", mount.display())))
        }
    }
}

/// What the process behind a mount answers; `None` if it does not.
fn ask(mount: &Path) -> Option<rustix::io::Result<()>> {
    let (sender, answer) = std::sync::mpsc::channel();
    let mount = mount.to_owned();
    // Nothing ends a question that nobody answers: it keeps a thread of its own.
    std::thread::spawn(move || sender.send(rustix::fs::statvfs(&mount).map(drop)));
    answer.recv_timeout(ANSWER).ok()
}

/// True if a FUSE file system is mounted at exactly this directory, alive or not.
pub fn is_mounted(mount: &Path) -> bool {
    device(mount).is_some()
}

/// Device number, "major:minor", of the FUSE file system that is mounted at exactly this directory, alive or not.
pub(super) fn device(mount: &Path) -> Option<String> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let wanted = resolve(mount);
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?.to_owned();
        let at = fields.nth(1).map(unescape)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (at == wanted).then(|| (device, kind.to_owned()))
    };
    // The last one lies on top.
    let (device, kind) = table.split(|byte| *byte == b'\n').filter_map(line).next_back()?;
    if kind.starts_with(b"fuse") { String::from_utf8(device).ok() } else { None }
}

/// The path as the mount table has it. Only the directory above is looked at: asking a dead mount itself fails.
fn resolve(mount: &Path) -> PathBuf {
    let absolute = std::path::absolute(mount).unwrap_or_else(|_| mount.to_owned());
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return absolute };
    parent.canonicalize().map_or(absolute.clone(), |parent| parent.join(name))
}

/// `\040` and the like.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let value = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Takes a mount out of the tree at once, also one that is in use or dead. Does nothing where nothing is mounted.
///
/// *Errors*: when neither we nor fusermount3 may.
pub fn unmount(mount: &Path) -> Result<()> {
    if !is_mounted(mount) {
        return Ok(());
    }
    let mount = resolve(mount);
    if rustix::mount::unmount(&mount, UnmountFlags::DETACH).is_ok() {
        return Ok(());
    }
    let arguments: [&OsStr; 4] =
        ["-u".as_ref(), "-z".as_ref(), "-q".as_ref(), OsStr::from_bytes(mount.as_os_str().as_bytes())];
    let done = Command::new("fusermount3").args(arguments).status();
    match done {
        Ok(status) if status.success() || !is_mounted(&mount) => Ok(()),
        Ok(status) => Err(Error::internal(format!("fusermount3 -u {}: {status}", mount.display()))),
        Err(error) => Err(Error::from(error).context("fusermount3")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table_are_understood() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape(br"/a\"), PathBuf::from(r"/a\"));
    }

    #[test]
    fn what_cannot_be_mounted_on_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("f");
        std::fs::write(&file, b"").expect("write");
        assert_eq!(prepare(&file, false).expect_err("a file").kind, ErrorKind::NotADirectory);
        assert_eq!(prepare(&dir.path().join("none"), false).expect_err("missing").kind, ErrorKind::NotFound);
        prepare(&dir.path().join("made/below"), true).expect("made");
        prepare(dir.path(), false).expect("a directory");
        assert!(!is_mounted(dir.path()));
    }
}
