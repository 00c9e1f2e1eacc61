//! What the kernel knows of each inode: attributes with their age, the name it was reached by, and what is open.
//!
//! An inode is kept as long as the kernel counts lookups of it, so the table is as large as the kernel's own.

mod changes;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jindofs_proto::v1::Attr;

use crate::runtime::lock;
use crate::types::ROOT_INODE;

use super::directory::Directory;

const SHARDS: usize = 16;
/// Deepest path walked: a path of 4,096 bytes has at most that many names.
pub(super) const DEPTH_MAX: usize = 2048;

/// Attributes and when a master gave them.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) attr: Attr,
    pub(super) since: Instant,
    /// Found out to be wrong: to be asked for again whatever its age.
    pub(super) expired: bool,
    /// Of a version that is about to be left: the kernel is not to keep it.
    pub(super) passing: bool,
}

impl Known {
    /// Attributes as an answer brought them; `since` is when it was asked for.
    pub(super) fn new(attr: Attr, since: Instant) -> Known {
        Known { attr, since, expired: false, passing: false }
    }

    /// Time left until they must be asked for again; `None` when it is over.
    pub(super) fn fresh_for(&self, ttl: Duration) -> Option<Duration> {
        if self.expired {
            return None;
        }
        ttl.checked_sub(self.since.elapsed()).filter(|left| !left.is_zero())
    }
}

#[derive(Debug)]
struct Inode {
    known: Known,
    parent: u64,
    name: Box<[u8]>,
    lookups: u64,
    /// When the kernel was last given a listing to keep, and of which version of the directory, or a newer one.
    listed: Option<(Instant, u64)>,
    coming: Coming,
}

/// What comes into a directory by us and is not at the masters yet.
#[derive(Debug)]
struct Coming {
    count: u32,
    /// When the last of it was begun, nanoseconds since the epoch.
    since_ns: i64,
    /// When all of it was there: what was asked for before may have been answered without.
    until: Option<Instant>,
}

impl Coming {
    fn overlay(&self, known: &mut Known) {
        if self.count > 0 || self.until.is_some_and(|until| known.since <= until) {
            known.attr.mtime_ns = known.attr.mtime_ns.max(self.since_ns);
            known.attr.ctime_ns = known.attr.ctime_ns.max(self.since_ns);
        }
    }
}

type Names = HashMap<(u64, Box<[u8]>), u64>;

/// All inodes the kernel knows.
#[derive(Debug)]
pub(super) struct Inodes {
    shards: [Mutex<HashMap<u64, Inode>>; SHARDS],
    /// (directory, name) to inode, for lookups while no master answers.
    names: [Mutex<Names>; SHARDS],
}

impl Inodes {
    pub(super) fn new() -> Inodes {
        Inodes { shards: Default::default(), names: Default::default() }
    }

    fn shard(&self, inode: u64) -> MutexGuard<'_, HashMap<u64, Inode>> {
        lock(&self.shards[shard_of(inode)])
    }

    fn names(&self, directory: u64) -> MutexGuard<'_, Names> {
        lock(&self.names[shard_of(directory)])
    }

    /// The kernel learns an entry: one more lookup to be forgotten some day. The directory and the name that the inode
    /// was known by before, if it has another name now.
    pub(super) fn entered(&self, parent: u64, name: &[u8], known: Known) -> Option<(u64, Box<[u8]>)> {
        let inode = known.attr.inode;
        let moved = {
            let mut shard = self.shard(inode);
            let entry = shard.entry(inode).or_insert_with(|| Inode::new(parent, name, &known));
            entry.lookups += 1;
            entry.renew(known);
            let moved = entry.parent != parent || *entry.name != *name;
            moved.then(|| {
                (std::mem::replace(&mut entry.parent, parent), std::mem::replace(&mut entry.name, name.into()))
            })
        };
        if let Some((old_parent, old_name)) = &moved {
            self.remove_name(*old_parent, old_name.clone(), inode);
        }
        self.names(parent).insert((parent, name.into()), inode);
        moved
    }

    /// The kernel drops `lookups` of its references; true if those were the last ones.
    pub(super) fn forget(&self, inode: u64, lookups: u64) -> bool {
        if inode == ROOT_INODE {
            return false;
        }
        let gone = {
            let mut shard = self.shard(inode);
            let Some(entry) = shard.get_mut(&inode) else { return true };
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups > 0 {
                return false;
            }
            shard.remove(&inode)
        };
        if let Some(entry) = gone {
            self.remove_name(entry.parent, entry.name, inode);
        }
        true
    }

    fn remove_name(&self, parent: u64, name: Box<[u8]>, inode: u64) {
        let mut names = self.names(parent);
        let key = (parent, name);
        if names.get(&key) == Some(&inode) {
            names.remove(&key);
        }
    }

    /// What is known of an inode.
    pub(super) fn get(&self, inode: u64) -> Option<Known> {
        self.shard(inode).get(&inode).map(|entry| entry.known.clone())
    }

    /// What is known of a name.
    pub(super) fn get_named(&self, parent: u64, name: &[u8]) -> Option<Known> {
        let inode = *self.names(parent).get(&(parent, Box::from(name)))?;
        self.get(inode)
    }

    /// Names of a directory that the kernel may know.
    pub(super) fn names_in(&self, directory: u64) -> Vec<Box<[u8]>> {
        let names = self.names(directory);
        names.keys().filter(|(parent, _)| *parent == directory).map(|(_, name)| name.clone()).collect()
    }

    /// Names of several directories that the kernel may know, with their directories. Each shard is passed at most once,
    /// because lookups wait for it.
    pub(super) fn names_in_any(&self, directories: &BTreeSet<u64>) -> Vec<(u64, Box<[u8]>)> {
        let mut wanted: [BTreeSet<u64>; SHARDS] = Default::default();
        for directory in directories {
            wanted[shard_of(*directory)].insert(*directory);
        }
        let shards = self.names.iter().zip(&wanted).filter(|(_, wanted)| !wanted.is_empty());
        let names_of = |(shard, wanted): (&Mutex<Names>, &BTreeSet<u64>)| -> Vec<_> {
            lock(shard).keys().filter(|(parent, _)| wanted.contains(parent)).cloned().collect()
        };
        shards.flat_map(names_of).collect()
    }

    /// True if the kernel may know an inode.
    pub(super) fn contains(&self, inode: u64) -> bool {
        self.shard(inode).contains_key(&inode)
    }

    /// The inodes that the kernel may know, shard by shard. Nothing is locked between two of them.
    pub(super) fn inodes_by_shard(&self) -> impl Iterator<Item = Vec<u64>> {
        self.shards.iter().map(|shard| lock(shard).keys().copied().collect())
    }

    /// The names that the kernel may know, with their directories. As [`Inodes::inodes_by_shard`].
    pub(super) fn names_by_shard(&self) -> impl Iterator<Item = Vec<(u64, Box<[u8]>)>> {
        self.names.iter().map(|shard| lock(shard).keys().cloned().collect())
    }

    /// Newer attributes; the root enters the table by them.
    pub(super) fn renew(&self, known: Known) {
        let inode = known.attr.inode;
        let mut shard = self.shard(inode);
        match shard.get_mut(&inode) {
            Some(entry) => entry.renew(known),
            None if inode == ROOT_INODE => {
                let mut root = Inode::new(ROOT_INODE, b"", &known);
                root.lookups = 1;
                shard.insert(inode, root);
            }
            None => {}
        }
    }

    /// Makes the next use ask again.
    pub(super) fn expire(&self, inode: u64) {
        if let Some(entry) = self.shard(inode).get_mut(&inode) {
            entry.known.expired = true;
        }
    }

    /// Path of an inode below the directory `top`; `None` when a part of it is not known.
    pub(super) fn path_below(&self, top: u64, inode: u64) -> Option<Vec<u8>> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut at = inode;
        while at != top {
            if names.len() >= DEPTH_MAX || at == ROOT_INODE {
                return None;
            }
            let shard = self.shard(at);
            let entry = shard.get(&at)?;
            names.push(entry.name.clone());
            at = entry.parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// When the listing that the kernel keeps of this version of a directory was begun, if it is younger than `ttl`.
    pub(super) fn fresh_listing(&self, directory: &Attr, ttl: Duration) -> Option<Instant> {
        let shard = self.shard(directory.inode);
        let listed = shard.get(&directory.inode).and_then(|entry| entry.listed);
        let (since, version) = listed?;
        (since.elapsed() < ttl && version == directory.version).then_some(since)
    }

    /// The kernel was given a whole listing to keep.
    pub(super) fn listed(&self, directory: &Directory) {
        if let Some(entry) = self.shard(directory.inode).get_mut(&directory.inode) {
            entry.listed = Some((directory.opened, directory.version));
        }
    }

    /// Number of inodes in the table.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }
}

impl Inode {
    fn new(parent: u64, name: &[u8], known: &Known) -> Inode {
        let mut inode = Inode {
            known: known.clone(),
            parent,
            name: name.into(),
            lookups: 0,
            listed: None,
            coming: Coming { count: 0, since_ns: i64::MIN, until: None },
        };
        detach(&mut inode.known.attr);
        inode
    }

    fn renew(&mut self, mut known: Known) {
        // Answers may overtake each other.
        if known.since >= self.known.since {
            detach(&mut known.attr);
            self.coming.overlay(&mut known);
            self.known = known;
        }
    }
}

/// Copies what would keep the whole message alive that it came in.
fn detach(attr: &mut Attr) {
    attr.version_token = Bytes::copy_from_slice(&attr.version_token);
    attr.symlink_target = Bytes::copy_from_slice(&attr.symlink_target);
}

fn shard_of(inode: u64) -> usize {
    usize::try_from(inode).unwrap_or(0) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(inode: u64) -> Known {
        Known::new(Attr { inode, ..Default::default() }, Instant::now())
    }

    #[test]
    fn an_inode_lives_until_every_lookup_is_forgotten() {
        let inodes = Inodes::new();
        inodes.entered(1, b"a", known(5));
        inodes.entered(1, b"a", known(5));
        inodes.forget(5, 1);
        assert!(inodes.get_named(1, b"a").is_some());
        inodes.forget(5, 1);
        assert!(inodes.get(5).is_none() && inodes.get_named(1, b"a").is_none());
        assert_eq!(inodes.len(), 0);
    }

    #[test]
    fn a_path_is_known_below_the_mount_and_unknown_beyond_a_gap() {
        let inodes = Inodes::new();
        inodes.renew(known(ROOT_INODE));
        inodes.entered(1, b"mnt", known(2));
        inodes.entered(2, b"dir", known(3));
        inodes.entered(3, b"file", known(4));
        assert_eq!(inodes.path_below(2, 4).as_deref(), Some(&b"dir/file"[..]));
        assert_eq!(inodes.path_below(4, 4).as_deref(), Some(&b""[..]));
        inodes.forget(3, 1);
        assert_eq!(inodes.path_below(2, 4), None);
        assert_eq!(inodes.path_below(99, 2), None, "not below it");
    }

    #[test]
    fn a_renamed_inode_answers_to_its_new_name_only() {
        let inodes = Inodes::new();
        assert_eq!(inodes.entered(1, b"old", known(5)), None);
        assert_eq!(inodes.entered(1, b"old", known(5)), None);
        let displaced = inodes.entered(1, b"new", known(5));
        assert_eq!(displaced, Some((1, Box::from(*b"old"))), "the kernel may know it for longer");
        assert!(inodes.get_named(1, b"old").is_none());
        assert_eq!(inodes.get_named(1, b"new").map(|known| known.attr.inode), Some(5));
    }

    #[test]
    fn names_of_several_directories_are_found_at_once() {
        let inodes = Inodes::new();
        let shards = u64::try_from(SHARDS).expect("small");
        for (inode, directory) in (100..).zip([1, 1, 2, 1 + shards, 3]) {
            inodes.entered(directory, inode.to_string().as_bytes(), known(inode));
        }
        let mut found = inodes.names_in_any(&[1, 2, 9].into());
        found.sort();
        let name = |directory: u64, name: &str| (directory, Box::from(name.as_bytes()));
        assert_eq!(found, [name(1, "100"), name(1, "101"), name(2, "102")]);
        assert_eq!(inodes.names_by_shard().map(|names| names.len()).sum::<usize>(), 5);
        assert_eq!(inodes.inodes_by_shard().map(|inodes| inodes.len()).sum::<usize>(), 5);
    }

    #[test]
    fn an_overtaken_answer_does_not_replace_a_newer_one() {
        let inodes = Inodes::new();
        let old = known(5);
        let mut new = known(5);
        new.attr.size = 7;
        inodes.entered(1, b"f", new);
        inodes.renew(old);
        assert_eq!(inodes.get(5).map(|known| known.attr.size), Some(7));
    }
}
