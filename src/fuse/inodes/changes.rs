//! What changes of our own do to what is known.

use std::time::Instant;

use super::{Inodes, Known, PageCache};

impl Inodes {
    /// An inode was changed by us: what is known is wrong, and so is every answer to what was asked before now.
    pub(crate) fn changed(&self, inode: u64) {
        if let Some(entry) = self.shard(inode).get_mut(&inode) {
            entry.known.expired = true;
            entry.known.since = Instant::now();
            entry.listed = None;
        }
    }

    /// Something came into a directory by us, at `now` nanoseconds since the epoch.
    pub(crate) fn grown(&self, directory: u64, now: i64) {
        if let Some(entry) = self.shard(directory).get_mut(&directory) {
            let attr = &mut entry.known.attr;
            attr.mtime_ns = attr.mtime_ns.max(now);
            attr.ctime_ns = attr.ctime_ns.max(now);
            entry.listed = None;
        }
    }

    /// The name an inode was reached by.
    pub(crate) fn name_of(&self, inode: u64) -> Option<(u64, Box<[u8]>)> {
        self.shard(inode).get(&inode).map(|entry| (entry.parent, entry.name.clone()))
    }

    /// What is known, or `known` where that is newer: answers may overtake each other.
    pub(crate) fn newest(&self, known: Known) -> Known {
        match self.get(known.attr.inode) {
            Some(other) if other.since > known.since => other,
            _ => known,
        }
    }

    /// A name was removed. The inode stays for as long as the kernel counts lookups of it.
    pub(crate) fn removed(&self, parent: u64, name: &[u8]) {
        let inode = self.names(parent).remove(&(parent, Box::from(name)));
        inode.into_iter().for_each(|inode| self.unlinked(inode));
    }

    fn unlinked(&self, inode: u64) {
        if let Some(entry) = self.shard(inode).get_mut(&inode) {
            entry.known.attr.nlink = 0;
        }
    }

    /// An inode has another name.
    pub(crate) fn moved(&self, inode: u64, parent: u64, name: &[u8]) {
        let old = {
            let mut shard = self.shard(inode);
            let Some(entry) = shard.get_mut(&inode) else { return };
            (std::mem::replace(&mut entry.parent, parent), std::mem::replace(&mut entry.name, name.into()))
        };
        self.remove_name(old.0, old.1, inode);
        let replaced = self.names(parent).insert((parent, name.into()), inode);
        replaced.into_iter().filter(|replaced| *replaced != inode).for_each(|replaced| self.unlinked(replaced));
    }

    /// The one version that is open; `None` when there are several, or none.
    pub(crate) fn open_version(&self, inode: u64) -> Option<u64> {
        match self.opens(inode).get(&inode).map(Vec::as_slice) {
            Some([(version, _)]) => Some(*version),
            _ => None,
        }
    }

    /// How a handle that was noted may use the page cache where all handles see what is staged, made from `version`: that is not
    /// what the pages hold, but what they will be taken for when it is stored.
    pub(crate) fn pages_of_staged(&self, inode: u64, version: u64) -> PageCache {
        let handles: u32 =
            self.opens(inode).get(&inode).map_or(0, |open| open.iter().map(|(_, handles)| handles).sum());
        if let Some(entry) = self.shard(inode).get_mut(&inode) {
            entry.cached_version = Some(version);
        }
        if handles > 1 { PageCache::Keep } else { PageCache::Drop }
    }

    /// What was the version `from` is stored as `to`: the kernel's pages stay right.
    pub(crate) fn pages_become(&self, inode: u64, from: u64, to: u64) {
        if let Some(entry) = self.shard(inode).get_mut(&inode)
            && entry.cached_version == Some(from)
        {
            entry.cached_version = Some(to);
        }
    }

    /// What the kernel's pages hold was given up: whoever opens the file next does not see it.
    pub(crate) fn pages_are_lost(&self, inode: u64) {
        if let Some(entry) = self.shard(inode).get_mut(&inode) {
            entry.cached_version = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jindofs_proto::v1::Attr;

    use super::*;

    fn known(inode: u64, size: u64) -> Known {
        Known::new(Attr { inode, size, ..Attr::default() }, Instant::now())
    }

    #[test]
    fn an_inode_that_moved_answers_to_its_new_name_and_one_that_was_removed_to_none() {
        let inodes = Inodes::new();
        inodes.entered(1, b"a", known(5, 0));
        inodes.entered(1, b"b", known(6, 0));
        inodes.moved(5, 2, b"b");
        assert!(inodes.get_named(1, b"a").is_none());
        assert_eq!(inodes.get_named(2, b"b").map(|known| known.attr.inode), Some(5));
        inodes.moved(5, 1, b"b");
        assert_eq!(inodes.get_named(1, b"b").map(|known| known.attr.inode), Some(5), "it replaced what was there");
        inodes.forget(6, 1);
        assert!(inodes.get_named(1, b"b").is_some(), "what was replaced takes no name with it");
        inodes.removed(1, b"b");
        assert!(inodes.get_named(1, b"b").is_none() && inodes.get(5).is_some());
    }

    #[test]
    fn an_answer_to_what_was_asked_before_a_change_does_not_hide_it() {
        let inodes = Inodes::new();
        inodes.entered(1, b"d", known(5, 1));
        let overtaken = known(5, 1);
        inodes.changed(5);
        inodes.renew(overtaken.clone());
        assert!(inodes.get(5).is_some_and(|known| known.fresh_for(Duration::from_secs(60)).is_none()));
        inodes.renew(known(5, 2));
        assert_eq!(inodes.newest(overtaken).attr.size, 2);
        assert_eq!(inodes.newest(known(5, 3)).attr.size, 3);
    }

    #[test]
    fn pages_stay_when_what_they_hold_is_stored_and_go_when_somebody_else_has_stored() {
        let inodes = Inodes::new();
        inodes.entered(1, b"f", known(5, 0));
        inodes.note_open(5, 10);
        assert_eq!(inodes.pages_of_staged(5, 10), PageCache::Drop, "the first handle");
        inodes.note_open(5, 10);
        assert_eq!(inodes.pages_of_staged(5, 10), PageCache::Keep);
        assert_eq!(inodes.open_version(5), Some(10));
        inodes.pages_become(5, 10, 11);
        inodes.closed(5, 10);
        inodes.closed(5, 10);
        assert_eq!(inodes.open_version(5), None);
        assert_eq!(inodes.opened(5, 11, false), PageCache::Keep);
        inodes.closed(5, 11);
        assert_eq!(inodes.opened(5, 12, false), PageCache::Drop);
        inodes.closed(5, 12);
        inodes.pages_are_lost(5);
        assert_eq!(inodes.opened(5, 12, false), PageCache::Drop);
        inodes.note_open(5, 13);
        assert_eq!(inodes.open_version(5), None, "several");
    }
}
