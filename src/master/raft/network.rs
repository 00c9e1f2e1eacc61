//! The client side of Raft between masters.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{BoxStream, Stream, StreamExt};
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::raft_client::RaftClient;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{AnyError, OptionalSend};
use tonic::transport::Channel;

use super::snapshot::SnapshotData;
use super::transfer;
use super::types::{self, LogId, Node, TypeConfig, Vote};
use super::wire::Net;

/// Pause between two attempts to reach a member.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Least time between two log lines about one target's snapshot.
const WARNING_INTERVAL: Duration = Duration::from_secs(5);

type SnapshotOf =
    openraft::storage::Snapshot<openraft::impls::leader_id_adv::LeaderId<u64, u64>, u64, Node, SnapshotData>;

/// Makes a client per target and purpose, each with a connection of its own: payloads never delay heartbeats.
#[derive(Debug, Clone)]
pub(crate) struct Network(pub(crate) Arc<Net>);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &Node) -> PeerClient {
        if self.0.book.get(target).is_none() {
            self.0.book.set(target, node);
        }
        PeerClient { net: self.0.clone(), target, client: None, refused: None, warned: None }
    }
}

/// One connection to one member.
#[derive(Debug)]
pub(crate) struct PeerClient {
    net: Arc<Net>,
    target: u64,
    client: Option<(String, RaftClient<Channel>)>,
    /// When a stream was last refused before it asked for a request.
    refused: Option<Instant>,
    /// When a failed snapshot was last logged: openraft retries several times a second.
    warned: Option<Instant>,
}

fn unreachable(message: impl std::fmt::Display) -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::new(&AnyError::error(message)))
}

impl PeerClient {
    async fn client(&mut self) -> Result<RaftClient<Channel>, RPCError<TypeConfig>> {
        let node = self.net.book.get(self.target);
        let address = node.map(|node| node.raft_address).ok_or_else(|| unreachable("no address"))?;
        if let Some((known, client)) = &self.client
            && *known == address
        {
            return Ok(client.clone());
        }
        let timeout = self.net.append_timeout.min(Duration::from_secs(1));
        let client = self.net.resolver.connect(&address, timeout).await.map_err(unreachable)?;
        self.client = Some((address, client.clone()));
        Ok(client)
    }

    /// As [`PeerClient::client`], not sooner after a refusal than openraft would ask again: that waits where its stream is asked for
    /// the next request, which does not come to pass without a connection.
    async fn client_for_stream(&mut self, limit: Duration) -> Result<RaftClient<Channel>, RPCError<TypeConfig>> {
        if let Some(refused) = self.refused.take() {
            tokio::time::sleep(RETRY_DELAY.saturating_sub(refused.elapsed())).await;
        }
        let client = within(limit, self.client()).await;
        if client.is_err() {
            self.refused = Some(Instant::now());
        }
        client
    }

    /// The connection may be to a place where nobody, or somebody else, answers now.
    fn failed(&mut self, status: &tonic::Status) -> RPCError<TypeConfig> {
        self.client = None;
        unreachable(format!("member {}: {}", self.target, status.message()))
    }

    fn believe(&self, header: Option<&wire::Header>) -> Result<(), RPCError<TypeConfig>> {
        self.net.check(header).map_err(unreachable)
    }

    async fn ask_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::VoteRequest {
            header: Some(self.net.me.header(self.target)),
            vote: Some(types::vote_to_wire(&rpc.vote)),
            last_log_id: rpc.last_log_id.as_ref().map(types::log_id_to_wire),
            leadership_transfer: rpc.leadership_transfer,
        };
        let call = async {
            let mut client = self.client().await?;
            let answer = if pre { client.pre_vote(request).await } else { client.vote(request).await };
            answer.map_err(|status| self.failed(&status))
        };
        let answer = within(option.hard_ttl(), call).await?.into_inner();
        self.believe(answer.header.as_ref())?;
        let vote = answer.vote.as_ref().ok_or_else(|| unreachable("a vote response without a vote"))?;
        let mut response = VoteResponse::new(
            types::vote_from_wire(vote),
            answer.last_log_id.as_ref().map(types::log_id_from_wire),
            answer.granted,
        );
        response.vote_granted = answer.granted;
        Ok(response)
    }
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, RPCError<TypeConfig>>>,
) -> Result<T, RPCError<TypeConfig>> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(unreachable("no answer in time")))
}

/// A request that is under way: its range, and when it left.
struct Sent {
    prev: Option<LogId>,
    last: Option<LogId>,
    at: Instant,
}

type Pending = Arc<Mutex<VecDeque<Sent>>>;

fn append_to_wire(net: &Net, target: u64, request: &AppendEntriesRequest<TypeConfig>) -> wire::AppendRequest {
    wire::AppendRequest {
        header: Some(net.me.header(target)),
        vote: Some(types::vote_to_wire(&request.vote)),
        prev_log_id: request.prev_log_id.as_ref().map(types::log_id_to_wire),
        entries: request.entries.iter().map(types::entry_to_wire).collect(),
        leader_commit: request.leader_commit.as_ref().map(types::log_id_to_wire),
    }
}

fn append_from_wire(sent: &Sent, answer: &wire::AppendResponse) -> Option<StreamAppendResult<TypeConfig>> {
    use wire::append_response::Result as Answer;
    Some(match answer.result.as_ref()? {
        Answer::Success(_) => Ok(sent.last),
        Answer::Partial(partial) => Ok(partial.log_id.as_ref().map(types::log_id_from_wire)),
        Answer::Conflict(_) => Err(StreamAppendError::Conflict(sent.prev?)),
        Answer::HigherVote(vote) => Err(StreamAppendError::HigherVote(types::vote_from_wire(vote))),
    })
}

/// Answers of one append stream, each matched to its request; ends with an error when one stays out too long.
struct Answers {
    net: Arc<Net>,
    stream: tonic::Streaming<wire::AppendResponse>,
    pending: Pending,
    ended: bool,
}

impl Answers {
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        if self.ended {
            return None;
        }
        let answer = loop {
            tokio::select! {
                answer = self.stream.message() => break answer,
                () = tokio::time::sleep(self.net.append_timeout / 4) => {
                    let oldest = self.pending.lock().unwrap_or_else(PoisonError::into_inner).front().map(|s| s.at);
                    if oldest.is_some_and(|at| at.elapsed() > self.net.append_timeout) {
                        self.ended = true;
                        return Some(Err(unreachable("no answer to replication in time")));
                    }
                }
            }
        };
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return None,
            Err(status) => {
                self.ended = true;
                return Some(Err(unreachable(status.message())));
            }
        };
        let sent = self.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let result = self
            .net
            .check(answer.header.as_ref())
            .map_err(unreachable)
            .and_then(|()| sent.ok_or_else(|| unreachable("an answer without a request")))
            .and_then(|sent| append_from_wire(&sent, &answer).ok_or_else(|| unreachable("a malformed answer")));
        self.ended = !matches!(result, Ok(Ok(_)));
        Some(result)
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last = rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id);
        let limit = option.hard_ttl();
        let call = async {
            let mut answers = self.stream_append(futures::stream::iter([rpc]), option).await?;
            answers.next().await.unwrap_or_else(|| Err(unreachable("the stream ended")))
        };
        Ok(match within(limit, call).await? {
            Ok(matched) if matched == last => AppendEntriesResponse::Success,
            Ok(matched) => AppendEntriesResponse::PartialSuccess(matched),
            Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
            Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
        })
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> futures::future::BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>, RPCError<TypeConfig>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let mut client = self.client_for_stream(option.hard_ttl().max(Duration::from_secs(1))).await?;
            let pending = Pending::default();
            let (net, target, sent) = (self.net.clone(), self.target, pending.clone());
            let requests = input.map(move |request| {
                let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
                let entry = Sent { prev: request.prev_log_id, last, at: Instant::now() };
                sent.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
                append_to_wire(&net, target, &request)
            });
            // The response headers come with the first answer, which waits for the first request.
            let opened = tokio::time::timeout(self.net.append_timeout, client.append(requests)).await;
            let stream = match opened {
                Ok(Ok(stream)) => stream.into_inner(),
                Ok(Err(status)) => {
                    self.refused = Some(Instant::now());
                    return Err(self.failed(&status));
                }
                Err(_) => {
                    self.client = None;
                    return Err(unreachable("no answer to replication in time"));
                }
            };
            let answers = Answers { net: self.net.clone(), stream, pending, ended: false };
            let results = futures::stream::unfold(answers, |mut answers| async move {
                answers.next().await.map(|result| (result, answers))
            });
            let slot = &mut self.client;
            Ok(results
                .map(move |result| {
                    if result.is_err() {
                        *slot = None;
                    }
                    result
                })
                .boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(rpc, option, false).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(rpc, option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client().await?;
        let pushed = tokio::select! {
            closed = cancel => return Err(closed.into()),
            pushed = transfer::push(&self.net, self.target, &mut client, vote, snapshot.snapshot) => pushed,
        };
        match pushed {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(error) => {
                if self.warned.is_none_or(|at| at.elapsed() > WARNING_INTERVAL) {
                    tracing::warn!(target_id = self.target, %error, "snapshot not sent; it is tried again");
                    self.warned = Some(Instant::now());
                }
                self.client = None;
                Err(unreachable(error).into())
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let request = wire::TransferRequest {
            header: Some(self.net.me.header(self.target)),
            from: Some(types::vote_to_wire(req.from_leader())),
            to: *req.to_node_id(),
            last_log_id: req.last_log_id().map(types::log_id_to_wire),
        };
        let call = async {
            let mut client = self.client().await?;
            client.transfer_leader(request).await.map_err(|status| self.failed(&status))
        };
        let answer = within(option.hard_ttl(), call).await?.into_inner();
        self.believe(answer.header.as_ref())?;
        if answer.accepted {
            return Ok(Ok(()));
        }
        let expected = req.last_log_id().copied();
        Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual: None }))
    }

    fn backoff(&self) -> Option<Backoff> {
        // A dead member is tried again often enough that its return is noticed at once.
        Some(Backoff::new(std::iter::repeat(RETRY_DELAY)))
    }
}
