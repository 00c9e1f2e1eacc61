//! Files that are stored and not recorded as such yet: their writers are answered as soon as the under-storage has them.
//!
//! The masters know that they are being stored, and whoever asks for one waits for the record. What changes it here does too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use jindofs_proto::v1::Attr;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::client::writer::DeferredCommit;
use crate::runtime::lock;

use super::fs::Fs;

/// Most records on their way: beyond that writers wait for theirs.
const PENDING_MAX: usize = 256;

/// One record on its way; dropped when it has arrived.
type PendingCommit = (u64, watch::Sender<()>);

/// All of them, with the directory of each.
#[derive(Debug, Default)]
pub(super) struct PendingCommits {
    inodes: Mutex<HashMap<u64, PendingCommit>>,
    count: AtomicUsize,
}

impl PendingCommits {
    fn inodes(&self) -> MutexGuard<'_, HashMap<u64, PendingCommit>> {
        lock(&self.inodes)
    }

    /// True if one more may be on its way.
    pub(super) fn has_room(&self) -> bool {
        self.count.load(Ordering::Acquire) < PENDING_MAX
    }

    /// True while any is on its way.
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

    /// Those on their way that are `wanted`, by inode and directory.
    fn waiters_for(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<CommitWaiter> {
        if !self.is_busy() {
            return Vec::new();
        }
        let inodes = self.inodes();
        let wanted = inodes.iter().filter(|(inode, (directory, _))| wanted(**inode, *directory));
        wanted.map(|(_, (_, arrived))| CommitWaiter(arrived.subscribe())).collect()
    }
}

/// What somebody waits for.
struct CommitWaiter(watch::Receiver<()>);

impl CommitWaiter {
    async fn wait(mut self) {
        // Nothing is ever sent: it ends with its sender.
        while self.0.changed().await.is_ok() {}
    }
}

impl PendingCommits {
    /// True if a file was stored here, and the masters are still to be told.
    pub(super) fn contains(&self, inode: u64) -> bool {
        !self.waiters_for(|ended, _| ended == inode).is_empty()
    }
}

impl Fs {
    /// True if a file was made or stored here and the masters are still to be told: nobody else can have stored it since.
    pub(super) fn is_uncommitted(&self, inode: u64) -> bool {
        self.pending_creates.get(inode).is_some() || self.pending_commits.contains(inode)
    }

    /// Waits until the record of a file that was stored here is at the masters, if it is on its way.
    pub(super) async fn await_commit(&self, inode: u64) {
        self.wait_for(self.pending_commits.waiters_for(|ended, _| ended == inode)).await;
    }

    /// Waits until everything is at the masters that is on its way into a directory.
    pub(super) async fn flush_pending(&self, directory: u64) {
        let pending_creates = self.pending_creates.bound_for(directory);
        if !pending_creates.is_empty() {
            self.batcher.flush(&Handle::current());
        }
        for pending in pending_creates {
            // Whoever has it open is told of an error.
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

    /// Has recorded what was `stored`. Whoever wrote it does not wait for it.
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
