//! Kernel nodes: which version of a file each of them stands for.
//!
//! The kernel keeps one page cache and one length for a node, whatever opened it. So a node stands for one version of the content at
//! a time: a handle of another version gets a node of its own, with the same `st_ino`, and no page of one version is ever
//! given to a reader of another. A node that nobody has open changes its version with the next open, which drops its pages. A
//! node that is open for writing or locked moves to the newest version as a whole, with all its handles, as a file on a local disk
//! does; so does one of a version that the newest only extends. Every other node stays with its version until its last close.
//!
//! *Numbers.* The first node of an inode has the number of the inode, so that what is known of one is known of the other. The others
//! carry their place among the nodes of the inode in the upper byte: the inode is found without a table, also by a process that
//! takes the mount over.
//!
//! *Lock order.* One shard at a time, and nothing else is locked while one is held.

mod stale;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use jindofs_proto::v1::Attr;

use crate::client::OpenFile;
use crate::runtime::lock;
use crate::types::version_of;

use stale::Leftover;
pub(super) use stale::StalePages;

const SHARDS: usize = 16;
/// Bits of a node number that hold the inode; masters count inodes from one.
const INODE_BITS: u32 = 56;
/// Most nodes of one inode.
const NODES_MAX: u64 = 1 << (u64::BITS - INODE_BITS);

/// The inode of a node.
pub(super) fn inode_of(node: u64) -> u64 {
    node & ((1 << INODE_BITS) - 1)
}

/// True for a node whose number is not that of its inode.
pub(super) fn is_secondary(node: u64) -> bool {
    node >> INODE_BITS != 0
}

fn place_of(node: u64) -> u64 {
    node >> INODE_BITS
}

fn node_at(inode: u64, place: u64) -> u64 {
    place << INODE_BITS | inode
}

/// How the kernel may use its page cache for a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageCache {
    /// What it holds is of this version.
    Keep,
    /// What it holds is of another version, or nothing is known.
    Drop,
    /// Reads go past it: nothing is gained by pages.
    Bypass,
}

/// A handle that is to be opened.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) number: u64,
    pub(super) file: Arc<OpenFile>,
    /// Attributes of the version.
    pub(super) attr: Attr,
    pub(super) writes: bool,
    /// Reads past the page cache.
    pub(super) direct: bool,
}

/// What came of opening a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    /// The handle is one of the node.
    Here(PageCache),
    /// The node stands for another version: it has to move first, or another one has to be opened.
    Elsewhere,
}

/// One node that is open, or whose pages are known.
#[derive(Debug, Default)]
struct Node {
    /// Handles, and whether each may write.
    handles: BTreeMap<u64, bool>,
    /// Version of the content that the handles stand for.
    version: u64,
    /// What they read; `None` until a handle of the process before is used.
    file: Option<Arc<OpenFile>>,
    /// Attributes of the version.
    attr: Option<Attr>,
    /// Version of the pages that the kernel may hold.
    pages: Option<u64>,
    /// Those that it is to drop.
    leftover: Option<Leftover>,
    /// Lookups that the kernel counts, of a secondary node.
    lookups: u64,
}

impl Node {
    fn is_open(&self) -> bool {
        !self.handles.is_empty()
    }

    fn is_written(&self) -> bool {
        self.handles.values().any(|writes| *writes)
    }

    fn stand_for(&mut self, file: &Arc<OpenFile>, attr: &Attr, keeps_pages: bool) -> Vec<u64> {
        self.version = file.source.version;
        self.pages = self.pages.filter(|_| keeps_pages).map(|_| self.version);
        (self.file, self.attr) = (Some(file.clone()), Some(attr.clone()));
        self.handles.keys().copied().collect()
    }

    /// The pages that a new handle finds.
    fn pages(&mut self, direct: bool) -> PageCache {
        let same = self.pages.replace(self.version) == Some(self.version) && self.leftover.is_none();
        match (direct, same) {
            (true, _) => PageCache::Bypass,
            (false, true) => PageCache::Keep,
            (false, false) => PageCache::Drop,
        }
    }
}

/// Nodes of one inode, by their place.
type File = BTreeMap<u64, Node>;

/// What a node that is open stands for.
#[derive(Debug, Clone)]
pub(super) struct OpenNode {
    pub(super) version: u64,
    pub(super) attr: Option<Attr>,
    pub(super) is_written: bool,
}

impl OpenNode {
    /// True if `newest` is of a newer version than the node stands for.
    pub(super) fn is_behind(&self, newest: &Attr) -> bool {
        match &self.attr {
            Some(attr) => supersedes(newest, attr),
            // Of a handle of the process before only the hash of its version is known, which has no order.
            None => self.version != version_of(&newest.version_token),
        }
    }
}

/// All nodes that are open, or whose pages are known.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    shards: [Mutex<HashMap<u64, File>>; SHARDS],
    /// How often nodes have moved.
    moves: AtomicU64,
}

impl Nodes {
    fn shard(&self, inode: u64) -> MutexGuard<'_, HashMap<u64, File>> {
        let shard = &self.shards[usize::try_from(inode).unwrap_or(0) % SHARDS];
        lock(shard)
    }

    fn with<T>(&self, node: u64, look: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let mut shard = self.shard(inode_of(node));
        shard.get_mut(&inode_of(node))?.get_mut(&place_of(node)).map(look)
    }

    /// The kernel looks an inode up whose newest version is that of `newest`: the node that it is told. Its lookup is counted.
    pub(super) fn enter(&self, newest: &Attr) -> u64 {
        let inode = newest.inode;
        let mut shard = self.shard(inode);
        let Some(file) = shard.get_mut(&inode) else { return inode };
        let place = choose(file, newest);
        if place != 0 {
            file.entry(place).or_default().lookups += 1;
        }
        node_at(inode, place)
    }

    /// The kernel looks an inode up, and is told this node.
    pub(super) fn count_lookup(&self, node: u64) {
        if is_secondary(node) {
            let mut shard = self.shard(inode_of(node));
            shard.entry(inode_of(node)).or_default().entry(place_of(node)).or_default().lookups += 1;
        }
    }

    /// The node that the kernel would be told, without counting a lookup.
    pub(super) fn choose(&self, newest: &Attr) -> u64 {
        let inode = newest.inode;
        self.shard(inode).get(&inode).map_or(inode, |file| node_at(inode, choose(file, newest)))
    }

    /// The kernel drops `lookups` of its references to a node.
    pub(super) fn forget(&self, node: u64, lookups: u64) {
        if !is_secondary(node) {
            return;
        }
        let mut shard = self.shard(inode_of(node));
        let Some(file) = shard.get_mut(&inode_of(node)) else { return };
        if let Some(known) = file.get_mut(&place_of(node)) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 && !known.is_open() {
                file.remove(&place_of(node));
            }
        }
        if file.is_empty() {
            shard.remove(&inode_of(node));
        }
    }

    /// The kernel knows an inode no more: it has no pages of it either.
    pub(super) fn forget_inode(&self, inode: u64) {
        let mut shard = self.shard(inode);
        let Some(file) = shard.get_mut(&inode) else { return };
        // What the process before had open is counted by handles only.
        file.retain(|_, node| node.is_open());
        file.values_mut().for_each(|node| node.pages = None);
        if file.is_empty() {
            shard.remove(&inode);
        }
    }

    /// Opens a handle for the version of its file.
    pub(super) fn join(&self, node: u64, opening: Opening) -> Joined {
        let version = opening.file.source.version;
        let mut shard = self.shard(inode_of(node));
        let file = shard.entry(inode_of(node)).or_default();
        let place = place_of(node);
        // A file that is being written has one node: mappings must see what is written.
        if file.iter().any(|(other, known)| *other != place && known.is_written()) {
            return Joined::Elsewhere;
        }
        let known = file.entry(place).or_default();
        // The kernel is still told the length of the version, which must not meet one that is written.
        let is_settling = opening.writes && known.leftover.is_some();
        if known.is_open() && (known.version != version || is_settling) {
            return Joined::Elsewhere;
        }
        (known.version, known.file, known.attr) = (version, Some(opening.file), Some(opening.attr));
        known.handles.insert(opening.number, opening.writes);
        Joined::Here(known.pages(opening.direct))
    }

    /// Opens a handle for the version that a node stands for; `None` if nobody has it open.
    pub(super) fn join_as_is(&self, node: u64, number: u64, writes: bool) -> Option<(Arc<OpenFile>, PageCache)> {
        self.with(node, |known| {
            let file = known.file.clone().filter(|_| known.is_open())?;
            known.handles.insert(number, writes);
            Some((file, known.pages(false)))
        })
        .flatten()
    }

    /// The process before had a handle open.
    pub(super) fn adopt(&self, node: u64, number: u64, version: u64, writes: bool) {
        let mut shard = self.shard(inode_of(node));
        let known = shard.entry(inode_of(node)).or_default().entry(place_of(node)).or_default();
        known.version = version;
        known.handles.insert(number, writes);
    }

    /// A handle of the process before is used: what it reads.
    pub(super) fn provide(&self, node: u64, file: &Arc<OpenFile>, attr: &Attr) {
        self.with(node, |known| {
            if known.version == file.source.version && known.file.is_none() {
                (known.file, known.attr) = (Some(file.clone()), Some(attr.clone()));
            }
        });
    }

    /// A handle is closed; true if it was the last one of its node.
    pub(super) fn leave(&self, node: u64, number: u64) -> bool {
        let mut shard = self.shard(inode_of(node));
        let Some(file) = shard.get_mut(&inode_of(node)) else { return true };
        let Some(known) = file.get_mut(&place_of(node)) else { return true };
        known.handles.remove(&number);
        if known.is_open() {
            return false;
        }
        known.file = None;
        if known.leftover.take().is_some() {
            // The kernel drops them with the next open.
            known.pages = None;
        }
        if is_secondary(node) && known.lookups == 0 || known.pages.is_none() && !is_secondary(node) {
            file.remove(&place_of(node));
        }
        if file.is_empty() {
            shard.remove(&inode_of(node));
        }
        true
    }

    /// What the handles of a node read now.
    pub(super) fn file(&self, node: u64) -> Option<Arc<OpenFile>> {
        self.with(node, |known| known.file.clone()).flatten()
    }

    /// The same content has another path.
    pub(super) fn relocate(&self, node: u64, file: Arc<OpenFile>) {
        self.with(node, |known| {
            if known.version == file.source.version {
                known.file = Some(file);
            }
        });
    }

    /// What a node stands for, while it is open.
    pub(super) fn open_node(&self, node: u64) -> Option<OpenNode> {
        self.with(node, |known| {
            known.is_open().then(|| OpenNode {
                version: known.version,
                attr: known.attr.clone(),
                is_written: known.is_written(),
            })
        })
        .flatten()
    }

    /// True for a node that nobody has open and whose pages are of another version than `version`.
    pub(super) fn has_other_pages(&self, node: u64, version: u64) -> bool {
        let other = |known: &mut Node| !known.is_open() && known.pages.is_some_and(|pages| pages != version);
        self.with(node, other).unwrap_or(false)
    }

    /// Handles of a node.
    pub(super) fn handles(&self, node: u64) -> Vec<u64> {
        self.with(node, |known| known.handles.keys().copied().collect()).unwrap_or_default()
    }

    /// Nodes of an inode that are open.
    pub(super) fn open_nodes(&self, inode: u64) -> Vec<u64> {
        let shard = self.shard(inode);
        let open = shard.get(&inode).into_iter().flatten().filter(|(_, known)| known.is_open());
        open.map(|(place, _)| node_at(inode, *place)).collect()
    }

    /// Nodes of an inode whose numbers are not its own.
    pub(super) fn secondary_nodes(&self, inode: u64) -> Vec<u64> {
        let shard = self.shard(inode);
        let places = shard.get(&inode).into_iter().flat_map(|file| file.keys());
        places.filter(|place| **place != 0).map(|place| node_at(inode, *place)).collect()
    }

    /// True while a handle of a node is open.
    pub(super) fn is_open(&self, node: u64) -> bool {
        self.with(node, |known| known.is_open()).unwrap_or(false)
    }

    /// True while a handle of any node of an inode is open.
    pub(super) fn is_inode_open(&self, inode: u64) -> bool {
        self.shard(inode).get(&inode).is_some_and(|file| file.values().any(Node::is_open))
    }

    /// The node of an inode that is open for writing.
    pub(super) fn written(&self, inode: u64) -> Option<u64> {
        let shard = self.shard(inode);
        let mut nodes = shard.get(&inode)?.iter();
        nodes.find(|(_, known)| known.is_written()).map(|(place, _)| node_at(inode, *place))
    }

    /// The node of an inode that is open for a version, the one that is written first.
    pub(super) fn open_for(&self, inode: u64, version: u64) -> Option<u64> {
        let shard = self.shard(inode);
        let open = shard.get(&inode)?.iter().filter(|(_, known)| known.is_open() && known.version == version);
        open.max_by_key(|(_, known)| known.is_written()).map(|(place, _)| node_at(inode, *place))
    }

    /// All handles of a node go on with another version: the kernel's pages are stale, or the last one and what comes behind if
    /// it only extends what they had. The handles that have to be noted anew.
    pub(super) fn move_to(&self, node: u64, file: &Arc<OpenFile>, attr: &Attr) -> Vec<u64> {
        self.with(node, |known| {
            let old = known.attr.clone();
            let kept = old.as_ref().filter(|old| extends(attr, old)).map(|old| old.size);
            known.spoil(self.spoilt(kept.unwrap_or(0), kept.is_none()), old);
            known.stand_for(file, attr, kept.is_some())
        })
        .unwrap_or_default()
    }

    /// What the handles of a node share, and the kernel's pages hold, is another version now. The handles that have to be noted
    /// anew.
    pub(super) fn note_stored(&self, node: u64, file: &Arc<OpenFile>, attr: &Attr) -> Vec<u64> {
        self.with(node, |known| {
            known.leftover.iter_mut().for_each(Leftover::show_newest);
            known.stand_for(file, attr, true)
        })
        .unwrap_or_default()
    }

    /// What the pages of a node hold was given up.
    pub(super) fn lose_pages(&self, node: u64) {
        self.with(node, |known| known.pages = None);
    }
}

/// The place of the node that the kernel is told for the newest version: one that is written, that stands for it, or that goes on
/// with it; or else one that is free.
fn choose(file: &File, newest: &Attr) -> u64 {
    let version = version_of(&newest.version_token);
    let written = file.iter().find(|(_, known)| known.is_written());
    let same = || file.iter().find(|(_, known)| known.is_open() && known.version == version);
    let follows = |known: &Node| known.is_open() && known.attr.as_ref().is_some_and(|attr| extends(newest, attr));
    let following = || file.iter().find(|(_, known)| follows(known));
    if let Some((place, _)) = written.or_else(same).or_else(following) {
        return *place;
    }
    let is_free = |place: &u64| file.get(place).is_none_or(|known| !known.is_open());
    // The first one is the best: its number is that of the inode.
    (0..NODES_MAX).find(is_free).unwrap_or(0)
}

/// True if the version of `newest` only extends that of `old`, both as the masters have told them.
pub(super) fn extends(newest: &Attr, old: &Attr) -> bool {
    let is_newer = newest.version > old.version && newest.size >= old.size;
    is_newer && newest.prefix_since != 0 && newest.prefix_since <= old.version && !old.version_token.is_empty()
}

/// True if `attr` is of an older version of its inode than `other`. Answers of the masters overtake each other: what was read
/// before a version was stored may arrive after it.
///
/// The masters count the versions of an inode. A rename in an object store is a copy, which gives the content another token at
/// the same version, and raises `prefix_since` beyond that.
pub(super) fn is_older(attr: &Attr, other: &Attr) -> bool {
    (attr.version, attr.prefix_since) < (other.version, other.prefix_since)
}

/// True if `newest` is of another version of the content than `old`, and of no older one. Only then it may take the place of
/// `old`.
pub(super) fn supersedes(newest: &Attr, old: &Attr) -> bool {
    !same_version(newest, old) && !is_older(newest, old)
}

/// True if both are of one version of the content.
pub(super) fn same_version(one: &Attr, other: &Attr) -> bool {
    version_of(&one.version_token) == version_of(&other.version_token)
}
