//! Workers on this host: their cache files by descriptor, over one connection to each.

mod file;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jindofs_proto::v1::local_request::Op;
use jindofs_proto::v1::{FileSource, LocalClose, LocalEnsure, LocalOpen, LocalReply, LocalRequest, WorkerInfo};
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::error::{Error, Result};
use crate::rpc::status::from_detail;
use crate::runtime::{host_name, lock};
use jindofs_packets::{PACKET_MAX, Packets};

use file::CacheFile;

/// Longest wait for a worker on this host; a cold block of a slow object store takes seconds.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a socket that could not be reached is not tried again.
const UNREACHABLE: Duration = Duration::from_secs(2);

/// A cache file this process reads through its descriptor. Its lease ends when it is dropped.
#[derive(Debug)]
pub struct LocalFile {
    link: Arc<Link>,
    worker: String,
    lease: u64,
    content: CacheFile,
}

impl LocalFile {
    /// Id of the worker it belongs to.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// False once the worker is gone: what is filled stays readable, nothing more will be.
    pub fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    /// True if the whole range is filled.
    pub fn holds(&self, offset: u64, length: u64) -> bool {
        self.content.holds(offset, length)
    }

    /// True if every block is filled.
    pub fn is_complete(&self) -> bool {
        self.content.is_complete()
    }

    /// Gives the bytes of a filled range to `take`; `None` when a part is not filled.
    pub fn with<R>(&self, offset: u64, length: u64, take: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.content.with(offset, length, take)
    }

    /// Has the worker fill a range.
    ///
    /// *Errors*: the worker's; `Unavailable` when it is gone.
    pub async fn ensure(&self, offset: u64, length: u64) -> Result<()> {
        if self.holds(offset, length) {
            return Ok(());
        }
        self.link.call(Op::Ensure(LocalEnsure { lease: self.lease, offset, length })).await?;
        self.content.note_range(offset, length);
        Ok(())
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        let link = self.link.clone();
        let request = LocalRequest { id: 0, op: Some(Op::Close(LocalClose { lease: self.lease })) };
        // Without a runtime the process is about to end, and every lease with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current().or_else(|_| link.runtime.clone().ok_or(())) {
            runtime.spawn(async move { link.packets.send(&request.encode_to_vec(), &[]).await });
        }
    }
}

/// Connections to the workers of this host, by socket.
#[derive(Debug, Default)]
pub struct Locals {
    links: Mutex<HashMap<String, Arc<Link>>>,
    unreachable: Mutex<HashMap<String, Instant>>,
}

impl Locals {
    /// True if the worker runs on this host and its socket could be reached lately.
    pub fn is_local(&self, worker: &WorkerInfo) -> bool {
        if worker.socket.is_empty() || worker.host != host_name() {
            return false;
        }
        let mut unreachable = lock(&self.unreachable);
        unreachable.retain(|_, since| since.elapsed() < UNREACHABLE);
        !unreachable.contains_key(&worker.socket)
    }

    /// Opens the cache file of a source with a range of it filled.
    ///
    /// *Errors*: the worker's; `Unavailable` when its socket does not answer.
    pub async fn open(&self, worker: &WorkerInfo, source: &FileSource, offset: u64, length: u64) -> Result<LocalFile> {
        let link = self.link(&worker.socket)?;
        let open = LocalOpen { source: Some(source.clone()), offset, length };
        let (reply, descriptor) = link.call(Op::Open(open)).await?;
        let descriptor = descriptor.ok_or_else(|| Error::internal("the worker passed no descriptor"))?;
        let content = CacheFile::new(descriptor, source.length, source.block_size)?;
        content.note_bitmap(&reply.present);
        content.note_range(offset, length);
        Ok(LocalFile { link, worker: worker.id.clone(), lease: reply.lease, content })
    }

    fn link(&self, socket: &str) -> Result<Arc<Link>> {
        let mut links = lock(&self.links);
        if let Some(link) = links.get(socket).filter(|link| link.is_alive()) {
            return Ok(link.clone());
        }
        let packets = Packets::connect(&PathBuf::from(socket)).map_err(|error| {
            let mut unreachable = lock(&self.unreachable);
            unreachable.insert(socket.to_owned(), Instant::now());
            Error::unavailable(format!("the worker's socket {socket}: {error}"))
        })?;
        let link = Link::start(packets);
        links.insert(socket.to_owned(), link.clone());
        Ok(link)
    }
}

type Waiting = HashMap<u64, oneshot::Sender<(LocalReply, Option<OwnedFd>)>>;

/// One connection; requests share it.
#[derive(Debug)]
struct Link {
    packets: Arc<Packets>,
    shared: Arc<Shared>,
    next: AtomicU64,
    reader: AbortHandle,
    runtime: Option<tokio::runtime::Handle>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    dead: AtomicBool,
}

impl Link {
    fn start(packets: Packets) -> Arc<Link> {
        let (packets, shared) = (Arc::new(packets), Arc::new(Shared::default()));
        let reader = tokio::spawn(receive(packets.clone(), shared.clone())).abort_handle();
        let runtime = tokio::runtime::Handle::try_current().ok();
        Arc::new(Link { packets, shared, next: AtomicU64::new(1), reader, runtime })
    }

    fn is_alive(&self) -> bool {
        !self.shared.dead.load(Ordering::Acquire)
    }

    async fn call(&self, op: Op) -> Result<(LocalReply, Option<OwnedFd>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.shared.waiting).insert(id, sender);
        let forget = Forget { shared: &self.shared, id };
        let gone = || Error::unavailable("the worker on this host is gone");
        let packet = LocalRequest { id, op: Some(op) }.encode_to_vec();
        if !self.is_alive() || self.packets.send(&packet, &[]).await.is_err() {
            self.shared.end();
            return Err(gone());
        }
        let answered = tokio::time::timeout(ANSWER, answer).await;
        drop(forget);
        let late =
            |_| Error::unavailable(format!("the worker on this host did not answer within {} s", ANSWER.as_secs()));
        let (reply, descriptor) = answered.map_err(late)?.map_err(|_| gone())?;
        match reply.error {
            Some(detail) => Err(from_detail(&detail)),
            None => Ok((reply, descriptor)),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A caller that gave up is not answered.
struct Forget<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(&self.shared.waiting).remove(&self.id);
    }
}

impl Shared {
    /// Everybody who waits is told: their senders are dropped.
    fn end(&self) {
        self.dead.store(true, Ordering::Release);
        lock(&self.waiting).clear();
    }
}

async fn receive(packets: Arc<Packets>, shared: Arc<Shared>) {
    let mut buffer = vec![0; PACKET_MAX];
    while let Ok(Some((length, descriptors))) = packets.receive(&mut buffer).await {
        let Ok(reply) = LocalReply::decode(&buffer[..length]) else { break };
        let waiting = lock(&shared.waiting).remove(&reply.id);
        if let Some(waiting) = waiting {
            // Whoever waited may have given up at this very moment.
            let _ = waiting.send((reply, descriptors.into_iter().next()));
        }
    }
    shared.end();
}
