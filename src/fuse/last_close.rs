//! Closes of files. Each one stores what was written before it; a file that was only made or cut off waits for the last one.
//!
//! A shell opens the file of a redirection, closes a copy of that, and starts its command. Storing nothing then saves a
//! request, and leaves the old content in place until there is a new one to replace it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jindofs_proto::v1::Attr;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{Error, ErrorKind, Result};
use crate::types::ROOT_INODE;

use super::fs::Fs;
use super::nodes::inode_of;

/// Most last closes that store at a time.
const STORES_MAX: usize = 64;
/// How long a close waits while that many are under way.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses before a file that nobody waits for is stored again.
const RETRY_DELAYS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// How long the end of the process waits for what is being stored. Kubernetes gives 30 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two looks whether it is.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Bounds what is stored behind the last closes of files: whoever closes files faster than they are stored waits.
#[derive(Debug)]
pub(super) struct LastCloses(Semaphore);

impl LastCloses {
    pub(super) fn new() -> LastCloses {
        LastCloses(Semaphore::new(STORES_MAX))
    }

    fn has_room(&self) -> bool {
        self.0.available_permits() > 0
    }

    async fn wait_for_room(&self) {
        // In vain it has slowed the caller down, which is what it is for.
        let _ = tokio::time::timeout(ROOM_TIMEOUT, self.0.acquire()).await;
    }

    async fn permit(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire().await.ok()
    }
}

/// What could not be stored after the last close.
struct Lost {
    /// The file as it was before.
    base: Attr,
    is_written: bool,
    has_name: bool,
    error: Error,
}

impl Fs {
    /// True if a close has nothing to store and nothing to wait for.
    pub(super) fn is_flushed(&self, inode: u64) -> bool {
        self.creates.get(inode).is_none()
            && self.staging.ready(inode).is_none_or(|staged| !staged.is_written())
            && self.last_closes.has_room()
    }

    /// One close of maybe several: stores what was written. A file that is new is known to the masters then; that it is there,
    /// or empty, is stored by the last close or a sync. `gives_up_locks` if the close ends locks: what was cut off under one
    /// is stored before.
    ///
    /// *Errors*: as [`Fs::sync`]; why a new file could not be made.
    pub(super) async fn flush(self: &Arc<Self>, inode: u64, gives_up_locks: bool) -> Result<()> {
        let Some(mut turn) = self.staging.turn_of_ready(inode).await else { return self.made_empty(inode).await };
        if turn.is_written() || gives_up_locks && !turn.is_new() {
            return self.store_as(&mut turn, true).await;
        }
        self.made_of(&mut turn, false).await?;
        drop(turn);
        self.last_closes.wait_for_room().await;
        Ok(())
    }

    /// After the last close: stores what is left to be stored, and forgets what is staged. Nobody is left to be told of an error:
    /// it is logged, and what passes is tried again for as long as nobody opens the file.
    pub(super) async fn let_go(self: &Arc<Self>, node: u64) {
        for delay in RETRY_DELAYS.into_iter().map(Some).chain([None]) {
            match (self.try_let_go(node, delay.is_some()).await, delay) {
                (false, Some(delay)) => tokio::time::sleep(delay).await,
                _ => return,
            }
        }
    }

    /// One attempt; false if there should be another, which there only is if it `may_retry`.
    async fn try_let_go(self: &Arc<Self>, node: u64, may_retry: bool) -> bool {
        let inode = inode_of(node);
        let turn = self.staging.turn_of_ready(inode).await.filter(|turn| turn.node() == node);
        let Some(mut turn) = turn else { return true };
        if self.nodes.is_open(node) {
            return true;
        }
        let _permit = if turn.is_due() { self.last_closes.permit().await } else { None };
        let lost = match self.store(&mut turn).await {
            Ok(()) => None,
            // Of content that was written a close has told the error, unless it came by a mapping.
            Err(error) if may_retry && !turn.is_written() && may_pass(&error) => {
                let path = self.path_for_people(inode);
                tracing::warn!(inode, ?path, %error, "an empty file is not stored yet after its last close");
                return false;
            }
            Err(error) => {
                self.nodes.lose_pages(node);
                self.inodes.expire(inode);
                Some(Lost {
                    base: turn.base().clone(),
                    is_written: turn.is_written(),
                    has_name: !turn.is_unlinked(),
                    error,
                })
            }
        };
        // Whoever has opened it meanwhile goes on with what is staged, and closes it.
        let is_removed = self.staging.remove_unless(turn, || self.nodes.is_open(node));
        if let Some(lost) = lost.filter(|_| is_removed) {
            self.abandon(inode, lost).await;
        }
        true
    }

    /// What was staged is not stored any more. Of a file that was made here nothing is to be left.
    async fn abandon(&self, inode: u64, lost: Lost) {
        let Lost { base, is_written, has_name, error } = lost;
        let path = self.path_for_people(inode);
        if is_written || error.kind != ErrorKind::NotFound {
            tracing::error!(inode, ?path, %error, "what was written is lost: it could not be stored after the last close");
        } else {
            tracing::warn!(
                inode,
                ?path,
                "an empty file is gone before it was stored: removed by others, or with our session"
            );
        }
        if base.version_token.is_empty() && has_name && self.unmake(base.inode).await {
            self.lose_name(inode);
        }
    }

    /// The name of an inode is gone at the masters: whoever opens it by what the kernel remembers is to look it up again.
    fn lose_name(&self, inode: u64) {
        self.inodes.expire(inode);
        let Some((parent, name)) = self.inodes.name_of(inode) else { return };
        if self.inodes.get_named(parent, &name).is_some_and(|known| known.attr.inode == inode) {
            self.inodes.removed(parent, &name);
        }
        self.changed(parent);
    }

    /// Has the masters forget a file that was made here and could not be stored: nobody is to see what cannot be. False if it
    /// stays, as others have made or stored it as well, or as no master answers; then it goes with our session.
    pub(super) async fn unmake(&self, inode: u64) -> bool {
        match self.writer.unmake(inode).await {
            Ok(None) => true,
            Ok(Some(attr)) => {
                self.news(attr);
                false
            }
            Err(error) if error.kind == ErrorKind::NotFound => true,
            Err(error) => {
                self.inodes.expire(inode);
                if error.kind != ErrorKind::Stale {
                    tracing::warn!(inode, %error, "a file that was never stored is seen until the session ends");
                }
                false
            }
        }
    }

    /// Stores files that are open and were never written: who serves the mount next knows their handles, and nothing of
    /// what is staged here.
    pub(super) async fn store_unwritten(self: &Arc<Self>) {
        let stored = self.staging.unwritten().into_iter().map(async |inode| {
            let Some(mut turn) = self.staging.turn_of_ready(inode).await else { return };
            if let Err(error) = self.store(&mut turn).await {
                let path = self.path_for_people(inode);
                tracing::error!(inode, ?path, %error, "an empty file is not stored before the mount is left");
            }
        });
        if tokio::time::timeout(SETTLE_TIMEOUT, futures::future::join_all(stored)).await.is_err() {
            tracing::error!("empty files are not stored in time before the mount is left");
        }
    }

    /// To be called at the end: waits a while for what is being stored, and ends the session, so that others need not wait.
    pub(super) async fn settle(&self) {
        if !self.writable {
            return;
        }
        let started = Instant::now();
        let is_busy = || {
            let stages = self.staging.is_busy(|node| self.nodes.is_open(node));
            stages || self.creates.is_busy() || self.endings.is_busy()
        };
        while is_busy() && started.elapsed() < SETTLE_TIMEOUT {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.patient.session().close().await;
        self.staging.clear();
    }

    /// True for a node of which nothing but that its file is there waits to be stored.
    pub(super) fn is_new(&self, node: u64) -> bool {
        self.staging.ready_for(node).is_some_and(|staged| staged.is_new())
    }

    /// Path of an inode below the mount, as far as the kernel has asked for it.
    pub(super) fn path_for_people(&self, inode: u64) -> String {
        match self.inodes.path_below(ROOT_INODE, inode) {
            Some(path) => format!("/{}", String::from_utf8_lossy(&path)),
            None => "a path that is not known any more".to_owned(),
        }
    }
}

/// True for an error that may be gone soon.
fn may_pass(error: &Error) -> bool {
    error.is_retryable() || matches!(error.kind, ErrorKind::NoSpace | ErrorKind::UnderStorage)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn closes_wait_while_as_many_files_are_stored_as_may_be() {
        let closes = LastCloses::new();
        let mut permits = Vec::new();
        for _ in 0..STORES_MAX {
            assert!(closes.has_room() && closes.wait_for_room().now_or_never().is_some());
            permits.push(closes.permit().await.expect("never closed"));
        }
        // So many calls have used up what a task may do at once.
        tokio::task::yield_now().await;
        let mut waits = Box::pin(closes.wait_for_room());
        assert!(!closes.has_room() && (&mut waits).now_or_never().is_none());
        permits.pop();
        assert!(waits.now_or_never().is_some());
    }

    #[test]
    fn a_refusal_of_the_store_is_not_tried_again_and_what_may_pass_is() {
        let may_pass = |kind| may_pass(&Error::new(kind, "told"));
        assert!([ErrorKind::Unavailable, ErrorKind::Timeout, ErrorKind::NoSpace].into_iter().all(may_pass));
        assert!(![ErrorKind::PermissionDenied, ErrorKind::Stale, ErrorKind::NotFound].into_iter().any(may_pass));
    }
}
