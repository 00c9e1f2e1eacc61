//! What is staged, sent while it still grows: a long file is mostly in the under-storage when it is closed.
//!
//! Nobody sees it there before it is stored, and only what has stayed as it was sent is used.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::error::Result;
use crate::ufs::{Sent, Upload};

use super::Spool;

/// Most files that are sent at a time: each holds a few parts in memory.
const FILES: usize = 2;
/// Bytes that a file must have grown by before it is worth an upload of its own.
const GROWN: u64 = 16 << 20;

/// Who may send.
#[derive(Debug)]
pub(in crate::fuse) struct Senders(Arc<Semaphore>);

impl Senders {
    pub(super) fn new() -> Senders {
        Senders(Arc::new(Semaphore::new(FILES)))
    }
}

/// One file on its way. Dropped, it is given up.
#[derive(Debug)]
pub(in crate::fuse) struct Sending {
    spool: Arc<Spool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Option<(Upload, OwnedSemaphorePermit)>>,
}

/// What was sent before the end, until all is stored.
#[derive(Debug, Default)]
pub(in crate::fuse) struct Head {
    pub(in crate::fuse) sent: Sent,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Sending {
    /// Begins to send, if enough has `grown` and not too many do so; `upload` begins the object.
    pub(super) fn start<F>(
        senders: &Senders,
        spool: &Arc<Spool>,
        grown: u64,
        upload: impl FnOnce() -> Option<F>,
        on: &Handle,
    ) -> Option<Sending>
    where
        F: Future<Output = Result<Option<Upload>>> + Send + 'static,
    {
        if grown < GROWN {
            return None;
        }
        let permit = senders.0.clone().try_acquire_owned().ok()?;
        let upload = upload()?;
        let (stop, stopped) = oneshot::channel();
        spool.watch();
        let sent = send(spool.clone(), upload, stopped);
        let task = on.spawn(async move { Some((sent.await?, permit)) });
        Some(Sending { spool: spool.clone(), stop, task })
    }

    /// What was sent of content that is still the same. To be called while nobody changes it.
    pub(super) async fn end(self) -> Head {
        let Sending { spool, stop, task } = self;
        // It may have ended by itself.
        let _ = stop.send(());
        let Ok(Some((upload, permit))) = task.await else { return Head::default() };
        if upload.sent() > spool.kept() {
            upload.abort().await;
            return Head::default();
        }
        Head { sent: Sent::by(upload), _permit: Some(permit) }
    }
}

/// Sends whole parts as they come, until it is told to stop: then it returns what is sent. `None` if that is of no use.
async fn send(
    spool: Arc<Spool>,
    upload: impl Future<Output = Result<Option<Upload>>>,
    mut stopped: oneshot::Receiver<()>,
) -> Option<Upload> {
    let begun = upload.await;
    let mut upload = begun.inspect_err(|error| tracing::debug!(%error, "nothing is sent before the end")).ok()??;
    loop {
        tokio::select! {
            biased;
            told = &mut stopped => match told {
                Ok(()) => return Some(upload),
                Err(_) => break,
            },
            () = spool.reaches(upload.sent() + upload.part()) => {}
        }
        if spool.kept() < upload.sent() {
            break;
        }
        let sent = match spool.content().part(upload.sent(), upload.part()).await {
            Ok(part) => upload.send(part).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::info!(error, "what is sent before the end does not get through");
            break;
        }
    }
    upload.abort().await;
    None
}
