//! What changes of our own do to what is known.

use std::time::Instant;

use super::{Inodes, Known};

impl Inodes {
    /// An inode was changed by us: what is known is wrong, and so is every answer to what was asked before now.
    pub(crate) fn changed(&self, inode: u64) {
        if let Some(entry) = self.shard(inode).get_mut(&inode) {
            entry.known.expired = true;
            entry.known.since = Instant::now();
            entry.listed = None;
        }
    }

    /// Something comes into a directory by us, at `now` nanoseconds since the epoch. Until [`Inodes::has_come`] is called no answer
    /// of the masters, which may not know of it, takes that time back, nor does one to what was asked before.
    pub(crate) fn grown(&self, directory: u64, now: i64) {
        if let Some(entry) = self.shard(directory).get_mut(&directory) {
            entry.coming.count += 1;
            entry.coming.since_ns = entry.coming.since_ns.max(now);
            entry.coming.overlay(&mut entry.known);
            entry.listed = None;
        }
    }

    /// The masters have answered to something that was to come into a directory.
    pub(crate) fn has_come(&self, directory: u64) {
        if let Some(entry) = self.shard(directory).get_mut(&directory) {
            entry.coming.count = entry.coming.count.saturating_sub(1);
            if entry.coming.count == 0 {
                entry.coming.until = Some(Instant::now());
            }
        }
    }

    /// The name an inode was reached by.
    pub(crate) fn name_of(&self, inode: u64) -> Option<(u64, Box<[u8]>)> {
        self.shard(inode).get(&inode).map(|entry| (entry.parent, entry.name.clone()))
    }

    /// What is known, or `known` where that is newer: answers may overtake each other.
    pub(crate) fn newest(&self, mut known: Known) -> Known {
        let shard = self.shard(known.attr.inode);
        match shard.get(&known.attr.inode) {
            Some(entry) if entry.known.since > known.since => return entry.known.clone(),
            Some(entry) => entry.coming.overlay(&mut known),
            None => {}
        }
        known
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
    fn a_directory_into_which_something_comes_is_as_young_as_that_whatever_masters_say_before_they_know_of_it() {
        let inodes = Inodes::new();
        let at = |mtime_ns| Known::new(Attr { inode: 5, mtime_ns, ..Attr::default() }, Instant::now());
        let mtime = || inodes.get(5).map(|known| known.attr.mtime_ns);
        inodes.entered(1, b"d", at(10));
        inodes.grown(5, 20);
        inodes.grown(5, 30);
        inodes.renew(at(10));
        assert_eq!(mtime(), Some(30));
        inodes.has_come(5);
        inodes.renew(at(25));
        assert_eq!(mtime(), Some(30), "the other one is still to come");
        let overtaken = at(10);
        inodes.has_come(5);
        assert_eq!(inodes.newest(overtaken.clone()).attr.mtime_ns, 30, "it was asked for before");
        inodes.renew(overtaken);
        assert_eq!(mtime(), Some(30));
        inodes.renew(at(29));
        assert_eq!(mtime(), Some(29), "the leader's clock is the one that counts");
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
}
