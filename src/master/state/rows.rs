//! Rows, decoded. The root directory and the counters exist from the start, without having been written.

use bytes::Bytes;
use jindofs_proto::store::v1::{CounterRow, DentryRow, InodeRow};
use jindofs_proto::v1::{Attr, FileType, Mount};
use prost::Message;

use super::{StoreError, Table, Txn, View, keys};
use crate::types::ROOT_INODE;

/// Most mounts at a time; the table is scanned by some commands.
pub(crate) const MOUNTS_MAX: usize = 1000;

/// The row at `key`, decoded.
pub(crate) fn read<M: Message + Default>(view: &dyn View, table: Table, key: &[u8]) -> Result<Option<M>, StoreError> {
    view.get(table, key)?.map(|value| decode(table, key, value)).transpose()
}

/// As [`read`], for a row that many requests pass.
fn read_common<M: Message + Default>(view: &dyn View, table: Table, key: &[u8]) -> Result<Option<M>, StoreError> {
    view.get_common(table, key)?.map(|value| decode(table, key, value)).transpose()
}

/// Decodes a row. A row that does not decode is damage: the node must stop.
pub(crate) fn decode<M: Message + Default>(table: Table, key: &[u8], value: Bytes) -> Result<M, StoreError> {
    M::decode(value).map_err(|error| {
        StoreError(format!("row {} of table {} does not decode: {error}", key.escape_ascii(), table.name()))
    })
}

/// Writes a row.
pub(crate) fn write<M: Message>(txn: &mut dyn Txn, table: Table, key: &[u8], row: &M) {
    txn.put(table, key, row.encode_to_vec());
}

/// Every row under `prefix`, at most `limit`.
pub(crate) fn scan<M: Message + Default>(
    view: &dyn View,
    table: Table,
    prefix: &[u8],
    limit: usize,
) -> Result<Vec<(Bytes, M)>, StoreError> {
    let rows = view.scan(table, prefix, &[], limit)?;
    rows.into_iter().map(|(key, value)| decode(table, &key, value).map(|row| (key, row))).collect()
}

/// The inode, or none.
pub(crate) fn inode(view: &dyn View, id: u64) -> Result<Option<InodeRow>, StoreError> {
    match read(view, Table::Inode, &keys::id(id))? {
        None if id == ROOT_INODE => Ok(Some(fresh_root())),
        found => Ok(found),
    }
}

fn fresh_root() -> InodeRow {
    let mut root = InodeRow { mode: 0o755, nlink: 2, parent: ROOT_INODE, ..InodeRow::default() };
    root.set_type(FileType::Directory);
    root
}

/// Writes an inode.
pub(crate) fn put_inode(txn: &mut dyn Txn, id: u64, row: &InodeRow) {
    write(txn, Table::Inode, &keys::id(id), row);
}

/// The number that keys the entries of directory `id` whose row is `row`.
pub(crate) fn content_of(id: u64, row: &InodeRow) -> u64 {
    if row.content == 0 { id } else { row.content }
}

/// As [`content_of`], reading the row only where it matters: for the root.
pub(crate) fn content(view: &dyn View, id: u64) -> Result<u64, StoreError> {
    if id != ROOT_INODE {
        return Ok(id);
    }
    let row: Option<InodeRow> = read_common(view, Table::Inode, &keys::id(id))?;
    Ok(row.map_or(id, |row| content_of(id, &row)))
}

/// The dentry row, which may be a tombstone.
pub(crate) fn dentry(view: &dyn View, content: u64, name: &[u8]) -> Result<Option<DentryRow>, StoreError> {
    read(view, Table::Dentry, &keys::dentry(content, name))
}

/// The entry, not a tombstone.
pub(crate) fn entry(view: &dyn View, content: u64, name: &[u8]) -> Result<Option<DentryRow>, StoreError> {
    Ok(dentry(view, content, name)?.filter(|row| row.inode != 0))
}

/// As [`entry`], for a directory on the way to something else.
pub(crate) fn entry_passed(view: &dyn View, content: u64, name: &[u8]) -> Result<Option<DentryRow>, StoreError> {
    let row: Option<DentryRow> = read_common(view, Table::Dentry, &keys::dentry(content, name))?;
    Ok(row.filter(|row| row.inode != 0))
}

/// The counters.
pub(crate) fn counters(view: &dyn View) -> Result<CounterRow, StoreError> {
    Ok(read(view, Table::Meta, keys::COUNTERS)?.unwrap_or_else(fresh_counters))
}

/// The counters of a state that has written none.
pub(crate) fn fresh_counters() -> CounterRow {
    CounterRow {
        next_inode: ROOT_INODE + 1,
        next_mount: 1,
        next_gc: 1,
        next_job: 1,
        first_gc: 1,
        ..CounterRow::default()
    }
}

/// The mount with this id.
pub(crate) fn mount(view: &dyn View, id: u32) -> Result<Option<Mount>, StoreError> {
    read(view, Table::Mount, &keys::mount(id))
}

/// Every mount, by id.
pub(crate) fn mounts(view: &dyn View) -> Result<Vec<Mount>, StoreError> {
    Ok(scan(view, Table::Mount, &[], MOUNTS_MAX)?.into_iter().map(|(_, mount)| mount).collect())
}

/// What clients see of an inode.
pub(crate) fn attr(id: u64, row: &InodeRow) -> Attr {
    Attr {
        inode: id,
        r#type: row.r#type,
        mode: row.mode,
        uid: row.uid,
        gid: row.gid,
        size: row.size,
        mtime_ns: row.mtime_ns,
        ctime_ns: row.ctime_ns,
        nlink: row.nlink,
        parent: row.parent,
        mount_id: row.mount_id,
        version: row.version,
        version_token: row.version_token.clone(),
        symlink_target: row.symlink_target.clone(),
        prefix_since: row.prefix_since,
    }
}

/// True for a directory.
pub(crate) fn is_dir(row: &InodeRow) -> bool {
    row.r#type() == FileType::Directory
}
