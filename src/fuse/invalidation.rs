//! Invalidation of the caches of a read-only mount, by the changes that a master tells.
//!
//! *Who notifies the kernel.* To expire a name, the kernel takes the lock of the directory and waits for lookups in it,
//! which our threads answer. So tasks of their own notify the kernel ([`expiry`]), on threads that answer no request, and
//! hold no lock meanwhile. They leave out directories with requests under way ([`busy`]). The kernel does not wait to
//! expire attributes: these have a task beside the one for names.
//!
//! *Order.* An event is marked first, then the kernel is notified. An answer to the kernel that is made in between
//! enters the name into [`Inodes`](super::inodes::Inodes) before it checks the marks. So either the answer sees the
//! mark and has no time to live, or the task finds the name in the table and expires it. An answer that is a page of a
//! directory enters its names later, and checks the marks once more afterwards.

mod busy;
mod expiry;
mod marks;
mod queue;

use std::sync::Arc;
use std::time::Instant;

use jindofs_proto::v1::InvalidationEvent;
use tokio::sync::Notify;

use crate::client::invalidations::is_heartbeat;
use crate::types::ROOT_INODE;

use super::fs::Fs;
use super::inodes::Known;
use busy::{BusyDirectories, DirectoryRequest};
use marks::Marks;
use queue::Queue;

/// The changes that were told, and the notifications that the kernel has not been sent yet.
#[derive(Debug, Default)]
pub(super) struct Invalidation {
    /// True if the mount follows the changes that the masters apply. Otherwise nothing is notified.
    is_followed: bool,
    marks: Marks,
    attributes: Queue,
    names: Queue,
    /// Names of which the kernel is notified once more.
    repeats: Queue,
    /// Wakes the task that expires everything.
    sweep: Notify,
    busy: Arc<BusyDirectories>,
}

impl Invalidation {
    /// Of a mount that follows the changes, or does not.
    pub(super) fn new(is_followed: bool) -> Invalidation {
        Invalidation { is_followed, ..Invalidation::default() }
    }

    /// True if the mount follows the changes that the masters apply.
    pub(super) fn is_followed(&self) -> bool {
        self.is_followed
    }

    /// Notes a request of the kernel that holds the lock of `directory`. What is returned has to be dropped once the
    /// request is answered. Changes of a directory need not be noted: a mount that follows changes refuses them at once.
    pub(super) fn hold(&self, directory: u64) -> Option<DirectoryRequest> {
        self.is_followed.then(|| self.busy.begin(directory, Instant::now()))
    }

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

    /// Expires in the kernel what an answer with names of a directory and their `inodes` held, as far as changes were
    /// told since the answer was `begun`.
    pub(super) fn recheck(&self, directory: u64, inodes: &[u64], begun: Instant) {
        if !self.marks.is_listing_current(directory, begun) {
            self.names.add(|pending| pending.add_directory(directory));
        }
        for inode in inodes.iter().filter(|inode| !self.marks.is_inode_current(**inode, begun)) {
            self.attributes.add(|pending| pending.add_inode(*inode));
        }
    }

    fn accept(&self, event: &InvalidationEvent) {
        if is_heartbeat(event) {
            return;
        }
        self.marks.mark(event);
        if event.lost {
            self.sweep.notify_one();
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
    fn invalidate(&self, event: &InvalidationEvent) {
        self.invalidation.accept(event);
        event.inodes.iter().for_each(|inode| self.layouts.forget(*inode));
        // The marks make these listings useless. Without them, a streak of lookups lists the directory again.
        event.directories.iter().for_each(|directory| self.listings.forget(*directory));
        if event.lost {
            self.listings.clear();
        }
    }

    /// The kernel learns an entry. If it knew the inode by another name, that name expires: the table forgets it, so a
    /// loss of changes would not expire it.
    pub(super) fn learn_entry(&self, parent: u64, name: &[u8], known: Known) {
        let displaced = self.inodes.entered(parent, name, known);
        if let Some((directory, name)) = displaced.filter(|_| self.invalidation.is_followed) {
            self.invalidation.names.add(|pending| pending.add_name(directory, &name));
        }
    }

    /// True if events expire the attributes of an inode, and the names in a directory, in the kernel. A process that has
    /// taken a mount over learns an inode with its first lookup only.
    pub(super) fn is_expired_by_events(&self, inode: u64) -> bool {
        !self.invalidation.is_followed || inode == ROOT_INODE || self.inodes.contains(inode)
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
        let begun = Instant::now();
        invalidation.accept(&InvalidationEvent {
            inodes: vec![5],
            directories: vec![6],
            ..InvalidationEvent::default()
        });
        let _ = (invalidation.attributes.take().now_or_never(), invalidation.names.take().now_or_never());
        invalidation.recheck(7, &[8], begun);
        assert!(invalidation.names.take().now_or_never().is_none(), "nothing came that concerns them");
        assert!(invalidation.attributes.take().now_or_never().is_none());
        invalidation.recheck(6, &[5, 8], begun);
        let names = invalidation.names.take().now_or_never().expect("the kernel is to be notified");
        assert_eq!(names.directories.into_iter().collect::<Vec<_>>(), [6]);
        let attributes = invalidation.attributes.take().now_or_never().expect("the kernel is to be notified");
        assert_eq!(attributes.inodes.into_iter().collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn a_loss_expires_everything_and_makes_every_answer_under_way_useless() {
        let invalidation = Invalidation::default();
        let begun = Instant::now();
        assert!(invalidation.sweep.notified().now_or_never().is_none());
        invalidation.accept(&InvalidationEvent { lost: true, ..InvalidationEvent::default() });
        assert!(invalidation.sweep.notified().now_or_never().is_some());
        invalidation.recheck(7, &[8], begun);
        let names = invalidation.names.take().now_or_never().expect("the kernel is to be notified");
        assert!(names.directories.contains(&7));
    }

    #[test]
    fn requests_are_noted_only_where_changes_are_followed() {
        assert!(Invalidation::new(false).hold(1).is_none() && Invalidation::new(true).hold(1).is_some());
    }
}
