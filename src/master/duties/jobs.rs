//! Load jobs: walk a tree and have workers fill every file. A job is in the log until it has ended; a new leader starts
//! it anew, and what is cached already costs it nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Command, FinishJob};
use jindofs_proto::v1::{Attr, FileSource, FileType, JobInfo, JobState, Target, WorkerInfo, target};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::master::service::Parts;
use crate::master::state::query;
use crate::rpc::remote::Remotes;
use crate::runtime::Shutdown;
use crate::runtime::attended::AttendedClock;
use crate::types::placement::{piece_end, piece_of, rank};

const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Files filled at the same time.
const FILES: usize = 8;
/// Blocks asked for in one call: progress is counted after each.
const BLOCKS: u64 = 8;
/// Workers tried for one piece.
const WORKERS: usize = 3;
/// Versions of one file that are followed while others overwrite it.
const NEWER_MAX: usize = 3;

pub(super) async fn run(parts: Parts, stop: Shutdown) {
    let filler = Arc::new(Filler { parts: parts.clone(), remotes: Remotes::default() });
    let mut running: HashMap<u64, JoinHandle<()>> = HashMap::new();
    while !stop.is_cancelled() {
        let due = due(&parts);
        running.retain(|id, task| {
            let keep = due.iter().any(|job| job.id == *id) && !task.is_finished();
            if !keep {
                task.abort();
                parts.progress.forget(*id);
            }
            keep
        });
        for job in due {
            running.entry(job.id).or_insert_with(|| tokio::spawn(load(filler.clone(), job)));
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(POLL_INTERVAL) => {} }
    }
    running.into_values().for_each(|task| task.abort());
}

/// Jobs this master should be running.
fn due(parts: &Parts) -> Vec<JobInfo> {
    let Some(store) = parts.handle.store().filter(|_| parts.handle.is_leader()) else { return Vec::new() };
    match query::jobs(&store.view()).map_err(Error::from) {
        Ok(jobs) => jobs.into_iter().filter(|job| job.state() == JobState::Running).collect(),
        Err(error) => {
            tracing::error!(%error, "jobs cannot be read");
            Vec::new()
        }
    }
}

/// A file to be cached.
struct File {
    /// In the namespace.
    path: Vec<u8>,
    attr: Attr,
    source: FileSource,
}

struct Filler {
    parts: Parts,
    remotes: Remotes,
}

async fn load(filler: Arc<Filler>, job: JobInfo) {
    let (id, progress) = (job.id, &filler.parts.progress);
    progress.update(id, |count| *count = JobInfo::default());
    let capacity = filler.capacity();
    let (found, files) = mpsc::channel(1000);
    let walk = filler.walk(&job, found);
    let fill = tokio_stream::wrappers::ReceiverStream::new(files).for_each_concurrent(FILES, |file| {
        let filler = filler.clone();
        async move { filler.file(id, file).await }
    });
    let (walked, ()) = tokio::join!(walk, fill);
    let mut reached = progress.of(JobInfo { id, ..JobInfo::default() });
    if let Err(error) = walked {
        reached.files_failed += 1;
        reached.message = error.message;
    }
    let too_much = filler.exceeds_cache(reached.bytes_total, capacity);
    let state = if reached.files_failed == 0 && too_much.is_none() { JobState::Done } else { JobState::Failed };
    // What does not fit may explain failures too: files were in each other's way.
    reached.message = match too_much {
        Some(too_much) if reached.files_failed > 0 => format!("{}; {too_much}", reached.message),
        too_much => too_much.unwrap_or(reached.message),
    };
    let finish = FinishJob {
        id,
        state: state.into(),
        message: reached.message,
        files_done: reached.files_done,
        bytes_done: reached.bytes_done,
        files_failed: reached.files_failed,
    };
    let command = Command { command: Some(Kind::FinishJob(finish)), ..Command::default() };
    if let Err(error) = filler.parts.handle.propose(command).await {
        tracing::info!(id, %error, "the end of a job is not recorded: the next leader starts it again");
    }
}

impl Filler {
    /// Sends every file below the job's path, counting it first.
    async fn walk(&self, job: &JobInfo, found: mpsc::Sender<File>) -> Result<()> {
        let at = |error: Error, path: &[u8]| error.context(String::from_utf8_lossy(path));
        let top = Target { target: Some(target::Target::Path(job.path.clone())) };
        let top = self.parts.metadata.lookup(&top).await.map_err(|error| at(error, &job.path))?;
        let mut directories = Vec::new();
        self.found(job.id, job.path.to_vec(), top, &mut directories, &found).await?;
        while let Some((inode, path)) = directories.pop() {
            self.list(job.id, inode, &path, &mut directories, &found).await.map_err(|error| at(error, &path))?;
        }
        Ok(())
    }

    /// Sends the files of one directory.
    async fn list(
        &self,
        id: u64,
        inode: u64,
        path: &[u8],
        directories: &mut Vec<(u64, Vec<u8>)>,
        found: &mpsc::Sender<File>,
    ) -> Result<()> {
        let directory = Target { target: Some(target::Target::Inode(inode)) };
        let mut after = Bytes::new();
        loop {
            let page = self.parts.metadata.list(&directory, &after, 0).await?;
            after = page.entries.last().map(|last| last.name.clone()).unwrap_or_default();
            for entry in page.entries {
                let parent = path.strip_suffix(b"/").unwrap_or(path);
                let path = [parent, &b"/"[..], &entry.name[..]].concat();
                self.found(id, path, entry.attr.unwrap_or_default(), directories, found).await?;
            }
            if page.end || after.is_empty() {
                return Ok(());
            }
        }
    }

    async fn found(
        &self,
        id: u64,
        path: Vec<u8>,
        attr: Attr,
        directories: &mut Vec<(u64, Vec<u8>)>,
        found: &mpsc::Sender<File>,
    ) -> Result<()> {
        match attr.r#type() {
            FileType::Directory => directories.push((attr.inode, path)),
            FileType::File => {
                let (attr, source) = match self.parts.metadata.layout(attr.inode).await {
                    Ok((attr, Some(source))) => (attr, source),
                    // Outside any mount there is nothing to fetch, and a file that was removed meanwhile is not missed.
                    Ok((_, None)) => return Ok(()),
                    Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(error.context(String::from_utf8_lossy(&path))),
                };
                self.parts.progress.update(id, |count| {
                    count.files_total += 1;
                    count.bytes_total = count.bytes_total.saturating_add(attr.size);
                });
                let file = File { path, attr, source };
                found.send(file).await.map_err(|_| Error::internal("the files of a job are not taken"))?;
            }
            FileType::Symlink | FileType::Unspecified => {}
        }
        Ok(())
    }

    /// Bytes that all workers together can cache; 0 if nobody knows.
    fn capacity(&self) -> u64 {
        let Some(store) = self.parts.handle.store() else { return 0 };
        let workers = query::workers(&store.view()).map(|workers| self.parts.workers.staying(&workers));
        let bytes = workers.unwrap_or_default().into_iter().map(|worker| worker.capacity_bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// Why `bytes` could not all be cached at a time; `None` if they could. `before` is the capacity that there was when the job began:
    /// a worker that is silent or drained when it ends has done its part.
    fn exceeds_cache(&self, bytes: u64, before: u64) -> Option<String> {
        let capacity = self.capacity().max(before);
        let least_used = "what was used least recently was removed for the rest";
        (bytes > capacity && capacity > 0).then(|| {
            format!("{bytes} bytes are larger than the cache of all workers together, {capacity} bytes: {least_used}")
        })
    }

    async fn file(&self, id: u64, file: File) {
        let File { path, mut attr, mut source } = file;
        let (mut at, mut newer_left) = (0, NEWER_MAX);
        while at < attr.size {
            let block = u64::from(source.block_size.max(1));
            let end = piece_end(attr.size, at).min(at + BLOCKS * block);
            if let Err(error) = self.range(&source, at, end).await {
                if error.kind == ErrorKind::Stale && newer_left > 0 {
                    match self.newer(id, &attr, &source, at).await {
                        Ok(Some(newer)) => {
                            (attr, source) = newer;
                            (at, newer_left) = (0, newer_left - 1);
                            continue;
                        }
                        Ok(None) => return,
                        Err(error) => {
                            let path = String::from_utf8_lossy(&path);
                            tracing::info!(id, %path, %error, "no newer version is found");
                        }
                    }
                }
                let path = String::from_utf8_lossy(&path).into_owned();
                tracing::warn!(id, path, %error, "a file could not be loaded");
                self.parts.progress.update(id, |count| {
                    count.files_failed += 1;
                    count.message = error.context(path).message;
                });
                return;
            }
            self.parts.progress.update(id, |count| count.bytes_done += end - at);
            at = end;
        }
        self.parts.progress.update(id, |count| count.files_done += 1);
    }

    /// The version of a file that is in the place of one which was not found, of which `done` bytes were cached; `None` when the
    /// file is gone: then it is not missed.
    ///
    /// *Errors*: when the version on record is still the newest.
    async fn newer(&self, id: u64, attr: &Attr, source: &FileSource, done: u64) -> Result<Option<(Attr, FileSource)>> {
        let metadata = &self.parts.metadata;
        let looked = metadata.look_for_missing(attr.inode, &source.version_token).await;
        let newer = match looked.and(metadata.layout(attr.inode).await) {
            Ok((newer, Some(found))) if found.version != source.version => Some((newer, found)),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Ok(_) => return Err(Error::new(ErrorKind::Stale, "the version on record is not in the under-storage")),
            Err(error) => return Err(error),
        };
        let size = newer.as_ref().map(|(newer, _)| newer.size);
        self.parts.progress.update(id, |count| {
            count.files_total = count.files_total.saturating_sub(u64::from(size.is_none()));
            count.bytes_total = count.bytes_total.saturating_sub(attr.size).saturating_add(size.unwrap_or(0));
            count.bytes_done = count.bytes_done.saturating_sub(done);
        });
        Ok(newer)
    }

    /// Fills bytes of one piece, on the worker that readers will ask first. Deadlines that passed while this process
    /// stood still do not count: the workers may have answered meanwhile.
    async fn range(&self, source: &FileSource, start: u64, end: u64) -> Result<()> {
        let clock = AttendedClock::of_process();
        loop {
            let pauses = clock.pauses();
            match self.fill_from_any(source, start, end).await {
                Err(error) if error.is_retryable() && clock.pauses() != pauses => {
                    tracing::info!(%error, "blocks are asked for again after a pause of this process");
                }
                outcome => return outcome,
            }
        }
    }

    async fn fill_from_any(&self, source: &FileSource, start: u64, end: u64) -> Result<()> {
        let store = self.parts.handle.store().ok_or_else(|| self.parts.handle.not_leader())?;
        let workers = self.parts.workers.staying(&query::workers(&store.view())?);
        let ranked = rank(&workers, |worker| &worker.id, source.file_id, piece_of(source.length, start));
        let mut last = Error::unavailable("no worker lives");
        for worker in ranked.into_iter().take(WORKERS) {
            match self.ask(worker, source, start, end).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error.context(format!("worker {}", worker.id)),
            }
        }
        Err(last)
    }

    async fn ask(&self, worker: &WorkerInfo, source: &FileSource, start: u64, end: u64) -> Result<()> {
        let block = u64::from(source.block_size.max(1));
        let first = u32::try_from(start / block).unwrap_or(u32::MAX);
        let count = u32::try_from(end.div_ceil(block) - start / block).unwrap_or(u32::MAX);
        let filled = self.remotes.fill(worker, source, first, count).await?;
        if filled.cached_bytes < end - start {
            let (length, capacity) = (source.length, worker.capacity_bytes);
            let why = if length > capacity {
                format!("the file has {length} bytes, its cache {capacity}")
            } else {
                "its cache is full of files that are open".to_owned()
            };
            return Err(Error::new(ErrorKind::NoSpace, why));
        }
        Ok(())
    }
}
