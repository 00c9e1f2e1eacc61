//! Notifications that wait for the kernel: collected while earlier ones are sent, without duplicates, bounded in bytes.

use std::collections::BTreeSet;
use std::sync::Mutex;

use tokio::sync::Notify;

use crate::runtime::lock;

/// Most bytes that wait. If they are exceeded, everything is to be expired.
const BYTES_MAX: usize = 4 << 20;
/// Bytes of an item besides those of its name.
const ITEM_BYTES: usize = 48;

/// What is to be expired.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// Everything the kernel may know.
    pub(super) all: bool,
    pub(super) inodes: BTreeSet<u64>,
    pub(super) names: BTreeSet<(u64, Box<[u8]>)>,
    /// Every name of these.
    pub(super) directories: BTreeSet<u64>,
    bytes: usize,
}

impl Pending {
    /// True if nothing is to be expired.
    pub(super) fn is_empty(&self) -> bool {
        *self == Pending::default()
    }

    /// Adds what `other` holds.
    pub(super) fn merge(&mut self, other: Pending) {
        if other.all {
            return self.add_all();
        }
        if self.is_empty() {
            *self = other;
            return;
        }
        other.inodes.iter().for_each(|inode| self.add_inode(*inode));
        other.names.iter().for_each(|(directory, name)| self.add_name(*directory, name));
        other.directories.iter().for_each(|directory| self.add_directory(*directory));
    }

    fn add_all(&mut self) {
        *self = Pending { all: true, ..Pending::default() };
    }

    pub(super) fn add_inode(&mut self, inode: u64) {
        if !self.all && self.inodes.insert(inode) {
            self.grow(0);
        }
    }

    pub(super) fn add_name(&mut self, directory: u64, name: &[u8]) {
        if !self.all && self.names.insert((directory, name.into())) {
            self.grow(name.len());
        }
    }

    pub(super) fn add_directory(&mut self, directory: u64) {
        if !self.all && self.directories.insert(directory) {
            self.grow(0);
        }
    }

    fn grow(&mut self, bytes: usize) {
        self.bytes += bytes + ITEM_BYTES;
        if self.bytes > BYTES_MAX {
            self.add_all();
        }
    }
}

/// A queue with one consumer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pending: Mutex<Pending>,
    added: Notify,
}

impl Queue {
    /// Adds notifications.
    pub(super) fn add(&self, add: impl FnOnce(&mut Pending)) {
        add(&mut lock(&self.pending));
        self.added.notify_one();
    }

    /// Waits for notifications, and takes all of them.
    pub(super) async fn take(&self) -> Pending {
        loop {
            let pending = std::mem::take(&mut *lock(&self.pending));
            if !pending.is_empty() {
                return pending;
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_waits_is_taken_at_once_and_each_thing_comes_once() {
        let queue = Queue::default();
        assert!(queue.take().now_or_never().is_none());
        for inode in [5, 6, 5] {
            queue.add(|pending| pending.add_inode(inode));
        }
        queue.add(|pending| pending.add_name(1, b"a"));
        let pending = queue.take().now_or_never().expect("something waits");
        assert_eq!((pending.inodes.len(), pending.names.len(), pending.all), (2, 1, false));
        assert!(queue.take().now_or_never().is_none());
    }

    #[test]
    fn what_is_merged_is_all_that_both_hold() {
        let (mut one, mut other) = (Pending::default(), Pending::default());
        assert!(one.is_empty());
        other.add_name(1, b"a");
        one.merge(other);
        let mut other = Pending::default();
        other.add_inode(5);
        other.add_directory(6);
        one.merge(other);
        assert!(one.names.contains(&(1, Box::from(*b"a"))) && one.inodes.contains(&5) && one.directories.contains(&6));
        let mut everything = Pending::default();
        everything.add_all();
        one.merge(everything);
        assert!(one.all && one.names.is_empty());
    }

    #[test]
    fn more_than_may_wait_stands_for_everything() {
        let queue = Queue::default();
        let count = BYTES_MAX as u64 / ITEM_BYTES as u64 + 1;
        queue.add(|pending| (0..count).for_each(|inode| pending.add_inode(inode)));
        queue.add(|pending| pending.add_name(1, b"a"));
        let pending = queue.take().now_or_never().expect("something waits");
        assert!(pending.all && pending.inodes.is_empty() && pending.names.is_empty());
    }
}
