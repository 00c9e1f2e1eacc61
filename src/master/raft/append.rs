//! The receiving side of replication: a stream of requests is fed to Raft, bounded in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use jindofs_proto::raft::v1 as wire;
use openraft::raft::{AppendEntriesRequest, StreamAppendError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::error::Error;
use crate::rpc::status::to_status;

use super::node::Running;
use super::queue::QueueRoom;
use super::server::{malformed, stopped};
use super::types::{self, TypeConfig};

/// Longest wait of a request for room. The sender gives up about then, and sends the same again.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// Answers on their way to the sender.
const ANSWERS: usize = 64;

pub(super) type AnswerStream = BoxStream<'static, Result<wire::AppendResponse, Status>>;

/// What the two halves of one stream share.
#[derive(Debug, Default)]
struct Shared {
    /// Room of the requests that Raft has, in their order. It is held until Raft has answered, also when the sender has
    /// given up: their entries stay in memory until then.
    held: Mutex<VecDeque<QueueRoom>>,
    /// Why the stream ends, if it is for a bad request or for want of room.
    failed: Mutex<Option<Status>>,
}

/// The requests of one stream; the first bad one ends it.
struct Feed {
    running: Arc<Running>,
    stream: Streaming<wire::AppendRequest>,
    first: Option<wire::AppendRequest>,
    shared: Arc<Shared>,
}

impl Feed {
    async fn next(&mut self) -> Option<AppendEntriesRequest<TypeConfig>> {
        let request = match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.stream.message().await,
        };
        let checked = match request {
            Ok(None) => return None,
            Ok(Some(request)) => self.admit(request).await,
            Err(status) => Err(status),
        };
        checked.map_err(|status| *lock(&self.shared.failed) = Some(status)).ok()
    }

    #[allow(clippy::result_large_err)]
    async fn admit(&self, request: wire::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
        self.running.net.check(request.header.as_ref()).map_err(|error| to_status(&error))?;
        let bytes = request.entries.iter().map(command_bytes).sum();
        let room = self.running.appends.take_within(bytes, ROOM_TIMEOUT).await;
        if room.is_none() {
            return Err(to_status(&Error::unavailable("the log of this master waits for its disk")));
        }
        let request = append_from_wire(request)?;
        lock(&self.shared.held).push_back(room);
        Ok(request)
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn command_bytes(entry: &wire::Entry) -> u64 {
    match &entry.payload {
        Some(wire::entry::Payload::Command(command)) => command.len() as u64,
        _ => 0,
    }
}

#[allow(clippy::result_large_err)]
fn append_from_wire(request: wire::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    let entries = request.entries.into_iter().map(types::entry_from_wire).collect::<Result<Vec<_>, _>>();
    Ok(AppendEntriesRequest {
        vote: types::vote_from_wire(request.vote.as_ref().ok_or_else(|| malformed("vote"))?),
        prev_log_id: request.prev_log_id.as_ref().map(types::log_id_from_wire),
        entries: entries.map_err(|error| to_status(&Error::invalid(error.to_string())))?,
        leader_commit: request.leader_commit.as_ref().map(types::log_id_from_wire),
    })
}

/// Feeds `first` and what follows it to Raft, whose answers are returned in order.
pub(super) fn answer(
    running: Arc<Running>,
    first: wire::AppendRequest,
    stream: Streaming<wire::AppendRequest>,
) -> AnswerStream {
    let sender = first.header.as_ref().map_or(0, |header| header.sender_id);
    let header = running.net.me.header(sender);
    let shared = Arc::new(Shared::default());
    let feed = Feed { running: running.clone(), stream, first: Some(first), shared: shared.clone() };
    let (answers, out) = mpsc::channel(ANSWERS);
    // A task of its own: when the sender gives up, what Raft has of the stream is accounted for until it is answered.
    tokio::spawn(async move {
        let input = stream::unfold(feed, |mut feed| async move { feed.next().await.map(|request| (request, feed)) });
        let mut results = std::pin::pin!(running.raft.stream_append(input));
        while let Some(result) = results.next().await {
            lock(&shared.held).pop_front();
            // Fails when the sender has gone, which needs no answer.
            let _ = answers.send(result.map_err(stopped).map(|result| answer_to_wire(&header, &result))).await;
        }
        let failed = lock(&shared.failed).take();
        if let Some(status) = failed {
            let _ = answers.send(Err(status)).await;
        }
    });
    ReceiverStream::new(out).boxed()
}

type Appended = Result<Option<types::LogId>, StreamAppendError<TypeConfig>>;

fn answer_to_wire(header: &wire::Header, result: &Appended) -> wire::AppendResponse {
    use wire::append_response::Result as Answer;
    let answer = match result {
        Ok(log_id) => Answer::Partial(wire::PartialSuccess { log_id: log_id.as_ref().map(types::log_id_to_wire) }),
        Err(StreamAppendError::Conflict(_)) => Answer::Conflict(wire::Blank {}),
        Err(StreamAppendError::HigherVote(vote)) => Answer::HigherVote(types::vote_to_wire(vote)),
    };
    wire::AppendResponse { header: Some(header.clone()), result: Some(answer) }
}
