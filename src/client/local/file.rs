//! A cached file of a worker on this host, read through the descriptor it passed: no copy crosses a socket.
//!
//! The worker fills the file block by block and keeps it while our lease lasts, so a block once present stays so. A block
//! not known to be present is never read: it would read as zeros.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Files up to this size are read by pread into a buffer: cheaper than mapping and unmapping them.
const PREAD_MAX: u64 = 256 << 10;

/// The descriptor, its mapping and what of it is filled.
#[derive(Debug)]
pub(super) struct CacheFile {
    fd: OwnedFd,
    map: Option<Map>,
    length: u64,
    block: u64,
    present: Box<[AtomicU64]>,
    complete: AtomicBool,
}

impl CacheFile {
    /// Takes over a descriptor for a file of `length` bytes.
    ///
    /// *Errors*: `Corrupted` when the file is shorter: reading beyond its end through a mapping would kill the process.
    pub(super) fn new(fd: OwnedFd, length: u64, block_size: u32) -> Result<CacheFile> {
        let held = u64::try_from(rustix::fs::fstat(&fd).map_err(std::io::Error::from)?.st_size).unwrap_or(0);
        if held < length || block_size == 0 {
            let message = format!("the worker passed a file of {held} bytes for {length}");
            return Err(Error::new(ErrorKind::Corrupted, message));
        }
        let map = if length > PREAD_MAX { Some(Map::new(&fd, length)?) } else { None };
        let block = u64::from(block_size);
        let words = usize::try_from(length.div_ceil(block).div_ceil(64)).unwrap_or(0);
        let present = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(CacheFile { fd, map, length, block, present, complete: AtomicBool::new(length == 0) })
    }

    /// Notes the blocks of a presence bitmap, lowest bit first, as filled.
    pub(super) fn note_bitmap(&self, bitmap: &[u8]) {
        for (index, chunk) in bitmap.chunks(8).enumerate().take(self.present.len()) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.present[index].fetch_or(u64::from_le_bytes(word), Ordering::Release);
        }
        self.note_complete();
    }

    /// Notes the blocks of a range as filled.
    pub(super) fn note_range(&self, offset: u64, length: u64) {
        for block in self.blocks(offset, length) {
            let (word, bit) = position(block);
            if let Some(word) = self.present.get(word) {
                word.fetch_or(bit, Ordering::Release);
            }
        }
        self.note_complete();
    }

    fn note_complete(&self) {
        if self.holds_blocks(0..self.length.div_ceil(self.block)) {
            self.complete.store(true, Ordering::Release);
        }
    }

    /// True if the whole range is filled.
    pub(super) fn holds(&self, offset: u64, length: u64) -> bool {
        self.complete.load(Ordering::Acquire) || self.holds_blocks(self.blocks(offset, length))
    }

    /// True if every block is filled.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn holds_blocks(&self, mut blocks: std::ops::Range<u64>) -> bool {
        blocks.all(|block| {
            let (word, bit) = position(block);
            self.present.get(word).is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
        })
    }

    fn blocks(&self, offset: u64, length: u64) -> std::ops::Range<u64> {
        let end = offset.saturating_add(length).min(self.length);
        offset / self.block..end.div_ceil(self.block)
    }

    /// Gives the bytes of a filled range, within the file, to `take`; `None` when a part is not filled or not readable.
    pub(super) fn with<R>(&self, offset: u64, length: u64, take: impl FnOnce(&[u8]) -> R) -> Option<R> {
        if offset.checked_add(length)? > self.length || !self.holds(offset, length) {
            return None;
        }
        let (start, length) = (usize::try_from(offset).ok()?, usize::try_from(length).ok()?);
        if let Some(map) = &self.map {
            return Some(take(map.bytes().get(start..start + length)?));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(length.max(scratch.len()), 0);
            let buffer = &mut scratch[..length];
            read_exactly(&self.fd, buffer, offset).ok()?;
            Some(take(buffer))
        })
    }
}

thread_local! {
    /// One buffer per thread that answers reads; at most [`PREAD_MAX`] bytes.
    static SCRATCH: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn position(block: u64) -> (usize, u64) {
    (usize::try_from(block / 64).unwrap_or(usize::MAX), 1 << (block % 64))
}

fn read_exactly(fd: impl AsFd, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let read = rustix::io::pread(&fd, &mut buffer[done..], offset + done as u64)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        done += read;
    }
    Ok(())
}

/// A read-only shared mapping of a whole file.
#[derive(Debug)]
struct Map {
    start: *mut std::ffi::c_void,
    length: usize,
}

// SAFETY: the mapping is read-only and lives as long as the value; its address may be used from any thread.
unsafe impl Send for Map {}
// SAFETY: as above; nothing is written through it.
unsafe impl Sync for Map {}

impl Map {
    fn new(fd: &OwnedFd, length: u64) -> Result<Map> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let length = usize::try_from(length).map_err(|_| Error::invalid("a file too large to map"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice; the length is not 0 and within the file.
        let start = unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, fd, 0) };
        Ok(Map { start: start.map_err(std::io::Error::from)?, length })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping covers `length` bytes. Filled blocks do not change; others are never given out.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.length) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no slice of it outlives the value.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start, self.length) } {
            tracing::error!(%error, "cache file not unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const BLOCK: u32 = 4096;

    fn cache_file(length: usize) -> (CacheFile, Vec<u8>) {
        let content: Vec<u8> = (0..length).map(|at| (at / 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().expect("tempfile");
        file.write_all(&content).expect("write");
        (CacheFile::new(file.into(), length as u64, BLOCK).expect("opened"), content)
    }

    #[test]
    fn only_filled_blocks_are_given_out() {
        for length in [3 * 4096 + 5, 600 << 10] {
            let (file, content) = cache_file(length);
            assert_eq!(file.with(0, 1, <[u8]>::to_vec), None);
            file.note_range(4096, 1);
            assert_eq!(file.with(4096, 4096, <[u8]>::to_vec).as_deref(), Some(&content[4096..8192]));
            assert_eq!(file.with(4095, 2, <[u8]>::to_vec), None, "the block before is not filled");
            assert!(!file.is_complete());
            file.note_bitmap(&[0xff; 32]);
            assert!(file.is_complete());
            assert_eq!(file.with(0, length as u64, <[u8]>::to_vec).as_deref(), Some(&content[..]));
            assert_eq!(file.with(0, length as u64 + 1, <[u8]>::to_vec), None, "beyond the end");
        }
    }

    #[test]
    fn a_file_shorter_than_announced_is_refused() {
        let file = tempfile::tempfile().expect("tempfile");
        file.set_len(10).expect("set length");
        assert_eq!(CacheFile::new(file.into(), 11, BLOCK).expect_err("refused").kind, ErrorKind::Corrupted);
    }

    #[test]
    fn the_last_block_counts_although_it_is_short() {
        let (file, content) = cache_file(4097);
        file.note_bitmap(&[0b11]);
        assert!(file.is_complete());
        assert_eq!(file.with(4096, 1, <[u8]>::to_vec).as_deref(), Some(&content[4096..]));
    }
}
