//! Invalidation of the caches of a read-only mount, by the changes that a master tells.
//!
//! *Who notifies the kernel.* To expire a name, the kernel takes the lock of the directory and waits for lookups in it,
//! which our threads answer. So tasks of their own notify the kernel, on threads that answer no request, and hold no
//! lock meanwhile. The kernel does not wait to expire attributes: these have a task beside the one for names, which a
//! lookup that takes long holds up.
//!
//! *Order.* An event is marked first, then the kernel is notified. An answer to the kernel that is made in between
//! enters the name into [`Inodes`](super::inodes::Inodes) before it checks the marks. So either the answer sees the
//! mark and has no time to live, or the task finds the name in the table and expires it.

mod marks;
mod queue;

use std::sync::Arc;
use std::time::Instant;

use jindofs_proto::v1::InvalidationEvent;
use tokio::task::JoinSet;

use crate::client::invalidations::Subscriber;

use super::fs::Fs;
use super::inodes::Known;
use marks::Marks;
use queue::{Pending, Queue};

/// The changes that were told, and the notifications that the kernel has not been sent yet.
#[derive(Debug, Default)]
pub(super) struct Invalidation {
    marks: Marks,
    attributes: Queue,
    names: Queue,
}

impl Invalidation {
    /// True unless the attributes have changed since they were asked for.
    pub(super) fn is_current(&self, known: &Known) -> bool {
        self.marks.is_inode_current(known.attr.inode, known.since)
    }

    /// True unless a name has come, gone, or changed its inode since it was asked for.
    pub(super) fn is_name_current(&self, directory: u64, name: &[u8], since: Instant) -> bool {
        self.marks.is_name_current(directory, name, since)
    }

    /// True unless a name of the directory has come, gone, or changed its inode since the directory was listed.
    pub(super) fn is_listing_current(&self, directory: u64, since: Instant) -> bool {
        self.marks.is_listing_current(directory, since)
    }

    /// The number of changes so far, for [`Invalidation::recheck_names`].
    pub(super) fn epoch(&self) -> u64 {
        self.marks.newest()
    }

    /// Expires the names of a directory in the kernel, if changes were told since `epoch`, when an answer with these
    /// names was begun.
    pub(super) fn recheck_names(&self, directory: u64, epoch: u64) {
        if self.marks.newest() != epoch {
            self.names.add(|pending| pending.add_directory(directory));
        }
    }

    fn accept(&self, event: &InvalidationEvent) {
        if *event == InvalidationEvent::default() {
            // A sign of life.
            return;
        }
        self.marks.mark(event);
        if event.lost {
            self.attributes.add(Pending::add_all);
            self.names.add(Pending::add_all);
        }
        if !event.inodes.is_empty() {
            self.attributes.add(|pending| event.inodes.iter().for_each(|inode| pending.add_inode(*inode)));
        }
        if !event.names.is_empty() || !event.directories.is_empty() {
            self.names.add(|pending| {
                event.names.iter().for_each(|entry| pending.add_name(entry.parent, &entry.name));
                event.directories.iter().for_each(|directory| pending.add_directory(*directory));
            });
        }
    }
}

impl Fs {
    /// Follows the changes that the masters apply, until the tasks are dropped. For read-only mounts.
    pub(super) fn follow_changes(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let this = self.clone();
        let subscriber = Subscriber::new(self.channel.clone());
        tasks.spawn(subscriber.run(move |event| this.invalidate(&event)));
        let this = self.clone();
        tasks.spawn(async move {
            loop {
                let pending = this.invalidation.attributes.take().await;
                this.notify_kernel(pending, Fs::expire_attributes_in_kernel).await;
            }
        });
        let this = self.clone();
        tasks.spawn(async move {
            loop {
                let pending = this.invalidation.names.take().await;
                this.notify_kernel(pending, Fs::expire_names_in_kernel).await;
            }
        });
        tasks
    }

    fn invalidate(&self, event: &InvalidationEvent) {
        self.invalidation.accept(event);
        event.inodes.iter().for_each(|inode| self.layouts.forget(*inode));
        // The marks make these listings useless. Without them, a streak of lookups lists the directory again.
        event.directories.iter().for_each(|directory| self.listings.forget(*directory));
        if event.lost {
            self.listings.clear();
        }
    }

    async fn notify_kernel(self: &Arc<Self>, pending: Pending, notify: fn(&Fs, &Pending)) {
        let this = self.clone();
        let notified = tokio::task::spawn_blocking(move || notify(&this, &pending)).await;
        if let Err(error) = notified {
            tracing::warn!(%error, "the kernel is not notified: names and attributes expire by their age");
        }
    }

    fn expire_attributes_in_kernel(&self, pending: &Pending) {
        if pending.all {
            self.inodes.visit_inodes(|inode| self.expire_attributes_of(inode));
        }
        pending.inodes.iter().for_each(|inode| self.expire_attributes_of(*inode));
    }

    fn expire_attributes_of(&self, inode: u64) {
        let Some((directory, name)) = self.inodes.name_of(inode) else { return };
        let is_known = self.kernel.expire_attributes(inode);
        for node in self.nodes.secondary_nodes(inode) {
            self.kernel.expire_attributes(node);
        }
        if !is_known {
            // The answer to its first lookup is on its way, perhaps with older attributes. The kernel expires the name
            // after that lookup, and the attributes then.
            self.invalidation.names.add(|pending| {
                pending.add_name(directory, &name);
                pending.add_inode(inode);
            });
        }
    }

    fn expire_names_in_kernel(&self, pending: &Pending) {
        if pending.all {
            self.inodes.visit_names(|directory, name| self.kernel.expire_name(directory, name));
        }
        for (directory, name) in &pending.names {
            if self.inodes.has_name(*directory, name) {
                self.kernel.expire_name(*directory, name);
            }
        }
        for directory in &pending.directories {
            let names = self.inodes.names_in(*directory);
            self.kernel.expire_names(*directory, names.iter().map(|name| &**name));
        }
        for inode in &pending.inodes {
            self.kernel.expire_attributes(*inode);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use jindofs_proto::v1::{Attr, DirEntry};

    use super::*;

    #[test]
    fn an_event_marks_what_is_cached_before_the_kernel_is_notified() {
        let invalidation = Invalidation::default();
        let known = Known::new(Attr { inode: 5, ..Attr::default() }, Instant::now());
        assert!(invalidation.is_current(&known));
        let names = vec![DirEntry { parent: 1, name: "a".into() }];
        invalidation.accept(&InvalidationEvent { inodes: vec![5], names, ..InvalidationEvent::default() });
        assert!(!invalidation.is_current(&known) && !invalidation.is_name_current(1, b"a", known.since));
        assert!(!invalidation.is_listing_current(1, known.since));
        let attributes = invalidation.attributes.take().now_or_never().expect("the kernel is to be notified");
        assert_eq!(attributes.inodes.into_iter().collect::<Vec<_>>(), [5]);
        let names = invalidation.names.take().now_or_never().expect("the kernel is to be notified");
        assert!(names.names.contains(&(1, Box::from(*b"a"))));
    }

    #[test]
    fn names_that_were_given_while_an_event_came_expire_once_more() {
        let invalidation = Invalidation::default();
        let begun = invalidation.epoch();
        invalidation.accept(&InvalidationEvent::default());
        invalidation.recheck_names(7, begun);
        assert!(invalidation.names.take().now_or_never().is_none(), "nothing came");
        invalidation.accept(&InvalidationEvent { inodes: vec![5], ..InvalidationEvent::default() });
        invalidation.recheck_names(7, begun);
        let names = invalidation.names.take().now_or_never().expect("the kernel is to be notified");
        assert!(names.directories.contains(&7));
    }
}
