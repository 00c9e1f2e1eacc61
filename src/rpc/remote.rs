//! Calls to workers over gRPC: always there, also across hosts. The checksum of every chunk that is read is verified.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jindofs_proto::v1::worker_client::WorkerClient;
use jindofs_proto::v1::{
    Drain, DrainState, FileSource, FillRequest, FillResponse, HeldRequest, ReadChunk, ReadRequest, WorkerInfo,
    WorkerState,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;
use crate::types::MESSAGE_BYTES_MAX;

use super::channel::{Node, judge};

/// Longest silence of a worker before the next one is asked. A cold block from a slow object store takes seconds.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest wait until blocks are filled.
const FILL: Duration = Duration::from_secs(120);

/// True if new blocks may be placed on the worker: it lives, and it is not being drained.
pub fn takes_new(worker: &WorkerInfo) -> bool {
    // While a drain is only announced, those who would take over do not know yet where to find what it holds.
    let leaves = |drain: &Drain| drain.state() != DrainState::Announced;
    worker.state() == WorkerState::Live && !worker.drain.as_ref().is_some_and(leaves)
}

/// Connections to workers, by address.
#[derive(Debug, Default)]
pub struct Remotes {
    nodes: Mutex<HashMap<String, Arc<Node>>>,
}

impl Remotes {
    /// Bytes `offset..offset+length` of the file, which must lie within it.
    ///
    /// *Errors*: the worker's; `Corrupted` when a checksum does not match; `Timeout`, `Unavailable`.
    pub async fn read(&self, worker: &WorkerInfo, source: &FileSource, offset: u64, length: u64) -> Result<Bytes> {
        self.stream(worker, ReadRequest { source: Some(source.clone()), offset, length, cached_only: false }).await
    }

    /// As [`Remotes::read`], of what the worker holds.
    ///
    /// *Errors*: `NotFound` when it does not.
    pub async fn pull(&self, worker: &WorkerInfo, source: &FileSource, offset: u64, length: u64) -> Result<Bytes> {
        self.stream(worker, ReadRequest { source: Some(source.clone()), offset, length, cached_only: true }).await
    }

    async fn stream(&self, worker: &WorkerInfo, request: ReadRequest) -> Result<Bytes> {
        let (offset, length) = (request.offset, request.length);
        self.call(worker, SILENCE, async |mut client: WorkerClient<Channel>| {
            let mut stream = client.read(request).await?.into_inner();
            let mut gathered = Gathered::new(offset, length);
            while let Some(chunk) = silence(stream.message()).await? {
                gathered.add(chunk)?;
            }
            gathered.finish()
        })
        .await
    }

    /// Makes the worker cache whole blocks.
    ///
    /// *Errors*: as [`Remotes::read`].
    pub async fn fill(&self, worker: &WorkerInfo, source: &FileSource, first: u32, count: u32) -> Result<FillResponse> {
        self.fill_blocks(
            worker,
            FillRequest { source: Some(source.clone()), first_block: first, block_count: count, keep_others: false },
        )
        .await
    }

    /// As [`Remotes::fill`], with every choice.
    ///
    /// *Errors*: as [`Remotes::read`].
    pub async fn fill_blocks(&self, worker: &WorkerInfo, request: FillRequest) -> Result<FillResponse> {
        self.call(worker, FILL, async |mut client: WorkerClient<Channel>| Ok(client.fill(request).await?.into_inner()))
            .await
    }

    /// Which blocks of a file version the worker holds: one bit each, lowest first.
    ///
    /// *Errors*: `Timeout`, `Unavailable`.
    pub async fn held(&self, worker: &WorkerInfo, file_id: u64, version: u64) -> Result<Bytes> {
        let request = HeldRequest { file_id, version };
        self.call(worker, SILENCE, async |mut client: WorkerClient<Channel>| {
            Ok(client.held(request).await?.into_inner().blocks)
        })
        .await
    }

    /// One call; `budget` bounds the time until it answers, streams look after their silences themselves.
    async fn call<T>(
        &self,
        worker: &WorkerInfo,
        budget: Duration,
        op: impl AsyncFnOnce(WorkerClient<Channel>) -> Result<T, Status>,
    ) -> Result<T> {
        let node = self.node(&worker.address);
        let (number, channel) = node.channel().await?;
        let client = WorkerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        match tokio::time::timeout(budget, op(client)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => {
                let (error, broken) = judge(&status);
                if broken {
                    node.discard(number);
                }
                Err(error)
            }
            Err(_) => {
                node.discard(number);
                Err(Error::new(ErrorKind::Timeout, format!("no answer within {} s", budget.as_secs())))
            }
        }
    }

    fn node(&self, address: &str) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        nodes.entry(address.to_owned()).or_insert_with(|| Arc::new(Node::new(address.to_owned()))).clone()
    }
}

async fn silence<T>(message: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded("the worker fell silent");
    tokio::time::timeout(SILENCE, message).await.map_err(late)?
}

/// The chunks of one answer, checked as they come.
struct Gathered {
    next: u64,
    end: u64,
    whole: BytesMut,
    /// An answer of one chunk is passed on without a copy.
    single: Option<Bytes>,
}

impl Gathered {
    fn new(offset: u64, length: u64) -> Gathered {
        Gathered { next: offset, end: offset.saturating_add(length), whole: BytesMut::new(), single: None }
    }

    fn add(&mut self, chunk: ReadChunk) -> Result<(), Status> {
        let corrupted = |what: String| crate::rpc::status::to_status(&Error::new(ErrorKind::Corrupted, what));
        let end = chunk.offset.saturating_add(chunk.data.len() as u64);
        if chunk.offset != self.next || end > self.end {
            return Err(corrupted(format!("chunk {}..{end} came where {} was due", chunk.offset, self.next)));
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(corrupted(format!("checksum of chunk {}..{end} does not match", chunk.offset)));
        }
        self.next = end;
        if self.single.is_none() && self.whole.is_empty() {
            self.single = Some(chunk.data);
            return Ok(());
        }
        if let Some(first) = self.single.take() {
            self.whole.reserve(first.len() + usize::try_from(self.end - self.next).unwrap_or(0) + chunk.data.len());
            self.whole.extend_from_slice(&first);
        }
        self.whole.extend_from_slice(&chunk.data);
        Ok(())
    }

    fn finish(self) -> Result<Bytes, Status> {
        if self.next != self.end {
            let message = format!("the answer ended at {} instead of {}", self.next, self.end);
            return Err(crate::rpc::status::to_status(&Error::new(ErrorKind::Corrupted, message)));
        }
        Ok(self.single.unwrap_or_else(|| self.whole.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(offset: u64, data: &'static [u8]) -> ReadChunk {
        ReadChunk { offset, data: Bytes::from_static(data), crc32c: crc32c::crc32c(data) }
    }

    #[test]
    fn chunks_in_order_become_one_piece() {
        let mut gathered = Gathered::new(10, 6);
        for piece in [chunk(10, b"ab"), chunk(12, b"cde"), chunk(15, b"f")] {
            gathered.add(piece).expect("in order");
        }
        assert_eq!(&gathered.finish().expect("complete")[..], b"abcdef");
    }

    #[test]
    fn a_wrong_checksum_a_gap_a_surplus_and_a_short_answer_are_refused() {
        let mut damaged = chunk(0, b"abc");
        damaged.crc32c ^= 1;
        let refused = [
            Gathered::new(0, 3).add(damaged),
            Gathered::new(0, 9).add(chunk(3, b"abc")),
            Gathered::new(0, 2).add(chunk(0, b"abc")),
            Gathered::new(0, 3).finish().map(drop),
        ];
        for result in refused {
            let (error, broken) = judge(&result.expect_err("refused"));
            assert_eq!((error.kind, broken), (ErrorKind::Corrupted, false));
        }
    }
}
