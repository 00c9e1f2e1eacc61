//! What files mean through mounts of one cluster, written a second time and as simply as possible: everything in memory.
//!
//! What everybody sees is the tree; what the handles of one mount see before it is stored is staged by that mount. Where the
//! semantics leave a choice the model takes what was answered, and goes on from there.

use std::collections::{BTreeMap, BTreeSet};

use super::locks::Locks;

/// Longest chain of symbolic links.
const LINKS: usize = 40;

pub(super) type Id = usize;
pub(super) type Errno = i32;

/// Under-storages differ in what they can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Area {
    Local,
    S3,
    /// Metadata only.
    Outside,
}

impl Area {
    pub(super) const ALL: [Area; 3] = [Area::Local, Area::S3, Area::Outside];
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Dir(BTreeMap<String, Id>),
    File,
    Link(String),
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) area: Area,
    /// All contents it had, the newest last. The first is that of a file that was never stored.
    pub(super) versions: Vec<Vec<u8>>,
    pub(super) named: bool,
    /// The mount it was made through, until it is stored.
    pub(super) maker: Option<usize>,
    /// Whether only that mount is sure to see it.
    pub(super) hidden: bool,
}

impl Node {
    pub(super) fn newest(&self) -> &Vec<u8> {
        self.versions.last().expect("a version")
    }

    pub(super) fn version(&self) -> usize {
        self.versions.len() - 1
    }

    pub(super) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir(_))
    }
}

/// What a mount has of a file that is being changed through it.
#[derive(Debug, Clone)]
pub(super) struct Staged {
    pub(super) content: Vec<u8>,
    /// The version it was made from.
    pub(super) base: usize,
    /// The version at its first change: readers of older ones keep what they have.
    pub(super) from: usize,
    pub(super) dirty: bool,
    /// Only because it is new: nothing was written to it.
    pub(super) new: bool,
    /// Nothing was changed but that something came behind its end.
    pub(super) appended: bool,
    pub(super) unlinked: bool,
    /// It may as well be made from this version: nothing tells.
    pub(super) maybe_from: Option<usize>,
}

impl Staged {
    /// True if handles see what others do not.
    pub(super) fn is_apart(&self) -> bool {
        self.is_changed() || self.unlinked
    }

    /// True if it holds what no version does.
    pub(super) fn is_changed(&self) -> bool {
        self.dirty && !self.new
    }

    /// True if it waits to be stored.
    pub(super) fn is_due(&self) -> bool {
        self.dirty && !self.unlinked
    }

    /// True if nothing was written since it was made or cut off: then only its last close and a sync store it.
    pub(super) fn is_unwritten(&self) -> bool {
        self.is_due() && self.content.is_empty()
    }
}

#[derive(Debug, Clone)]
pub(super) struct Handle {
    pub(super) node: Id,
    pub(super) reads: bool,
    pub(super) writes: bool,
    pub(super) append: bool,
    /// The version it was opened at.
    pub(super) opened: usize,
}

/// Where a path leads.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) parent: Id,
    pub(super) name: String,
    pub(super) node: Option<Id>,
}

pub(super) type Slot = (usize, usize);

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) nodes: Vec<Node>,
    /// By mount and file.
    pub(super) staged: BTreeMap<(usize, Id), Staged>,
    /// Files that a mount has open and that went elsewhere, or could not be kept: their handles may be told `ESTALE`.
    pub(super) lost: BTreeSet<(usize, Id)>,
    /// By client and slot.
    pub(super) handles: BTreeMap<Slot, Handle>,
    /// Handles whose file is mapped, and how many bytes of it.
    pub(super) maps: BTreeMap<Slot, usize>,
    pub(super) locks: Locks,
    /// Mount of each client.
    pub(super) mounts: Vec<usize>,
    /// A handle that may have moved to the newest version before its last change, and the content then.
    pub(super) may_have_moved: Option<(Slot, Vec<u8>)>,
}

impl Model {
    /// Node 0 is a root with a directory for each area.
    pub(super) fn new(mounts: &[usize]) -> Model {
        let mut model = Model { mounts: mounts.to_vec(), ..Model::default() };
        model.make(Kind::Dir(BTreeMap::new()), 0o755, Area::Outside);
        for area in Area::ALL {
            let id = model.make(Kind::Dir(BTreeMap::new()), 0o755, area);
            model.children(0).insert(area.name().to_owned(), id);
        }
        model
    }

    pub(super) fn make(&mut self, kind: Kind, mode: u32, area: Area) -> Id {
        let versions = vec![Vec::new()];
        self.nodes.push(Node { kind, mode, area, versions, named: true, maker: None, hidden: false });
        self.nodes.len() - 1
    }

    pub(super) fn children(&mut self, dir: Id) -> &mut BTreeMap<String, Id> {
        match &mut self.nodes[dir].kind {
            Kind::Dir(children) => children,
            _ => panic!("no directory"),
        }
    }

    /// Walks a path; `touched` are the nodes on the way.
    pub(super) fn walk(&self, path: &[&str], follow: bool, touched: &mut Vec<Id>) -> Result<Found, Errno> {
        self.walk_from(0, path, follow, touched, &mut 0)
    }

    fn walk_from(
        &self,
        mut dir: Id,
        path: &[&str],
        follow: bool,
        touched: &mut Vec<Id>,
        links: &mut usize,
    ) -> Result<Found, Errno> {
        let (last, way) = path.split_last().expect("a path");
        for name in way {
            dir = self.walk_from(dir, &[*name], true, touched, links)?.node.ok_or(libc::ENOENT)?;
            if !self.nodes[dir].is_dir() {
                return Err(libc::ENOTDIR);
            }
        }
        let Kind::Dir(children) = &self.nodes[dir].kind else { return Err(libc::ENOTDIR) };
        let node = children.get(*last).copied();
        touched.extend(node);
        if let Some(node) = node.filter(|_| follow)
            && let Kind::Link(to) = &self.nodes[node].kind
        {
            *links += 1;
            if *links > LINKS {
                return Err(libc::ELOOP);
            }
            return self.walk_from(dir, &[to.as_str()], true, touched, links);
        }
        Ok(Found { parent: dir, name: (*last).to_owned(), node })
    }

    /// Everything in a directory and below.
    pub(super) fn below(&self, node: Id) -> Vec<Id> {
        let Kind::Dir(children) = &self.nodes[node].kind else { return Vec::new() };
        children.values().flat_map(|child| std::iter::once(*child).chain(self.below(*child))).collect()
    }

    pub(super) fn is_hidden(&self, mount: usize, node: Id) -> bool {
        let node = &self.nodes[node];
        node.hidden && node.maker != Some(mount)
    }

    pub(super) fn handles_of(&self, mount: usize, node: Id) -> impl Iterator<Item = &Handle> {
        let here = move |(slot, handle): &(&Slot, &Handle)| self.mounts[slot.0] == mount && handle.node == node;
        self.handles.iter().filter(here).map(|(_, handle)| handle)
    }

    /// True if handles of a mount go on with what is staged: not those that only read an older version than it was made from.
    pub(super) fn is_staged_open(&self, mount: usize, node: Id) -> bool {
        let from = self.staged.get(&(mount, node)).map_or(0, |staged| staged.from);
        self.handles_of(mount, node).any(|handle| handle.writes || handle.opened >= from)
    }

    /// True if what is staged cannot be stored any more: somebody else has stored another content.
    pub(super) fn is_stale(&self, mount: usize, node: Id) -> bool {
        let is_certain = |staged: &&Staged| staged.maybe_from != Some(self.nodes[node].version());
        self.staged.get(&(mount, node)).filter(is_certain).is_some_and(|staged| self.differs(node, staged.base))
    }

    /// True if it is not certain whether what is staged is made from the newest version: nothing tells, or others have stored the
    /// content again that it was made from, and whether that is another version depends on the store.
    pub(super) fn has_same_base(&self, mount: usize, node: Id) -> bool {
        let is_superseded = |staged: &Staged| staged.is_due() && staged.base != self.nodes[node].version();
        self.staged.get(&(mount, node)).is_some_and(is_superseded) && !self.is_stale(mount, node)
    }

    /// True if the newest content is another one than that of `version`.
    pub(super) fn differs(&self, node: Id, version: usize) -> bool {
        let node = &self.nodes[node];
        node.version() != version && node.versions[version] != *node.newest()
    }

    /// What handles of a mount see before it is stored; `None` if they see what everybody sees.
    pub(super) fn apart(&self, mount: usize, node: Id) -> Option<&Staged> {
        self.staged.get(&(mount, node)).filter(|staged| staged.is_apart())
    }

    pub(super) fn size(&self, mount: usize, node: Id) -> usize {
        self.apart(mount, node).map_or(self.nodes[node].newest().len(), |staged| staged.content.len())
    }

    /// Whoever opens a file sees the newest content, unless something of it waits to be stored.
    pub(super) fn note_open(&mut self, mount: usize, node: Id) {
        let newest = self.nodes[node].version();
        let superseded = |staged: &Staged| !staged.is_apart() && staged.base != newest;
        if self.staged.get(&(mount, node)).is_some_and(superseded) {
            self.staged.remove(&(mount, node));
        }
    }

    /// What was staged is stored, or stays what it was.
    pub(super) fn stored(&mut self, mount: usize, node: Id) {
        let Some(staged) = self.staged.get_mut(&(mount, node)) else { return };
        self.nodes[node].versions.push(staged.content.clone());
        (staged.base, staged.dirty, staged.new) = (self.nodes[node].version(), false, false);
        staged.appended = true;
        (self.nodes[node].maker, self.nodes[node].hidden) = (None, false);
    }

    /// Changes what is staged, which is made from a version if nothing is.
    pub(super) fn change(
        &mut self,
        mount: usize,
        node: Id,
        from: usize,
        appends: bool,
        how: impl FnOnce(&mut Vec<u8>),
    ) {
        let content = &self.nodes[node].versions[from];
        let staged = self.staged.entry((mount, node)).or_insert_with(|| Staged {
            content: content.clone(),
            base: from,
            from,
            dirty: false,
            new: false,
            appended: true,
            unlinked: false,
            maybe_from: None,
        });
        staged.appended &= appends;
        how(&mut staged.content);
        (staged.dirty, staged.new) = (true, false);
    }

    /// True if what is staged can come behind what others have stored meanwhile; then it does.
    pub(super) fn append_again(&mut self, mount: usize, node: Id) -> bool {
        let Some(staged) = self.staged.get_mut(&(mount, node)) else { return false };
        let node = &self.nodes[node];
        let tail = staged.content.get(node.versions[staged.base].len()..).filter(|tail| !tail.is_empty());
        let Some(tail) = tail.filter(|_| staged.appended && !staged.new) else { return false };
        (staged.content, staged.base) = ([node.newest(), tail].concat(), node.version());
        true
    }

    /// This content is what was staged by a mount, and is found to be stored.
    pub(super) fn found_stored(&mut self, mount: usize, node: Id, content: Vec<u8>) {
        if self.staged.contains_key(&(mount, node)) {
            return self.stored(mount, node);
        }
        self.nodes[node].versions.push(content);
        (self.nodes[node].maker, self.nodes[node].hidden) = (None, false);
    }

    /// Names on the way to a node, from the area on; `None` if it has no name.
    pub(super) fn path_of(&self, node: Id) -> Option<Vec<String>> {
        self.path_below(0, node)
    }

    fn path_below(&self, dir: Id, node: Id) -> Option<Vec<String>> {
        let Kind::Dir(children) = &self.nodes[dir].kind else { return None };
        children.iter().find_map(|(name, child)| {
            let below = if *child == node { Some(Vec::new()) } else { self.path_below(*child, node) };
            below.map(|mut path| {
                path.insert(0, name.clone());
                path
            })
        })
    }

    /// A file that was never stored is gone, with its name; where it was.
    pub(super) fn forget(&mut self, node: Id) -> Option<Vec<String>> {
        let path = self.path_of(node)?;
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let found = self.walk(&names, false, &mut Vec::new()).expect("it has a name");
        self.children(found.parent).remove(&found.name);
        self.nodes[node].named = false;
        self.locks.drop_file(node);
        Some(path)
    }

    /// A new file that nobody has written to here needs no storing where others have stored something: true if it is so.
    pub(super) fn is_left_to_others(&mut self, mount: usize, node: Id) -> bool {
        let stale = self.is_stale(mount, node);
        let Some(staged) = self.staged.get_mut(&(mount, node)).filter(|staged| staged.new && stale) else {
            return false;
        };
        (staged.dirty, staged.new) = (false, false);
        true
    }

    /// The name of a file goes by a call through `mount`.
    pub(super) fn unname(&mut self, mount: usize, node: Id) {
        self.nodes[node].named = false;
        self.locks.drop_file(node);
        for other in self.mounts.iter().copied().collect::<BTreeSet<_>>() {
            let opened: BTreeSet<usize> = self.handles_of(other, node).map(|handle| handle.opened).collect();
            let key = (other, node);
            let newest = self.nodes[node].version();
            if other != mount {
                self.staged.remove(&key);
                self.lost.extend((!opened.is_empty()).then_some(key));
            } else if let Some(staged) = self.staged.get_mut(&key) {
                staged.unlinked = true;
            } else if opened == [newest].into() && self.nodes[node].area != Area::Outside {
                let content = self.nodes[node].newest().clone();
                self.staged.insert(
                    key,
                    Staged {
                        content,
                        base: newest,
                        from: newest,
                        dirty: false,
                        new: false,
                        appended: true,
                        unlinked: true,
                        maybe_from: None,
                    },
                );
            } else if !opened.is_empty() {
                self.lost.insert(key);
            }
        }
    }
}
