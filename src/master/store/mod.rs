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
mod verify;
mod view;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{ColumnFamily, DB, FlushOptions};

pub use digest::{StoreDigest, TableDigest};
pub use options::StoreOptions;
pub use txn::StoreTxn;
pub use view::StoreView;

use super::state::{StoreError, Table, keys};

/// Version of keys and rows that this release reads and writes. Since format 4 refusals are data instead of texts.
pub const FORMAT: u32 = 4;

/// One open state machine directory.
pub struct Store {
    db: DB,
    dir: PathBuf,
    hot: hot::Hot,
    damage: OnceLock<String>,
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
        // A disk that does not answer must not look like an empty one: a new store would begin among the files of the old.
        let fresh = !dir.join("CURRENT").try_exists().map_err(|error| fail("look at", &error))?;
        if fresh {
            std::fs::create_dir_all(dir).map_err(|error| fail("create", &error))?;
        } else {
            options::known_tables(dir)?;
        }
        let db = options::open(dir, options).map_err(|error| fail("open", &error))?;
        let store = Store { db, dir: dir.to_owned(), hot: hot::Hot::new(), damage: OnceLock::new() };
        store.check_format()?;
        Ok(store)
    }

    /// False for a directory without a store, and for one in which a crash came before every table was made: nothing has
    /// ever been committed to it. A store whose tables cannot be listed counts as begun: opening it tells the damage.
    ///
    /// *Errors*: the directory cannot be looked at. The caller deletes what was not begun.
    pub fn is_begun(dir: &Path) -> std::io::Result<bool> {
        Ok(dir.join("CURRENT").try_exists()? && options::has_all_tables(dir))
    }

    /// Opens the store in `dir` to look at it: nothing in the directory changes, and every commit fails.
    ///
    /// *Errors*: there is no store, or it is damaged or of another format.
    pub fn open_read_only(dir: &Path) -> Result<Store, StoreError> {
        options::known_tables(dir)?;
        let db = options::open_read_only(dir)
            .map_err(|error| StoreError(format!("open the state store {}: {error}", dir.display())))?;
        let store = Store { db, dir: dir.to_owned(), hot: hot::Hot::new(), damage: OnceLock::new() };
        match store.get(Table::Meta, keys::FORMAT)? {
            Some(found) => store.compare_format(&found)?,
            // A crash came before the first flush.
            None if store.is_empty()? => {}
            None => return Err(store.no_format()),
        }
        Ok(store)
    }

    /// The bytes that name the member this store belongs to, as [`Store::set_owner`] stored them.
    pub fn owner(&self) -> Result<Option<bytes::Bytes>, StoreError> {
        self.get(Table::Meta, keys::OWNER)
    }

    /// Names the member this store belongs to. Replicas differ in this one row, so digests leave it out.
    ///
    /// *Durability*: on disk on return.
    pub fn set_owner(&self, owner: &[u8]) -> Result<(), StoreError> {
        let mut txn = self.begin();
        super::state::Txn::put(&mut txn, Table::Meta, keys::OWNER, owner.to_vec());
        self.commit(txn)?;
        self.flush()
    }

    /// Compares the stored format version with ours; writes it into an empty store.
    fn check_format(&self) -> Result<(), StoreError> {
        match self.get(Table::Meta, keys::FORMAT)? {
            Some(found) => self.compare_format(&found),
            None if self.is_empty()? => {
                let mut txn = self.begin();
                super::state::Txn::put(&mut txn, Table::Meta, keys::FORMAT, FORMAT.to_string().into_bytes());
                self.commit(txn)?;
                self.flush()
            }
            None => Err(self.no_format()),
        }
    }

    fn compare_format(&self, found: &[u8]) -> Result<(), StoreError> {
        if found == FORMAT.to_string().as_bytes() {
            return Ok(());
        }
        Err(StoreError(format!(
            "the state store {} has format {}, this release reads format {FORMAT}: start the release that wrote it, or \
             let this member join anew with an empty metadata directory",
            self.dir.display(),
            found.escape_ascii(),
        )))
    }

    fn no_format(&self) -> StoreError {
        StoreError(format!(
            "the state store {} holds data without a format version: it is damaged, or not a state store",
            self.dir.display()
        ))
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
        self.commit_by(txn, |attempt| attempt())
    }

    /// As [`Store::commit`]; `run` makes the attempt, and may repeat one that failed.
    pub fn commit_by(
        &self,
        txn: StoreTxn<'_>,
        run: impl FnOnce(&mut dyn FnMut() -> Result<(), StoreError>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let batch = txn.batch()?;
        if batch.is_empty() {
            return Ok(());
        }
        self.hot.begin_commit();
        let mut first = Some(batch);
        run(&mut || {
            let batch = match first.take() {
                Some(batch) => batch,
                None => txn.batch()?,
            };
            self.db.write_opt(batch, &options::write()).map_err(|error| self.fail("write to", &error))
        })?;
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

    /// Reads every table file from disk, past the cache, and compares every block with its checksum.
    ///
    /// *Errors*: the first damage that is found, with the name of the file.
    pub fn verify(&self) -> Result<(), StoreError> {
        verify::verify(&self.db).map_err(|error| {
            let message = format!("verify the state store {}: {error}", self.dir.display());
            if verify::is_damage(&error) {
                self.mark_damaged(error);
            }
            StoreError(message)
        })
    }

    /// The first damage that a read, a write or [`Store::verify`] has met since the store was opened.
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// Notes damage that was found from outside. The first one counts: later errors are its consequences.
    pub fn mark_damaged(&self, why: impl Into<String>) {
        let _ = self.damage.set(why.into());
    }

    /// How often RocksDB's own work, such as a compaction, has failed since the store was opened. After damage it takes no
    /// more writes.
    pub fn background_errors(&self) -> u64 {
        // An unknown property would be a fault of this build: the first test of rot would find it.
        self.db.property_int_value(rocksdb::properties::BACKGROUND_ERRORS).ok().flatten().unwrap_or(0)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        match self.db.get_pinned_cf(self.family(table)?, key) {
            Ok(found) => Ok(found.map(|value| bytes::Bytes::copy_from_slice(&value))),
            Err(error) => Err(self.fail_read(&error)),
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

    /// What cannot be read is damage, whatever the reason. After a failed write the process ends instead.
    fn fail_read(&self, error: &rocksdb::Error) -> StoreError {
        if verify::is_damage(error.as_ref()) {
            self.mark_damaged(error.to_string());
        }
        self.fail("read from", error)
    }

    fn fail(&self, what: &str, error: &rocksdb::Error) -> StoreError {
        if error.kind() == rocksdb::ErrorKind::Corruption {
            self.mark_damaged(error.to_string());
        }
        StoreError(format!("{what} the state store {}: {error}", self.dir.display()))
    }
}
