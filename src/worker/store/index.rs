//! The side record of a cached file: a header, then eight bytes per block. Format 1, little-endian.
//!
//! ```text
//! 0   magic "JFSBLK01"     8   file id    16  version    24  length    32  mount id    36  block size
//! 40  crc32c of 0..40      44  zeros      64  blocks: crc32c of the block, 1 if it is present
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::types::BLOCK_SIZE;

const MAGIC: &[u8; 8] = b"JFSBLK01";
const HEADER: usize = 64;
const RECORD: usize = 8;

/// What a cached file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) file_id: u64,
    pub(super) version: u64,
    /// Bytes.
    pub(super) length: u64,
    pub(super) mount_id: u32,
}

impl Header {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        usize::try_from(self.length.div_ceil(u64::from(BLOCK_SIZE))).unwrap_or(usize::MAX)
    }

    fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.file_id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.version.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.length.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.mount_id.to_le_bytes());
        bytes[36..40].copy_from_slice(&BLOCK_SIZE.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let good = bytes.get(..8)? == MAGIC && word(36)? == BLOCK_SIZE && crc32c::crc32c(bytes.get(..40)?) == word(40)?;
        good.then_some(Header { file_id: long(8)?, version: long(16)?, length: long(24)?, mount_id: word(32)? })
    }
}

/// Makes a record without blocks.
pub(super) fn create(path: &Path, header: &Header) -> io::Result<()> {
    std::fs::write(path, header.encode())
}

/// Reads a record: the header, and of each block its checksum if it is present. `None` if it is damaged.
pub(super) fn read(path: &Path) -> io::Result<Option<(Header, Vec<Option<u32>>)>> {
    let bytes = std::fs::read(path)?;
    let Some(header) = Header::decode(&bytes) else { return Ok(None) };
    let record = |block: usize| {
        let at = HEADER + block * RECORD;
        let record = bytes.get(at..at + RECORD)?;
        let crc = u32::from_le_bytes(record[..4].try_into().ok()?);
        (record[4..] == [1, 0, 0, 0]).then_some(crc)
    };
    Ok(Some((header, (0..header.blocks()).map(record).collect())))
}

/// Records that a block is present, or not.
pub(super) fn write(path: &Path, block: usize, crc: Option<u32>) -> io::Result<()> {
    let mut record = [0; RECORD];
    if let Some(crc) = crc {
        record[..4].copy_from_slice(&crc.to_le_bytes());
        record[4] = 1;
    }
    let at = (HEADER + block * RECORD) as u64;
    File::options().write(true).open(path)?.write_all_at(&record, at)
}
