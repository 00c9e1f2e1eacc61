//! The state machine on disk: one RocksDB directory, a column family per table.
//!
//! Promises: a [`StoreTxn`] reaches the database whole or not at all; what is on disk after a crash is the result of
//! some prefix of the committed transactions, the same in all tables; a [`StoreView`] does not change; memory is
//! bounded whatever the size of the tree, and nothing is rebuilt at start.
//!
//! There is no write-ahead log of its own: the Raft log is it. What was not flushed at a crash is applied again.

mod digest;
mod hot;
mod options;
mod scan;
mod txn;
mod view;

use std::path::{Path, PathBuf};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{ColumnFamily, DB, FlushOptions};

pub use digest::{StoreDigest, TableDigest};
pub use options::StoreOptions;
pub use txn::StoreTxn;
pub use view::StoreView;

use super::state::{StoreError, Table, keys};

/// Version of keys and rows that this release reads and writes.
pub const FORMAT: u32 = 1;

/// One open state machine directory.
pub struct Store {
    db: DB,
    dir: PathBuf,
    hot: hot::Hot,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `dir`; makes an empty one where nothing is.
    ///
    /// *Errors*: the directory is in use, damaged, or of another format.
    pub fn open(dir: &Path, options: &StoreOptions) -> Result<Store, StoreError> {
        let fail = |what: &str, error: &dyn std::fmt::Display| {
            StoreError(format!("{what} the state store {}: {error}", dir.display()))
        };
        let fresh = !dir.join("CURRENT").exists();
        if fresh {
            std::fs::create_dir_all(dir).map_err(|error| fail("create", &error))?;
        } else {
            options::known_tables(dir)?;
        }
        let db = options::open(dir, options).map_err(|error| fail("open", &error))?;
        let store = Store { db, dir: dir.to_owned(), hot: hot::Hot::new() };
        store.check_format()?;
        Ok(store)
    }

    /// Compares the stored format version with ours; writes it into an empty store.
    fn check_format(&self) -> Result<(), StoreError> {
        let ours = FORMAT.to_string();
        match self.get(Table::Meta, keys::FORMAT)? {
            Some(found) if found == ours.as_bytes() => Ok(()),
            Some(found) => Err(StoreError(format!(
                "the state store {} has format {}, this release reads format {ours}: start the release that wrote it, \
                 or let this member join anew with an empty metadata directory",
                self.dir.display(),
                found.escape_ascii(),
            ))),
            None if self.is_empty()? => {
                let mut txn = self.begin();
                super::state::Txn::put(&mut txn, Table::Meta, keys::FORMAT, ours.into_bytes());
                self.commit(txn)?;
                self.flush()
            }
            None => Err(StoreError(format!(
                "the state store {} holds data without a format version: it is damaged, or not a state store",
                self.dir.display()
            ))),
        }
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        let view = self.view();
        for table in Table::ALL {
            if !super::state::View::scan(&view, table, &[], &[], 1)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Begins a transaction over the newest state. There is one writer: transactions do not see each other.
    pub fn begin(&self) -> StoreTxn<'_> {
        StoreTxn::new(self)
    }

    /// Writes the changes of `txn`, all or none.
    pub fn commit(&self, txn: StoreTxn<'_>) -> Result<(), StoreError> {
        let batch = txn.batch()?;
        if batch.is_empty() {
            return Ok(());
        }
        self.hot.begin_commit();
        self.db.write_opt(batch, &options::write()).map_err(|error| self.fail("write to", &error))?;
        txn.tell(&self.hot);
        self.hot.end_commit();
        Ok(())
    }

    /// A view that stays as it is now.
    pub fn view(&self) -> StoreView<'_> {
        StoreView::new(self)
    }

    /// Brings everything committed to disk, all tables at the same point.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut families = Vec::with_capacity(Table::ALL.len());
        for table in Table::ALL {
            families.push(self.family(table)?);
        }
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&families, &options).map_err(|error| self.fail("flush", &error))
    }

    /// Makes `dir`, which must not exist, a store with what is committed now; files are shared by hard links, and
    /// writes go on meanwhile. `dir` must be on the same file system.
    pub fn checkpoint(&self, dir: &Path) -> Result<(), StoreError> {
        self.flush()?;
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint_with_log_size(dir, 0))
            .map_err(|error| self.fail(&format!("make the checkpoint {} of", dir.display()), &error))
    }

    /// Checksums of all tables, over one view.
    pub fn digest(&self) -> Result<StoreDigest, StoreError> {
        digest::digest(self)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        match self.db.get_pinned_cf(self.family(table)?, key) {
            Ok(found) => Ok(found.map(|value| bytes::Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.fail("read from", &error)),
        }
    }

    /// As [`Store::get`], for the one writer.
    fn get_hot(&self, table: Table, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        if table == Table::Dentry {
            // The writer mostly asks for names that are not there yet.
            return self.get(table, key);
        }
        if let Some(value) = self.hot.newest(table, key) {
            return Ok(Some(value));
        }
        let found = self.get(table, key)?;
        if let Some(value) = &found {
            self.hot.remember(table, key, value, self.hot.last_commit());
        }
        Ok(found)
    }

    fn family(&self, table: Table) -> Result<&ColumnFamily, StoreError> {
        self.db
            .cf_handle(table.name())
            .ok_or_else(|| StoreError(format!("the state store {} has no table {}", self.dir.display(), table.name())))
    }

    fn fail(&self, what: &str, error: &dyn std::fmt::Display) -> StoreError {
        StoreError(format!("{what} the state store {}: {error}", self.dir.display()))
    }
}
