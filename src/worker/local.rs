//! The Unix socket: readers on this host get the descriptor of a cache file and read it themselves.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jindofs_proto::v1::{FileSource, LocalReply, LocalRequest, local_request::Op};
use prost::Message;
use tokio::sync::Semaphore;

use super::fill::Filler;
use super::store::BlockFile;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::status::to_detail;
use crate::runtime::{Shutdown, lock};
use crate::types::BLOCK_SIZE;
use jindofs_packets::{PACKET_MAX, PacketListener, Packets};

/// Requests of one connection worked on at the same time.
const REQUESTS: usize = 64;
/// Leases of one connection.
const LEASES_MAX: usize = 100_000;
/// Most bytes of a presence bitmap in one packet.
const BITMAP_MAX: usize = 64 << 10;

/// Serves until `stop`.
///
/// *Errors*: when the socket itself fails.
pub(super) async fn serve(listener: PacketListener, filler: Arc<Filler>, stop: Shutdown) -> Result<()> {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(packets) => {
                let connection = Arc::new(Connection {
                    packets,
                    filler: filler.clone(),
                    next: AtomicU64::new(1),
                    leases: Mutex::default(),
                });
                let stop = stop.clone();
                tokio::spawn(async move {
                    tokio::select! { () = stop.cancelled() => {}, () = connection.live() => {} }
                });
            }
            // Out of descriptors, most likely: others may close some.
            Err(error) => {
                tracing::warn!(%error, "a local reader could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

type Leased = (Arc<BlockFile>, Arc<FileSource>);

struct Connection {
    packets: Packets,
    filler: Arc<Filler>,
    next: AtomicU64,
    /// Held files are not evicted.
    leases: Mutex<HashMap<u64, Leased>>,
}

impl Connection {
    async fn live(self: Arc<Self>) {
        let permits = Arc::new(Semaphore::new(REQUESTS));
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            let length = match self.packets.receive(&mut buffer).await {
                Ok(Some((length, _))) => length,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "local reader dropped");
                    return;
                }
            };
            let Ok(request) = LocalRequest::decode(&buffer[..length]) else {
                tracing::debug!("local reader dropped: a packet does not decode");
                return;
            };
            if let Some(Op::Close(close)) = &request.op {
                lock(&self.leases).remove(&close.lease);
                continue;
            }
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let this = self.clone();
            tokio::spawn(async move {
                this.answer(request).await;
                drop(permit);
            });
        }
    }

    async fn answer(&self, request: LocalRequest) {
        let id = request.id;
        let (reply, descriptor) = match self.act(request).await {
            Ok(done) => done,
            Err(error) => (LocalReply { error: Some(to_detail(&error)), ..LocalReply::default() }, None),
        };
        let packet = LocalReply { id, ..reply }.encode_to_vec();
        if let Err(error) = self.packets.send(&packet, descriptor.as_ref().map(AsFd::as_fd).as_slice()).await {
            tracing::debug!(%error, "local reader is gone");
        }
    }

    async fn act(&self, request: LocalRequest) -> Result<(LocalReply, Option<OwnedFd>)> {
        match request.op {
            Some(Op::Open(open)) => {
                let source = Arc::new(open.source.ok_or_else(|| Error::invalid("source is missing"))?);
                let file = self.filler.store.get_or_create(&source)?;
                self.ensure(&file, &source, open.offset, open.length).await?;
                let descriptor = file.open()?;
                let lease = self.lease(file.clone(), source)?;
                let reply = LocalReply { lease, present: file.bitmap(BITMAP_MAX).into(), ..LocalReply::default() };
                Ok((reply, Some(descriptor)))
            }
            Some(Op::Ensure(ensure)) => {
                let leased = lock(&self.leases).get(&ensure.lease).cloned();
                let (file, source) = leased.ok_or_else(|| Error::new(ErrorKind::NotFound, "the lease has ended"))?;
                self.ensure(&file, &source, ensure.offset, ensure.length).await?;
                Ok((LocalReply { lease: ensure.lease, ..LocalReply::default() }, None))
            }
            Some(Op::Close(_)) | None => Err(Error::invalid("the request says nothing")),
        }
    }

    async fn ensure(&self, file: &Arc<BlockFile>, source: &FileSource, offset: u64, length: u64) -> Result<()> {
        let end = offset.saturating_add(length).min(file.length());
        if offset >= end {
            return Ok(());
        }
        let block = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let size = u64::from(BLOCK_SIZE);
        self.filler.ensure(file, source, block(offset / size)..block(end.div_ceil(size))).await.map(drop)
    }

    fn lease(&self, file: Arc<BlockFile>, source: Arc<FileSource>) -> Result<u64> {
        let mut leases = lock(&self.leases);
        if leases.len() >= LEASES_MAX {
            let message = format!("this reader holds {LEASES_MAX} files open");
            return Err(Error::new(ErrorKind::ResourceExhausted, message));
        }
        let lease = self.next.fetch_add(1, Ordering::Relaxed);
        leases.insert(lease, (file, source));
        Ok(lease)
    }
}
