//! A transaction: changes kept in memory over the database, until they are written together.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use rocksdb::{ReadOptions, WriteBatch};

use super::Store;
use super::hot::Hot;
use super::scan::{Cursor, behind};
use crate::master::state::{StoreError, Table, Txn, View, changes};

/// Changes by key; `None` removes.
type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Changes over the newest state. Dropped without a commit, it leaves no trace.
pub struct StoreTxn<'s> {
    store: &'s Store,
    changes: [Changes; Table::ALL.len()],
}

impl<'s> StoreTxn<'s> {
    pub(super) fn new(store: &'s Store) -> StoreTxn<'s> {
        StoreTxn { store, changes: Default::default() }
    }

    /// Number of keys changed.
    pub fn len(&self) -> usize {
        self.changes.iter().map(BTreeMap::len).sum()
    }

    /// True if nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.changes.iter().all(BTreeMap::is_empty)
    }

    pub(super) fn batch(&self) -> Result<WriteBatch, StoreError> {
        let mut batch = WriteBatch::default();
        for (table, changes) in Table::ALL.into_iter().zip(&self.changes) {
            if changes.is_empty() {
                continue;
            }
            let family = self.store.family(table)?;
            for (key, change) in changes {
                match change {
                    Some(value) => batch.put_cf(family, key, value),
                    None => batch.delete_cf(family, key),
                }
            }
        }
        Ok(batch)
    }

    /// After the changes were written: what is remembered of their rows is renewed.
    pub(super) fn tell(&self, hot: &Hot) {
        for table in Hot::TABLES {
            for (key, change) in self.of(table) {
                hot.committed(table, key, change.as_ref());
            }
        }
    }

    /// What clients see changed by it. To be asked before it is committed. `exact` is true for a transaction of one log
    /// entry, and false for one of several: the module [`changes`] says what differs.
    ///
    /// *Errors*: a row cannot be read.
    pub fn visible_changes(&self, exact: bool) -> Result<changes::Changes, StoreError> {
        if self.of(Table::Dentry).is_empty() && self.of(Table::Inode).is_empty() {
            return Ok(changes::Changes::Sets(Vec::new()));
        }
        if !exact {
            // A mount shows other entries in its directory without writing them. Mounts change so rarely that clients
            // may read everything again then.
            if !self.of(Table::Mount).is_empty() {
                return Ok(changes::Changes::All);
            }
            let keys = |table| self.writes(table).map(|(key, _)| key);
            return changes::list_written(self, keys(Table::Dentry), keys(Table::Inode));
        }
        let before = |table: Table, key: &[u8]| self.store.get_hot(table, key);
        changes::derive(&before, self, self.writes(Table::Dentry), self.writes(Table::Inode))
    }

    fn writes(&self, table: Table) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.of(table).iter().map(|(key, change)| (key.as_slice(), change.as_ref()))
    }

    fn of(&self, table: Table) -> &Changes {
        &self.changes[table as usize]
    }
}

impl View for StoreTxn<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.of(table).get(key) {
            Some(change) => Ok(change.clone()),
            None => self.store.get_hot(table, key),
        }
    }

    fn scan(&self, table: Table, prefix: &[u8], after: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        if limit == 0 {
            return Ok(rows);
        }
        let from = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let end = behind(prefix);
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut changed = match end.as_deref() {
            // Nothing lies behind `after`, and a range may not end before it begins.
            Some(end) if after >= end => return Ok(rows),
            _ => self.of(table).range::<[u8], _>((from, to)).peekable(),
        };
        let mut cursor = Cursor::new(self.store, ReadOptions::default(), table, prefix, after)?;
        while rows.len() < limit {
            let stored = cursor.key()?;
            let order = match (stored, changed.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(stored), Some((key, _))) => stored.cmp(key.as_slice()),
            };
            if order.is_lt() {
                rows.extend(cursor.row()?);
                cursor.advance();
                continue;
            }
            if order.is_eq() {
                cursor.advance();
            }
            if let Some((key, Some(value))) = changed.next() {
                rows.push((Bytes::copy_from_slice(key), value.clone()));
            }
        }
        Ok(rows)
    }
}

impl Txn for StoreTxn<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.changes[table as usize].insert(key.to_vec(), Some(value.into()));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.changes[table as usize].insert(key.to_vec(), None);
    }
}
