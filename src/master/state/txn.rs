//! What the core needs from a store.

use bytes::Bytes;

/// The tables of the state machine; each is a column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// parent(8) name -> DentryRow.
    Dentry,
    /// inode(8) -> InodeRow.
    Inode,
    /// mount id(4) -> Mount.
    Mount,
    /// mount id(4) -> StatRow.
    Stat,
    /// seq(8) -> GcRow.
    Gc,
    /// client id(16) -> SessionRow.
    Session,
    /// client id(16) seq(8) -> Outcome.
    Reply,
    /// member id(8) -> Member.
    Member,
    /// worker id -> WorkerRow.
    Worker,
    /// job id(8) -> JobRow.
    Job,
    /// intent id(8) -> IntentRow.
    Intent,
    /// inode(8) client id(16) owner(8) -> LockRow.
    Lock,
    /// client id(16) -> LockerRow, and client id(16) inode(8) owner(8) -> LockerRow.
    Locker,
    /// Fixed keys: cluster, counters, applied log id, membership.
    Meta,
}

impl Table {
    /// Every table, in the order digests are computed in.
    pub const ALL: [Table; 14] = [
        Table::Dentry,
        Table::Inode,
        Table::Mount,
        Table::Stat,
        Table::Gc,
        Table::Session,
        Table::Reply,
        Table::Member,
        Table::Worker,
        Table::Job,
        Table::Intent,
        Table::Lock,
        Table::Locker,
        Table::Meta,
    ];

    /// Name of the column family, and of the table in digests.
    pub fn name(self) -> &'static str {
        match self {
            Table::Dentry => "dentry",
            Table::Inode => "inode",
            Table::Mount => "mount",
            Table::Stat => "stat",
            Table::Gc => "gc",
            Table::Session => "session",
            Table::Reply => "reply",
            Table::Member => "member",
            Table::Worker => "worker",
            Table::Job => "job",
            Table::Intent => "intent",
            Table::Lock => "lock",
            Table::Locker => "locker",
            Table::Meta => "meta",
        }
    }
}

/// The store failed or holds what it cannot hold: the process must stop, nothing may be acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// A consistent view of all tables.
pub trait View {
    /// The value at `key`.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// As [`View::get`], for a row that many requests read, such as a directory on the way to what they ask for: worth
    /// being remembered.
    fn get_common(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(table, key)
    }

    /// Up to `limit` rows whose key begins with `prefix` and is greater than `after` (a whole key; empty for all), in
    /// key order.
    fn scan(&self, table: Table, prefix: &[u8], after: &[u8], limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError>;
}

/// A view that sees its own changes; they reach the store together or not at all.
pub trait Txn: View {
    /// Sets `key` to `value`.
    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>);
    /// Removes `key`.
    fn delete(&mut self, table: Table, key: &[u8]);
}
