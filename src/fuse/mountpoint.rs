//! The directory a mount lies on: whether it can be used, what a killed process left there, and what covers it.
//!
//! While a client is meant to run nobody may write into the directory below its mount: what is written there is
//! acknowledged, and hidden by the next mount. An empty file system that cannot be written (the *guard*) lies between the
//! two. A client makes it before it mounts and takes it away at its orderly end. After `kill -9` the dead mount and the
//! guard stay; the next client mounts beneath the dead mount, on the guard, and then takes the dead one away.

mod attach;
mod table;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::Dir;
use rustix::io::Errno;

use crate::config::FuseConfig;
use crate::error::{Error, ErrorKind, Result};

pub(super) use attach::{CLIENT, Detached, make_client};
use table::{Mounted, stack_at};

/// How long a mount may take to answer before it counts as one that lives.
const ANSWER: Duration = Duration::from_secs(5);
/// Most mounts at one place that are looked at.
const LAYERS_MAX: usize = 64;
/// Most symbolic links that are followed.
const LINKS_MAX: usize = 40;

/// A directory that is fit to be mounted on, and what lay there when it was looked at.
#[derive(Debug)]
pub(super) struct MountTarget {
    path: PathBuf,
    /// Device of what was on top: a dead mount, a guard, or any other file system with a directory there.
    top: Option<String>,
    is_dead: bool,
    /// We have guarded it.
    is_guarded: bool,
}

impl MountTarget {
    /// Where it is, without symbolic links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts here, and then takes away what a killed process has left. The directory below is covered all the time.
    ///
    /// *Errors*: `Busy` when something was mounted here meanwhile; those of move_mount(2).
    pub(super) fn mount(&self, client: BorrowedFd<'_>) -> Result<()> {
        let failed = |error: io::Error| Error::from(error).context(format!("fuse.mount {}", self.path.display()));
        let stack = stack_at(&self.path);
        if stack.last().map(|top| &top.device) != self.top.as_ref() {
            return Err(occupied(&self.path));
        }
        if !self.is_dead {
            return attach::attach(client, &self.path).map_err(failed);
        }
        tracing::info!(mount = %self.path.display(), "takes over from a process that is gone");
        let beneath = attach::attach_beneath(client, &self.path);
        let Err(error) = beneath else { return self.clear() };
        tracing::info!(%error, "cannot mount beneath the dead mount (Linux 6.5 can): mounts on top");
        // On copies of the dead mount at other places, as a node plugin makes them, the new one would be mounted too, and taken away
        // from all of them with the first of these places.
        if stack.iter().rev().nth(1).is_some_and(is_guard) || stack.last().is_some_and(|dead| dead.is_shared) {
            self.clear()?;
        }
        attach::attach(client, &self.path).map_err(failed)
    }

    /// Takes away the dead mount that was found on top.
    ///
    /// *Errors*: when neither we nor fusermount3 may.
    pub(super) fn clear(&self) -> Result<()> {
        let is_it = |top: &Mounted| self.is_dead && self.top.as_ref() == Some(&top.device);
        if stack_at(&self.path).last().is_some_and(is_it) { unmount_top(&self.path) } else { Ok(()) }
    }

    /// Leaves the place as it was found, after an attempt to mount has failed.
    ///
    /// *Errors*: as [`unmount`].
    pub(super) fn abandon(&self) -> Result<()> {
        // What a killed process has left covers the directory until a client comes.
        if self.is_guarded { uncover(&self.path) } else { Ok(()) }
    }
}

fn is_guard(one: &Mounted) -> bool {
    one.is(attach::GUARD_KIND, attach::GUARD)
}

fn occupied(path: &Path) -> Error {
    let message = format!("fuse.mount {} is mounted already: unmount it, or choose another", path.display());
    Error::new(ErrorKind::Busy, message)
}

/// Makes a directory fit to be mounted on, and guards it unless a node plugin holds the mount. If configured so, it is made.
///
/// *Errors*: `NotFound`, `NotADirectory`; `Busy` when something is mounted there that lives; `FailedPrecondition` for a
/// directory that is not empty, unless that is asked for.
pub(super) fn prepare(config: &FuseConfig) -> Result<MountTarget> {
    let path = resolve(&config.mount);
    if let Some(place) = find_cover(&path)? {
        return Ok(place);
    }
    if config.create_mount {
        std::fs::create_dir_all(&path)
            .map_err(|error| Error::from(error).context(format!("fuse.mount {}", path.display())))?;
    }
    // Links in what was missing before can be followed now.
    let path = resolve(&path);
    let below = open_directory(&path)?;
    // What the plugin shows to pods is the client's mount or nothing.
    let is_guarded = config.handover_socket.is_none() && raise_guard(&path)?;
    let top = stack_at(&path).pop().map(|top| top.device);
    let place = MountTarget { path, top, is_dead: false, is_guarded };
    // Looked at when nobody can add to it any more.
    if !config.mount_nonempty
        && let Err(error) = check_empty(&below, &place.path)
    {
        place.abandon()?;
        return Err(error);
    }
    Ok(place)
}

/// What covers the directory at `path` already: a dead mount or a guard. Of several dead ones the lowest is enough.
fn find_cover(path: &Path) -> Result<Option<MountTarget>> {
    for _ in 0..LAYERS_MAX {
        let mut stack = stack_at(path);
        let Some(top) = stack.pop() else { return Ok(None) };
        if !top.is_fuse() && !is_guard(&top) {
            return Ok(None);
        }
        let is_dead = top.is_fuse();
        if is_dead && !answers_as_dead(path) {
            return Err(occupied(path));
        }
        if !stack.last().is_some_and(Mounted::is_fuse) {
            let path = path.to_owned();
            return Ok(Some(MountTarget { path, top: Some(top.device), is_dead, is_guarded: false }));
        }
        unmount_top(path)?;
    }
    Err(occupied(path))
}

fn open_directory(path: &Path) -> Result<File> {
    let named = |error: io::Error| Error::from(error).context(format!("fuse.mount {}", path.display()));
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => File::open(path).map_err(named),
        Ok(_) => {
            let message = format!("fuse.mount {} is not a directory", path.display());
            Err(Error::new(ErrorKind::NotADirectory, message))
        }
        Err(error) => {
            Err(Error::from(error).context(format!("fuse.mount {}: make the directory first", path.display())))
        }
    }
}

/// Covers a directory; false where we may not, as a user who mounts by fusermount3.
///
/// *Errors*: `Busy` when another client has mounted there meanwhile.
fn raise_guard(path: &Path) -> Result<bool> {
    let raised = attach::make_guard().and_then(|guard| attach::attach(guard.as_fd(), path));
    if let Err(error) = raised {
        tracing::warn!(mount = %path.display(), %error, "what is written here while no client runs is not refused");
        return Ok(false);
    }
    if stack_at(path).iter().rev().nth(1).is_some_and(Mounted::is_fuse) {
        unmount_top(path)?;
        return Err(occupied(path));
    }
    Ok(true)
}

/// *Errors*: `FailedPrecondition` when something is in the directory; those of reading it.
fn check_empty(below: &File, path: &Path) -> Result<()> {
    let failed = |error: Errno| {
        Error::from(io::Error::from(error)).context(format!("fuse.mount {}: reading it", path.display()))
    };
    for entry in Dir::read_from(below).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            let message = format!(
                "fuse.mount {} is not empty: {name:?} would be hidden; move what is in it away, choose another directory, \
                 or set fuse.mount.nonempty = true",
                path.display()
            );
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        }
    }
    Ok(())
}

/// True if the process behind the mount on top is gone. Attributes may come from the kernel's cache; this goes to the
/// process, if there is one.
fn answers_as_dead(path: &Path) -> bool {
    let (sender, answer) = std::sync::mpsc::channel();
    let path = path.to_owned();
    // Nothing ends a question that nobody answers: it keeps a thread of its own.
    std::thread::spawn(move || sender.send(rustix::fs::statvfs(&path).map(drop)));
    matches!(answer.recv_timeout(ANSWER), Ok(Err(Errno::NOTCONN | Errno::CONNABORTED)))
}

/// True if a FUSE file system is mounted at exactly this directory, alive or not.
pub fn is_mounted(mount: &Path) -> bool {
    device(mount).is_some()
}

/// Device number, "major:minor", of the FUSE file system that is mounted at exactly this directory, alive or not.
pub(super) fn device(mount: &Path) -> Option<String> {
    stack_at(&resolve(mount)).pop().filter(Mounted::is_fuse).map(|top| top.device)
}

/// The path as the mount table has it: absolute, without symbolic links. A dead mount that lies there is not asked.
pub(super) fn resolve(mount: &Path) -> PathBuf {
    let mut path = std::path::absolute(mount).unwrap_or_else(|_| mount.to_owned());
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // It ends in `..`, or is the root.
            return path.canonicalize().unwrap_or(path);
        };
        let Ok(parent) = parent.canonicalize() else { return path };
        path = parent.join(name);
        // The kernel answers this for the root of a mount without its process.
        match std::fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            Err(_) => return path,
        }
    }
    path
}

/// Takes a mount out of the tree at once, also one that is in use or dead, with what guards the directory below. Does
/// nothing where nothing is mounted.
///
/// *Errors*: when neither we nor fusermount3 may.
pub fn unmount(mount: &Path) -> Result<()> {
    let path = resolve(mount);
    if stack_at(&path).last().is_some_and(Mounted::is_fuse) {
        unmount_top(&path)?;
    }
    uncover(&path)
}

/// As [`unmount`], for the file system with this device number only: another one may be mounted there by now.
///
/// *Errors*: as [`unmount`].
pub(super) fn unmount_device(path: &Path, device: Option<&str>) -> Result<()> {
    if stack_at(path).last().is_some_and(|top| device == Some(top.device.as_str())) {
        unmount_top(path)?;
    }
    uncover(path)
}

/// Takes away guard and dead mounts.
fn uncover(path: &Path) -> Result<()> {
    for _ in 0..LAYERS_MAX {
        match stack_at(path).last() {
            Some(top) if is_guard(top) || top.is_fuse() && answers_as_dead(path) => unmount_top(path)?,
            _ => return Ok(()),
        }
    }
    Ok(())
}

fn unmount_top(path: &Path) -> Result<()> {
    let Err(refused) = attach::detach(path) else { return Ok(()) };
    let arguments: [&OsStr; 4] = ["-u".as_ref(), "-z".as_ref(), "-q".as_ref(), path.as_os_str()];
    match Command::new("fusermount3").args(arguments).status() {
        Ok(status) if status.success() || !is_mounted(path) => Ok(()),
        Ok(status) => {
            Err(Error::from(refused).context(format!("unmounting {}: fusermount3: {status}", path.display())))
        }
        Err(error) => Err(Error::from(refused).context(format!("unmounting {}: fusermount3: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::FlagValue;
    use crate::config::{Role, Settings};

    fn config(mount: &Path, more: &[&str]) -> FuseConfig {
        let mount = format!("fuse.mount={}", mount.display());
        // With a plugin nothing is guarded, and so nothing is mounted by this test.
        let given = ["fs.jindocache.namespace.rpc.address=a:1", "fuse.handover.socket=/nowhere/keeper.sock", &mount];
        let flags = given.iter().chain(more).map(|text| FlagValue::from_set(text).expect("KEY=VALUE"));
        let flags: Vec<_> = flags.collect();
        let settings = Settings::load(Role::Fuse, None, &|_| None, &flags).expect("loads");
        FuseConfig::from_settings(&settings).expect("valid")
    }

    #[test]
    fn what_cannot_be_mounted_on_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("f");
        std::fs::write(&file, b"").expect("write");
        let refused = |path: &Path| prepare(&config(path, &[])).expect_err("refused");
        assert_eq!(refused(&file).kind, ErrorKind::NotADirectory);
        assert_eq!(refused(&dir.path().join("none")).kind, ErrorKind::NotFound);
        let error = refused(dir.path());
        assert!(error.kind == ErrorKind::FailedPrecondition && error.message.contains("\"f\""), "{error}");
        prepare(&config(dir.path(), &["fuse.mount.nonempty=true"])).expect("asked for");
        prepare(&config(&dir.path().join("made/below"), &["fuse.mount.create=true"])).expect("made");
        assert!(!is_mounted(dir.path()));
    }

    #[test]
    fn links_to_a_mount_point_are_followed_also_where_it_does_not_exist() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dir = dir.path().canonicalize().expect("canonical");
        std::fs::create_dir(dir.join("real")).expect("mkdir");
        for (link, target) in [("one", "real/mnt"), ("two", "one"), ("up", "real/.."), ("loop", "loop")] {
            std::os::unix::fs::symlink(target, dir.join(link)).expect("symlink");
        }
        assert_eq!(resolve(&dir.join("two")), dir.join("real/mnt"));
        assert_eq!(resolve(&dir.join("real/../one")), dir.join("real/mnt"));
        assert_eq!(resolve(&dir.join("up")), dir);
        assert_eq!(resolve(&dir.join("loop")), dir.join("loop"));
        assert_eq!(resolve(Path::new("/")), Path::new("/"));
    }
}
