//! A tree of files in memory that knows, for every byte and every name, whether a power cut would spare it.
//!
//! Two states are kept side by side: what running programs see, and what is durable. Data is made durable by fsync of
//! its file, names by fsync of their directory. As on ext4 and XFS, fsync of a new file also makes its own creation (and
//! that of the new directories above it) durable; a rename or an unlink is durable only after fsync of a directory it
//! touched, and a rename between directories is durable in both or in neither. Mode, owner and times survive always:
//! nothing of ours depends on them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::time::SystemTime;

use libc::c_int;

use super::file::File;

/// Number of a file, directory or symlink; never used again after a power cut, except for the root.
pub type Ino = u64;
/// Answer of an operation; the error is an errno.
pub type Answer<T> = Result<T, c_int>;

/// The root directory.
pub const ROOT: Ino = 1;
/// What a node is.
enum Body {
    File(File),
    Dir(Dir),
    Symlink(OsString),
}

/// A directory: the names that programs see, and those on disk.
#[derive(Default)]
struct Dir {
    now: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
    /// The other halves of moves into and out of it.
    moved: Vec<(Ino, OsString)>,
    /// Names that an fsync which failed should have written: no later one does, unless they are changed again.
    lost: BTreeSet<OsString>,
}

/// Kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
}

/// Attributes that every file system keeps, and that a power cut leaves alone here.
#[derive(Debug, Clone, Copy)]
pub struct Attr {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: SystemTime,
}

struct Node {
    body: Body,
    attr: Attr,
    /// Names that running programs see, names on disk, and open handles: without any the node is gone.
    links: u32,
    durable_links: u32,
    opens: u32,
    /// The name this node was created under, until that name is durable.
    born: Option<(Ino, OsString)>,
}

/// What a stat answers.
#[derive(Debug, Clone, Copy)]
pub struct Stat {
    /// Number of the node.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Length in bytes.
    pub size: u64,
    /// Names of it.
    pub links: u32,
    /// The rest.
    pub attr: Attr,
}

/// What a power cut took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Files that had data or a length not made durable.
    pub files: u64,
    /// Bytes of sectors not made durable.
    pub bytes: u64,
    /// Names that were made, removed or replaced and not made durable.
    pub names: u64,
}

/// The tree.
pub struct Tree {
    nodes: HashMap<Ino, Node>,
    next: Ino,
}

impl Tree {
    /// An empty root directory that belongs to the calling user.
    pub fn new(attr: Attr) -> Tree {
        let mut tree = Tree { nodes: HashMap::new(), next: ROOT };
        let root = tree.insert(empty_dir(), attr);
        tree.nodes.entry(root).and_modify(|node| (node.links, node.durable_links) = (1, 1));
        tree
    }

    /// The node behind a name.
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> Answer<Ino> {
        self.entries(dir)?.get(name).copied().ok_or(libc::ENOENT)
    }

    /// Attributes.
    pub fn stat(&self, ino: Ino) -> Answer<Stat> {
        let node = self.node(ino)?;
        let (kind, size) = match &node.body {
            Body::File(file) => (Kind::File, file.size()),
            Body::Dir(_) => (Kind::Dir, 0),
            Body::Symlink(target) => (Kind::Symlink, target.len() as u64),
        };
        let links = if kind == Kind::Dir { node.links + 1 } else { node.links };
        Ok(Stat { ino, kind, size, links, attr: node.attr })
    }

    /// Replaces the attributes by what `change` makes of them.
    pub fn change_attr(&mut self, ino: Ino, change: impl FnOnce(&mut Attr)) -> Answer<()> {
        change(&mut self.node_mut(ino)?.attr);
        Ok(())
    }

    /// Names and numbers in a directory, in order of names.
    pub fn list(&self, dir: Ino) -> Answer<Vec<(OsString, Ino)>> {
        Ok(self.entries(dir)?.iter().map(|(name, ino)| (name.clone(), *ino)).collect())
    }

    /// Target of a symlink.
    pub fn readlink(&self, ino: Ino) -> Answer<&OsStr> {
        match &self.node(ino)?.body {
            Body::Symlink(target) => Ok(target),
            _ => Err(libc::EINVAL),
        }
    }

    /// A new empty file.
    pub fn create(&mut self, dir: Ino, name: &OsStr, attr: Attr) -> Answer<Ino> {
        self.bear(dir, name, Body::File(File::default()), attr)
    }

    /// A new directory.
    pub fn mkdir(&mut self, dir: Ino, name: &OsStr, attr: Attr) -> Answer<Ino> {
        self.bear(dir, name, empty_dir(), attr)
    }

    /// A new symlink.
    pub fn symlink(&mut self, dir: Ino, name: &OsStr, target: &OsStr, attr: Attr) -> Answer<Ino> {
        self.bear(dir, name, Body::Symlink(target.to_owned()), attr)
    }

    /// One more name for a file.
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Answer<()> {
        if matches!(self.node(ino)?.body, Body::Dir(_)) {
            return Err(libc::EPERM);
        }
        if self.entries(dir)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        self.set_name(dir, name, Some(ino));
        Ok(())
    }

    /// Removes a name of a file or symlink.
    pub fn unlink(&mut self, dir: Ino, name: &OsStr) -> Answer<()> {
        let ino = self.lookup(dir, name)?;
        if matches!(self.node(ino)?.body, Body::Dir(_)) {
            return Err(libc::EISDIR);
        }
        self.set_name(dir, name, None);
        Ok(())
    }

    /// Removes an empty directory.
    pub fn rmdir(&mut self, dir: Ino, name: &OsStr) -> Answer<()> {
        let ino = self.lookup(dir, name)?;
        if !self.entries(ino)?.is_empty() {
            return Err(libc::ENOTEMPTY);
        }
        self.set_name(dir, name, None);
        Ok(())
    }

    /// Moves a name; what stood at the target goes, unless `keep` forbids it.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr), keep: bool) -> Answer<()> {
        let ino = self.lookup(from.0, from.1)?;
        let moves_dir = matches!(self.node(ino)?.body, Body::Dir(_));
        if let Some(target) = self.entries(to.0)?.get(to.1).copied() {
            if keep {
                return Err(libc::EEXIST);
            }
            if target == ino {
                return Ok(());
            }
            match (&self.node(target)?.body, moves_dir) {
                (Body::Dir(dir), true) if !dir.now.is_empty() => return Err(libc::ENOTEMPTY),
                (Body::Dir(_), false) => return Err(libc::EISDIR),
                (Body::File(_) | Body::Symlink(_), true) => return Err(libc::ENOTDIR),
                _ => {}
            }
        }
        self.set_name(to.0, to.1, Some(ino));
        self.set_name(from.0, from.1, None);
        if from.0 != to.0 {
            self.note_move(from.0, (to.0, to.1.to_owned()));
            self.note_move(to.0, (from.0, from.1.to_owned()));
        }
        Ok(())
    }

    /// One more open handle: the node lives on without a name.
    pub fn open(&mut self, ino: Ino) -> Answer<()> {
        self.node_mut(ino)?.opens += 1;
        Ok(())
    }

    /// One handle less.
    pub fn release(&mut self, ino: Ino) {
        if let Ok(node) = self.node_mut(ino) {
            node.opens = node.opens.saturating_sub(1);
        }
        self.reap(ino);
    }

    /// Bytes from `offset`, fewer at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, size: usize) -> Answer<Vec<u8>> {
        let Body::File(file) = &self.node(ino)?.body else { return Err(libc::EISDIR) };
        Ok(file.read(offset, size))
    }

    /// Puts bytes at `offset`; the file grows as needed.
    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Answer<()> {
        let node = self.node_mut(ino)?;
        let Body::File(file) = &mut node.body else { return Err(libc::EISDIR) };
        file.write(offset, data);
        node.attr.mtime = SystemTime::now();
        Ok(())
    }

    /// Makes the file exactly `size` long.
    pub fn truncate(&mut self, ino: Ino, size: u64) -> Answer<()> {
        let Body::File(file) = &mut self.node_mut(ino)?.body else { return Err(libc::EISDIR) };
        file.truncate(size);
        Ok(())
    }

    /// Content, length and creation of a file are durable from here on.
    pub fn fsync(&mut self, ino: Ino) -> Answer<()> {
        match &mut self.node_mut(ino)?.body {
            Body::File(file) => file.sync(),
            Body::Dir(_) => return self.fsync_dir(ino),
            Body::Symlink(_) => {}
        }
        self.settle_birth(ino);
        Ok(())
    }

    /// All names in a directory are durable from here on, and so are the other halves of moves into and out of it.
    pub fn fsync_dir(&mut self, dir: Ino) -> Answer<()> {
        for (at, name) in self.take_changed_names(dir)? {
            let ino = self.entries(at).ok().and_then(|entries| entries.get(&name).copied());
            self.set_durable_name(at, &name, ino);
        }
        self.settle_birth(dir);
        Ok(())
    }

    /// An fsync fails: what it should have written is lost, as the kernel takes it for clean from here on.
    pub fn fail_fsync(&mut self, ino: Ino) -> Answer<()> {
        match &mut self.node_mut(ino)?.body {
            Body::File(file) => file.fail_sync(),
            Body::Dir(_) => {
                for (at, name) in self.take_changed_names(ino)? {
                    self.lose_name(at, name);
                }
            }
            Body::Symlink(_) => {}
        }
        Ok(())
    }

    /// The names that an fsync of `dir` has to write.
    fn take_changed_names(&mut self, dir: Ino) -> Answer<Vec<(Ino, OsString)>> {
        let Body::Dir(body) = &mut self.node_mut(dir)?.body else { return Err(libc::ENOTDIR) };
        let others = std::mem::take(&mut body.moved);
        let own = differing(body).into_iter().filter(|name| !body.lost.contains(name)).map(|name| (dir, name));
        let changed: Vec<(Ino, OsString)> = own.chain(others).collect();
        for (at, _) in changed.iter().filter(|(at, _)| *at != dir) {
            if let Ok(Node { body: Body::Dir(other), .. }) = self.node_mut(*at) {
                other.moved.retain(|(back, _)| *back != dir);
            }
        }
        Ok(changed)
    }

    fn lose_name(&mut self, dir: Ino, name: OsString) {
        let Some(Node { body: Body::Dir(body), .. }) = self.nodes.get_mut(&dir) else { return };
        let ino = body.now.get(&name).copied();
        body.lost.insert(name);
        // An fsync of the file itself does not write a directory that the kernel takes for clean.
        if let Some(node) = ino.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.born = None;
        }
    }

    /// The kernel drops its clean pages: of every file, what a failed fsync has lost reads as the disk has it. Returns
    /// the number of bytes dropped.
    pub fn drop_caches(&mut self) -> u64 {
        let files = self.nodes.values_mut().filter_map(|node| match &mut node.body {
            Body::File(file) => Some(file),
            _ => None,
        });
        files.map(File::drop_caches).sum()
    }

    /// A path of a node from the root, without a leading slash; `None` if it has no name.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        let mut queue = vec![(ROOT, String::new())];
        while let Some((at, path)) = queue.pop() {
            if at == ino {
                return Some(path);
            }
            let Ok(entries) = self.entries(at) else { continue };
            let below = |name: &OsString| format!("{path}{}{}", if path.is_empty() { "" } else { "/" }, name.display());
            queue.extend(entries.iter().map(|(name, child)| (*child, below(name))));
        }
        None
    }

    /// The power goes and comes back: whatever was not durable is gone, and no handle from before is valid.
    ///
    /// `spares` is asked for each page and each length whether the disk happened to have it anyway: a kernel may write
    /// back early, in any order.
    pub fn power_cut(&mut self, mut spares: impl FnMut() -> bool) -> Dropped {
        let mut dropped = Dropped::default();
        let mut old = std::mem::take(&mut self.nodes);
        let mut renamed = HashMap::from([(ROOT, ROOT)]);
        let mut queue = vec![ROOT];
        self.next = self.next.max(ROOT + 1);
        while let Some(ino) = queue.pop() {
            let Some(mut node) = old.remove(&ino) else { continue };
            match &mut node.body {
                Body::File(file) => {
                    let gone = file.power_cut(&mut spares);
                    dropped.files += u64::from(gone.is_some());
                    dropped.bytes += gone.unwrap_or(0);
                }
                Body::Dir(dir) => {
                    dropped.names += differing(dir).len() as u64;
                    dir.moved.clear();
                    dir.lost.clear();
                    for child in dir.durable.values_mut() {
                        *child = *renamed.entry(*child).or_insert_with(|| {
                            queue.push(*child);
                            self.next += 1;
                            self.next - 1
                        });
                    }
                    dir.now.clone_from(&dir.durable);
                }
                Body::Symlink(_) => {}
            }
            (node.links, node.opens, node.born) = (node.durable_links, 0, None);
            self.nodes.insert(renamed[&ino], node);
        }
        dropped
    }

    fn bear(&mut self, dir: Ino, name: &OsStr, body: Body, attr: Attr) -> Answer<Ino> {
        if name.len() > 255 {
            return Err(libc::ENAMETOOLONG);
        }
        if self.entries(dir)?.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let ino = self.insert(body, attr);
        self.set_name(dir, name, Some(ino));
        self.node_mut(ino)?.born = Some((dir, name.to_owned()));
        Ok(ino)
    }

    fn insert(&mut self, body: Body, attr: Attr) -> Ino {
        let ino = self.next;
        self.next += 1;
        self.nodes.insert(ino, Node { body, attr, links: 0, durable_links: 0, opens: 0, born: None });
        ino
    }

    fn node(&self, ino: Ino) -> Answer<&Node> {
        self.nodes.get(&ino).ok_or(libc::ESTALE)
    }

    fn node_mut(&mut self, ino: Ino) -> Answer<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(libc::ESTALE)
    }

    fn entries(&self, dir: Ino) -> Answer<&BTreeMap<OsString, Ino>> {
        match &self.node(dir)?.body {
            Body::Dir(dir) => Ok(&dir.now),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn note_move(&mut self, dir: Ino, other: (Ino, OsString)) {
        if let Some(Node { body: Body::Dir(body), .. }) = self.nodes.get_mut(&dir) {
            body.moved.push(other);
        }
    }

    /// Makes durable that the node, and every new directory above it, was created; a name given up since is not restored.
    fn settle_birth(&mut self, mut ino: Ino) {
        while let Some((dir, name)) = self.nodes.get_mut(&ino).and_then(|node| node.born.take()) {
            if self.lookup(dir, &name) == Ok(ino) {
                self.set_durable_name(dir, &name, Some(ino));
            }
            ino = dir;
        }
    }

    fn set_name(&mut self, dir: Ino, name: &OsStr, to: Option<Ino>) {
        let Some(Node { body: Body::Dir(body), .. }) = self.nodes.get_mut(&dir) else { return };
        body.lost.remove(name);
        let was = put(&mut body.now, name, to);
        if let Some(node) = to.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.links += 1;
        }
        if let Some(node) = was.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.links -= 1;
        }
        was.into_iter().for_each(|ino| self.reap(ino));
    }

    fn set_durable_name(&mut self, dir: Ino, name: &OsStr, to: Option<Ino>) {
        let Some(Node { body: Body::Dir(body), .. }) = self.nodes.get_mut(&dir) else { return };
        let was = put(&mut body.durable, name, to);
        if let Some(node) = to.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.durable_links += 1;
        }
        if let Some(node) = was.and_then(|ino| self.nodes.get_mut(&ino)) {
            node.durable_links -= 1;
        }
        was.into_iter().for_each(|ino| self.reap(ino));
    }

    /// Forgets a node that has neither name nor handle, now or on disk.
    fn reap(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_none_or(|node| node.links + node.durable_links + node.opens > 0) {
            return;
        }
        if let Some(Node { body: Body::Dir(body), .. }) = self.nodes.remove(&ino) {
            for child in body.durable.into_values() {
                if let Some(node) = self.nodes.get_mut(&child) {
                    node.durable_links -= 1;
                }
                self.reap(child);
            }
        }
    }
}

fn empty_dir() -> Body {
    Body::Dir(Dir::default())
}

fn put(entries: &mut BTreeMap<OsString, Ino>, name: &OsStr, to: Option<Ino>) -> Option<Ino> {
    match to {
        Some(ino) => entries.insert(name.to_owned(), ino),
        None => entries.remove(name),
    }
}

fn differing(Dir { now, durable, .. }: &Dir) -> BTreeSet<OsString> {
    let changed = now.iter().filter(|(name, ino)| durable.get(*name) != Some(*ino));
    let removed = durable.iter().filter(|(name, _)| !now.contains_key(*name));
    changed.chain(removed).map(|(name, _)| name.clone()).collect()
}
