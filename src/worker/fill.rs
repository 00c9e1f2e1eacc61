//! Fills the cache from the under-storage, or from a worker that is being drained. Concurrent requests for one block
//! share one fetch.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, StreamExt, TryStreamExt};
use jindofs_proto::v1::FileSource;
use metrics::counter;
use tokio::sync::Semaphore;

use super::draining_peers::DrainingPeers;
use super::mounts::Mounts;
use super::store::{BlockFile, Key, Presence, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::{failpoint_io, lock};
use crate::ufs;

/// Most concurrent fetches, each with one block in memory.
const FETCHES: usize = 32;
/// Most blocks of one request that are fetched concurrently.
const AHEAD: usize = 4;

/// Outcome of a fill.
#[derive(Debug, Clone)]
pub(super) enum Filled {
    /// The block is in the cache; the number of bytes fetched for that.
    Cached(u64),
    /// The cache has no room for the block: its bytes.
    Passed(Bytes),
}

type FillTask = Shared<BoxFuture<'static, Result<Filled>>>;

/// Fills blocks of cached files.
pub(super) struct Filler {
    pub(super) store: Arc<Store>,
    mounts: Arc<Mounts>,
    draining: Arc<DrainingPeers>,
    storage: ufs::Registry,
    permits: Semaphore,
    running: Mutex<HashMap<(Key, usize), FillTask>>,
}

impl Filler {
    pub(super) fn new(store: Arc<Store>, mounts: Arc<Mounts>, draining: Arc<DrainingPeers>) -> Filler {
        Filler {
            store,
            mounts,
            draining,
            storage: ufs::Registry::default(),
            permits: Semaphore::new(FETCHES),
            running: Mutex::default(),
        }
    }

    /// Makes one block present, or returns its bytes. A fill continues when its waiters give up.
    ///
    /// *Errors*: `Stale` if the object has another version; those of the under-storage.
    pub(super) async fn block(
        self: &Arc<Self>,
        file: &Arc<BlockFile>,
        source: &FileSource,
        block: usize,
    ) -> Result<Filled> {
        if file.presence(block) == Presence::Present {
            return Ok(Filled::Cached(0));
        }
        let key = (file.key(), block);
        let running = {
            let mut all = lock(&self.running);
            all.entry(key).or_insert_with(|| self.start(key, file.clone(), source.clone())).clone()
        };
        running.await
    }

    /// Makes blocks present, and returns the number of bytes fetched.
    ///
    /// *Errors*: as [`Filler::block`]; `NoSpace` if there is no room.
    pub(super) async fn ensure(
        self: &Arc<Self>,
        file: &Arc<BlockFile>,
        source: &FileSource,
        blocks: Range<usize>,
    ) -> Result<u64> {
        let fills = futures::stream::iter(blocks).map(|block| self.block(file, source, block)).buffered(AHEAD);
        let add = |sum: u64, filled| async move {
            match filled {
                Filled::Cached(fetched) => Ok(sum + fetched),
                Filled::Passed(_) => Err(self.no_room()),
            }
        };
        fills.try_fold(0, add).await
    }

    fn no_room(&self) -> Error {
        let leaves = self.draining.is_own();
        let why = if leaves { "this worker is being drained" } else { "the cache is full of files that are open" };
        Error::new(ErrorKind::NoSpace, why)
    }

    /// True if the block is present and its checksum is right. Fetches nothing.
    ///
    /// *Errors*: those of the disk.
    pub(super) async fn holds(&self, file: &Arc<BlockFile>, block: usize) -> Result<bool> {
        match file.presence(block) {
            Presence::Present => Ok(true),
            Presence::Found => self.verify(file, block).await,
            Presence::Absent => Ok(false),
        }
    }

    fn start(self: &Arc<Self>, key: (Key, usize), file: Arc<BlockFile>, source: FileSource) -> FillTask {
        let this = self.clone();
        let task = tokio::spawn(async move {
            let done = this.run(&file, &source, key.1).await;
            lock(&this.running).remove(&key);
            done
        });
        let joined = task.map(|joined| joined.unwrap_or_else(|error| Err(Error::internal(format!("a fill: {error}")))));
        joined.boxed().shared()
    }

    async fn run(&self, file: &Arc<BlockFile>, source: &FileSource, block: usize) -> Result<Filled> {
        if self.holds(file, block).await? {
            return Ok(Filled::Cached(0));
        }
        let _permit = self.permits.acquire().await.map_err(|_| Error::internal("the worker stops"))?;
        let length = file.block_length(block);
        let reserved = if self.draining.is_own() { Err(self.no_room()) } else { self.store.reserve(file, length) };
        let start = BlockFile::block_start(block);
        let fetched = match self.draining.pull(source, start, length).await {
            Some(data) => Ok(data),
            None => self.fetch(source, start, length).await,
        };
        let data = match (fetched, &reserved) {
            (Ok(data), _) => data,
            (Err(error), Ok(())) => {
                file.release(length);
                return Err(error);
            }
            (Err(error), Err(_)) => return Err(error),
        };
        if reserved.is_err() {
            counter!("jindofs_worker_passed_bytes_total").increment(length);
            return Ok(Filled::Passed(data));
        }
        let (target, bytes) = (file.clone(), data.clone());
        let stored = blocking(move || failpoint_io("worker.fill").and_then(|_| target.fill(block, &bytes))).await;
        match stored {
            Ok(()) => {
                self.store.note(file.key());
                Ok(Filled::Cached(length))
            }
            // A full or broken disk makes reads slow, but not wrong.
            Err(error) => {
                tracing::warn!(%error, block, "block not stored, it is passed on");
                file.release(length);
                Ok(Filled::Passed(data))
            }
        }
    }

    /// Verifies the checksum of a block that was found at the start.
    async fn verify(&self, file: &Arc<BlockFile>, block: usize) -> Result<bool> {
        let target = file.clone();
        let good = blocking(move || target.read_verified(block)).await?.is_some();
        if !good {
            self.store.note(file.key());
        }
        Ok(good)
    }

    async fn fetch(&self, source: &FileSource, offset: u64, length: u64) -> Result<Bytes> {
        let mount = self.mounts.get(source.mount_id).await?;
        let storage = self.storage.open(&mount.ufs_uri, &mount.options)?;
        counter!("jindofs_worker_ufs_reads_total").increment(1);
        let data = storage.read(&source.ufs_path, &source.version_token, offset, length).await?;
        counter!("jindofs_worker_ufs_read_bytes_total").increment(data.len() as u64);
        if data.len() as u64 != length {
            let message = format!("the under-storage gave {} bytes of {length} at {offset}", data.len());
            return Err(Error::new(ErrorKind::UnderStorage, message));
        }
        Ok(data)
    }
}

/// Runs disk access off the threads of the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| Error::internal(format!("a disk task: {error}")))??)
}
