//! What is published where, remembered on disk: after a restart of the plugin or of a client it is made whole again.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::mounts::{bind, table, top, unmount_all};
use crate::fingerprint::fingerprint;

/// A volume, or a directory of it, at a target of the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Volume {
    /// Where the kubelet wants it.
    pub(super) target: PathBuf,
    /// Mount of the client on this node.
    pub(super) source: PathBuf,
    /// Directory below it; empty for all.
    pub(super) directory: PathBuf,
    /// Writes are refused.
    pub(super) read_only: bool,
}

impl Volume {
    fn shown(&self) -> PathBuf {
        if self.directory.as_os_str().is_empty() { self.source.clone() } else { self.source.join(&self.directory) }
    }
}

fn end(volumes: &HashMap<PathBuf, Volume>, device: &str) -> io::Result<()> {
    let table = table()?;
    let places = table.iter().filter(|one| one.device == device && !volumes.contains_key(&one.at));
    for place in places.filter(|one| top(&table, &one.at) == Some(*one)) {
        unmount_all(&place.at)?;
    }
    Ok(())
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
    pub(super) fn open(directory: PathBuf) -> Result<Published, String> {
        let at = |error: io::Error| format!("{}: {error}", directory.display());
        std::fs::create_dir_all(&directory).map_err(at)?;
        let mut volumes = HashMap::new();
        for file in std::fs::read_dir(&directory).map_err(at)? {
            let path = file.map_err(at)?.path();
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

    /// Name of a record: paths of targets are too long for one.
    fn record(&self, target: &Path) -> PathBuf {
        self.directory.join(format!("{}.json", fingerprint(target.as_os_str().as_encoded_bytes().iter().copied())))
    }

    /// Binds a volume to its target; does nothing where it is bound already and lives.
    ///
    /// *Errors*: of the disk and of mount(2); `NotFound` when the directory is not in the volume.
    pub(super) fn publish(&self, volume: Volume) -> io::Result<()> {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::write(self.record(&volume.target), serde_json::to_vec(&volume)?)?;
        let table = table()?;
        let source = top(&table, &volume.source).map(|one| one.device.clone());
        if source.is_none() {
            let message = format!("the client's mount at {} has just ended", volume.source.display());
            return Err(io::Error::other(message));
        }
        let target = top(&table, &volume.target).map(|one| one.device.clone());
        if target.is_none() || target != source {
            unmount_all(&volume.target)?;
            std::fs::create_dir_all(&volume.target)?;
            bind(&volume.shown(), &volume.target, volume.read_only)?;
        }
        volumes.insert(volume.target.clone(), volume);
        Ok(())
    }

    /// Takes a target away; does nothing where nothing is.
    ///
    /// *Errors*: of the disk and of umount(2).
    pub(super) fn unpublish(&self, target: &Path) -> io::Result<()> {
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        unmount_all(target)?;
        for removed in [std::fs::remove_dir(target), std::fs::remove_file(self.record(target))] {
            removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
        volumes.remove(target);
        Ok(())
    }

    /// Takes a client's mount away wherever it is, but not what is bound at targets: there the next one is bound on top.
    ///
    /// *Errors*: of umount(2).
    pub(super) fn end(&self, device: &str) -> io::Result<()> {
        end(&self.volumes.lock().unwrap_or_else(PoisonError::into_inner), device)
    }

    /// Takes a client's mount away unless a target shows it, and if `go` then says so. While something else is done with
    /// targets nothing happens.
    ///
    /// *Errors*: of umount(2).
    pub(super) fn end_unless_shown(&self, device: &str, go: impl FnOnce() -> bool) -> io::Result<()> {
        let Ok(volumes) = self.volumes.try_lock() else { return Ok(()) };
        let shown = table()?.iter().any(|one| one.device == device && volumes.contains_key(&one.at));
        if shown || !go() {
            return Ok(());
        }
        tracing::info!(device, "no volume shows this mount and no client serves it: it is taken away");
        end(&volumes, device)
    }

    /// Binds anew, on top of the dead one, what shows the mount of a client that is gone while a new one is there. Pods with
    /// the propagation `HostToContainer` see it at once, others when they are restarted.
    pub(super) fn rebind(&self) {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(table) = table() else { return };
        for volume in volumes.values() {
            let (Some(source), Some(target)) = (top(&table, &volume.source), top(&table, &volume.target)) else {
                continue;
            };
            if source.device == target.device || !source.kind.starts_with("fuse") {
                continue;
            }
            match bind(&volume.shown(), &volume.target, volume.read_only) {
                Ok(()) => tracing::info!(target = %volume.target.display(), "bound to the client that came back"),
                Err(error) => tracing::warn!(target = %volume.target.display(), %error, "not bound again"),
            }
        }
    }
}
