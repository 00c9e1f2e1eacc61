//! The connection to the mount holder: a process on this host (the CSI plugin) that keeps our mount open while this
//! process is replaced.
//!
//! The process that serves a mount stays connected, which tells the mount holder that it is alive. The mount holder may
//! restart too: then it is given the mount again, so the mount is lost only if both end at once.

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

/// Timeout of a request to the mount holder.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the previous process may take to end.
const SUCCESSION_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A mount without a process, taken over by this one.
pub(super) struct Taken {
    pub(super) device: String,
    pub(super) fuse: OwnedFd,
    /// The descriptor of a [`HandoverState`](super::handover_state::HandoverState).
    pub(super) state: OwnedFd,
    pub(super) link: Link,
}

/// A connection to the mount holder.
pub(super) struct Link(Packets);

impl Link {
    fn connect(socket: &Path) -> std::io::Result<Link> {
        Packets::connect(socket).map(Link)
    }

    /// Sends a request and waits for its answer.
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

    /// Asks the mount holder to release a mount.
    pub(super) async fn discard(&self, device: &str) -> Result<()> {
        self.call(HandoverOp::Discard, device, &[]).await.map(drop)
    }

    /// Completes when the mount holder has closed the connection.
    async fn ended(&self) {
        let mut buffer = [0; 64];
        while let Ok(Some(_)) = self.0.receive(&mut buffer).await {}
    }
}

/// Takes over the mount at `mount`, if the mount holder has it.
///
/// *Errors*: `Busy` if another process serves it; otherwise those of the mount holder.
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
            // The mount holder may be shutting down.
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
            // The previous process may be shutting down.
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

/// Tells whether the mount holder has our mount at this moment.
#[derive(Debug, Clone)]
pub(super) struct HeldFlag(Arc<AtomicBool>);

impl HeldFlag {
    /// The initial state is true for a mount that was taken from the mount holder.
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

/// Offers the mount to the mount holder, and again whenever it restarts. `link` is the connection through which the
/// mount was taken over.
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
