//! The inodes and names that a transaction changes, as clients see them. They are derived from the keys that it writes,
//! so that no command can leave one out. Nothing here writes a row: replicas without subscribers do not derive changes.
//!
//! *Transactions of one log entry.* Every client has read the state before the transaction or the state after it, so
//! only rows that differ between the two are changes ([`derive()`]).
//!
//! *Transactions of several log entries.* Another master may have applied the same entries one by one, so a client may
//! have read a state between two of them. A name that was absent before and after the transaction may be cached as
//! present. Every row that is written is therefore a change ([`list_written`]).

use bytes::Bytes;
use jindofs_proto::store::v1::{CounterRow, DentryRow, InodeRow};

use super::{StoreError, Table, View, keys, rows};
use crate::types::ROOT_INODE;

/// Most names of one directory that a transaction lists one by one. If it changes more, it lists the directory.
const NAMES_PER_DIRECTORY_MAX: usize = 64;
/// Bytes of one [`ChangeSet`], about.
const SET_BYTES_MAX: usize = 64 << 10;
/// Bytes of a number, and of a name besides its own bytes.
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

/// Reads a row as it was before the transaction.
type Before<'a> = &'a dyn Fn(Table, &[u8]) -> Result<Option<Bytes>, StoreError>;

/// Derives the changes from the `dentries` and `inodes` that a transaction of one log entry writes: their keys in
/// order, with the new values. `before` reads rows as they were before the transaction, `after` as they are with it.
///
/// *Errors*: a row cannot be read.
pub fn derive<'k>(
    before: Before<'_>,
    after: &dyn View,
    dentries: impl Iterator<Item = (&'k [u8], Option<&'k Bytes>)>,
    inodes: impl Iterator<Item = (&'k [u8], Option<&'k Bytes>)>,
) -> Result<Changes, StoreError> {
    let root = rows::content(after, ROOT_INODE)?;
    if root != inode_before(before, ROOT_INODE)?.map_or(ROOT_INODE, |row| rows::content_of(ROOT_INODE, &row)) {
        // The root has other entries now, although none of them was written.
        return Ok(Changes::All);
    }
    let mut sets = Collector::default();
    let next_inode = next_inode_before(before)?;
    for (key, new) in inodes {
        let id = keys::id_of(key);
        // No client knows an inode that did not exist. The counter shows most of them without a read of the row.
        if id >= next_inode {
            continue;
        }
        let Some(old) = inode_before(before, id)? else { continue };
        let new: Option<InodeRow> = new.map(|row| rows::decode(Table::Inode, key, row.clone())).transpose()?;
        if new.as_ref().is_none_or(|new| rows::attr(id, new) != rows::attr(id, &old)) {
            sets.add(ITEM_BYTES, |set| set.inodes.push(id));
        }
        if new.is_some_and(|new| new.mount_id != old.mount_id) {
            // The directory became a mount point: its entries come from an under-storage now.
            sets.add(ITEM_BYTES, |set| set.directories.push(id));
        }
    }
    let mut directory = Directory::default();
    for (key, new) in dentries {
        let content = keys::content_of(key);
        let id = if content == root { ROOT_INODE } else { content };
        if directory.id != id {
            let is_new = id >= next_inode;
            directory = if is_new { Directory { id, ..Directory::default() } } else { Directory::before(before, id)? };
        }
        if directory.is_known
            && directory.may_be_cached(target(key, before(Table::Dentry, key)?)?, target(key, new.cloned())?)
        {
            sets.add_name(id, keys::name_of(key));
        }
    }
    Ok(Changes::Sets(sets.finish()))
}

/// Lists the `dentries` and `inodes` that a transaction of several log entries writes, by their keys in order. The
/// transaction must not change mounts.
///
/// *Errors*: a row cannot be read.
pub fn list_written<'k>(
    after: &dyn View,
    dentries: impl Iterator<Item = &'k [u8]>,
    inodes: impl Iterator<Item = &'k [u8]>,
) -> Result<Changes, StoreError> {
    let root = rows::content(after, ROOT_INODE)?;
    let mut sets = Collector::default();
    for key in inodes {
        sets.add(ITEM_BYTES, |set| set.inodes.push(keys::id_of(key)));
    }
    for key in dentries {
        let content = keys::content_of(key);
        sets.add_name(if content == root { ROOT_INODE } else { content }, keys::name_of(key));
    }
    Ok(Changes::Sets(sets.finish()))
}

/// The first inode number that was not given out before the transaction.
fn next_inode_before(before: Before<'_>) -> Result<u64, StoreError> {
    let row = before(Table::Meta, keys::COUNTERS)?;
    let counters: Option<CounterRow> = row.map(|row| rows::decode(Table::Meta, keys::COUNTERS, row)).transpose()?;
    Ok(counters.unwrap_or_else(rows::fresh_counters).next_inode)
}

/// The row of an inode before the transaction; the root exists without having been written.
fn inode_before(before: Before<'_>, id: u64) -> Result<Option<InodeRow>, StoreError> {
    match before(Table::Inode, &keys::id(id))? {
        Some(row) => rows::decode(Table::Inode, &keys::id(id), row).map(Some),
        None => Ok((id == ROOT_INODE).then(InodeRow::default)),
    }
}

/// The inode that a name stands for; 0 for none, and for a tombstone.
fn target(key: &[u8], row: Option<Bytes>) -> Result<u64, StoreError> {
    row.map_or(Ok(0), |row| rows::decode::<DentryRow>(Table::Dentry, key, row).map(|row| row.inode))
}

/// What clients can have cached of a directory.
#[derive(Default)]
struct Directory {
    id: u64,
    /// It existed before the transaction.
    is_known: bool,
    /// It has been listed, or needs no listing. Before its first listing no client caches that a name is absent, as
    /// masters ask the under-storage for each name. The names that the first listing finds therefore invalidate
    /// nothing; if they did, the client that has asked for the listing could not cache the answer.
    is_complete: bool,
}

impl Directory {
    fn before(before: Before<'_>, id: u64) -> Result<Directory, StoreError> {
        let row = inode_before(before, id)?;
        let is_complete = row.as_ref().is_some_and(|row| row.mount_id == 0 || row.complete);
        Ok(Directory { id, is_known: row.is_some(), is_complete })
    }

    /// True if a name that stands for another inode may be cached by a client.
    fn may_be_cached(&self, old: u64, new: u64) -> bool {
        old != new && (old != 0 || self.is_complete)
    }
}

/// Collects changes in sets of bounded size. Names are added in key order, so the names of a directory are adjacent.
#[derive(Default)]
struct Collector {
    done: Vec<ChangeSet>,
    current: ChangeSet,
    bytes: usize,
    /// Names of `directory`, until the next directory begins.
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
        // One name more than the bound shows that it is exceeded.
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
