//! A view over one RocksDB snapshot.

use bytes::Bytes;
use rocksdb::{ReadOptions, SnapshotWithThreadMode};

use super::scan::Cursor;
use super::{DB, Store};
use crate::master::state::{StoreError, Table, View};

/// The state at one moment; commits that come later do not change it.
pub struct StoreView<'s> {
    store: &'s Store,
    /// Read options that see the snapshot; made once, as a path is many reads.
    reads: ReadOptions,
    snapshot: SnapshotWithThreadMode<'s, DB>,
    /// The last commit in it, unless one was under way when it was taken.
    seen: Option<u64>,
}

impl<'s> StoreView<'s> {
    pub(super) fn new(store: &'s Store) -> StoreView<'s> {
        let (snapshot, seen) = store.hot.seen(|| store.db.snapshot());
        let mut reads = ReadOptions::default();
        reads.set_snapshot(&snapshot);
        StoreView { store, reads, snapshot, seen }
    }

    /// Read options that see this view.
    pub(super) fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options
    }
}

impl View for StoreView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.store.db.get_pinned_cf_opt(self.store.family(table)?, key, &self.reads) {
            Ok(found) => Ok(found.map(|value| Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.store.fail_read(&error)),
        }
    }

    fn get_common(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(seen) = self.seen else { return self.get(table, key) };
        if let Some(value) = self.store.hot.at(table, key, seen) {
            return Ok(Some(value));
        }
        let found = self.get(table, key)?;
        if let Some(value) = &found {
            self.store.hot.remember(table, key, value, seen);
        }
        Ok(found)
    }

    fn scan(&self, table: Table, prefix: &[u8], after: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        if limit == 0 {
            return Ok(rows);
        }
        let mut cursor = Cursor::new(self.store, self.options(), table, prefix, after)?;
        while let Some(row) = cursor.row()? {
            rows.push(row);
            if rows.len() == limit {
                break;
            }
            cursor.advance();
        }
        Ok(rows)
    }
}
