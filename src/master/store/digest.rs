//! Checksums of the whole state, to compare replicas at the same index.

use bytes::Bytes;

use super::Store;
use super::scan::Cursor;
use crate::master::state::{StoreError, Table, View, keys};

/// Checksums of all tables at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreDigest {
    /// The Raft layer's row with the id of the last applied entry, as stored; empty before the first one.
    pub applied: Bytes,
    /// One per table, in the order of [`Table::ALL`].
    pub tables: Vec<TableDigest>,
}

/// Checksum of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDigest {
    /// Name of the table.
    pub table: &'static str,
    /// Number of rows.
    pub rows: u64,
    /// CRC32C over lengths, keys and values in order.
    pub checksum: u64,
}

/// Everything counts but the owner of the store: no other row may differ between replicas at the same index.
pub(super) fn digest(store: &Store) -> Result<StoreDigest, StoreError> {
    let view = store.view();
    let mut tables = Vec::with_capacity(Table::ALL.len());
    for table in Table::ALL {
        let mut options = view.options();
        // A full scan must not push out what clients read.
        options.fill_cache(false);
        options.set_readahead_size(1 << 20);
        let mut cursor = Cursor::new(store, options, table, &[], &[])?;
        let (mut rows, mut checksum) = (0, 0);
        while let Some(key) = cursor.key()? {
            if table != Table::Meta || key != keys::OWNER {
                checksum = fold(checksum, key);
                checksum = fold(checksum, cursor.value());
                rows += 1;
            }
            cursor.advance();
        }
        tables.push(TableDigest { table: table.name(), rows, checksum: checksum.into() });
    }
    Ok(StoreDigest { applied: view.get(Table::Meta, keys::APPLIED)?.unwrap_or_default(), tables })
}

fn fold(checksum: u32, bytes: &[u8]) -> u32 {
    let checksum = crc32c::crc32c_append(checksum, &(bytes.len() as u64).to_le_bytes());
    crc32c::crc32c_append(checksum, bytes)
}
