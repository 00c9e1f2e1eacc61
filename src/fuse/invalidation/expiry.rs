//! The tasks that expire names and attributes in the kernel.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::client::invalidations::Subscriber;

use super::super::fs::Fs;
use super::queue::Pending;

/// How often a directory is checked that is never idle.
const DEFERRED_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// After this time the kernel is notified of a name once more. The kernel looks known names up again without the lock of
/// their directory, so an older answer may have undone the first notification.
const REPEAT_DELAY: Duration = Duration::from_millis(100);
/// A sweep expires at most 10,000 names and inodes each second, as each of them may be asked for again.
const SWEEP_ITEMS: usize = 100;
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);

/// What came of expiring names.
#[derive(Debug, Default)]
struct Expired {
    /// Of these the kernel was notified.
    notified: Pending,
    /// These are in directories that are busy.
    deferred: Pending,
}

impl Fs {
    /// Follows the changes that the masters apply, until the tasks are dropped. For read-only mounts.
    pub(crate) fn follow_changes(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let this = self.clone();
        let subscriber = Subscriber::new(self.channel.clone());
        tasks.spawn(subscriber.run(move |event| this.invalidate(&event)));
        tasks.spawn(self.clone().expire_attributes());
        tasks.spawn(self.clone().expire_names());
        tasks.spawn(self.clone().repeat_names());
        tasks.spawn(self.clone().sweep());
        tasks
    }

    async fn expire_attributes(self: Arc<Self>) {
        loop {
            let pending = self.invalidation.attributes.take().await;
            if pending.all {
                self.invalidation.sweep.notify_one();
            }
            let expire = move |fs: &Fs| pending.inodes.iter().for_each(|inode| fs.expire_attributes_of(*inode));
            self.notify_kernel(expire).await;
        }
    }

    async fn expire_names(self: Arc<Self>) {
        let mut deferred = Pending::default();
        let mut check = tokio::time::interval(DEFERRED_CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let pending = tokio::select! {
                pending = self.invalidation.names.take() => pending,
                () = self.invalidation.busy.wait_idle(), if !deferred.is_empty() => mem::take(&mut deferred),
                _ = check.tick(), if !deferred.is_empty() => mem::take(&mut deferred),
            };
            let expired = self.notify_kernel(move |fs| fs.expire_pending_names(pending)).await;
            deferred.merge(expired.deferred);
            if !expired.notified.is_empty() {
                self.invalidation.repeats.add(|repeats| repeats.merge(expired.notified));
            }
        }
    }

    async fn repeat_names(self: Arc<Self>) {
        loop {
            let pending = self.invalidation.repeats.take().await;
            tokio::time::sleep(REPEAT_DELAY).await;
            let expired = self.notify_kernel(move |fs| fs.expire_pending_names(pending)).await;
            if !expired.deferred.is_empty() {
                self.invalidation.names.add(|names| names.merge(expired.deferred));
            }
        }
    }

    /// Expires everything the kernel may know, each time changes were lost.
    async fn sweep(self: Arc<Self>) {
        loop {
            self.invalidation.sweep.notified().await;
            tokio::join!(self.sweep_inodes(), self.sweep_names());
        }
    }

    async fn sweep_inodes(&self) {
        let mut pace = Pace::default();
        for inodes in self.inodes.inodes_by_shard() {
            for chunk in inodes.chunks(SWEEP_ITEMS) {
                self.invalidation.attributes.add(|pending| chunk.iter().for_each(|inode| pending.add_inode(*inode)));
                pace.advance(chunk.len()).await;
            }
        }
    }

    async fn sweep_names(&self) {
        let mut pace = Pace::default();
        for names in self.inodes.names_by_shard() {
            for chunk in names.chunks(SWEEP_ITEMS) {
                let add = |pending: &mut Pending| chunk.iter().for_each(|(at, name)| pending.add_name(*at, name));
                self.invalidation.names.add(add);
                pace.advance(chunk.len()).await;
            }
        }
    }

    /// Notifies the kernel on a thread that answers no request.
    async fn notify_kernel<T: Default + Send + 'static>(
        self: &Arc<Self>,
        notify: impl FnOnce(&Fs) -> T + Send + 'static,
    ) -> T {
        let this = self.clone();
        let notified = tokio::task::spawn_blocking(move || notify(&this)).await;
        notified.unwrap_or_else(|error| {
            tracing::warn!(%error, "the kernel is not notified: names and attributes expire by their age");
            T::default()
        })
    }

    fn expire_attributes_of(&self, inode: u64) {
        let is_open = self.nodes.is_inode_open(inode);
        let Some((directory, name)) = self.inodes.name_of(inode) else {
            // The process before had it open. Its other attributes live for a moment only: see `answer::show`.
            if is_open {
                self.kernel.expire_attributes(inode);
            }
            return;
        };
        let is_known = self.kernel.expire_attributes(inode);
        for node in self.nodes.secondary_nodes(inode) {
            self.kernel.expire_attributes(node);
        }
        // The node of an open file may stay with its version, so the name has to be looked up to find the node of the
        // newest one.
        if !is_known || is_open {
            self.invalidation.names.add(|pending| {
                pending.add_name(directory, &name);
                // The answer to its first lookup is on its way, perhaps with older attributes. The kernel expires the
                // name after that lookup, and the attributes then.
                if !is_known {
                    pending.add_inode(inode);
                }
            });
        }
    }

    /// Expires names, and inodes after them, except those in busy directories.
    fn expire_pending_names(&self, pending: Pending) -> Expired {
        if pending.all {
            self.invalidation.sweep.notify_one();
        }
        let mut expired = Expired::default();
        for (directory, name) in &pending.names {
            // The table holds one name of an inode, and the kernel may know an older one, too.
            if self.is_expired_by_events(*directory) {
                let is_notified = self.expire_name(*directory, name);
                let to = if is_notified { &mut expired.notified } else { &mut expired.deferred };
                to.add_name(*directory, name);
            }
        }
        let is_busy = |directory: u64| self.invalidation.busy.is_busy(directory, Instant::now());
        let (busy, idle): (BTreeSet<u64>, BTreeSet<u64>) = pending.directories.iter().partition(|at| is_busy(**at));
        busy.into_iter().for_each(|directory| expired.deferred.add_directory(directory));
        for (directory, name) in self.inodes.names_in_any(&idle) {
            if !self.expire_name(directory, &name) {
                expired.deferred.add_name(directory, &name);
            }
        }
        idle.into_iter().for_each(|directory| expired.notified.add_directory(directory));
        for inode in &pending.inodes {
            let directory = self.inodes.name_of(*inode).map(|(directory, _)| directory);
            if directory.is_some_and(is_busy) {
                expired.deferred.add_inode(*inode);
            } else {
                self.kernel.expire_attributes(*inode);
                expired.notified.add_inode(*inode);
            }
        }
        expired
    }

    /// False if the directory is busy.
    fn expire_name(&self, directory: u64, name: &[u8]) -> bool {
        let is_busy = self.invalidation.busy.is_busy(directory, Instant::now());
        if !is_busy {
            self.kernel.expire_name(directory, name);
        }
        !is_busy
    }
}

/// Slows a sweep down.
#[derive(Default)]
struct Pace {
    count: usize,
}

impl Pace {
    async fn advance(&mut self, items: usize) {
        self.count += items;
        if self.count >= SWEEP_ITEMS {
            self.count = 0;
            tokio::time::sleep(SWEEP_INTERVAL).await;
        }
    }
}
