//! What is published where, remembered on disk: after a restart of the plugin or of a client it is made whole again.
//!
//! Whoever calls has the turn of the target. No lock is held while a file system is asked: one that hangs holds up nobody
//! but those who use it.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::mounts::{Mounted, bind, device, open, table, top, unmount, unmount_all};
use super::pod_events::Pod;
use crate::fingerprint::fingerprint;
use crate::sync::lock;

/// A volume, or a directory of it, at a target of the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    /// Id of the volume.
    pub(super) volume: String,
    /// Where the kubelet wants it.
    pub(super) target: PathBuf,
    /// Mount of the client on this node.
    pub(super) source: PathBuf,
    /// Directory below it; empty for all.
    pub(super) directory: PathBuf,
    /// Writes are refused.
    pub(super) read_only: bool,
    /// Whom it is for, where that is known.
    #[serde(default)]
    pub(super) pod: Option<Pod>,
}

impl Volume {
    fn show(&self) -> Result<(), Status> {
        let directory = open(&self.source, &self.directory).map_err(|error| self.not_opened(&error))?;
        let opened = device(&directory).map_err(|error| failed("looking at", &self.source, &error))?;
        // It may have been taken away since it was waited for; then what lies below it has been opened.
        if !top(&mounts()?, &self.source).is_some_and(|client| client.is_fuse() && client.device == opened) {
            let message = format!("the client's mount at {} has just ended", self.source.display());
            return Err(Status::unavailable(message));
        }
        bind(&directory, &self.target, self.read_only).map_err(|error| failed("mounting at", &self.target, &error))
    }

    fn not_opened(&self, error: &io::Error) -> Status {
        let path = self.directory.display();
        match Errno::from_io_error(error) {
            Some(Errno::NOENT) => Status::not_found(format!("the volume has no directory {path}")),
            Some(Errno::NOTDIR) => Status::invalid_argument(format!("{path} is not a directory of the volume")),
            Some(Errno::XDEV | Errno::LOOP) => Status::invalid_argument(format!("a link in {path} leaves the volume")),
            _ => failed("opening", &self.source.join(&self.directory), error),
        }
    }

    /// Whether this is what is shown: the mount the client has now, and no more rights than asked for.
    fn is(&self, shown: &Mounted, source: Option<&Mounted>) -> bool {
        source.is_some_and(|source| source.device == shown.device) && (shown.read_only || !self.read_only)
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("{what} {}: {error}", path.display()))
}

fn mounts() -> Result<Vec<Mounted>, Status> {
    table().map_err(|error| failed("reading", Path::new("/proc/self/mountinfo"), &error))
}

/// Everything that is published on this node.
#[derive(Debug)]
pub(super) struct Published {
    directory: PathBuf,
    volumes: Mutex<HashMap<PathBuf, Volume>>,
}

impl Published {
    /// Reads the records of an earlier process.
    ///
    /// *Errors*: when the directory cannot be used. A record that cannot be read is set aside and said.
    pub(super) fn load(directory: PathBuf) -> Result<Published, String> {
        let at = |error: io::Error| format!("{}: {error}", directory.display());
        std::fs::create_dir_all(&directory).map_err(at)?;
        let mut volumes = HashMap::new();
        for file in std::fs::read_dir(&directory).map_err(at)? {
            let path = file.map_err(at)?.path();
            // Half of a record: its call has not been answered.
            if path.extension().is_some_and(|extension| extension == "new") {
                std::fs::remove_file(&path).map_err(at)?;
                continue;
            }
            let text = std::fs::read(&path).map_err(at)?;
            match serde_json::from_slice::<Volume>(&text) {
                Ok(volume) => drop(volumes.insert(volume.target.clone(), volume)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a record is not understood and is left alone")
                }
            }
        }
        Ok(Published { directory, volumes: Mutex::new(volumes) })
    }

    fn volumes(&self) -> MutexGuard<'_, HashMap<PathBuf, Volume>> {
        lock(&self.volumes)
    }

    /// What is published at a target.
    pub(super) fn at(&self, target: &Path) -> Option<Volume> {
        self.volumes().get(target).cloned()
    }

    /// Name of a record: paths of targets are too long for one.
    fn record(&self, target: &Path) -> PathBuf {
        self.directory.join(format!("{}.json", fingerprint(target.as_os_str().as_encoded_bytes().iter().copied())))
    }

    fn remember(&self, volume: Volume) -> Result<(), Status> {
        let record = self.record(&volume.target);
        let written = || {
            let new = record.with_extension("new");
            std::fs::write(&new, serde_json::to_vec(&volume)?)?;
            std::fs::rename(&new, &record)
        };
        written().map_err(|error| failed("writing", &record, &error))?;
        self.volumes().insert(volume.target.clone(), volume);
        Ok(())
    }

    fn forget(&self, target: &Path) -> Result<(), Status> {
        let record = self.record(target);
        gone(std::fs::remove_file(&record)).map_err(|error| failed("removing", &record, &error))?;
        self.volumes().remove(target);
        Ok(())
    }

    /// Binds a volume to its target; does nothing where it is bound already and lives.
    ///
    /// *Errors*: `AlreadyExists` when something else is published there, `NotFound` and `InvalidArgument` when the directory is
    /// not in the volume, `Internal` with the words of the disk or of mount(2).
    pub(super) fn publish(&self, volume: Volume) -> Result<(), Status> {
        let table = mounts()?;
        let target = volume.target.clone();
        if let Some(shown) = top(&table, &target) {
            if self.at(&target).is_some_and(|known| known != volume) {
                let message = format!("something else is published at {}: unpublish it first", target.display());
                return Err(Status::already_exists(message));
            }
            if volume.is(shown, top(&table, &volume.source)) {
                return self.remember(volume);
            }
        }
        // Remembered first, so that no bind is without a record whenever this process ends.
        self.remember(volume.clone())?;
        let bound = unmount_all(&target)
            .and_then(|()| std::fs::create_dir_all(&target))
            .map_err(|error| failed("preparing", &target, &error))
            .and_then(|()| volume.show());
        bound.or_else(|error| self.forget(&target).and(Err(error)))
    }

    /// Takes a target away; does nothing where nothing is.
    ///
    /// *Errors*: `Internal` with the words of the disk or of umount(2).
    pub(super) fn unpublish(&self, target: &Path) -> Result<(), Status> {
        unmount_all(target).map_err(|error| failed("unmounting", target, &error))?;
        gone(std::fs::remove_dir(target)).map_err(|error| failed("removing", target, &error))?;
        self.forget(target)
    }

    /// Takes a client's mount away wherever it is, but not what is bound at targets: there the next one is bound on top.
    ///
    /// *Errors*: of umount(2).
    pub(super) fn end(&self, device: &str) -> io::Result<()> {
        let (volumes, now) = (self.volumes().clone(), table()?);
        // Each place as often as it was there: the next client may mount at once, and under the same number.
        for place in now.iter().rev().filter(|one| one.device == device && !volumes.contains_key(&one.at)) {
            if top(&table()?, &place.at).is_some_and(|top| top.device == device) {
                unmount(&place.at)?;
            }
        }
        Ok(())
    }

    /// True if a target shows this mount, or is about to: a volume is remembered before it is shown.
    ///
    /// *Errors*: when the mount table cannot be read.
    pub(super) fn needs(&self, device: &str) -> io::Result<bool> {
        let (volumes, table) = (self.volumes().clone(), table()?);
        let shown = table.iter().any(|one| one.device == device && volumes.contains_key(&one.at));
        let mut sources = volumes.values().filter_map(|volume| top(&table, &volume.source));
        Ok(shown || sources.any(|source| source.device == device))
    }

    /// Volumes that show the mount of a client that is gone while a new one is there.
    pub(super) fn stale(&self) -> Vec<Volume> {
        let volumes: Vec<Volume> = self.volumes().values().cloned().collect();
        let Ok(table) = table() else { return Vec::new() };
        volumes.into_iter().filter(|volume| is_stale(volume, &table)).collect()
    }

    /// Binds such a volume anew, on top of the dead one; true if that was done. Pods with the propagation `HostToContainer` see
    /// it at once, others when they are restarted.
    pub(super) fn rebind(&self, volume: &Volume) -> bool {
        // It may have been unpublished or bound since it was looked at.
        if self.at(&volume.target).as_ref() != Some(volume) || !table().is_ok_and(|table| is_stale(volume, &table)) {
            return false;
        }
        let shown = volume.show();
        match &shown {
            Ok(()) => tracing::info!(target = %volume.target.display(), "bound to the client that came back"),
            Err(error) => {
                tracing::warn!(target = %volume.target.display(), error = error.message(), "not bound again")
            }
        }
        shown.is_ok()
    }
}

fn is_stale(volume: &Volume, table: &[Mounted]) -> bool {
    let (source, target) = (top(table, &volume.source), top(table, &volume.target));
    source.zip(target).is_some_and(|(source, target)| source.device != target.device && source.is_fuse())
}

/// What is not there has been removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
