//! Changes made by others, as a master tells of them: what is cached here and in the kernel of a mount that changes nothing
//! expires at once instead of by its age.
//!
//! *Who tells the kernel.* It waits for names of a directory that are being looked up before it expires one, and those lookups are
//! answered by our threads. So tasks of their own tell it, on threads that answer nothing, and hold no lock meanwhile. Attributes,
//! for which it waits for nothing, have a task beside that of names: a lookup that takes long holds up names only.
//!
//! *Order.* An event marks first what is wrong, and then has the kernel told. An answer to the kernel that is made in between is
//! checked against the marks after the name is entered into the table of those that the kernel knows: either the answer says
//! that it must not be kept, or the name is found in the table and expired.

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

/// What was told to be wrong, and what of it the kernel is still to be told.
#[derive(Debug, Default)]
pub(super) struct Invalidation {
    marks: Marks,
    attributes: Queue,
    names: Queue,
}

impl Invalidation {
    /// True if attributes are not known to be wrong.
    pub(super) fn is_current(&self, known: &Known) -> bool {
        self.marks.is_inode_current(known.attr.inode, known.since)
    }

    /// True if what a name was said at `since` to stand for, or that there is none, is not known to be wrong.
    pub(super) fn is_name_current(&self, directory: u64, name: &[u8], since: Instant) -> bool {
        self.marks.is_name_current(directory, name, since)
    }

    /// True if the list of names in a directory is not known to be wrong.
    pub(super) fn is_listing_current(&self, directory: u64, since: Instant) -> bool {
        self.marks.is_listing_current(directory, since)
    }

    /// A moment to compare with a later one.
    pub(super) fn now(&self) -> u64 {
        self.marks.newest()
    }

    /// The kernel was given names of a directory, from `begun` on: what was told to be wrong meanwhile expires once more.
    pub(super) fn recheck_names(&self, directory: u64, begun: u64) {
        if self.marks.newest() != begun {
            self.names.add(|pending| pending.add_directory(directory));
        }
    }

    fn accept(&self, event: &InvalidationEvent) {
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
    /// Follows what the masters apply, until the tasks are dropped. For mounts that change nothing themselves.
    pub(super) fn follow_changes(self: &Arc<Self>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        let this = self.clone();
        let subscriber = Subscriber::new(self.channel.clone());
        tasks.spawn(subscriber.run(move |event| this.invalidate(&event)));
        let this = self.clone();
        tasks.spawn(async move {
            loop {
                let pending = this.invalidation.attributes.take().await;
                this.tell_kernel(pending, Fs::expire_attributes_in_kernel).await;
            }
        });
        let this = self.clone();
        tasks.spawn(async move {
            loop {
                let pending = this.invalidation.names.take().await;
                this.tell_kernel(pending, Fs::expire_names_in_kernel).await;
            }
        });
        tasks
    }

    fn invalidate(&self, event: &InvalidationEvent) {
        self.invalidation.accept(event);
        event.inodes.iter().for_each(|inode| self.layouts.forget(*inode));
        // The marks say that these are of no use; forgotten, they are listed anew where that is worth it.
        event.directories.iter().for_each(|directory| self.listings.forget(*directory));
        if event.lost {
            self.listings.clear();
        }
    }

    async fn tell_kernel(self: &Arc<Self>, pending: Pending, tell: fn(&Fs, &Pending)) {
        let this = self.clone();
        let told = tokio::task::spawn_blocking(move || tell(&this, &pending)).await;
        if let Err(error) = told {
            tracing::warn!(%error, "the kernel is not told of changes: what it keeps expires by its age");
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
            // Its first lookup is being answered, with attributes that may be older. To expire the name waits for that.
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
    fn an_event_makes_what_is_cached_wrong_before_the_kernel_is_told() {
        let invalidation = Invalidation::default();
        let known = Known::new(Attr { inode: 5, ..Attr::default() }, Instant::now());
        assert!(invalidation.is_current(&known));
        let names = vec![DirEntry { parent: 1, name: "a".into() }];
        invalidation.accept(&InvalidationEvent { inodes: vec![5], names, ..InvalidationEvent::default() });
        assert!(!invalidation.is_current(&known) && !invalidation.is_name_current(1, b"a", known.since));
        assert!(!invalidation.is_listing_current(1, known.since));
        let attributes = invalidation.attributes.take().now_or_never().expect("the kernel is to be told");
        assert_eq!(attributes.inodes.into_iter().collect::<Vec<_>>(), [5]);
        let names = invalidation.names.take().now_or_never().expect("the kernel is to be told");
        assert!(names.names.contains(&(1, Box::from(*b"a"))));
    }

    #[test]
    fn names_that_were_given_while_an_event_came_expire_once_more() {
        let invalidation = Invalidation::default();
        let begun = invalidation.now();
        invalidation.recheck_names(7, begun);
        assert!(invalidation.names.take().now_or_never().is_none(), "nothing came");
        invalidation.accept(&InvalidationEvent { inodes: vec![5], ..InvalidationEvent::default() });
        invalidation.recheck_names(7, begun);
        let names = invalidation.names.take().now_or_never().expect("the kernel is to be told");
        assert!(names.directories.contains(&7));
    }
}
