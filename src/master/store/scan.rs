//! Ordered reads.

use bytes::Bytes;
use rocksdb::{DBRawIteratorWithThreadMode, ReadOptions};

use super::{DB, Store};
use crate::master::state::{StoreError, Table};

/// The smallest key that is greater than every key with this prefix; none for a prefix of 0xff bytes only.
pub(super) fn behind(prefix: &[u8]) -> Option<Vec<u8>> {
    let at = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=at].to_vec();
    end[at] += 1;
    Some(end)
}

/// Walks the rows of `table` under `prefix` behind `after`, in order.
pub(super) struct Cursor<'s> {
    store: &'s Store,
    iterator: DBRawIteratorWithThreadMode<'s, DB>,
}

impl<'s> Cursor<'s> {
    pub(super) fn new(
        store: &'s Store,
        mut options: ReadOptions,
        table: Table,
        prefix: &[u8],
        after: &[u8],
    ) -> Result<Cursor<'s>, StoreError> {
        // The bound keeps an iterator from wading through what was deleted behind the prefix.
        if let Some(end) = behind(prefix) {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = store.db.raw_iterator_cf_opt(store.family(table)?, options);
        iterator.seek(prefix.max(after));
        let mut cursor = Cursor { store, iterator };
        if !after.is_empty() && cursor.key()? == Some(after) {
            cursor.advance();
        }
        Ok(cursor)
    }

    /// The key here; none at the end.
    pub(super) fn key(&self) -> Result<Option<&[u8]>, StoreError> {
        match self.iterator.key() {
            Some(key) => Ok(Some(key)),
            None => self.iterator.status().map(|()| None).map_err(|error| self.store.fail_read(&error)),
        }
    }

    /// The row here, copied.
    pub(super) fn row(&self) -> Result<Option<(Bytes, Bytes)>, StoreError> {
        let Some(key) = self.key()? else { return Ok(None) };
        let value = self.iterator.value().unwrap_or_default();
        Ok(Some((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))))
    }

    /// The value here; empty at the end.
    pub(super) fn value(&self) -> &[u8] {
        self.iterator.value().unwrap_or_default()
    }

    pub(super) fn advance(&mut self) {
        self.iterator.next();
    }
}
