//! Who this worker is: an id for life, the cluster its cache belongs to, and the number of its start.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{lock, random_id, write_durably};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    format: u32,
    id: String,
    /// Empty until the first master answers.
    cluster: String,
    epoch: u64,
}

/// The identity in the worker's directory, locked against a second process.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    stored: Mutex<Stored>,
    _lock: std::fs::File,
}

impl Identity {
    /// Reads or makes the identity, and counts this start.
    ///
    /// *Errors*: `Busy` when another worker uses the directory; `Corrupted` for a file that cannot be read.
    ///
    /// *Durability*: the new epoch is on disk before it is used.
    pub(super) fn open(dir: &Path) -> Result<Identity> {
        let at = |error: std::io::Error| Error::from(error).context(format!("storage.work-dir {}", dir.display()));
        std::fs::create_dir_all(dir).map_err(at)?;
        let lock =
            std::fs::File::options().create(true).truncate(false).write(true).open(dir.join("LOCK")).map_err(at)?;
        lock.try_lock().map_err(|_| {
            let message = format!("storage.work-dir {} is in use by another worker", dir.display());
            Error::new(ErrorKind::Busy, message)
        })?;
        let path = dir.join("worker.json");
        let mut stored = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let message = format!("{}: {error}: remove it, and the worker begins anew", path.display());
                Error::new(ErrorKind::Corrupted, message)
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let id = uuid::Uuid::from_bytes(random_id()).to_string();
                Stored { format: 1, id, cluster: String::new(), epoch: 0 }
            }
            Err(error) => return Err(at(error)),
        };
        if stored.format != 1 {
            let message = format!("{} has format {}; this release reads 1", path.display(), stored.format);
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        stored.epoch += 1;
        let identity = Identity { path, stored: Mutex::new(stored.clone()), _lock: lock };
        identity.write(&stored)?;
        Ok(identity)
    }

    fn write(&self, stored: &Stored) -> Result<()> {
        let text = serde_json::to_vec_pretty(stored).map_err(|error| Error::internal(error.to_string()))?;
        write_durably(&self.path, &text).map_err(|error| Error::from(error).context(self.path.display()))
    }

    fn get(&self) -> Stored {
        lock(&self.stored).clone()
    }

    pub(super) fn id(&self) -> String {
        self.get().id
    }

    pub(super) fn epoch(&self) -> u64 {
        self.get().epoch
    }

    /// Bytes of the cluster's uuid; empty before it is known.
    pub(super) fn cluster(&self) -> Vec<u8> {
        uuid::Uuid::parse_str(&self.get().cluster).map(|uuid| uuid.as_bytes().to_vec()).unwrap_or_default()
    }

    /// Binds the cache to a cluster for good.
    pub(super) fn set_cluster(&self, uuid: &[u8]) -> Result<()> {
        if self.cluster() == uuid {
            return Ok(());
        }
        let uuid =
            uuid::Uuid::from_slice(uuid).map_err(|error| Error::internal(format!("a cluster's uuid: {error}")))?;
        let mut stored = self.get();
        stored.cluster = uuid.to_string();
        self.write(&stored)?;
        *lock(&self.stored) = stored;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_higher_epoch_and_the_same_id() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = Identity::open(dir.path()).expect("open");
        assert_eq!(Identity::open(dir.path()).expect_err("in use").kind, ErrorKind::Busy);
        first.set_cluster(&[7; 16]).expect("bound");
        let (id, epoch) = (first.id(), first.epoch());
        drop(first);
        let second = Identity::open(dir.path()).expect("open");
        assert_eq!((second.id(), second.epoch(), second.cluster()), (id, epoch + 1, vec![7; 16]));
    }
}
