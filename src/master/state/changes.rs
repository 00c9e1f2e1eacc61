//! Which inodes and names a transaction changes, as clients see them: derived from the keys that it writes, so that no
//! command can forget to say it. Nothing here writes a row: replicas that have no subscribers compute nothing of this.

use bytes::Bytes;
use jindofs_proto::store::v1::{DentryRow, InodeRow};

use super::{StoreError, Table, View, keys, rows};
use crate::types::ROOT_INODE;

/// Names of one directory that a transaction changes one by one; if it changes more, the directory is named as a whole.
const NAMES_PER_DIRECTORY_MAX: usize = 64;
/// Bytes of one [`ChangeSet`], about.
const SET_BYTES_MAX: usize = 64 << 10;
/// Bytes that a number takes, and a name besides its own bytes.
const ITEM_BYTES: usize = 8;
const NAME_BYTES: usize = 48;

/// A part of what a transaction has changed, bounded in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Inodes whose attributes or content have changed, or which are gone.
    pub inodes: Vec<u64>,
    /// Names that came, went, or stand for another inode: directory and name.
    pub names: Vec<(u64, Bytes)>,
    /// Directories of which any name may have changed.
    pub directories: Vec<u64>,
}

impl ChangeSet {
    /// Bytes of memory, about.
    pub fn bytes(&self) -> usize {
        let names: usize = self.names.iter().map(|(_, name)| NAME_BYTES + name.len()).sum();
        (self.inodes.len() + self.directories.len()) * ITEM_BYTES + names
    }
}

/// What a transaction has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Anything may have changed.
    All,
    /// These.
    Sets(Vec<ChangeSet>),
}

/// Derives what clients may see changed from the `dentries` and `inodes` that a transaction writes: their keys in order,
/// with the new values. `before` reads the rows as they were, `after` as they are.
///
/// *Errors*: a row cannot be read.
pub fn derive<'k>(
    before: &dyn Fn(Table, &[u8]) -> Result<Option<Bytes>, StoreError>,
    after: &dyn View,
    dentries: impl Iterator<Item = (&'k [u8], Option<&'k Bytes>)>,
    inodes: impl Iterator<Item = (&'k [u8], Option<&'k Bytes>)>,
) -> Result<Changes, StoreError> {
    let root = rows::content(after, ROOT_INODE)?;
    if root != root_content(before(Table::Inode, &keys::id(ROOT_INODE))?)? {
        // The root shows other entries, none of which has to be written for that.
        return Ok(Changes::All);
    }
    let mut sets = Collector::default();
    for (key, new) in inodes {
        let id = keys::id_of(key);
        if attributes_differ(id, before(Table::Inode, key)?, new)? {
            sets.add(ITEM_BYTES, |set| set.inodes.push(id));
        }
    }
    for (key, new) in dentries {
        if targets_differ(key, before(Table::Dentry, key)?, new)? {
            let content = keys::content_of(key);
            let directory = if content == root { ROOT_INODE } else { content };
            sets.add_name(directory, keys::name_of(key));
        }
    }
    Ok(Changes::Sets(sets.finish()))
}

fn root_content(row: Option<Bytes>) -> Result<u64, StoreError> {
    let row: Option<InodeRow> = row.map(|row| rows::decode(Table::Inode, &keys::id(ROOT_INODE), row)).transpose()?;
    Ok(row.map_or(ROOT_INODE, |row| rows::content_of(ROOT_INODE, &row)))
}

/// True if a client may know the inode, and knows it otherwise than it is now. Nobody knows one that was not there before.
fn attributes_differ(id: u64, old: Option<Bytes>, new: Option<&Bytes>) -> Result<bool, StoreError> {
    let Some(old) = old else { return Ok(id == ROOT_INODE) };
    let Some(new) = new else { return Ok(true) };
    let decode = |row: Bytes| rows::decode::<InodeRow>(Table::Inode, &keys::id(id), row);
    Ok(rows::attr(id, &decode(old)?) != rows::attr(id, &decode(new.clone())?))
}

/// True if a name stands for another inode than before; a tombstone stands for none.
fn targets_differ(key: &[u8], old: Option<Bytes>, new: Option<&Bytes>) -> Result<bool, StoreError> {
    let target = |row: Option<Bytes>| -> Result<u64, StoreError> {
        row.map_or(Ok(0), |row| rows::decode::<DentryRow>(Table::Dentry, key, row).map(|row| row.inode))
    };
    Ok(target(old)? != target(new.cloned())?)
}

/// Gathers changes into sets of bounded size. Names come in the order of their keys: those of one directory in a row.
#[derive(Default)]
struct Collector {
    done: Vec<ChangeSet>,
    current: ChangeSet,
    bytes: usize,
    /// Names of the directory that is at work.
    pending: Vec<Bytes>,
    directory: u64,
}

impl Collector {
    fn add(&mut self, bytes: usize, add: impl FnOnce(&mut ChangeSet)) {
        if self.bytes + bytes > SET_BYTES_MAX {
            self.done.push(std::mem::take(&mut self.current));
            self.bytes = 0;
        }
        self.bytes += bytes;
        add(&mut self.current);
    }

    fn add_name(&mut self, directory: u64, name: &[u8]) {
        if directory != self.directory {
            self.flush_names();
            self.directory = directory;
        }
        // One more than the bound is enough to know that it is passed.
        if self.pending.len() <= NAMES_PER_DIRECTORY_MAX {
            self.pending.push(Bytes::copy_from_slice(name));
        }
    }

    fn flush_names(&mut self) {
        let (directory, names) = (self.directory, std::mem::take(&mut self.pending));
        if names.len() > NAMES_PER_DIRECTORY_MAX {
            return self.add(ITEM_BYTES, |set| set.directories.push(directory));
        }
        for name in names {
            self.add(NAME_BYTES + name.len(), |set| set.names.push((directory, name)));
        }
    }

    fn finish(mut self) -> Vec<ChangeSet> {
        self.flush_names();
        if self.current != ChangeSet::default() {
            self.done.push(self.current);
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_of_a_directory_are_named_and_many_are_the_directory_as_a_whole() {
        let mut sets = Collector::default();
        sets.add_name(5, b"one");
        for at in 0..1000 {
            sets.add_name(6, format!("{at:04}").as_bytes());
        }
        sets.add_name(7, b"two");
        let expected = ChangeSet {
            names: vec![(5, Bytes::from_static(b"one")), (7, Bytes::from_static(b"two"))],
            directories: vec![6],
            ..ChangeSet::default()
        };
        assert_eq!(sets.finish(), [expected]);
    }

    #[test]
    fn a_large_transaction_is_several_sets_of_bounded_size() {
        let mut sets = Collector::default();
        for id in 0..100_000 {
            sets.add(ITEM_BYTES, |set| set.inodes.push(id));
        }
        let sets = sets.finish();
        assert!(sets.len() > 1 && sets.iter().all(|set| set.bytes() <= SET_BYTES_MAX));
        assert_eq!(sets.iter().map(|set| set.inodes.len()).sum::<usize>(), 100_000);
    }
}
