//! Verification of a whole database. RocksDB offers it to C only.

use std::ffi::{CStr, c_char, c_void};
use std::ptr;

use rocksdb::{AsRawPtr, DB};

unsafe extern "C" {
    /// `rocksdb/c.h`: compares every block of every live table file with its checksum. On failure `error` points to a
    /// message that the caller frees.
    fn rocksdb_verify_checksum(db: *mut c_void, error: *mut *mut c_char);
    fn rocksdb_free(memory: *mut c_void);
}

/// True for an error of [`verify`] that blames the disk, not this process (which may lack memory or descriptors).
pub(super) fn is_damage(error: &str) -> bool {
    error.starts_with("Corruption") || error.contains("Input/output error")
}

/// Compares every block of every live table file with its checksum, read from disk and not from the cache.
///
/// *Errors*: RocksDB's message about the first block that differs.
pub(super) fn verify(db: &DB) -> Result<(), String> {
    let mut message: *mut c_char = ptr::null_mut();
    // SAFETY: the database is open as long as `db` is borrowed, and the call does not keep the pointer.
    unsafe { rocksdb_verify_checksum(db.as_raw_ptr().cast(), &raw mut message) };
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: RocksDB has set a string that ends with a zero byte and is ours to free, once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        rocksdb_free(message.cast());
        text
    };
    Err(text)
}
