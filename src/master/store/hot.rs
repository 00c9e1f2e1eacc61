//! Rows that every command of a busy client reads again: its session and the directory it works in. Remembered as they
//! were last committed, they spare a walk through the memtable.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use crate::master::state::Table;

/// Rows remembered per table, about 2 MiB in all.
const ROWS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

type Rows = Mutex<LruCache<Box<[u8]>, Bytes>>;

/// For the one writer; views, which may be older, do not look here.
pub(super) struct Hot {
    inodes: Rows,
    sessions: Rows,
}

impl Hot {
    pub(super) fn new() -> Hot {
        Hot { inodes: Mutex::new(LruCache::sparse(ROWS)), sessions: Mutex::new(LruCache::sparse(ROWS)) }
    }

    fn rows(&self, table: Table) -> Option<&Rows> {
        match table {
            Table::Inode => Some(&self.inodes),
            Table::Session => Some(&self.sessions),
            _ => None,
        }
    }

    /// The row as last committed, if it is remembered.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<Bytes> {
        self.rows(table)?.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Remembers a row that was just read.
    pub(super) fn read(&self, table: Table, key: &[u8], value: &Bytes) {
        if let Some(rows) = self.rows(table) {
            rows.lock().unwrap_or_else(PoisonError::into_inner).put(key.into(), value.clone());
        }
    }

    /// A change was committed. Rows that nobody reads are not taken in: most new inodes are never looked at again.
    pub(super) fn committed(&self, table: Table, key: &[u8], change: Option<&Bytes>) {
        let Some(rows) = self.rows(table) else { return };
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        match change {
            None => drop(rows.pop(key)),
            Some(value) => {
                if let Some(known) = rows.peek_mut(key) {
                    *known = value.clone();
                }
            }
        }
    }
}
