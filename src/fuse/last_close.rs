//! Closes of files. Each close stores the content that was written before it. A file that was only created or truncated
//! is stored after the last close of its open file, in the background.
//!
//! A shell opens the target of a redirection, closes a duplicate of the descriptor, and starts the command. To store
//! nothing at that close saves a request, and keeps the old content until there is new content to replace it.
//!
//! *Lock order.* A task takes the permit of an attempt before the guard of its file: a task that waits for a permit
//! blocks no file.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::lock;
use crate::types::ROOT_INODE;

use super::fs::Fs;
use super::nodes::inode_of;
use super::staging::{Staged, WriteGuard};
use super::write::StoreMode;

/// Most files of one mount that are stored in the background at a time.
const STORES_MAX: usize = 64;
/// Most files of one mount that are queued to be stored, or wait for a retry: each one keeps some KiB.
const WAITING_MAX: usize = 4096;
/// How long a close waits while one of these bounds is reached.
const ROOM_TIMEOUT: Duration = Duration::from_secs(10);
/// Delays before the retries for a file without waiters; the last one is repeated.
const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
];
/// How long the shutdown waits for files that are being stored. Kubernetes gives 30 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two checks whether they are stored.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the guard of a file is held while the masters are asked to forget the file.
const ABANDON_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the rename of a directory waits for the guard of a file below it.
const GUARD_TIMEOUT: Duration = Duration::from_secs(2);
/// Most attempts, over some minutes, to store a file for which the under-storage returns an unclassified error.
const UNEXPLAINED_MAX: usize = 20;
/// Files remembered that the masters could not be asked to forget.
const GIVEN_UP: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// Files that are stored in the background after their last close.
#[derive(Debug)]
pub(super) struct LastCloses {
    /// By mount, so that one failing under-storage does not delay files of the others.
    rooms: Mutex<HashMap<u32, MountQuota>>,
    /// Files that the masters forget once their under-storage answers again. Inode numbers are never reused.
    given_up: Mutex<LruCache<u64, ()>>,
}

/// Bounds the files of one mount that are stored in the background: a close waits while a bound is reached.
#[derive(Debug, Clone)]
struct MountQuota {
    attempts: Arc<Semaphore>,
    /// One permit for each queued file.
    waiting: Arc<Semaphore>,
}

impl Default for LastCloses {
    fn default() -> LastCloses {
        LastCloses { rooms: Mutex::default(), given_up: Mutex::new(LruCache::new(GIVEN_UP)) }
    }
}

impl LastCloses {
    fn of(&self, mount_id: u32) -> MountQuota {
        let room = || MountQuota {
            attempts: Arc::new(Semaphore::new(STORES_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        };
        let mut rooms = lock(&self.rooms);
        rooms.entry(mount_id).or_insert_with(room).clone()
    }

    fn has_room(&self, mount_id: u32) -> bool {
        let room = self.of(mount_id);
        room.attempts.available_permits() > 0 && room.waiting.available_permits() > 0
    }

    async fn wait_for_room(&self, mount_id: u32) {
        let room = self.of(mount_id);
        // A timeout is not an error: the caller was slowed down, which is the purpose.
        let _ =
            tokio::time::timeout(ROOM_TIMEOUT, async { (room.waiting.acquire().await, room.attempts.acquire().await) })
                .await;
    }

    async fn attempt(&self, mount_id: u32) -> Option<OwnedSemaphorePermit> {
        self.of(mount_id).attempts.acquire_owned().await.ok()
    }

    fn give_up(&self, inode: u64) {
        lock(&self.given_up).put(inode, ());
    }

    /// True for a file that the masters should forget and could not be asked to.
    pub(super) fn is_given_up(&self, inode: u64) -> bool {
        lock(&self.given_up).contains(&inode)
    }
}

impl Fs {
    fn mount_of(&self, inode: u64) -> u32 {
        self.inodes.get(inode).map_or(0, |known| known.attr.mount_id)
    }

    /// True if a close has nothing to store and nothing to wait for.
    pub(super) fn is_flushed(&self, inode: u64) -> bool {
        if self.pending_creates.get(inode).is_some() {
            return false;
        }
        match self.staging.ready(inode).filter(|staged| staged.is_due()) {
            None => true,
            Some(staged) => !staged.is_written() && self.last_closes.has_room(self.mount_of(inode)),
        }
    }

    /// Serves one of possibly several closes: stores what was written, and waits for the create of a new file. The
    /// existence or truncation alone is stored after the last close, or by an `fsync`. `gives_up_locks` if the close
    /// releases locks: a truncation under a lock is stored before.
    ///
    /// *Errors*: as [`Fs::sync`]; why a create failed.
    pub(super) async fn flush(self: &Arc<Self>, inode: u64, gives_up_locks: bool) -> Result<()> {
        let Some(mut guard) = self.staging.lock_if_staged(inode).await else {
            return self.await_empty_create(inode).await;
        };
        if guard.is_written() || gives_up_locks && !guard.is_new() {
            return self.store_as(&mut guard, StoreMode::CommitInBackground).await;
        }
        self.await_create(&mut guard, false).await?;
        if guard.is_due() {
            drop(guard);
            self.last_closes.wait_for_room(self.mount_of(inode)).await;
        }
        Ok(())
    }

    /// Runs after the close of an open file: stores what is left, and removes the file from the staging area unless it
    /// is open. No caller is left that could get an error, so errors are logged. Transient ones are retried until this
    /// process ends, or until the file is open for writing again, whose close then stores it.
    pub(super) async fn finalize_last_close(self: &Arc<Self>, node: u64) {
        let Some(staged) = self.staging.ready_for(node).filter(|staged| staged.begin_finalize()) else { return };
        loop {
            self.finalize_with_retries(node, &staged).await;
            if staged.end_finalize() {
                return;
            }
        }
    }

    async fn finalize_with_retries(self: &Arc<Self>, node: u64, staged: &Staged) {
        let mount_id = self.mount_of(inode_of(node));
        let room = self.last_closes.of(mount_id);
        // This task does not wait for a permit: `wait_for_room` slows closes down instead.
        let _waiting = if staged.is_due() { room.waiting.try_acquire_owned().ok() } else { None };
        let mut attempts = 0;
        loop {
            let permit = if staged.is_due() { self.last_closes.attempt(mount_id).await } else { None };
            if self.try_finalize(node, attempts).await {
                return;
            }
            drop(permit);
            tokio::time::sleep(RETRY_DELAYS[attempts.min(RETRY_DELAYS.len() - 1)]).await;
            attempts += 1;
        }
    }

    /// True while the node is open for writing: that close stores the content.
    fn is_open_to_write(&self, node: u64) -> bool {
        self.nodes.open_node(node).is_some_and(|open| open.is_written)
    }

    /// Makes one attempt, after `attempts` others. Returns false if it has to be retried.
    async fn try_finalize(self: &Arc<Self>, node: u64, attempts: usize) -> bool {
        let inode = inode_of(node);
        let guard = self.staging.lock_if_staged(inode).await.filter(|guard| guard.node() == node);
        let Some(mut guard) = guard else { return true };
        // Content is stored by the last close of a writer, and the file has one.
        if self.is_open_to_write(node) && (attempts > 0 || guard.is_written()) {
            return true;
        }
        // An attempt for an empty file does not wait with the guard held, since the task retries.
        let how = if guard.is_written() { StoreMode::Committed } else { StoreMode::NonBlocking };
        if let Err(error) = self.store_as(&mut guard, how).await {
            let path = self.path_for_people(inode);
            // For written content a close has already returned the error, unless the write came through a mapping.
            if guard.is_due() && !guard.is_written() && may_pass(&error, attempts) {
                tracing::warn!(inode, ?path, %error, "an empty file is not stored yet after it was closed");
                return false;
            }
            if self.is_open_to_write(node) {
                tracing::warn!(inode, ?path, %error, "an empty file is not stored: the next close of it tries again");
                return true;
            }
            return self.give_up_storing(guard, &error).await;
        }
        // A handle that was opened in the meantime continues with the staged content, and its close finalizes it.
        self.staging.remove_unless(guard, || self.nodes.is_open(node));
        true
    }

    /// Gives up content that cannot be stored: a later close by a reader must not retry it. A file that was created
    /// here is removed. A caller that opens it for writing meanwhile waits for the guard, and creates it again by
    /// storing it.
    async fn give_up_storing(self: &Arc<Self>, mut guard: WriteGuard, error: &Error) -> bool {
        let (inode, node) = (guard.inode(), guard.node());
        self.nodes.lose_pages(guard.node());
        self.inodes.expire(inode);
        let path = self.path_for_people(inode);
        if guard.is_written() || error.kind != ErrorKind::NotFound {
            tracing::error!(inode, ?path, %error, "what was written is lost: it could not be stored after the last close");
        } else {
            tracing::warn!(inode, ?path, "an empty file is gone before it was stored: others have removed it");
        }
        let is_new = guard.base().version_token.is_empty() && !guard.is_unlinked();
        // A lock belongs to the file itself: its holder keeps using the name until its own close.
        let is_locked = is_new && self.locks.are_held_through(&self.nodes.handles(node));
        let is_unmade = is_new && !is_locked && self.forget_made_file(&mut guard).await;
        let staged = guard.staged();
        let is_removed = self.staging.remove_unless(guard, || {
            if self.is_open_to_write(node) {
                // That close stores it.
                return true;
            }
            if is_unmade {
                // Readers continue with what was written.
                staged.unlink_stale_name();
            }
            (is_unmade || is_locked) && self.nodes.is_open(node)
        });
        if is_removed && self.nodes.is_open(node) {
            self.spoil_pages(node, 0, true);
        }
        true
    }

    /// Asks the masters to forget a file that was created here and cannot be stored. Returns true if its name is gone.
    async fn forget_made_file(self: &Arc<Self>, guard: &mut WriteGuard) -> bool {
        let (made, given_up) = (guard.base().inode, guard.given_up());
        guard.detach_from_session();
        let is_unmade = self.abandon_create(made, given_up).await;
        if is_unmade {
            self.forget_name(guard.inode());
        } else {
            self.last_closes.give_up(made);
        }
        is_unmade
    }

    /// Asks the masters to forget a file that was created here and could not be stored, so that no client sees a file
    /// without content. `given_up` is the write intent of the last attempt. Returns false if the file stays: because
    /// another client has created or stored it as well, or for now because the under-storage does not answer the master
    /// that checks.
    pub(super) async fn abandon_create(self: &Arc<Self>, inode: u64, given_up: Option<u64>) -> bool {
        let this = self.clone();
        let unmade = tokio::spawn(async move { this.abandon_create_unbounded(inode, given_up).await });
        match tokio::time::timeout(ABANDON_TIMEOUT, unmade).await {
            Ok(unmade) => unmade.unwrap_or(false),
            Err(_) => {
                tracing::info!(inode, "a file that was never stored is forgotten when the under-storage answers again");
                false
            }
        }
    }

    async fn abandon_create_unbounded(&self, inode: u64, given_up: Option<u64>) -> bool {
        match self.writer.abandon_create(inode, given_up).await {
            Ok(None) => true,
            Ok(Some(attr)) => {
                self.apply_attr_update(attr);
                false
            }
            Err(error) if error.kind == ErrorKind::NotFound => true,
            Err(error) => {
                self.inodes.expire(inode);
                if error.kind != ErrorKind::Stale {
                    tracing::warn!(inode, %error, "a file that was never stored is still seen by others");
                }
                false
            }
        }
    }

    /// Stores the `wanted` files that have no content, several at a time, and returns the outcomes.
    async fn store_each(
        self: &Arc<Self>,
        inodes: Vec<u64>,
        how: StoreMode,
        wanted: fn(&WriteGuard) -> bool,
    ) -> Vec<(u64, Result<()>)> {
        let stores = inodes.into_iter().map(|inode| {
            let this = self.clone();
            async move {
                let guard = this.staging.lock_if_staged(inode);
                let guard = match how {
                    // Another task stores the file, and its attempt may hang.
                    StoreMode::NonBlocking => tokio::time::timeout(GUARD_TIMEOUT, guard).await.unwrap_or_default(),
                    _ => guard.await,
                };
                let Some(mut guard) = guard.filter(|guard| !guard.is_written() && wanted(guard)) else {
                    return (inode, Ok(()));
                };
                (inode, this.store_as(&mut guard, how).await)
            }
        });
        stream::iter(stores).buffer_unordered(STORES_MAX).collect().await
    }

    /// Stores the files below a directory that is about to be renamed, if they wait to be stored after their close:
    /// during the rename they would be stored under the old path. A failure does not prevent the rename, since storing
    /// is retried.
    pub(super) async fn store_closed_below(self: &Arc<Self>, directory: u64) {
        let is_closed = |inode| self.staging.ready(inode).is_some_and(|staged| !self.is_open_to_write(staged.node()));
        let mut inodes = self.staging.unwritten();
        inodes.retain(|inode| is_closed(*inode) && self.inodes.path_below(directory, *inode).is_some());
        for (inode, stored) in self.store_each(inodes, StoreMode::NonBlocking, |_| true).await {
            if let Err(error) = stored {
                tracing::warn!(inode, %error, "an empty file is not stored before its directory moves");
            }
        }
    }

    /// Makes the names of a directory durable: the name of a new file is durable once the file is stored.
    ///
    /// *Errors*: those of storing.
    pub(super) async fn sync_directory(self: &Arc<Self>, directory: u64) -> Result<()> {
        self.flush_pending(directory).await;
        let mut inodes = self.staging.unwritten();
        inodes.retain(|inode| self.inodes.name_of(*inode).is_some_and(|(parent, _)| parent == directory));
        // A truncated file already has a durable name, and keeps its old content until it is closed.
        let is_new = |guard: &WriteGuard| guard.base().version_token.is_empty();
        let stored = self.store_each(inodes, StoreMode::Committed, is_new).await;
        stored.into_iter().try_for_each(|(_, stored)| stored)
    }

    /// Called at shutdown: waits a while for files that are being stored, and closes the session, so that other clients
    /// need not wait until it expires.
    pub(super) async fn settle(&self) {
        if !self.writable {
            return;
        }
        let started = Instant::now();
        let is_busy = || {
            let stages = self.staging.is_busy(|node| self.is_open_to_write(node));
            stages || self.pending_creates.is_busy() || self.pending_commits.is_busy()
        };
        while is_busy() && started.elapsed() < SETTLE_TIMEOUT {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.client.session().close().await;
        self.staging.clear();
    }

    /// Path of an inode below the mount for messages, as far as the kernel has looked it up.
    pub(super) fn path_for_people(&self, inode: u64) -> String {
        match self.inodes.path_below(ROOT_INODE, inode) {
            Some(path) => format!("/{}", String::from_utf8_lossy(&path)),
            None => "a path that is not known any more".to_owned(),
        }
    }
}

/// True for a transient error, after `attempts` failed attempts.
fn may_pass(error: &Error, attempts: usize) -> bool {
    match error.kind {
        // The next attempt, in the next session, finds the outcome of this one.
        ErrorKind::Busy | ErrorKind::NoSpace | ErrorKind::SessionExpired | ErrorKind::OutcomeUnknown => true,
        ErrorKind::UnderStorage => attempts < UNEXPLAINED_MAX,
        _ => error.is_retryable(),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn closes_wait_while_as_many_files_are_stored_as_may_be() {
        let closes = LastCloses::default();
        let mut permits = Vec::new();
        for _ in 0..STORES_MAX {
            assert!(closes.has_room(1) && closes.wait_for_room(1).now_or_never().is_some());
            permits.push(closes.attempt(1).await.expect("never closed"));
        }
        // So many calls have used up what a task may do at once.
        tokio::task::yield_now().await;
        let mut waits = Box::pin(closes.wait_for_room(1));
        assert!(!closes.has_room(1) && (&mut waits).now_or_never().is_none());
        assert!(
            closes.has_room(2) && closes.wait_for_room(2).now_or_never().is_some(),
            "those of another mount do not"
        );
        permits.pop();
        assert!(waits.now_or_never().is_some());
    }

    #[tokio::test]
    async fn files_that_wait_to_be_stored_again_keep_no_other_from_being_stored_until_they_are_too_many() {
        let closes = LastCloses::default();
        let waiting = closes.of(1).waiting;
        let _few = waiting.clone().acquire_many_owned(STORES_MAX as u32 * 2).await.expect("never closed");
        assert!(closes.has_room(1));
        let _many = waiting.acquire_many_owned((WAITING_MAX - STORES_MAX * 2) as u32).await.expect("never closed");
        assert!(!closes.has_room(1) && closes.has_room(2));
    }

    #[test]
    fn a_refusal_of_the_store_is_not_tried_again_and_what_may_pass_is() {
        let may_pass_after = |kind, attempts| may_pass(&Error::new(kind, "told"), attempts);
        let may_pass = |kind| may_pass_after(kind, 1_000);
        let passes = [ErrorKind::Unavailable, ErrorKind::Timeout, ErrorKind::NoSpace, ErrorKind::Busy];
        assert!(passes.into_iter().chain([ErrorKind::SessionExpired, ErrorKind::OutcomeUnknown]).all(may_pass));
        assert!(may_pass_after(ErrorKind::UnderStorage, 0) && !may_pass(ErrorKind::UnderStorage));
        assert!(![ErrorKind::PermissionDenied, ErrorKind::Stale, ErrorKind::NotFound].into_iter().any(may_pass));
    }
}
