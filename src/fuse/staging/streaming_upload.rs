//! Uploads staged content while it still grows, so that most of a long file is in the under-storage when it is closed.
//!
//! The parts are not visible before the upload completes. Only parts whose content has not changed since are used.

use std::sync::Arc;

use jindofs_proto::v1::Attr;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;

use crate::error::Result;
use crate::ufs::{Deadline, PreparedPut, Upload};

use super::{Spool, WriteGuard};

/// Most concurrent uploads: each one holds a few parts in memory.
const UPLOADS_MAX: usize = 2;
/// Bytes by which a file must have grown before its upload starts.
const UPLOAD_MIN: u64 = 16 << 20;

/// Limits the number of concurrent uploads.
#[derive(Debug)]
pub(in crate::fuse) struct UploadPermits(Arc<Semaphore>);

impl UploadPermits {
    pub(super) fn new() -> UploadPermits {
        UploadPermits(Arc::new(Semaphore::new(UPLOADS_MAX)))
    }
}

/// A running upload. Dropping it aborts the upload.
#[derive(Debug)]
pub(in crate::fuse) struct StreamingUpload {
    spool: Arc<Spool>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Option<(Upload, OwnedSemaphorePermit)>>,
}

/// The parts that were uploaded before the close, until the whole content is stored.
#[derive(Debug, Default)]
pub(in crate::fuse) struct UploadedPrefix {
    pub(in crate::fuse) prepared: PreparedPut,
    _permit: Option<OwnedSemaphorePermit>,
}

impl StreamingUpload {
    /// Starts an upload if the content has `grown` enough and a permit is free; `upload` opens the multipart upload.
    pub(super) fn start<F>(
        upload_permits: &UploadPermits,
        spool: &Arc<Spool>,
        grown: u64,
        upload: impl FnOnce() -> Option<F>,
        on: &Handle,
    ) -> Option<StreamingUpload>
    where
        F: Future<Output = Result<Option<Upload>>> + Send + 'static,
    {
        if grown < UPLOAD_MIN {
            return None;
        }
        let permit = upload_permits.0.clone().try_acquire_owned().ok()?;
        let upload = upload()?;
        let (stop, stopped) = oneshot::channel();
        spool.watch();
        let sent = send(spool.clone(), upload, stopped);
        let task = on.spawn(async move { Some((sent.await?, permit)) });
        Some(StreamingUpload { spool: spool.clone(), stop, task })
    }

    /// Stops the upload and returns the parts, if their content is still the same. The caller must hold the guard.
    /// Parts in flight are awaited for a share of the time until `deadline`; after that they are dropped and the whole
    /// content is uploaded again.
    pub(super) async fn end(self, deadline: &Deadline) -> UploadedPrefix {
        let StreamingUpload { spool, stop, mut task } = self;
        // The task may have ended by itself.
        let _ = stop.send(());
        let Some(ended) = deadline.bound_earlier(&mut task).await else {
            tracing::info!("a store does not answer: what was sent before the end is given up");
            task.abort();
            deadline.extend();
            return UploadedPrefix::default();
        };
        let Ok(Some((upload, permit))) = ended else { return UploadedPrefix::default() };
        if upload.sent() > spool.unchanged_prefix() {
            upload.abort().await;
            return UploadedPrefix::default();
        }
        deadline.extend();
        UploadedPrefix { prepared: PreparedPut::from_upload(upload), _permit: Some(permit) }
    }
}

impl WriteGuard {
    /// Starts the upload of the staged content if it is long and no upload is running; `upload` opens the multipart
    /// upload.
    pub(in crate::fuse) fn start_upload<F>(
        &mut self,
        upload_permits: &UploadPermits,
        upload: impl FnOnce(&Attr) -> Option<F>,
        on: &Handle,
    ) where
        F: Future<Output = Result<Option<Upload>>> + Send + 'static,
    {
        let work = &mut *self.work;
        if work.streaming.is_none()
            && !self.staged.is_unlinked()
            && let Some(spool) = self.staged.spool.get()
        {
            work.streaming = StreamingUpload::start(upload_permits, spool, work.grown, || upload(&work.base), on);
        }
    }

    /// Ends the upload at the close and returns the parts.
    pub(in crate::fuse) async fn finish_upload(&mut self, deadline: &Deadline) -> UploadedPrefix {
        match self.work.streaming.take() {
            Some(streaming) => streaming.end(deadline).await,
            None => UploadedPrefix::default(),
        }
    }

    /// Aborts the upload.
    pub(in crate::fuse) fn discard_upload(&mut self) -> UploadedPrefix {
        self.work.streaming = None;
        UploadedPrefix::default()
    }
}

/// Uploads whole parts as the content grows. Returns the upload when it is stopped, or `None` if the parts cannot be
/// used.
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
        if spool.unchanged_prefix() < upload.sent() {
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::{Duration, Instant};

    use super::super::WritePosition;
    use super::super::tests::{MIB, bench};
    use super::*;

    #[tokio::test]
    async fn a_store_that_takes_no_part_before_the_end_does_not_hold_up_the_close() {
        let bench = bench(64 * MIB as u64);
        let mut guard = bench.staged(1, &[]).await;
        guard.write(WritePosition::End, &vec![1; UPLOAD_MIN as usize]).expect("staged");
        let never = |_: &Attr| Some(pending::<Result<Option<Upload>>>());
        guard.start_upload(&bench.staging.upload_permits, never, &Handle::current());
        assert!(guard.work.streaming.is_some(), "it is being sent");
        let (began, deadline) = (Instant::now(), Deadline::within(Duration::from_millis(200)));
        let _head = guard.finish_upload(&deadline).await;
        assert!(began.elapsed() < Duration::from_secs(15));
        // Nobody sends any more: as many others can.
        let permits = bench.staging.upload_permits.0.clone();
        let freed = tokio::time::timeout(Duration::from_secs(15), permits.acquire_many(UPLOADS_MAX as u32)).await;
        freed.expect("the sender is gone").expect("never closed").forget();
    }
}
