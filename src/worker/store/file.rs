//! One cached file version.
//!
//! A block is *absent*, *found* (recorded by an earlier process, its checksum not verified yet) or *present*. Only present
//! blocks are served. Data is written before its record, and a record is believed only after its checksum was, so a crash
//! at any moment leaves an absent block or a good one.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use jindofs_proto::v1::CachedFile;

use super::Key;
use super::index::{self, Header};
use super::tier::{Tier, index_path, remove};
use crate::types::BLOCK_SIZE;

const ABSENT: u8 = 0;
const FOUND: u8 = 1;
const PRESENT: u8 = 2;

/// Whether a block may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Presence {
    /// It must be filled.
    Absent,
    /// To be verified first.
    Found,
    /// It may.
    Present,
}

/// A sparse file, the state of its blocks, and when it was last used.
#[derive(Debug)]
pub(in crate::worker) struct BlockFile {
    tier: Arc<Tier>,
    header: Header,
    states: Box<[AtomicU8]>,
    crcs: Box<[AtomicU32]>,
    cached: AtomicU64,
    used_at: AtomicU64,
}

impl BlockFile {
    /// A file with the blocks its record names.
    pub(super) fn found(tier: Arc<Tier>, header: Header, blocks: Vec<Option<u32>>) -> BlockFile {
        let states = blocks.iter().map(|crc| AtomicU8::new(if crc.is_some() { FOUND } else { ABSENT })).collect();
        let crcs = blocks.iter().map(|crc| AtomicU32::new(crc.unwrap_or(0))).collect();
        let file = BlockFile { tier, header, states, crcs, cached: AtomicU64::new(0), used_at: AtomicU64::new(0) };
        let bytes = (0..blocks.len()).filter(|at| blocks[*at].is_some()).map(|at| file.block_length(at)).sum();
        file.cached.store(bytes, Ordering::Relaxed);
        file.tier.add(bytes);
        file
    }

    pub(in crate::worker) fn key(&self) -> Key {
        (self.header.file_id, self.header.version)
    }

    pub(in crate::worker) fn length(&self) -> u64 {
        self.header.length
    }

    pub(super) fn tier(&self) -> &Arc<Tier> {
        &self.tier
    }

    pub(super) fn touch(&self, now: u64) {
        self.used_at.store(now, Ordering::Relaxed);
    }

    pub(super) fn used_at(&self) -> u64 {
        self.used_at.load(Ordering::Relaxed)
    }

    /// Bytes cached.
    pub(in crate::worker) fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    pub(in crate::worker) fn totals(&self) -> CachedFile {
        CachedFile {
            file_id: self.header.file_id,
            version: self.header.version,
            cached_bytes: self.cached(),
            mount_id: self.header.mount_id,
            length: self.header.length,
        }
    }

    /// Number of blocks.
    pub(in crate::worker) fn blocks(&self) -> usize {
        self.states.len()
    }

    /// Offset of a block.
    pub(in crate::worker) fn block_start(block: usize) -> u64 {
        block as u64 * u64::from(BLOCK_SIZE)
    }

    /// Bytes of a block: the last one may be short.
    pub(in crate::worker) fn block_length(&self, block: usize) -> u64 {
        self.length().saturating_sub(Self::block_start(block)).min(u64::from(BLOCK_SIZE))
    }

    pub(in crate::worker) fn presence(&self, block: usize) -> Presence {
        match self.states.get(block).map_or(ABSENT, |state| state.load(Ordering::Acquire)) {
            PRESENT => Presence::Present,
            FOUND => Presence::Found,
            _ => Presence::Absent,
        }
    }

    /// Presence of every block as a bitmap, lowest bit first, at most `max` bytes.
    pub(in crate::worker) fn bitmap(&self, max: usize) -> Vec<u8> {
        self.blocks_that(max, |presence| presence == Presence::Present)
    }

    /// As [`BlockFile::bitmap`], of every block that is recorded, verified or not.
    pub(in crate::worker) fn held(&self) -> Vec<u8> {
        self.blocks_that(usize::MAX, |presence| presence != Presence::Absent)
    }

    fn blocks_that(&self, max: usize, are: impl Fn(Presence) -> bool) -> Vec<u8> {
        let mut bitmap = vec![0; self.blocks().div_ceil(8).min(max)];
        for block in (0..self.blocks().min(bitmap.len() * 8)).filter(|block| are(self.presence(*block))) {
            bitmap[block / 8] |= 1 << (block % 8);
        }
        bitmap
    }

    fn path(&self) -> PathBuf {
        self.tier.data_path(&self.header)
    }

    /// A descriptor for reading, which stays good when the file is evicted.
    pub(in crate::worker) fn open(&self) -> io::Result<OwnedFd> {
        File::open(self.path()).map(OwnedFd::from)
    }

    /// Stores a block whose room is reserved.
    pub(in crate::worker) fn fill(&self, block: usize, data: &[u8]) -> io::Result<()> {
        let path = self.path();
        File::options().write(true).open(&path)?.write_all_at(data, Self::block_start(block))?;
        let crc = crc32c::crc32c(data);
        index::write(&index_path(&path), block, Some(crc))?;
        self.crcs[block].store(crc, Ordering::Relaxed);
        self.cached.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.states[block].store(PRESENT, Ordering::Release);
        Ok(())
    }

    /// Gives back the room of a block that could not be stored.
    pub(in crate::worker) fn release(&self, bytes: u64) {
        self.tier.release(bytes);
    }

    /// Reads a whole block and compares its checksum; `None` if it is damaged, and absent from now on.
    pub(in crate::worker) fn read_verified(&self, block: usize) -> io::Result<Option<Bytes>> {
        let data = self.read(Self::block_start(block), self.block_length(block))?;
        if crc32c::crc32c(&data) == self.crcs[block].load(Ordering::Relaxed) {
            // Only from found to present: it may have been dropped meanwhile.
            let _ = self.states[block].compare_exchange(FOUND, PRESENT, Ordering::AcqRel, Ordering::Acquire);
            return Ok(Some(data));
        }
        let path = self.path();
        tracing::error!(path = %path.display(), block, "checksum does not match: the block is fetched again");
        metrics::counter!("jindofs_worker_corrupt_blocks_total").increment(1);
        if self.states[block].swap(ABSENT, Ordering::AcqRel) != ABSENT {
            self.cached.fetch_sub(self.block_length(block), Ordering::Relaxed);
            self.tier.release(self.block_length(block));
            index::write(&index_path(&path), block, None)?;
        }
        Ok(None)
    }

    /// Bytes of present blocks.
    pub(in crate::worker) fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        File::open(self.path())?.read_exact_at(&mut data, offset)?;
        Ok(data.into())
    }

    /// Deletes the file. The record goes first: data without a record is nothing.
    pub(super) fn remove(&self) {
        let path = self.path();
        remove(&index_path(&path));
        remove(&path);
        self.tier.release(self.cached.swap(0, Ordering::Relaxed));
    }
}
