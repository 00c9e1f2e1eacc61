//! One directory of the cache with its quota.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jindofs_proto::v1::TierStatus;

use super::file::BlockFile;
use super::index::{self, Header};
use crate::config::{Medium, TierConfig};
use crate::error::{Error, ErrorKind, Result};

/// Subdirectory of everything cached; its name carries the format.
const FILES: &str = "blocks-1";

/// A cache level on one path, locked against other workers.
#[derive(Debug)]
pub(in crate::worker) struct Tier {
    config: TierConfig,
    used: AtomicU64,
    _lock: File,
}

impl Tier {
    pub(super) fn open(config: TierConfig) -> Result<Tier> {
        let at =
            |error: std::io::Error| Error::from(error).context(format!("cache directory {}", config.path.display()));
        let files = config.path.join(FILES);
        std::fs::create_dir_all(&files).map_err(at)?;
        for shard in 0..=u8::MAX {
            match std::fs::create_dir(files.join(format!("{shard:02x}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(at(error)),
                _ => {}
            }
        }
        let lock =
            File::options().create(true).truncate(false).write(true).open(config.path.join("LOCK")).map_err(at)?;
        lock.try_lock().map_err(|_| {
            Error::new(
                ErrorKind::Busy,
                format!("cache directory {} is in use by another worker", config.path.display()),
            )
        })?;
        Ok(Tier { config, used: AtomicU64::new(0), _lock: lock })
    }

    /// Every whole file found; what is damaged or half made is removed.
    pub(super) fn scan(self: &Arc<Self>) -> Result<Vec<BlockFile>> {
        let mut found = Vec::new();
        let at = |error: std::io::Error| {
            Error::from(error).context(format!("cache directory {}", self.config.path.display()))
        };
        for shard in std::fs::read_dir(self.config.path.join(FILES)).map_err(at)? {
            for item in std::fs::read_dir(shard.map_err(at)?.path()).map_err(at)? {
                let path = item.map_err(at)?.path();
                if path.extension().is_some_and(|extension| extension == "idx") {
                    let data = path.with_extension("");
                    match index::read(&path).map_err(at)? {
                        Some((header, blocks)) if self.data_path(&header) == data && data.exists() => {
                            found.push(BlockFile::found(self.clone(), header, blocks));
                        }
                        _ => {
                            tracing::warn!(path = %path.display(), "damaged cache file removed");
                            remove(&path);
                            remove(&data);
                        }
                    }
                } else if !index_path(&path).exists() {
                    remove(&path);
                }
            }
        }
        Ok(found)
    }

    /// An empty file.
    pub(super) fn create(self: &Arc<Self>, header: Header) -> Result<BlockFile> {
        let path = self.data_path(&header);
        let made = (|| {
            File::options().create(true).truncate(true).write(true).open(&path)?.set_len(header.length)?;
            index::create(&index_path(&path), &header)
        })();
        made.map_err(|error| Error::from(error).context(path.display()))?;
        Ok(BlockFile::found(self.clone(), header, vec![None; header.blocks()]))
    }

    pub(super) fn data_path(&self, header: &Header) -> PathBuf {
        let shard = header.file_id.to_le_bytes()[0];
        self.config.path.join(FILES).join(format!("{shard:02x}/{:016x}-{:016x}", header.file_id, header.version))
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn quota(&self) -> u64 {
        self.config.quota_bytes
    }

    pub(super) fn high(&self) -> u64 {
        share(self.quota(), self.config.high_percent)
    }

    pub(super) fn low(&self) -> u64 {
        share(self.quota(), self.config.low_percent)
    }

    /// Takes `bytes` of the quota.
    pub(super) fn reserve(&self, bytes: u64) -> Result<()> {
        let take = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.quota());
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(used) => Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "cache {}: {used} of {} bytes are held by open files",
                    self.config.path.display(),
                    self.quota()
                ),
            )),
        }
    }

    /// Takes what was there when the worker started: the quota may have shrunk since.
    pub(super) fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn status(&self) -> TierStatus {
        let medium = match self.config.medium {
            Medium::Mem => "MEM",
            Medium::Ssd => "SSD",
            Medium::Hdd => "HDD",
        };
        TierStatus {
            medium: medium.to_owned(),
            path: self.config.path.display().to_string(),
            quota_bytes: self.quota(),
            used_bytes: self.used(),
            files: 0,
        }
    }
}

fn share(quota: u64, percent: u8) -> u64 {
    // Split so that neither small quotas round to nothing nor large ones overflow.
    quota / 100 * u64::from(percent) + quota % 100 * u64::from(percent) / 100
}

/// Path of the side record.
pub(super) fn index_path(data: &Path) -> PathBuf {
    data.with_extension("idx")
}

/// Removes a file; that it is gone already is as good.
pub(super) fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cache file not removed");
        }
        _ => {}
    }
}
