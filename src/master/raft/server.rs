//! The server side of Raft between masters. It runs from the first moment, also on an empty master: probes and requests
//! to join must be answered before there is a cluster.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::raft_server::Raft;
use openraft::raft::{TransferLeaderRequest, VoteRequest};
use tonic::{Request, Response, Status, Streaming};

use crate::error::Error;
use crate::rpc::status::to_status;

use super::append;
use super::handle::Handle;
use super::node::Running;
use super::transfer;
use super::types::{self, TypeConfig};

/// Serves one master's peers.
#[derive(Debug, Clone)]
pub(crate) struct RaftService(pub(crate) Handle);

pub(super) fn malformed(what: &str) -> Status {
    to_status(&Error::invalid(format!("{what} is missing")))
}

pub(super) fn stopped(error: impl std::fmt::Display) -> Status {
    to_status(&Error::unavailable(format!("raft has stopped here: {error}")))
}

impl RaftService {
    #[allow(clippy::result_large_err)]
    fn running(&self, header: Option<&wire::Header>) -> Result<Arc<Running>, Status> {
        let running = self.0.running().ok_or_else(|| to_status(&self.0.not_ready()))?;
        running.net.check(header).map_err(|error| to_status(&error))?;
        Ok(running)
    }
}

#[allow(clippy::result_large_err)]
fn vote_from_wire(request: &wire::VoteRequest) -> Result<VoteRequest<TypeConfig>, Status> {
    let vote = request.vote.as_ref().ok_or_else(|| malformed("vote"))?;
    let last = request.last_log_id.as_ref().map(types::log_id_from_wire);
    let mut converted = VoteRequest::new(types::vote_from_wire(vote), last);
    converted.leadership_transfer = request.leadership_transfer;
    Ok(converted)
}

#[tonic::async_trait]
impl Raft for RaftService {
    type AppendStream = append::AnswerStream;
    type InstallSnapshotStream = transfer::AnswerStream;
    type FetchSnapshotStream = transfer::ChunkStream;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let mut stream = request.into_inner();
        let Some(first) = stream.message().await? else { return Ok(Response::new(stream::empty().boxed())) };
        let running = self.running(first.header.as_ref())?;
        Ok(Response::new(append::answer(running, first, stream)))
    }

    async fn vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let request = request.into_inner();
        let running = self.running(request.header.as_ref())?;
        let answer = running.raft.vote(vote_from_wire(&request)?).await.map_err(stopped)?;
        Ok(Response::new(running.vote_to_wire(&request, &answer)))
    }

    async fn pre_vote(&self, request: Request<wire::VoteRequest>) -> Result<Response<wire::VoteResponse>, Status> {
        let request = request.into_inner();
        let running = self.running(request.header.as_ref())?;
        let answer = running.raft.pre_vote(vote_from_wire(&request)?).await.map_err(stopped)?;
        Ok(Response::new(running.vote_to_wire(&request, &answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotChunk>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let mut chunks = request.into_inner();
        let Some(wire::SnapshotChunk { chunk: Some(wire::snapshot_chunk::Chunk::Start(start)) }) =
            chunks.message().await?
        else {
            return Err(malformed("the start of the snapshot"));
        };
        let running = self.running(start.header.as_ref())?;
        transfer::receive(running, start, chunks).map(Response::new).map_err(|error| to_status(&error))
    }

    async fn fetch_snapshot(
        &self,
        request: Request<wire::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let request = request.into_inner();
        let running = self.running(request.header.as_ref())?;
        let receiver = request.header.as_ref().map_or(0, |header| header.sender_id);
        let lent = transfer::lend(running, receiver, request.min_index).await;
        lent.map(Response::new).map_err(|error| to_status(&error))
    }

    async fn transfer_leader(
        &self,
        request: Request<wire::TransferRequest>,
    ) -> Result<Response<wire::TransferResponse>, Status> {
        let request = request.into_inner();
        let running = self.running(request.header.as_ref())?;
        let from = types::vote_from_wire(request.from.as_ref().ok_or_else(|| malformed("vote"))?);
        let last = request.last_log_id.as_ref().map(types::log_id_from_wire);
        let asked = TransferLeaderRequest::new(from, request.to, last);
        let answer = running.raft.handle_transfer_leader(asked).await.map_err(stopped)?;
        let sender = request.header.as_ref().map_or(0, |header| header.sender_id);
        Ok(Response::new(wire::TransferResponse {
            header: Some(running.net.me.header(sender)),
            accepted: answer.is_ok(),
            message: answer.err().map(|error| error.to_string()).unwrap_or_default(),
        }))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        let request = request.into_inner();
        let running = self.running(request.header.as_ref())?;
        let sender = request.header.as_ref().map_or(0, |header| header.sender_id);
        let id = match running.confirmed_by(sender, request.vouched_term).await {
            Some(id) => id,
            None => running.leader_read_index().await.map_err(|error| to_status(&error))?,
        };
        Ok(Response::new(wire::ReadIndexResponse {
            header: Some(running.net.me.header(sender)),
            log_id: Some(types::log_id_to_wire(&id)),
        }))
    }

    async fn vouch(&self, request: Request<wire::VouchRequest>) -> Result<Response<wire::VouchResponse>, Status> {
        let request = request.into_inner();
        let running = self.running(request.header.as_ref())?;
        let sender = request.header.as_ref().map_or(0, |header| header.sender_id);
        let header = Some(running.net.me.header(sender));
        Ok(Response::new(wire::VouchResponse { header, vouched_term: running.vouched_term(sender).await }))
    }

    async fn probe(&self, request: Request<wire::ProbeRequest>) -> Result<Response<wire::ProbeResponse>, Status> {
        self.0.probe_answer(request.into_inner()).map(Response::new).map_err(|error| to_status(&error))
    }

    async fn announce(
        &self,
        request: Request<wire::AnnounceRequest>,
    ) -> Result<Response<wire::AnnounceResponse>, Status> {
        let sender = request.remote_addr().map(|address| address.ip().to_canonical());
        let judged = self.0.judge_announcement(request.into_inner(), sender).await;
        judged.map(Response::new).map_err(|error| to_status(&error))
    }

    async fn admit(&self, request: Request<wire::AdmitRequest>) -> Result<Response<wire::AdmitResponse>, Status> {
        self.0.admit(request.into_inner()).await.map(Response::new).map_err(|error| to_status(&error))
    }
}
