//! The cache on this host: one sparse file per file version, filled block by block in any order, each block with a
//! checksum in a side record. Quotas bound it, least recently used files make room, open files stay.

mod demand;
mod file;
mod index;
mod tier;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use jindofs_proto::v1::{CachedFile, FileSource, TierStatus, WorkerInfo};
use metrics::{counter, gauge};

use crate::config::TierConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;
use crate::types::BLOCK_SIZE;

use demand::Demand;
pub(super) use file::{BlockFile, Presence};
use index::Header;
use tier::Tier;

/// A file version: inode and hash of its version token.
pub(super) type Key = (u64, u64);

/// Longest file that can be cached, bytes: 16 TiB.
const LENGTH_MAX: u64 = 16 << 40;

/// Every cached file of this worker.
#[derive(Debug)]
pub(super) struct Store {
    tiers: Vec<Arc<Tier>>,
    files: Mutex<HashMap<Key, Arc<BlockFile>>>,
    /// Advanced by each use; orders files for eviction.
    clock: AtomicU64,
    /// Files whose totals changed since they were last asked for.
    changed: Mutex<HashSet<Key>>,
    /// What readers ask for.
    pub(super) demand: Demand,
}

impl Store {
    /// Opens every tier and finds what is cached in it. Halves and strangers are removed.
    ///
    /// *Errors*: names the directory that cannot be used, or is used by another worker.
    pub(super) fn open(tiers: Vec<TierConfig>) -> Result<Store> {
        let mut files = HashMap::new();
        let mut opened = Vec::new();
        for config in tiers {
            let tier = Arc::new(Tier::open(config)?);
            for file in tier.scan()? {
                // A copy on a faster tier wins.
                match files.entry(file.key()) {
                    Entry::Occupied(_) => file.remove(),
                    Entry::Vacant(free) => drop(free.insert(Arc::new(file))),
                }
            }
            opened.push(tier);
        }
        let store = Store {
            tiers: opened,
            files: Mutex::new(files),
            clock: AtomicU64::new(1),
            changed: Mutex::default(),
            demand: Demand::default(),
        };
        store.gauges();
        Ok(store)
    }

    fn files(&self) -> MutexGuard<'_, HashMap<Key, Arc<BlockFile>>> {
        lock(&self.files)
    }

    /// The file of a source, made if it is not there. Files that are held are not evicted.
    ///
    /// *Errors*: `InvalidArgument` for a source that cannot be; `NoSpace` when no tier could ever hold one block of it.
    pub(super) fn get_or_create(&self, source: &FileSource) -> Result<Arc<BlockFile>> {
        let key = check(source)?;
        let header = Header { file_id: key.0, version: key.1, length: source.length, mount_id: source.mount_id };
        // Files are made and removed under the lock: two makers, or a maker and an eviction, would share a path.
        let file = match self.files().entry(key) {
            Entry::Occupied(found) => found.get().clone(),
            Entry::Vacant(free) => {
                let made = self.choose(source.length).create(header)?;
                free.insert(Arc::new(made)).clone()
            }
        };
        if file.length() != source.length {
            let message = format!("file {} has {} bytes here and {} there", key.0, file.length(), source.length);
            return Err(Error::new(ErrorKind::Stale, message));
        }
        self.touch(&file);
        Ok(file)
    }

    /// The file, if something is cached of it.
    pub(super) fn get(&self, key: Key) -> Option<Arc<BlockFile>> {
        self.files().get(&key).cloned()
    }

    /// True if there is room for `bytes` of a file without taking that of others.
    pub(super) fn has_room(&self, file: &BlockFile, bytes: u64) -> bool {
        let tier = file.tier();
        tier.used() + bytes <= tier.high()
    }

    /// The fastest tier with room for the whole file, else the largest one, which makes room.
    fn choose(&self, length: u64) -> &Arc<Tier> {
        let roomy = self.tiers.iter().find(|tier| tier.used() + length <= tier.high());
        let largest = || self.tiers.iter().max_by_key(|tier| tier.quota());
        roomy.or_else(largest).unwrap_or(&self.tiers[0])
    }

    fn touch(&self, file: &BlockFile) {
        file.touch(self.clock.fetch_add(1, Ordering::Relaxed));
    }

    /// Room for `bytes` of a file, if need be that of others.
    ///
    /// *Errors*: `NoSpace` when files that are open take all of it.
    pub(super) fn reserve(&self, file: &BlockFile, bytes: u64) -> Result<()> {
        let tier = file.tier();
        if !self.has_room(file, bytes) {
            self.evict(tier, bytes);
        }
        tier.reserve(bytes)
    }

    /// Removes files nobody holds, least recently used first, until the tier is at its low watermark.
    fn evict(&self, tier: &Arc<Tier>, bytes: u64) {
        let mut evicted = 0;
        {
            let mut files = self.files();
            let free = |file: &Arc<BlockFile>| Arc::ptr_eq(file.tier(), tier) && Arc::strong_count(file) == 1;
            let mut idle: Vec<(u64, Key, u64)> = files
                .values()
                .filter(|file| free(file))
                .map(|file| (file.used_at(), file.key(), file.cached()))
                .collect();
            idle.sort_unstable();
            let target = tier.low().saturating_sub(bytes);
            let mut used = tier.used();
            for (_, key, cached) in idle {
                if used <= target {
                    break;
                }
                used = used.saturating_sub(cached);
                if let Some(victim) = files.remove(&key) {
                    victim.remove();
                    self.note(key);
                    evicted += 1;
                }
            }
        }
        counter!("jindofs_worker_evicted_files_total").increment(evicted);
        self.gauges();
    }

    /// A file's totals changed.
    pub(super) fn note(&self, key: Key) {
        lock(&self.changed).insert(key);
    }

    /// Totals of the files that changed since the last call; 0 bytes for those that left.
    pub(super) fn take_changed(&self) -> Vec<CachedFile> {
        let changed = std::mem::take(&mut *lock(&self.changed));
        let files = self.files();
        let gone = |key: Key| CachedFile { file_id: key.0, version: key.1, ..CachedFile::default() };
        changed.into_iter().map(|key| files.get(&key).map_or_else(|| gone(key), |file| file.totals())).collect()
    }

    /// Totals of every file of which something is cached.
    pub(super) fn all(&self) -> Vec<CachedFile> {
        self.files().values().map(|file| file.totals()).filter(|file| file.cached_bytes > 0).collect()
    }

    /// Bytes all tiers together may use.
    pub(super) fn capacity(&self) -> u64 {
        self.tiers.iter().map(|tier| tier.quota()).sum()
    }

    /// A worker with its totals as they are now.
    pub(super) fn totals(&self, info: &WorkerInfo) -> WorkerInfo {
        WorkerInfo {
            used_bytes: self.used(),
            read_bytes: self.demand.read(),
            missed_bytes: self.demand.missed(),
            ..info.clone()
        }
    }

    /// Bytes cached.
    pub(super) fn used(&self) -> u64 {
        self.tiers.iter().map(|tier| tier.used()).sum()
    }

    /// Number of files.
    pub(super) fn count(&self) -> usize {
        self.files().len()
    }

    /// Each tier, for status.
    pub(super) fn tiers(&self) -> Vec<TierStatus> {
        let files = self.files();
        let count = |tier: &Arc<Tier>| files.values().filter(|file| Arc::ptr_eq(file.tier(), tier)).count() as u64;
        self.tiers.iter().map(|tier| TierStatus { files: count(tier), ..tier.status() }).collect()
    }

    fn gauges(&self) {
        for tier in &self.tiers {
            let status = tier.status();
            let labels = [("medium", status.medium), ("path", status.path)];
            #[allow(clippy::cast_precision_loss)]
            gauge!("jindofs_worker_tier_used_bytes", &labels).set(status.used_bytes as f64);
        }
    }
}

/// A source comes from the network: what it says must make sense before a file is made of it.
fn check(source: &FileSource) -> Result<Key> {
    if source.block_size != BLOCK_SIZE {
        let message = format!("blocks of {} bytes: this worker keeps blocks of {BLOCK_SIZE}", source.block_size);
        return Err(Error::invalid(message));
    }
    if source.length == 0 || source.length > LENGTH_MAX {
        return Err(Error::invalid(format!("a file of {} bytes: 1 to {LENGTH_MAX} can be cached", source.length)));
    }
    if source.version != crate::types::version_of(&source.version_token) {
        return Err(Error::invalid("the version does not belong to the version token"));
    }
    Ok((source.file_id, source.version))
}

#[cfg(test)]
mod tests;
