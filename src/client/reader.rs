//! Reading file content: from the worker on this host, from a worker elsewhere, or straight from the under-storage.
//!
//! *Promises.* Bytes are those of exactly the version in the source, or the read fails. A worker that fails is replaced
//! by the next and in the end by the under-storage itself: a read fails only when that does not answer either. Masters
//! are asked for the list of workers when there is none yet, otherwise not at all.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use jindofs_proto::v1::{FileSource, LayoutRequest, Mount, WorkerInfo};
use lru::LruCache;
use metrics::{Counter, counter};

use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::{MasterChannel, block};
use crate::rpc::remote::Remotes;
use crate::runtime::{lock, read_lock, write_lock};
use crate::types::placement::{piece_end, piece_of};

use super::local::{LocalFile, Locals};
use super::mounts::Mounts;
use super::workers::Workers;
use crate::ufs::{Registry, Space};

/// Workers asked for one piece before the under-storage itself.
const WORKERS_MAX: usize = 3;
/// Files kept open after their last close, so that the next open costs nothing.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// How long such a file stays open: its lease keeps the worker from evicting it.
const IDLE: Duration = Duration::from_secs(30);
/// How long opening a file waits for the worker to say what it has.
const LOCAL_OPEN_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the first list of workers may take before reads go to the under-storage.
const FIRST_LIST: Duration = Duration::from_secs(2);
/// How long the masters may take to look for a version that was not found.
const REPORT: Duration = Duration::from_secs(5);

/// The data path of one client process.
pub struct Reader {
    channel: MasterChannel,
    workers: Arc<Workers>,
    mounts: Arc<Mounts>,
    locals: Locals,
    remotes: Remotes,
    storage: Option<Registry>,
    files: Mutex<LruCache<(u64, u64), Arc<OpenFile>>>,
    meters: Meters,
}

/// Bytes read, by the way they came.
struct Meters {
    local: Counter,
    grpc: Counter,
    direct: Counter,
}

/// One version of one file, shared by all its readers.
#[derive(Debug)]
pub struct OpenFile {
    /// What is read.
    pub source: FileSource,
    locals: RwLock<Vec<Arc<LocalFile>>>,
    used: Mutex<Instant>,
}

impl OpenFile {
    /// Gives the bytes to `take` if they are here already: no waiting, no copy. The range must lie within the file.
    pub fn with_local<R>(&self, offset: u64, length: u64, take: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let locals = read_lock(&self.locals);
        let file = locals.iter().find(|file| file.holds(offset, length))?;
        file.with(offset, length, take)
    }

    /// True if all of it is on this host: nothing is gained by asking for more ahead.
    pub fn is_local(&self) -> bool {
        read_lock(&self.locals).iter().any(|file| file.is_complete())
    }

    fn local_of(&self, worker: &str) -> Option<Arc<LocalFile>> {
        let locals = read_lock(&self.locals);
        locals.iter().find(|file| file.worker() == worker && file.is_alive()).cloned()
    }

    fn add_local(&self, file: Arc<LocalFile>) {
        let mut locals = write_lock(&self.locals);
        locals.retain(|known| known.is_alive() && known.worker() != file.worker());
        locals.push(file);
    }

    fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }
}

impl Reader {
    /// A reader over the workers the masters name. Without a `storage` of its own it fails when every worker does.
    pub fn new(channel: MasterChannel, mounts: Arc<Mounts>, storage: Option<Registry>) -> Arc<Reader> {
        let bytes = |transport| counter!("jindofs_client_read_bytes_total", "transport" => transport);
        Arc::new(Reader {
            workers: Workers::new(channel.clone()),
            channel,
            mounts,
            locals: Locals::default(),
            remotes: Remotes::default(),
            storage,
            files: Mutex::new(LruCache::sparse(OPEN_FILES)),
            meters: Meters { local: bytes("fd"), grpc: bytes("grpc"), direct: bytes("ufs") },
        })
    }

    /// The workers this reader knows.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Opens one version of a file. Costs nothing: workers are asked by the first read.
    pub fn open(&self, source: FileSource) -> Arc<OpenFile> {
        let mut files = lock(&self.files);
        let key = (source.file_id, source.version);
        let fresh = || OpenFile { source, locals: RwLock::new(Vec::new()), used: Mutex::new(Instant::now()) };
        let file = files.get_or_insert(key, || Arc::new(fresh())).clone();
        file.touch();
        file
    }

    /// Forgets a version that turned out stale.
    pub fn forget(&self, source: &FileSource) {
        lock(&self.files).pop(&(source.file_id, source.version));
    }

    /// Lets go of files that nobody has read for a while, as long as the reader lives.
    pub fn start_tidying(self: &Arc<Self>) {
        tokio::spawn(tidy(Arc::downgrade(self)));
    }

    /// Counts bytes given out by [`OpenFile::with_local`].
    pub fn count_local(&self, bytes: u64) {
        self.meters.local.increment(bytes);
    }

    /// Reads up to `length` bytes from `offset`; fewer at the end of the file.
    ///
    /// *Errors*: `Stale` when the object was replaced or removed, which the masters know then; otherwise what the under-storage
    /// said after every worker failed.
    pub async fn read(&self, file: &OpenFile, offset: u64, length: u64) -> Result<Bytes> {
        let read = self.read_range(file, offset, length).await;
        if read.as_ref().is_err_and(|error| error.kind == ErrorKind::Stale) {
            self.report_missing(&file.source).await;
        }
        read
    }

    /// Has the masters look for what was not found: whoever opens the file again is told of what is there.
    async fn report_missing(&self, source: &FileSource) {
        if self.channel.failing_since().is_some() {
            return;
        }
        let request = LayoutRequest { inode: source.file_id, missing_token: source.version_token.clone() };
        let send = |to| {
            let request = request.clone();
            async move { block(to).layout(request).await }
        };
        match self.channel.with_timeout(REPORT).call_any("report a missing version", send).await {
            Err(error) if error.kind != ErrorKind::NotFound => {
                tracing::info!(inode = source.file_id, %error, "the masters do not look for a version that is missing");
            }
            _ => {}
        }
    }

    async fn read_range(&self, file: &OpenFile, offset: u64, length: u64) -> Result<Bytes> {
        let end = offset.saturating_add(length).min(file.source.length);
        let Some(wanted) = end.checked_sub(offset).filter(|wanted| *wanted > 0) else { return Ok(Bytes::new()) };
        if file.source.mount_id == 0 {
            // Outside any mount a file has a size at most, which it got by truncation: a hole.
            return Ok(Bytes::from(vec![0; usize::try_from(wanted).unwrap_or(0)]));
        }
        let first = piece_end(file.source.length, offset).min(end);
        let head = self.read_piece(file, offset, first - offset).await?;
        if first == end {
            return Ok(head);
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(wanted).unwrap_or(0));
        whole.extend_from_slice(&head);
        let mut at = first;
        while at < end {
            let next = piece_end(file.source.length, at).min(end);
            whole.extend_from_slice(&self.read_piece(file, at, next - at).await?);
            at = next;
        }
        Ok(whole.freeze())
    }

    /// Tries to make [`OpenFile::with_local`] answer for the range. True if it will.
    ///
    /// *Errors*: `Stale` when the object was replaced. Any other trouble only means false.
    pub async fn prepare(&self, file: &OpenFile, offset: u64, length: u64) -> Result<bool> {
        let end = offset.saturating_add(length).min(file.source.length);
        if file.source.mount_id == 0 || piece_end(file.source.length, offset) < end {
            return Ok(false);
        }
        let candidates = self.candidates(file, offset).await;
        let Some(best) = candidates.first().filter(|best| self.locals.is_local(best)) else { return Ok(false) };
        match self.ensure(file, best, offset, end - offset).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::Stale => Err(error),
            Err(error) => {
                tracing::debug!(%error, worker = best.id, "range not prepared");
                Ok(false)
            }
        }
    }

    /// Finds out what of a file the worker on this host has, if there is one; nothing is fetched. Trouble is left to reads.
    pub async fn look_local(&self, file: &OpenFile) {
        let Some(list) = self.workers.known().filter(|_| file.source.mount_id != 0) else { return };
        let candidates = Workers::candidates(&list, &self.workers.broken(), file.source.file_id, 0);
        let Some(best) = candidates.first().filter(|best| self.locals.is_local(best)) else { return };
        if let Ok(Err(error)) = tokio::time::timeout(LOCAL_OPEN_TIMEOUT, self.ensure(file, best, 0, 0)).await {
            tracing::debug!(%error, worker = best.id, "the file was not looked up");
        }
    }

    /// Asks workers to have a range ready before it is read. Failures are left to the read itself.
    pub async fn prefetch(&self, file: &OpenFile, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min(file.source.length);
        let block = u64::from(file.source.block_size.max(1));
        let mut at = offset;
        while at < end {
            let next = piece_end(file.source.length, at).min(end);
            let Some(best) = self.candidates(file, at).await.into_iter().next() else { return };
            let done = if self.locals.is_local(&best) {
                self.ensure(file, &best, at, next - at).await.map(drop)
            } else {
                let (from, to) = (at / block, next.div_ceil(block));
                let first = u32::try_from(from).unwrap_or(u32::MAX);
                let count = u32::try_from(to - from).unwrap_or(1);
                self.remotes.fill(&best, &file.source, first, count).await.map(drop)
            };
            if let Err(error) = done {
                tracing::debug!(%error, worker = best.id, "prefetch failed");
                return;
            }
            at = next;
        }
    }

    async fn candidates(&self, file: &OpenFile, offset: u64) -> Vec<WorkerInfo> {
        let list = match self.workers.known() {
            Some(list) => list,
            None => match tokio::time::timeout(FIRST_LIST, self.workers.all()).await {
                Ok(Ok(list)) => list,
                _ => return Vec::new(),
            },
        };
        let piece = piece_of(file.source.length, offset);
        Workers::candidates(&list, &self.workers.broken(), file.source.file_id, piece)
    }

    /// A range within one piece: worker after worker, then the under-storage.
    async fn read_piece(&self, file: &OpenFile, offset: u64, length: u64) -> Result<Bytes> {
        let mut said = Vec::new();
        for worker in self.candidates(file, offset).await.iter().take(WORKERS_MAX) {
            match self.by_worker(file, worker, offset, length).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if error.kind == ErrorKind::Stale => return Err(error),
                Err(error) => {
                    tracing::warn!(worker = worker.id, %error, "worker failed, the next source is asked");
                    self.workers.failed(&worker.id);
                    said.push(format!("worker {}: {error}", worker.id));
                }
            }
        }
        self.direct(&file.source, offset, length).await.map_err(|mut error| {
            said.push(format!("under-storage: {error}"));
            error.message = format!("file {} from {offset}: {}", file.source.file_id, said.join("; "));
            error
        })
    }

    async fn by_worker(&self, file: &OpenFile, worker: &WorkerInfo, offset: u64, length: u64) -> Result<Bytes> {
        if self.locals.is_local(worker) {
            match self.ensure(file, worker, offset, length).await {
                Ok(local) => {
                    if let Some(bytes) = local.with(offset, length, Bytes::copy_from_slice) {
                        self.meters.local.increment(length);
                        return Ok(bytes);
                    }
                }
                Err(error) if error.kind == ErrorKind::Stale => return Err(error),
                Err(error) => tracing::debug!(worker = worker.id, %error, "no descriptor, the stream is used"),
            }
        }
        let bytes = self.remotes.read(worker, &file.source, offset, length).await?;
        self.meters.grpc.increment(length);
        Ok(bytes)
    }

    /// Has the worker on this host fill a range of the file it passed us.
    async fn ensure(&self, file: &OpenFile, worker: &WorkerInfo, offset: u64, length: u64) -> Result<Arc<LocalFile>> {
        if let Some(local) = file.local_of(&worker.id) {
            local.ensure(offset, length).await?;
            return Ok(local);
        }
        let local = Arc::new(self.locals.open(worker, &file.source, offset, length).await?);
        file.add_local(local.clone());
        Ok(local)
    }

    /// Room of the under-storage of a mount, as this host sees it; `None` where nothing limits it, or we have no way to it.
    ///
    /// *Errors*: as [`crate::ufs::Ufs::space`].
    pub async fn space(&self, mount: &Mount) -> Result<Option<Space>> {
        match &self.storage {
            Some(storage) => storage.open(&mount.ufs_uri, &mount.options)?.space().await,
            None => Ok(None),
        }
    }

    async fn direct(&self, source: &FileSource, offset: u64, length: u64) -> Result<Bytes> {
        let storage = self.storage.as_ref().ok_or_else(|| Error::unavailable("this client has no way to read it"))?;
        let mount = self.mounts.get(source.mount_id).await?.ok_or_else(|| {
            Error::new(ErrorKind::Stale, format!("mount {} of the file does not exist any more", source.mount_id))
        })?;
        let storage = storage.open(&mount.ufs_uri, &mount.options)?;
        let bytes = storage.read(&source.ufs_path, &source.version_token, offset, length).await?;
        if bytes.len() as u64 != length {
            let message = format!("{} bytes came instead of {length}", bytes.len());
            return Err(Error::new(ErrorKind::UnderStorage, message));
        }
        self.meters.direct.increment(length);
        Ok(bytes)
    }
}

async fn tidy(reader: Weak<Reader>) {
    loop {
        tokio::time::sleep(IDLE / 3).await;
        let Some(reader) = reader.upgrade() else { return };
        let mut idle = Vec::new();
        {
            let mut files = lock(&reader.files);
            while let Some((_, file)) = files.peek_lru() {
                if lock(&file.used).elapsed() < IDLE {
                    break;
                }
                idle.extend(files.pop_lru());
            }
        }
        // Descriptors are closed outside the lock.
        drop(idle);
    }
}
