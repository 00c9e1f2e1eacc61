//! Rows that are read again and again, as they were last committed: the sessions and directories of busy clients, for
//! the one writer, and the directories on the way of a path, for every view. They spare walks through memtables and
//! blocks.
//!
//! A view may be older than what is remembered. Commits are numbered; a row knows the commit it is known from, and a
//! view takes it only if it has seen that commit. A row changed later is not the same row any more, so what is found
//! and old enough is what the view would read.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use lru::LruCache;

use crate::master::state::Table;
use crate::runtime::{read_lock, write_lock};

/// Rows remembered per table, about 3 MiB in all.
const ROWS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

#[derive(Debug)]
struct Row {
    value: Bytes,
    /// A commit since which it is the newest.
    since: u64,
}

/// What is remembered of one table.
struct Rows(RwLock<LruCache<Box<[u8]>, Row>>);

impl Rows {
    fn new() -> Rows {
        Rows(RwLock::new(LruCache::sparse(ROWS)))
    }

    fn read(&self) -> RwLockReadGuard<'_, LruCache<Box<[u8]>, Row>> {
        read_lock(&self.0)
    }

    fn write(&self) -> RwLockWriteGuard<'_, LruCache<Box<[u8]>, Row>> {
        write_lock(&self.0)
    }
}

/// The rows of one store.
pub(super) struct Hot {
    /// Twice the number of commits, plus one while one is under way.
    commits: AtomicU64,
    dentries: Rows,
    inodes: Rows,
    sessions: Rows,
}

impl Hot {
    pub(super) fn new() -> Hot {
        Hot { commits: AtomicU64::new(0), dentries: Rows::new(), inodes: Rows::new(), sessions: Rows::new() }
    }

    /// Tables of which rows are remembered.
    pub(super) const TABLES: [Table; 3] = [Table::Dentry, Table::Inode, Table::Session];

    fn rows(&self, table: Table) -> Option<&Rows> {
        match table {
            Table::Dentry => Some(&self.dentries),
            Table::Inode => Some(&self.inodes),
            Table::Session => Some(&self.sessions),
            _ => None,
        }
    }

    /// Takes a view with `make`; with the last commit it sees, unless one was under way.
    pub(super) fn seen<T>(&self, make: impl FnOnce() -> T) -> (T, Option<u64>) {
        let before = self.commits.load(Ordering::SeqCst);
        let made = make();
        let settled = before.is_multiple_of(2) && self.commits.load(Ordering::SeqCst) == before;
        (made, settled.then_some(before))
    }

    /// For the writer: the row as last committed, if it is remembered.
    pub(super) fn newest(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.rows(table)?.write().get(key).map(|row| row.value.clone())
    }

    /// For a view that has seen the commit `seen`.
    pub(super) fn at(&self, table: Table, key: &[u8], seen: u64) -> Option<Bytes> {
        // Not moved to the front: views would wait for each other.
        self.rows(table)?.read().peek(key).filter(|row| row.since <= seen).map(|row| row.value.clone())
    }

    /// Remembers what was read after the commit `seen`, unless something was committed meanwhile.
    pub(super) fn remember(&self, table: Table, key: &[u8], value: &Bytes, seen: u64) {
        let Some(rows) = self.rows(table) else { return };
        let mut rows = rows.write();
        // A commit that begins after this look changes what is put in here once we let go of the lock.
        if self.commits.load(Ordering::SeqCst) == seen {
            rows.put(key.into(), Row { value: value.clone(), since: seen });
        }
    }

    /// The last commit, for the writer.
    pub(super) fn last_commit(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// A commit begins. If it fails, nothing is remembered for views any more: the process must stop.
    pub(super) fn begin_commit(&self) {
        self.commits.fetch_add(1, Ordering::SeqCst);
    }

    /// The commit has changed this row. Rows that nobody reads are not taken in: most new inodes are never looked at
    /// again.
    pub(super) fn committed(&self, table: Table, key: &[u8], change: Option<&Bytes>) {
        let Some(rows) = self.rows(table) else { return };
        let mut rows = rows.write();
        match change {
            None => drop(rows.pop(key)),
            Some(value) => {
                if let Some(known) = rows.peek_mut(key) {
                    *known = Row { value: value.clone(), since: self.last_commit() + 1 };
                }
            }
        }
    }

    /// The commit is done, and all its changes were told.
    pub(super) fn end_commit(&self) {
        self.commits.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"key";

    fn commit(hot: &Hot, value: Option<&'static [u8]>) {
        hot.begin_commit();
        hot.committed(Table::Dentry, KEY, value.map(Bytes::from_static).as_ref());
        hot.end_commit();
    }

    #[test]
    fn a_view_takes_a_row_only_from_a_commit_it_has_seen() {
        let hot = Hot::new();
        let ((), old) = hot.seen(|| ());
        let old = old.expect("no commit is under way");
        hot.remember(Table::Dentry, KEY, &Bytes::from_static(b"1"), old);
        assert_eq!(hot.at(Table::Dentry, KEY, old).as_deref(), Some(&b"1"[..]));
        commit(&hot, Some(b"2"));
        assert_eq!(hot.at(Table::Dentry, KEY, old), None, "the view is older than the change");
        let ((), new) = hot.seen(|| ());
        let new = new.expect("no commit is under way");
        assert_eq!(hot.at(Table::Dentry, KEY, new).as_deref(), Some(&b"2"[..]));
        hot.remember(Table::Dentry, KEY, &Bytes::from_static(b"1"), old);
        assert_eq!(hot.at(Table::Dentry, KEY, new).as_deref(), Some(&b"2"[..]), "read before the change");
        commit(&hot, None);
        assert_eq!(hot.newest(Table::Dentry, KEY), None);
    }

    #[test]
    fn a_view_taken_during_a_commit_has_seen_none() {
        let hot = Hot::new();
        hot.begin_commit();
        assert_eq!(hot.seen(|| ()).1, None);
        hot.end_commit();
        assert_eq!(hot.seen(|| hot.begin_commit()).1, None);
    }
}
