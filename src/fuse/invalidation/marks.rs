//! When a master has told a change of what: a cached answer counts only if it was asked for after that.
//!
//! An answer may be on its way while an event comes, and would be cached after the event. So nothing is merely deleted:
//! each use of a cached answer compares the time at which it was asked for with the marks.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use jindofs_proto::v1::InvalidationEvent;
use lru::LruCache;

use crate::runtime::{read_lock, write_lock};

/// Most marks, about 8 MiB.
const MARKS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(65_535);

/// What has changed. A name is represented by its hash: two names with one hash share their marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    /// Attributes of an inode.
    Inode(u64),
    /// The inode of a name in a directory.
    Name(u64, u64),
    /// The inodes of all names in a directory.
    Directory(u64),
    /// The set of names in a directory.
    Listing(u64),
}

#[derive(Debug)]
struct MarkTable {
    latest: LruCache<Subject, Instant>,
    /// Everything that was asked for before this time is invalid.
    floor: Option<Instant>,
}

/// The marks of one mount.
#[derive(Debug)]
pub(super) struct Marks {
    /// Origin of the times in nanoseconds.
    created: Instant,
    /// Time of the newest mark, in nanoseconds; 0 without a mark. Answers that are newer take no lock.
    newest: AtomicU64,
    inner: RwLock<MarkTable>,
}

impl Default for Marks {
    fn default() -> Marks {
        let inner = MarkTable { latest: LruCache::sparse(MARKS_MAX), floor: None };
        Marks { created: Instant::now(), newest: AtomicU64::new(0), inner: RwLock::new(inner) }
    }
}

fn name_of(directory: u64, name: &[u8]) -> Subject {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    Subject::Name(directory, hasher.finish())
}

impl Marks {
    /// Marks the subjects of `event`: answers that were asked for before now are invalid.
    pub(super) fn mark(&self, event: &InvalidationEvent) {
        let mut inner = write_lock(&self.inner);
        let now = Instant::now();
        if event.lost {
            inner.latest.clear();
            inner.floor = Some(now);
        }
        for inode in &event.inodes {
            inner.set(Subject::Inode(*inode), now);
        }
        for entry in &event.names {
            inner.set(name_of(entry.parent, &entry.name), now);
            inner.set(Subject::Listing(entry.parent), now);
        }
        for directory in &event.directories {
            inner.set(Subject::Directory(*directory), now);
        }
        self.newest.store(self.nanoseconds(now), Ordering::Release);
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.created).as_nanos()).unwrap_or(u64::MAX)
    }

    fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// True unless the inode was marked after `since`.
    pub(super) fn is_inode_current(&self, inode: u64, since: Instant) -> bool {
        self.is_current(since, || [Subject::Inode(inode); 2])
    }

    /// True unless the name was marked after `since`.
    pub(super) fn is_name_current(&self, directory: u64, name: &[u8], since: Instant) -> bool {
        self.is_current(since, || [name_of(directory, name), Subject::Directory(directory)])
    }

    /// True unless any name of the directory was marked after `since`.
    pub(super) fn is_listing_current(&self, directory: u64, since: Instant) -> bool {
        self.is_current(since, || [Subject::Listing(directory), Subject::Directory(directory)])
    }

    fn is_current(&self, since: Instant, subjects: impl FnOnce() -> [Subject; 2]) -> bool {
        let newest = self.newest();
        if newest == 0 || self.nanoseconds(since) > newest {
            return true;
        }
        let inner = read_lock(&self.inner);
        let is_newer = |mark: Option<&Instant>| mark.is_none_or(|mark| since > *mark);
        is_newer(inner.floor.as_ref()) && subjects().iter().all(|subject| is_newer(inner.latest.peek(subject)))
    }
}

impl MarkTable {
    fn set(&mut self, subject: Subject, now: Instant) {
        // The mark that is evicted is replaced by one on everything: that is coarser, and as safe.
        if let Some((dropped, mark)) = self.latest.push(subject, now)
            && dropped != subject
        {
            self.floor = self.floor.max(Some(mark));
        }
    }
}

#[cfg(test)]
mod tests {
    use jindofs_proto::v1::DirEntry;

    use super::*;

    fn names(parent: u64, name: &'static str) -> InvalidationEvent {
        let names = vec![DirEntry { parent, name: name.into() }];
        InvalidationEvent { names, ..InvalidationEvent::default() }
    }

    fn inodes(inodes: Vec<u64>) -> InvalidationEvent {
        InvalidationEvent { inodes, ..InvalidationEvent::default() }
    }

    /// A moment after every mark so far.
    fn later() -> Instant {
        let now = Instant::now();
        while Instant::now() == now {}
        Instant::now()
    }

    #[test]
    fn what_was_asked_for_before_a_mark_is_wrong_and_what_is_asked_for_afterwards_is_right() {
        let marks = Marks::default();
        let before = Instant::now();
        assert!(marks.is_inode_current(5, before), "nothing was marked");
        marks.mark(&inodes(vec![5]));
        assert!(!marks.is_inode_current(5, before) && marks.is_inode_current(6, before));
        assert!(marks.is_inode_current(5, later()));
    }

    #[test]
    fn a_name_is_marked_alone_and_makes_the_list_of_its_directory_wrong() {
        let marks = Marks::default();
        let before = Instant::now();
        marks.mark(&names(1, "a"));
        assert!(!marks.is_name_current(1, b"a", before) && marks.is_name_current(1, b"b", before));
        assert!(marks.is_name_current(2, b"a", before));
        assert!(!marks.is_listing_current(1, before) && marks.is_listing_current(2, before));
        marks.mark(&InvalidationEvent { directories: vec![2], ..InvalidationEvent::default() });
        assert!(!marks.is_name_current(2, b"a", before) && !marks.is_listing_current(2, before));
    }

    #[test]
    fn after_a_loss_everything_that_was_asked_for_before_is_wrong() {
        let marks = Marks::default();
        let before = Instant::now();
        marks.mark(&InvalidationEvent { lost: true, ..InvalidationEvent::default() });
        assert!(!marks.is_inode_current(9, before) && !marks.is_name_current(1, b"x", before));
        assert!(marks.is_inode_current(9, later()));
    }

    #[test]
    fn a_mark_that_is_evicted_is_replaced_by_one_on_everything() {
        let marks = Marks::default();
        let before = Instant::now();
        marks.mark(&inodes(vec![5]));
        let between = later();
        assert!(marks.is_inode_current(7, before) && marks.is_inode_current(7, between));
        let count = MARKS_MAX.get() as u64;
        marks.mark(&inodes((100..100 + count).collect()));
        assert!(!marks.is_inode_current(5, before) && !marks.is_inode_current(7, before));
        assert!(marks.is_inode_current(7, between), "it was asked for after the mark");
    }
}
