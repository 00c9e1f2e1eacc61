//! How RocksDB is set up: bounded memory, atomic flush, no write-ahead log.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, Options, WriteBufferManager, WriteOptions,
};

use super::super::state::{StoreError, Table};

/// Memory a store may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of blocks, indexes and filters kept in memory.
    pub block_cache_bytes: usize,
    /// Bytes of changes kept in memory until they are flushed, over all tables.
    pub write_buffer_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions { block_cache_bytes: 64 << 20, write_buffer_bytes: 64 << 20 }
    }
}

impl StoreOptions {
    /// For a process that may use `memory` bytes, and a disk on which `spare` bytes are kept for a flush that finds no room
    /// (`None`: nothing is kept). RocksDB goes on after such a flush once the buffer's size is free, and needs as much again
    /// while it repeats the flush.
    pub fn fitting(memory: u64, spare: Option<u64>) -> StoreOptions {
        const MIB: u64 = 1 << 20;
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let write_buffer = (memory / 32).clamp(8 * MIB, 64 * MIB);
        StoreOptions {
            block_cache_bytes: bytes((memory / 8).clamp(64 * MIB, 4096 * MIB)),
            write_buffer_bytes: bytes(spare.map_or(write_buffer, |spare| write_buffer.min(spare / 2)).max(MIB)),
        }
    }
}

/// Bytes of blocks that a store keeps in memory which is only looked at.
const READ_ONLY_CACHE_BYTES: usize = 4 << 20;

/// Opens the database with every table.
pub(super) fn open(dir: &Path, options: &StoreOptions) -> Result<DB, rocksdb::Error> {
    DB::open_cf_descriptors(&database(options), dir, families(options))
}

/// Opens the database so that nothing in its directory changes. No write-ahead log is ever there.
pub(super) fn open_read_only(dir: &Path) -> Result<DB, rocksdb::Error> {
    let options = StoreOptions { block_cache_bytes: READ_ONLY_CACHE_BYTES, ..StoreOptions::default() };
    let mut database = database(&options);
    database.create_if_missing(false);
    database.create_missing_column_families(false);
    DB::open_cf_descriptors_read_only(&database, dir, families(&options), false)
}

fn families(options: &StoreOptions) -> impl Iterator<Item = ColumnFamilyDescriptor> {
    let cache = Cache::new_hyper_clock_cache(options.block_cache_bytes, 0);
    let families = Table::ALL.map(|table| ColumnFamilyDescriptor::new(table.name(), family(table, options, &cache)));
    // RocksDB insists on a family of this name; it stays empty.
    let unused = ColumnFamilyDescriptor::new("default", family(Table::Meta, options, &cache));
    std::iter::once(unused).chain(families)
}

fn database(options: &StoreOptions) -> Options {
    let mut database = Options::default();
    database.create_if_missing(true);
    database.create_missing_column_families(true);
    // Without a write-ahead log, all tables must reach the disk at the same point of the Raft log.
    database.set_atomic_flush(true);
    // One bound for all tables together. Writers are not stalled at it: the flush it starts is faster than Raft.
    database.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(options.write_buffer_bytes, false));
    database.set_max_background_jobs(2);
    database.set_max_open_files(512);
    database.set_bytes_per_sync(1 << 20);
    database.set_max_log_file_size(4 << 20);
    database.set_keep_log_file_num(4);
    database.set_max_manifest_file_size(16 << 20);
    // The usual 4 MiB would be taken by each start, which may find no more than that.
    database.set_manifest_preallocation_size(64 << 10);
    database
}

fn family(table: Table, options: &StoreOptions, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    // Indexes and filters count against the cache too, or memory would grow with the tree.
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_cache_index_and_filter_blocks_with_high_priority(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    // Whole keys only: scans always name a directory that is known to exist, so a filter on prefixes would not help.
    blocks.set_bloom_filter(10.0, false);
    blocks.set_optimize_filters_for_memory(true);
    blocks.set_format_version(5);
    blocks.set_data_block_index_type(rocksdb::DataBlockIndexType::BinaryAndHash);

    let mut family = Options::default();
    family.set_block_based_table_factory(&blocks);
    family.set_compression_type(DBCompressionType::Lz4);
    family.set_level_compaction_dynamic_level_bytes(true);
    family.set_target_file_size_base(32 << 20);
    // Small tables get small arenas; the bound over all of them is the write buffer manager's.
    let large = matches!(table, Table::Dentry | Table::Inode | Table::Session);
    family.set_write_buffer_size(if large { options.write_buffer_bytes } else { options.write_buffer_bytes / 8 });
    // A block counts against the bound although it is empty: all tables together must stay far below it.
    let (block, share) = if large { (1 << 20, 16) } else { (64 << 10, 64) };
    family.set_arena_block_size(block.min(options.write_buffer_bytes / share));
    family.set_max_write_buffer_number(3);
    #[cfg(test)]
    if crate::runtime::simulated::is_active() {
        // Threads of RocksDB are not simulated: what they do by themselves, and when, would differ from run to run.
        family.set_disable_auto_compactions(true);
    }
    if large {
        // A create asks for a name and an operation that are not there yet: the filter spares the skip list.
        family.set_memtable_whole_key_filtering(true);
        family.set_memtable_prefix_bloom_ratio(0.02);
    }
    family
}

/// True unless a table of this release is missing.
pub(super) fn has_all_tables(dir: &Path) -> bool {
    let Ok(found) = DB::list_cf(&Options::default(), dir) else { return true };
    Table::ALL.iter().all(|table| found.iter().any(|name| name == table.name()))
}

/// Refuses a directory with tables this release does not know.
pub(super) fn known_tables(dir: &Path) -> Result<(), StoreError> {
    let tables = DB::list_cf(&Options::default(), dir)
        .map_err(|error| StoreError(format!("open the state store {}: {error}", dir.display())))?;
    let unknown =
        tables.iter().find(|name| *name != "default" && !Table::ALL.iter().any(|table| table.name() == **name));
    match unknown {
        None => Ok(()),
        Some(name) => Err(StoreError(format!(
            "the state store {} has a table {name:?} that this release does not know: a newer release wrote it; start \
             that one, or let this member join anew with an empty metadata directory",
            dir.display()
        ))),
    }
}

/// Writes skip the write-ahead log.
pub(super) fn write() -> WriteOptions {
    let mut write = WriteOptions::default();
    write.disable_wal(true);
    write
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_and_buffers_follow_the_memory_and_the_ballast_within_bounds() {
        let fitting = |memory: u64, spare: Option<u64>| {
            let options = StoreOptions::fitting(memory << 20, spare.map(|spare| spare << 20));
            (options.block_cache_bytes >> 20, options.write_buffer_bytes >> 20)
        };
        assert_eq!(fitting(24_000, Some(144)), (3000, 64));
        assert_eq!(fitting(64_000, None), (4096, 64));
        assert_eq!(fitting(1024, Some(144)), (128, 32));
        assert_eq!(fitting(256, Some(144)), (64, 8));
        assert_eq!(fitting(24_000, Some(5)), (3000, 2));
        assert_eq!(fitting(24_000, Some(0)), (3000, 1));
    }
}
