//! From what a request points at to inodes and directory slots. Symlinks are never followed here: the kernel does that.

use bytes::Bytes;
use jindofs_proto::store::v1::{DentryRow, InodeRow};
use jindofs_proto::v1::{FileType, Target, target};

use super::fault::{Step, refuse};
use super::{Refusal, View, keys, rows};
use crate::types::{NsPath, ROOT_INODE, check_name};

/// Most ancestors any walk upwards passes: deeper trees are refused, so that no command runs for ever.
pub(crate) const DEPTH_MAX: usize = 4096;

/// Where a walk ended.
pub(crate) enum Reach {
    /// All names exist.
    Inode(u64),
    /// `name` is missing in `directory`; `last` if it was the last name asked for.
    Missing { directory: u64, name: Bytes, last: bool },
}

/// The slot an entry has, or would have, in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Inode of the directory.
    pub(crate) parent: u64,
    /// Its row.
    pub(crate) row: InodeRow,
    /// The name.
    pub(crate) name: Bytes,
    /// What is there.
    pub(crate) entry: Option<DentryRow>,
}

impl Place {
    /// Key of the dentry.
    pub(crate) fn key(&self) -> Vec<u8> {
        keys::dentry(rows::content_of(self.parent, &self.row), &self.name)
    }

    /// The entry, or `NotFound`.
    pub(crate) fn existing(&self) -> Step<DentryRow> {
        match &self.entry {
            Some(entry) => Ok(*entry),
            None => refuse(missing(&self.name)),
        }
    }
}

/// Walks `names` down from the root.
///
/// *Errors*: `NotADirectory` when something else is in the middle.
pub(crate) fn walk<'n>(view: &dyn View, names: impl Iterator<Item = &'n [u8]>) -> Step<Reach> {
    let mut at = ROOT_INODE;
    let mut names = names.peekable();
    while let Some(name) = names.next() {
        let last = names.peek().is_none();
        let content = rows::content(view, at)?;
        let entry = if last { rows::entry(view, content, name)? } else { rows::entry_passed(view, content, name)? };
        match entry {
            None => return Ok(Reach::Missing { directory: at, name: Bytes::copy_from_slice(name), last }),
            Some(entry) => {
                if !last && entry.r#type() != FileType::Directory {
                    return refuse(not_a_directory(name, entry.r#type()));
                }
                at = entry.inode;
            }
        }
    }
    Ok(Reach::Inode(at))
}

fn not_a_directory(name: &[u8], kind: FileType) -> Refusal {
    let name = Bytes::copy_from_slice(name);
    match kind {
        FileType::Symlink => Refusal::SymlinkOnTheWay { name },
        _ => Refusal::NameNotADirectory { name },
    }
}

/// The inode a target points at, or where it ends.
///
/// *Errors*: `InvalidArgument` without a target; `NotFound` for an inode that does not exist.
pub(crate) fn reach(view: &dyn View, target: Option<&Target>) -> Step<Reach> {
    match target.and_then(|target| target.target.as_ref()) {
        None => refuse(Refusal::NoTarget),
        Some(target::Target::Path(path)) => walk(view, NsPath::parse(path)?.names()),
        Some(target::Target::Inode(id)) => match rows::inode(view, *id)? {
            Some(_) => Ok(Reach::Inode(*id)),
            None => no_inode(*id),
        },
        Some(target::Target::Entry(entry)) => {
            check_name(&entry.name)?;
            let row = directory(view, entry.parent)?;
            match rows::entry(view, rows::content_of(entry.parent, &row), &entry.name)? {
                Some(found) => Ok(Reach::Inode(found.inode)),
                None => Ok(Reach::Missing { directory: entry.parent, name: entry.name.clone(), last: true }),
            }
        }
    }
}

/// The row of inode `id`, which must be a directory.
pub(crate) fn directory(view: &dyn View, id: u64) -> Step<InodeRow> {
    match rows::inode(view, id)? {
        Some(row) if rows::is_dir(&row) => Ok(row),
        Some(_) => refuse(Refusal::InodeNotADirectory { inode: id }),
        None => no_inode(id),
    }
}

/// The refusal for an inode that does not exist.
pub(crate) fn no_inode<T>(id: u64) -> Step<T> {
    refuse(Refusal::NoSuchInode { inode: id })
}

/// The refusal for a path whose `name` is missing.
pub(crate) fn missing(name: &[u8]) -> Refusal {
    Refusal::NoSuchName { name: Bytes::copy_from_slice(name) }
}

/// The slot a mutation works on, or why there is none, with the mount the walk ended in (0 outside any).
pub(crate) fn slot(view: &dyn View, target: Option<&Target>) -> Step<(u32, Result<Place, Refusal>)> {
    let (parent, name) = match target.and_then(|target| target.target.as_ref()) {
        None => return refuse(Refusal::NoSlot),
        Some(target::Target::Inode(_)) => return refuse(Refusal::InodeForSlot),
        Some(target::Target::Path(path)) => {
            let path = NsPath::parse(path)?;
            let Some((directory, name)) = path.split_last() else {
                return refuse(Refusal::RootForSlot);
            };
            match walk(view, directory.names())? {
                Reach::Inode(parent) => (parent, Bytes::copy_from_slice(name)),
                Reach::Missing { directory, name, .. } => {
                    let mount_id = rows::inode(view, directory)?.map_or(0, |row| row.mount_id);
                    return Ok((mount_id, Err(missing(&name))));
                }
            }
        }
        Some(target::Target::Entry(entry)) => {
            check_name(&entry.name)?;
            (entry.parent, entry.name.clone())
        }
    };
    let row = directory(view, parent)?;
    let entry = rows::entry(view, rows::content_of(parent, &row), &name)?;
    Ok((row.mount_id, Ok(Place { parent, row, name, entry })))
}

/// True if the target is the path `/` or the root inode.
pub(crate) fn is_root(target: Option<&Target>) -> bool {
    match target.and_then(|target| target.target.as_ref()) {
        Some(target::Target::Path(path)) => NsPath::parse(path).is_ok_and(|path| path.is_root()),
        Some(target::Target::Inode(id)) => *id == ROOT_INODE,
        _ => false,
    }
}

/// Refuses a change under the mount `mount_id` if it is read-only or gone; passes outside of any.
pub(crate) fn writable(view: &dyn View, mount_id: u32) -> Step {
    if mount_id == 0 {
        return Ok(());
    }
    match rows::mount(view, mount_id)? {
        Some(mount) if mount.read_only => refuse(Refusal::MountReadOnly { path: mount.path }),
        Some(_) => Ok(()),
        None => refuse(Refusal::MountRemoved),
    }
}

/// True if the under-storage of a mount keeps mode, owner and a time that can be set.
pub(crate) fn keeps_attributes(view: &dyn View, mount_id: u32) -> Step<bool> {
    Ok(rows::mount(view, mount_id)?.is_some_and(|mount| mount.ufs_uri.starts_with("local://")))
}

/// Ancestors of the inode `id` with the row `row`, itself first, up to and without the root: (inode, name).
/// `None` when they do not lead to the root: the tree was removed and waits for its purge.
pub(crate) fn ancestry(view: &dyn View, id: u64, row: &InodeRow) -> Step<Option<Vec<(u64, Bytes)>>> {
    let mut chain = Vec::new();
    let (mut id, mut parent, mut name) = (id, row.parent, row.name.clone());
    while id != ROOT_INODE {
        if chain.len() >= DEPTH_MAX {
            return refuse(Refusal::TooDeep { most: DEPTH_MAX as u64, inode: id });
        }
        if parent == 0 {
            return Ok(None);
        }
        let Some(above) = rows::inode(view, parent)? else { return Ok(None) };
        if parent == ROOT_INODE {
            let entry = rows::entry(view, rows::content_of(parent, &above), &name)?;
            if entry.is_none_or(|entry| entry.inode != id) {
                return Ok(None);
            }
        }
        chain.push((id, name));
        (id, parent, name) = (parent, above.parent, above.name);
    }
    Ok(Some(chain))
}
