//! The writes that are stored in the under-storage but not committed by the masters yet: their writers are answered as
//! soon as the under-storage has the content.
//!
//! The masters hold a write intent for each of them, so a client that asks for such a file waits for the commit. An
//! operation of this mount that depends on the commit waits here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use jindofs_proto::v1::Attr;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::client::writer::DeferredCommit;
use crate::runtime::lock;

use super::fs::Fs;

/// Most pending commits. Above this bound writers wait for their commit.
const PENDING_MAX: usize = 256;

/// The directory of the file, and a channel that is closed when the commit has arrived.
type PendingCommit = (u64, watch::Sender<()>);

/// All pending commits, by inode.
#[derive(Debug, Default)]
pub(super) struct PendingCommits {
    inodes: Mutex<HashMap<u64, PendingCommit>>,
    count: AtomicUsize,
}

impl PendingCommits {
    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, PendingCommit>> {
        lock(&self.inodes)
    }

    /// True if another commit may be pending.
    pub(super) fn has_room(&self) -> bool {
        self.count.load(Ordering::Acquire) < PENDING_MAX
    }

    /// True while a commit is pending.
    pub(super) fn is_busy(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    fn add(&self, inode: u64, directory: u64) {
        let mut inodes = self.inodes();
        inodes.insert(inode, (directory, watch::Sender::new(())));
        self.count.store(inodes.len(), Ordering::Release);
    }

    fn remove(&self, inode: u64) {
        let mut inodes = self.inodes();
        inodes.remove(&inode);
        self.count.store(inodes.len(), Ordering::Release);
    }

    /// Waiters for the pending commits that are `wanted`, by inode and directory.
    fn waiters_for(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<CommitWaiter> {
        if !self.is_busy() {
            return Vec::new();
        }
        let inodes = self.inodes();
        let wanted = inodes.iter().filter(|(inode, (directory, _))| wanted(**inode, *directory));
        wanted.map(|(_, (_, arrived))| CommitWaiter(arrived.subscribe())).collect()
    }
}

/// Waits for one commit.
struct CommitWaiter(watch::Receiver<()>);

impl CommitWaiter {
    async fn wait(mut self) {
        // Nothing is ever sent: the channel closes when the entry is removed.
        while self.0.changed().await.is_ok() {}
    }
}

impl PendingCommits {
    /// True if the content of a file is stored and its commit is pending.
    pub(super) fn contains(&self, inode: u64) -> bool {
        !self.waiters_for(|ended, _| ended == inode).is_empty()
    }
}

impl Fs {
    /// True if a create or a commit of the file is pending: no other client can have stored it since.
    pub(super) fn is_uncommitted(&self, inode: u64) -> bool {
        self.pending_creates.get(inode).is_some() || self.pending_commits.contains(inode)
    }

    /// Waits for the pending commit of a file, if there is one.
    pub(super) async fn await_commit(&self, inode: u64) {
        self.wait_for(self.pending_commits.waiters_for(|ended, _| ended == inode)).await;
    }

    /// Flushes the batcher and waits for all pending creates and commits in a directory.
    pub(super) async fn flush_pending(&self, directory: u64) {
        let pending_creates = self.pending_creates.bound_for(directory);
        if !pending_creates.is_empty() {
            self.batcher.flush(&Handle::current());
        }
        for pending in pending_creates {
            // A handle of the file reports the error.
            let _ = pending.done().await;
        }
        self.wait_for(self.pending_commits.waiters_for(|_, into| into == directory)).await;
    }

    async fn wait_for(&self, arrivals: Vec<CommitWaiter>) {
        if !arrivals.is_empty() {
            self.batcher.flush(&Handle::current());
        }
        for arrival in arrivals {
            arrival.wait().await;
        }
    }

    /// Commits what was `stored` in the background. The writer does not wait for it.
    pub(super) fn commit_in_background(self: &Arc<Self>, stored: &Attr, commit: DeferredCommit) {
        let (this, inode) = (self.clone(), stored.inode);
        self.pending_commits.add(inode, stored.parent);
        commit.enqueue(move |outcome| {
            match outcome {
                Ok(attr) => this.apply_attr_update(attr),
                Err(error) => {
                    tracing::error!(inode, %error, "a file that was stored is not known to the masters");
                    this.inodes.expire(inode);
                }
            }
            this.pending_commits.remove(inode);
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_changes_a_file_or_its_directory_waits_for_its_record_and_nobody_else_does() {
        let pending_commits = PendingCommits::default();
        pending_commits.add(7, 1);
        assert!(pending_commits.waiters_for(|inode, _| inode == 8).is_empty());
        assert!(pending_commits.waiters_for(|_, directory| directory == 2).is_empty());
        let mut waited = pending_commits.waiters_for(|_, directory| directory == 1);
        let mut waiting = Box::pin(waited.pop().expect("on its way").wait());
        assert!((&mut waiting).now_or_never().is_none() && pending_commits.is_busy());
        pending_commits.remove(7);
        assert!(waiting.now_or_never().is_some() && !pending_commits.is_busy());
    }
}
