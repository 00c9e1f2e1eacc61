//! The way to the keeper: a process of this host that holds our mount while we are replaced.
//!
//! Whoever serves a mount stays connected; that is how the keeper knows. It may end and come back itself: then it is given
//! the mount again, so the mount is lost only when both end at once.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jindofs_proto::v1::{HandoverOp, HandoverOutcome, HandoverReply, HandoverRequest};
use prost::Message;

use crate::error::{Error, ErrorKind, Result};
use jindofs_packets::Packets;

use super::mountpoint;
use super::session::Handover;

/// Longest wait for the keeper's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the process before may take to end.
const SUCCESSION_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A mount without a process, ours from now on.
pub(super) struct Taken {
    pub(super) device: String,
    pub(super) fuse: OwnedFd,
    /// What [`HandoverState`](super::saved::Saved) is made of.
    pub(super) state: OwnedFd,
    pub(super) link: Link,
}

/// A connection to the keeper.
pub(super) struct Link(Packets);

impl Link {
    fn connect(socket: &Path) -> std::io::Result<Link> {
        Packets::connect(socket).map(Link)
    }

    /// Asks the keeper, and awaits its one answer.
    async fn call(
        &self,
        op: HandoverOp,
        device: &str,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(HandoverReply, Vec<OwnedFd>)> {
        let request = HandoverRequest { device: device.to_owned(), op: op.into() };
        let exchange = async {
            self.0.send(&request.encode_to_vec(), descriptors).await?;
            let mut buffer = [0; 4096];
            let received = self.0.receive(&mut buffer).await?;
            let (length, descriptors) = received.ok_or_else(|| Error::unavailable("the keeper has hung up"))?;
            let reply = HandoverReply::decode(&buffer[..length])
                .map_err(|error| Error::new(ErrorKind::Corrupted, format!("the keeper's answer: {error}")))?;
            Ok::<_, Error>((reply, descriptors))
        };
        let late = |_| Error::unavailable(format!("the keeper did not answer within {} s", ANSWER_TIMEOUT.as_secs()));
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(late)?
    }

    /// Tells the keeper to let go of a mount.
    pub(super) async fn discard(&self, device: &str) -> Result<()> {
        self.call(HandoverOp::Discard, device, &[]).await.map(drop)
    }

    /// Completes when the keeper is gone.
    async fn ended(&self) {
        let mut buffer = [0; 64];
        while let Ok(Some(_)) = self.0.receive(&mut buffer).await {}
    }
}

/// Takes over what is mounted at `mount`, if the keeper holds it.
///
/// *Errors*: `Busy` when another process serves it; what the keeper said otherwise.
pub(super) async fn take(socket: &Path, mount: &Path) -> Result<Option<Taken>> {
    let Some(device) = mountpoint::device(mount) else { return Ok(None) };
    let started = Instant::now();
    loop {
        let link = match Link::connect(socket) {
            Ok(link) => link,
            Err(error) => {
                tracing::info!(socket = %socket.display(), %error, "there is no keeper, what is mounted is left to nobody");
                return Ok(None);
            }
        };
        let (reply, descriptors) = match link.call(HandoverOp::Take, &device, &[]).await {
            Ok(answer) => answer,
            // It may be on its way out itself.
            Err(error) if started.elapsed() < SUCCESSION_TIMEOUT => {
                tracing::debug!(%error, "the keeper is asked again");
                tokio::time::sleep(RETRY_DELAY).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "the keeper does not answer, what is mounted is left to nobody");
                return Ok(None);
            }
        };
        match reply.outcome() {
            HandoverOutcome::Done => return taken(device, descriptors, link).map(Some),
            HandoverOutcome::Unknown => return Ok(None),
            // It may be on its way out.
            HandoverOutcome::Served if started.elapsed() < SUCCESSION_TIMEOUT => tokio::time::sleep(RETRY_DELAY).await,
            HandoverOutcome::Served => {
                let message = format!("fuse.mount {} is served by another process", mount.display());
                return Err(Error::new(ErrorKind::Busy, message));
            }
            HandoverOutcome::Refused | HandoverOutcome::Unspecified => {
                let message = format!("the keeper does not give {}: {}", mount.display(), reply.message);
                return Err(Error::new(ErrorKind::FailedPrecondition, message));
            }
        }
    }
}

fn taken(device: String, descriptors: Vec<OwnedFd>, link: Link) -> Result<Taken> {
    let [fuse, state]: [OwnedFd; 2] =
        descriptors.try_into().map_err(|_| Error::internal("the keeper gave no two descriptors"))?;
    Ok(Taken { device, fuse, state, link })
}

/// Says whether the keeper holds our mount at this moment.
#[derive(Debug, Clone)]
pub(super) struct HeldFlag(Arc<AtomicBool>);

impl HeldFlag {
    /// Told at the beginning: what is taken from the keeper it holds.
    pub(super) fn new(held: bool) -> HeldFlag {
        HeldFlag(Arc::new(AtomicBool::new(held)))
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, held: bool) {
        self.0.store(held, Ordering::Release);
    }
}

/// Has the keeper hold a mount, again whenever it comes back. `link` is where it was taken from, if it was.
pub(super) async fn keep_held(socket: PathBuf, handover: Handover, link: Option<Link>, held: HeldFlag) {
    let mut link = link;
    let mut told = false;
    loop {
        let offered = match link.take() {
            Some(link) => Ok(link),
            None => offer(&socket, &handover).await,
        };
        match offered {
            Ok(link) => {
                held.set(true);
                told = false;
                tracing::info!(device = handover.device, "the keeper holds this mount");
                link.ended().await;
                held.set(false);
                tracing::warn!("the keeper is gone");
            }
            Err(error) => {
                if !told {
                    tracing::warn!(socket = %socket.display(), %error, "no keeper holds this mount");
                }
                told = true;
            }
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn offer(socket: &Path, handover: &Handover) -> Result<Link> {
    let link = Link::connect(socket)?;
    let descriptors = [handover.fuse.as_fd(), handover.handover_state.as_fd()];
    let (reply, _) = link.call(HandoverOp::Offer, &handover.device, &descriptors).await?;
    match reply.outcome() {
        HandoverOutcome::Done => Ok(link),
        _ => Err(Error::new(ErrorKind::FailedPrecondition, reply.message)),
    }
}
