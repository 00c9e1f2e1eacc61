//! Snapshots between members: a leader pushes its own to a member that is too far behind, and a member whose state is damaged
//! fetches that of another one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::raft_client::RaftClient;
use jindofs_proto::raft::v1::snapshot_answer::Answer;
use jindofs_proto::raft::v1::snapshot_chunk::Chunk;
use openraft::storage::Snapshot;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::error::{Error, ErrorKind, Result};
use crate::rpc::status::{from_status, to_status};
use crate::runtime::spawn_blocking;

use super::install::{blames_disk, check_image, is_unreadable};
use super::node::Running;
use super::snapshot::{self, Incoming, Manifest, ManifestError, SendError, SnapshotData, SnapshotDir};
use super::state_machine::StateMachine;
use super::types::{self, SnapshotMeta, Vote};
use super::wire::Net;

/// Chunks that wait between the disk and the network, on either side.
const QUEUE_CHUNKS: usize = if cfg!(test) { 1 << 12 } else { 4 };
/// Longest silence of a sender, within its bound of bytes per second.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest time a receiver takes to compare what it has, or to verify and install what it got.
const RECEIVER_TIMEOUT: Duration = Duration::from_secs(600);

fn chunk(chunk: Chunk) -> wire::SnapshotChunk {
    wire::SnapshotChunk { chunk: Some(chunk) }
}

fn task_failed(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("a task of a snapshot transfer failed: {error}"))
}

async fn in_time<T>(limit: Duration, what: &str, call: impl Future<Output = Result<T, Status>>) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|status| from_status(&status)),
        Err(_) => Err(Error::new(ErrorKind::Timeout, format!("{what} takes longer than {limit:?}"))),
    }
}

/// Sends a snapshot to the member behind `client` and waits until it is installed there. Returns the receiver's vote.
///
/// *Cancel safety*: dropped, it ends the transfer; the receiver keeps what it got.
pub(super) async fn push(
    net: &Arc<Net>,
    target: u64,
    client: &mut RaftClient<Channel>,
    vote: Vote,
    snapshot: SnapshotData,
) -> Result<Vote> {
    if let Some(damage) = net.integrity.damage() {
        return Err(Error::unavailable(format!("this member sends no snapshots: {damage}")));
    }
    let _transfer = net.transfers.begin(target, snapshot.index());
    let (out, chunks) = mpsc::channel(QUEUE_CHUNKS);
    let start = wire::SnapshotStart {
        header: Some(net.me.header(target)),
        vote: Some(types::vote_to_wire(&vote)),
        manifest: Some(snapshot.manifest().to_wire()),
    };
    out.send(chunk(Chunk::Start(start))).await.map_err(task_failed)?;
    let opened = client.install_snapshot(ReceiverStream::new(chunks));
    let mut answers = in_time(CHUNK_TIMEOUT, "opening a transfer", opened).await?.into_inner();
    let wanted = match next_answer(net, &mut answers).await? {
        Answer::Wanted(wanted) => wanted.files,
        Answer::Installed(_) => return Err(Error::invalid("the receiver has installed nothing, but says so")),
    };
    let (before, began) = (net.transfers.sent.load(Ordering::Relaxed), std::time::Instant::now());
    let sender = {
        let (net, snapshot, out) = (net.clone(), snapshot.clone(), out);
        spawn_blocking(move || snapshot::send(&snapshot, &wanted, &net.transfers, &out))
    };
    let sent = sender.await.map_err(task_failed)?;
    if let Err(SendError::Damaged(damage)) = &sent {
        net.integrity.report(damage.clone());
        return Err(Error::new(ErrorKind::Corrupted, damage.clone()));
    }
    // The receiver's reason, where there is one, says more than that it has gone.
    let answer = match (next_answer(net, &mut answers).await, sent) {
        (Ok(answer), Ok(())) => answer,
        (Err(error), _) => {
            if error.kind == ErrorKind::Corrupted {
                report_if_damaged(net, &snapshot, target, &error).await?;
            }
            return Err(error);
        }
        (Ok(_), Err(error)) => return Err(Error::unavailable(error.to_string())),
    };
    let bytes = net.transfers.sent.load(Ordering::Relaxed) - before;
    tracing::info!(target_id = target, index = snapshot.index(), bytes, took = ?began.elapsed(), "snapshot sent");
    match answer {
        Answer::Installed(wire::SnapshotInstalled { vote: Some(vote), .. }) => Ok(types::vote_from_wire(&vote)),
        _ => Err(Error::invalid("a snapshot response without a vote")),
    }
}

/// A receiver that finds a snapshot damaged is not taken at its word: every file has arrived as it was sealed, so that this
/// disk shows the same damage.
async fn report_if_damaged(net: &Arc<Net>, snapshot: &SnapshotData, target: u64, said: &Error) -> Result<()> {
    let sent = snapshot.clone();
    match spawn_blocking(move || check_image(&sent)).await.map_err(task_failed)? {
        Err(error) if blames_disk(&error) => {
            net.integrity.report(format!("member {target} finds the snapshot damaged: {said}"));
        }
        checked => {
            tracing::warn!(target_id = target, %said, ?checked, "a snapshot is called damaged, but is sound here")
        }
    }
    Ok(())
}

async fn next_answer(net: &Arc<Net>, answers: &mut Streaming<wire::SnapshotAnswer>) -> Result<Answer> {
    let answer = in_time(RECEIVER_TIMEOUT, "an answer to a snapshot", answers.message()).await?;
    let answer = answer.and_then(|answer| answer.answer);
    let answer = answer.ok_or_else(|| Error::unavailable("the receiver of a snapshot has ended the stream"))?;
    let header = match &answer {
        Answer::Wanted(wanted) => wanted.header.as_ref(),
        Answer::Installed(installed) => installed.header.as_ref(),
    };
    net.check(header)?;
    Ok(answer)
}

pub(super) type AnswerStream = BoxStream<'static, Result<wire::SnapshotAnswer, Status>>;

/// Receives and installs a snapshot, whose start has arrived. The header is checked.
pub(super) fn receive(
    running: Arc<Running>,
    start: wire::SnapshotStart,
    chunks: Streaming<wire::SnapshotChunk>,
) -> Result<AnswerStream> {
    let missing = |what: &str| Error::invalid(format!("{what} is missing"));
    let vote = types::vote_from_wire(start.vote.as_ref().ok_or_else(|| missing("vote"))?);
    let manifest = manifest_of(start.manifest.as_ref())?;
    check_plausible(&running, &vote, &manifest.meta)?;
    let sender = start.header.as_ref().map_or(0, |header| header.sender_id);
    let (answers, out) = mpsc::channel(2);
    tokio::spawn(async move {
        if let Err(error) = receive_all(&running, sender, vote, manifest, chunks, &answers).await {
            tracing::warn!(sender, %error, "snapshot not received");
            // Fails when the sender has gone: then no answer is needed.
            let _ = answers.send(Err(to_status(&error))).await;
        }
    });
    Ok(ReceiverStream::new(out).boxed())
}

fn manifest_of(manifest: Option<&wire::SnapshotManifest>) -> Result<Manifest> {
    let manifest = manifest.ok_or_else(|| Error::invalid("the manifest of the snapshot is missing"))?;
    Manifest::from_wire(manifest).map_err(|error| match error {
        ManifestError::OtherFormat(_) => Error::new(ErrorKind::Unsupported, error.to_string()),
        _ => Error::invalid(error.to_string()),
    })
}

/// openraft asserts what no honest leader violates; a forged message must not end the process.
fn check_plausible(running: &Running, vote: &Vote, meta: &SnapshotMeta) -> Result<()> {
    let refuse = |why: &str| Err(Error::new(ErrorKind::Foreign, why.to_owned()));
    let Some(last) = meta.last_log_id else { return refuse("the snapshot is empty") };
    if last.leader_id > vote.leader_id {
        return refuse("the snapshot ends with an entry of a later leader than its sender");
    }
    let committed = running.look(|m| m.local_committed);
    if committed.is_some_and(|committed| last > committed && last.index <= committed.index) {
        return refuse("the snapshot contradicts what is committed here");
    }
    Ok(())
}

async fn receive_all(
    running: &Arc<Running>,
    sender: u64,
    vote: Vote,
    manifest: Manifest,
    mut chunks: Streaming<wire::SnapshotChunk>,
    answers: &mpsc::Sender<Result<wire::SnapshotAnswer, Status>>,
) -> Result<()> {
    let net = &running.net;
    // One at a time: a second sender does not wait, it tries again later.
    let Ok(_receiving) = net.transfers.receiving.try_lock() else {
        return Err(Error::unavailable("another snapshot is being received"));
    };
    running.machine.check_room_to_receive()?;
    let (dir, sources) = (running.snapshots.clone(), running.machine.table_dirs());
    let resumed = blocking(move || {
        let incoming = Incoming::resume(&dir, &sources, manifest)?;
        Ok((incoming.wanted()?, incoming.reused()?, incoming))
    });
    let (files, reused, incoming) = resumed.await?;
    net.transfers.reused.fetch_add(reused, Ordering::Relaxed);
    let wanted = Answer::Wanted(wire::SnapshotWanted { header: Some(net.me.header(sender)), files });
    let send = |answer: Answer| answers.send(Ok(wire::SnapshotAnswer { answer: Some(answer) }));
    send(wanted).await.map_err(|_| Error::unavailable("the sender is gone"))?;
    let received = write_all(net, &running.machine, incoming, &mut chunks, reused).await?;
    let snapshot = Snapshot { meta: received.meta().clone(), snapshot: Arc::new(received) };
    let answer = running.raft.install_full_snapshot(vote, snapshot).await;
    let answer = answer.map_err(|error| Error::unavailable(format!("raft has stopped here: {error}")))?;
    let installed =
        wire::SnapshotInstalled { header: Some(net.me.header(sender)), vote: Some(types::vote_to_wire(&answer.vote)) };
    send(Answer::Installed(installed)).await.map_err(|_| Error::unavailable("the sender is gone"))
}

/// Runs work that waits for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T> {
    let done = spawn_blocking(work).await.map_err(task_failed)?;
    done.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => Error::new(ErrorKind::Corrupted, error.to_string()),
        _ => Error::from(error).context("receive snapshot"),
    })
}

/// Writes the files that arrive, until the end; verifies all of it.
async fn write_all(
    net: &Net,
    machine: &StateMachine,
    mut incoming: Incoming,
    chunks: &mut Streaming<wire::SnapshotChunk>,
    reused: u64,
) -> Result<SnapshotDir> {
    loop {
        let next = in_time(CHUNK_TIMEOUT, "the next chunk of a snapshot", chunks.message()).await?;
        match next.and_then(|chunk| chunk.chunk) {
            Some(Chunk::Data(data)) if incoming.lacks(&data.file) => {
                let written = data.data.len() as u64;
                if let Err(error) = machine.check_room_to_receive() {
                    // The log and the state need the room more than the next attempt needs what has arrived.
                    blocking(move || incoming.discard()).await?;
                    return Err(error);
                }
                incoming = blocking(move || incoming.write(&data).map(|()| incoming)).await.map_err(unwanted)?;
                net.transfers.received.fetch_add(written, Ordering::Relaxed);
            }
            // A lent snapshot is sent whole: the lender does not know what is here.
            Some(Chunk::Data(_)) => {}
            Some(Chunk::End(_)) => break,
            _ => return Err(Error::unavailable("the snapshot ends before its end")),
        }
    }
    let bytes = incoming.received();
    // Damaged on the way: the next attempt sends the file again. It says nothing of the sender's disk.
    let received = blocking(move || incoming.finish()).await.map_err(unwanted)?;
    let (received, checked) = blocking(move || Ok((check_image(&received), received))).await.map(|(c, r)| (r, c))?;
    // Every file is what the manifest says. What cannot be read here says nothing of the sender's disk.
    checked.map_err(|error| match blames_disk(&error) && !is_unreadable(&error) {
        true => Error::new(ErrorKind::Corrupted, error.to_string()),
        false => Error::unavailable(error.to_string()),
    })?;
    tracing::info!(index = received.index(), bytes, reused, "snapshot received");
    Ok(received)
}

fn unwanted(error: Error) -> Error {
    match error.kind {
        ErrorKind::Corrupted => Error::unavailable(error.message),
        _ => error,
    }
}

pub(super) type ChunkStream = BoxStream<'static, Result<wire::SnapshotChunk, Status>>;

/// Lends this member's snapshot, of `min_index` or later, to another one whose state is damaged.
pub(super) async fn lend(running: Arc<Running>, receiver: u64, min_index: u64) -> Result<ChunkStream> {
    let refuse = |damage: String| Error::unavailable(format!("this member lends no snapshots: {damage}"));
    running.net.integrity.damage().map_or(Ok(()), |damage| Err(refuse(damage)))?;
    if running.look(|m| m.membership_config.get_node(&receiver).is_none()) {
        return Err(Error::new(ErrorKind::Foreign, format!("member {receiver} is not known here")));
    }
    if min_index > *running.applied_index().borrow() {
        return Err(Error::unavailable(format!("entry {min_index} is not applied here yet")));
    }
    let permit = running.net.transfers.lending.clone().try_acquire_owned();
    let permit = permit.map_err(|_| Error::unavailable("other members are being lent the snapshot"))?;
    if running.machine.current_snapshot().is_none_or(|snapshot| snapshot.index() < min_index) {
        running.snapshot(None).await?;
    }
    let snapshot = running.machine.current_snapshot().filter(|snapshot| snapshot.index() >= min_index);
    let snapshot = snapshot.ok_or_else(|| Error::unavailable("no snapshot here reaches so far"))?;
    let (out, chunks) = mpsc::channel(QUEUE_CHUNKS);
    let start = wire::SnapshotStart {
        header: Some(running.net.me.header(receiver)),
        vote: None,
        manifest: Some(snapshot.manifest().to_wire()),
    };
    let all = snapshot.manifest().files.keys().map(|name| wire::WantedFile { file: name.clone(), offset: 0 });
    let all: Vec<wire::WantedFile> = all.collect();
    spawn_blocking(move || {
        let (net, _permit) = (&running.net, permit);
        let _transfer = net.transfers.begin(receiver, snapshot.index());
        let started = snapshot::push(&out, chunk(Chunk::Start(start)));
        match started.and_then(|()| snapshot::send(&snapshot, &all, &net.transfers, &out)) {
            Ok(()) => tracing::info!(receiver, index = snapshot.index(), "snapshot lent"),
            Err(SendError::Damaged(damage)) => net.integrity.report(damage),
            Err(error) => tracing::warn!(receiver, %error, "snapshot not lent"),
        }
    });
    Ok(ReceiverStream::new(chunks).map(Ok).boxed())
}

/// Fetches the snapshot of member `id` at `address`, verified, into `dir`.
///
/// *Errors*: the member has none that includes `min_index`, is damaged itself, or does not answer.
pub(super) async fn fetch(
    net: &Arc<Net>,
    machine: &StateMachine,
    (id, address): (u64, &str),
    min_index: u64,
    dir: &Path,
) -> Result<SnapshotDir> {
    let Ok(_receiving) = net.transfers.receiving.try_lock() else {
        return Err(Error::unavailable("another snapshot is being received"));
    };
    machine.check_room_to_receive()?;
    let mut client = net.resolver.connect(address, Duration::from_secs(1)).await?;
    let request = wire::FetchSnapshotRequest { header: Some(net.me.header(id)), min_index };
    // Building one takes time.
    let opened = in_time(RECEIVER_TIMEOUT, "a snapshot of another member", client.fetch_snapshot(request));
    let mut chunks = opened.await?.into_inner();
    let first = in_time(CHUNK_TIMEOUT, "the start of a snapshot", chunks.message()).await?;
    let Some(Chunk::Start(start)) = first.and_then(|chunk| chunk.chunk) else {
        return Err(Error::invalid("the start of the snapshot is missing"));
    };
    net.check(start.header.as_ref())?;
    let manifest = manifest_of(start.manifest.as_ref())?;
    if manifest.owner.cluster != net.me.cluster {
        return Err(Error::new(ErrorKind::Foreign, "the snapshot belongs to another cluster"));
    }
    let dir = dir.to_path_buf();
    let resumed = blocking(move || {
        let mut incoming = Incoming::resume(&dir, &[], manifest)?;
        incoming.drop_beginnings()?;
        Ok((incoming.reused()?, incoming))
    });
    let (reused, incoming) = resumed.await?;
    write_all(net, machine, incoming, &mut chunks, reused).await
}
