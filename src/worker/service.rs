//! `jindofs.v1.Worker`: blocks over gRPC, for every reader that cannot use the descriptor.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use jindofs_proto::v1::worker_server::Worker;
use jindofs_proto::v1::{
    FileSource, FillRequest, FillResponse, HeldRequest, HeldResponse, ReadChunk, ReadRequest, WorkerInfo,
    WorkerStatusRequest, WorkerStatusResponse,
};
use metrics::counter;
use tonic::{Request, Response, Status};

use super::fill::{Filled, Filler, blocking};
use super::identity::Identity;
use super::store::{BlockFile, Presence, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::status::to_status;
use crate::types::BLOCK_SIZE;

/// Bytes per chunk of a stream.
const CHUNK: usize = 512 << 10;
/// Blocks of one stream made ready while earlier ones are sent.
const READY: usize = 2;
/// Most blocks one call may fill.
const FILL_MAX: u32 = 4096;

/// The service.
pub(super) struct WorkerService {
    info: WorkerInfo,
    identity: Arc<Identity>,
    store: Arc<Store>,
    filler: Arc<Filler>,
}

impl WorkerService {
    pub(super) fn new(info: WorkerInfo, identity: Arc<Identity>, store: Arc<Store>, filler: Arc<Filler>) -> Self {
        WorkerService { info, identity, store, filler }
    }

    fn open(&self, source: Option<FileSource>) -> Result<(FileSource, Arc<BlockFile>)> {
        let source = source.ok_or_else(|| Error::invalid("source is missing"))?;
        let file = self.store.get_or_create(&source)?;
        Ok((source, file))
    }

    async fn fill(&self, request: FillRequest) -> Result<FillResponse> {
        let (source, file) = self.open(request.source)?;
        if request.block_count > FILL_MAX {
            return Err(Error::invalid(format!("{} blocks in one call: at most {FILL_MAX}", request.block_count)));
        }
        let first = request.first_block as usize;
        let blocks = first..first.saturating_add(request.block_count as usize).min(file.blocks());
        let tried = if request.keep_others { self.that_fit(&file, blocks.clone()) } else { blocks.clone() };
        let fetched_bytes = match self.filler.ensure(&file, &source, tried).await {
            Ok(fetched) => fetched,
            Err(error) if error.kind == ErrorKind::NoSpace => 0,
            Err(error) => return Err(error),
        };
        let present = blocks.filter(|block| file.presence(*block) == Presence::Present);
        Ok(FillResponse { cached_bytes: present.map(|block| file.block_length(block)).sum(), fetched_bytes })
    }

    /// The first of the blocks, as many as there is room for.
    fn that_fit(&self, file: &BlockFile, blocks: Range<usize>) -> Range<usize> {
        let mut needed = 0;
        let start = blocks.start;
        let fits = |block: &usize| {
            if file.presence(*block) == Presence::Absent {
                needed += file.block_length(*block);
            }
            needed == 0 || self.store.has_room(file, needed)
        };
        start..start + blocks.take_while(fits).count()
    }

    /// What is here already, without making a place for it.
    fn find(&self, source: Option<FileSource>) -> Result<(FileSource, Arc<BlockFile>)> {
        let source = source.ok_or_else(|| Error::invalid("source is missing"))?;
        let absent = || Error::new(ErrorKind::NotFound, format!("nothing of file {} is cached here", source.file_id));
        let file = self.store.get((source.file_id, source.version)).ok_or_else(absent)?;
        if file.length() != source.length {
            return Err(absent());
        }
        Ok((source, file))
    }

    fn held(&self, request: HeldRequest) -> HeldResponse {
        let file = self.store.get((request.file_id, request.version));
        HeldResponse { blocks: file.map(|file| file.held().into()).unwrap_or_default() }
    }

    fn read(&self, request: ReadRequest) -> Result<BoxStream<'static, Result<ReadChunk, Status>>> {
        let cached_only = request.cached_only;
        let (source, file) = if cached_only { self.find(request.source)? } else { self.open(request.source)? };
        let end = request.offset.checked_add(request.length).filter(|end| *end <= source.length);
        let Some(end) = end else {
            let message =
                format!("{} bytes from {} lie outside a file of {}", request.length, request.offset, source.length);
            return Err(Error::invalid(message));
        };
        let (start, block) = (request.offset, u64::from(BLOCK_SIZE));
        let filler = self.filler.clone();
        let blocks = start / block..end.div_ceil(block);
        let pieces = stream::iter(blocks).map(move |index| {
            let (filler, file, source) = (filler.clone(), file.clone(), source.clone());
            async move { piece(&filler, &file, (!cached_only).then_some(&source), index, start, end).await }
        });
        let chunks = pieces.buffered(READY).map_ok(|(at, data)| {
            counter!("jindofs_worker_read_bytes_total", "transport" => "grpc").increment(data.len() as u64);
            stream::iter((0..data.len()).step_by(CHUNK).map(move |from| {
                let part = data.slice(from..(from + CHUNK).min(data.len()));
                Ok(ReadChunk { offset: at + from as u64, crc32c: crc32c::crc32c(&part), data: part })
            }))
        });
        Ok(chunks.try_flatten().map_err(|error: Error| to_status(&error)).boxed())
    }
}

/// What of block `index` lies within `start..end`: where it begins, and its bytes. Without a source nothing is fetched.
async fn piece(
    filler: &Arc<Filler>,
    file: &Arc<BlockFile>,
    source: Option<&FileSource>,
    index: u64,
    start: u64,
    end: u64,
) -> Result<(u64, Bytes)> {
    let block = usize::try_from(index).map_err(|_| Error::invalid("a block number too large"))?;
    let first = BlockFile::block_start(block);
    let (from, to) = (start.max(first), end.min(first + file.block_length(block)));
    if source.is_some() {
        filler.store.demand.count(to - from, file.presence(block) == Presence::Present);
    }
    let within = |whole: Bytes| {
        let at = |offset: u64| usize::try_from(offset - first).unwrap_or(0);
        whole.slice(at(from)..at(to))
    };
    // Once more if a block turns out damaged between the look and the read.
    for _ in 0..2 {
        match source {
            Some(source) => {
                if let Filled::Passed(bytes) = filler.block(file, source, block).await? {
                    return Ok((from, within(bytes)));
                }
            }
            None if filler.holds(file, block).await? => {}
            None => {
                let message = format!("block {block} of file {} is not cached here", file.key().0);
                return Err(Error::new(ErrorKind::NotFound, message));
            }
        }
        let target = file.clone();
        if to - from < file.block_length(block) {
            return Ok((from, blocking(move || target.read(from, to - from)).await?));
        }
        // A whole block costs little more to verify than to send.
        if let Some(bytes) = blocking(move || target.read_verified(block)).await? {
            return Ok((from, bytes));
        }
    }
    Err(Error::new(ErrorKind::Corrupted, format!("block {block} of file {} is damaged again and again", file.key().0)))
}

#[tonic::async_trait]
impl Worker for WorkerService {
    type ReadStream = BoxStream<'static, Result<ReadChunk, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        WorkerService::read(self, request.into_inner()).map(Response::new).map_err(|error| to_status(&error))
    }

    async fn fill(&self, request: Request<FillRequest>) -> Result<Response<FillResponse>, Status> {
        let filled = WorkerService::fill(self, request.into_inner()).await;
        filled.map(Response::new).map_err(|error| to_status(&error))
    }

    async fn held(&self, request: Request<HeldRequest>) -> Result<Response<HeldResponse>, Status> {
        Ok(Response::new(WorkerService::held(self, request.into_inner())))
    }

    async fn info(&self, _: Request<WorkerStatusRequest>) -> Result<Response<WorkerStatusResponse>, Status> {
        Ok(Response::new(WorkerStatusResponse {
            worker: Some(self.store.totals(&self.info)),
            epoch: self.identity.epoch(),
            tiers: self.store.tiers(),
            cluster_uuid: self.identity.cluster().into(),
        }))
    }
}
