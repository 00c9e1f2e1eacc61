//! Vocabulary: identifiers, limits and paths. No I/O, no wire types.

pub mod address;
mod path;
pub mod placement;

pub use path::{NsPath, PathProblem, check_name, split_parent};

/// Inode of the root directory.
pub const ROOT_INODE: u64 = 1;
/// Bytes per cached block. 4 MiB: large enough that an object store serves it at full speed, small enough that a
/// random read does not fetch much more than it needs.
pub const BLOCK_SIZE: u32 = 4 << 20;
/// Longest name of a directory entry, bytes (POSIX `NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// Longest path, bytes (POSIX `PATH_MAX`).
pub const PATH_MAX: usize = 4096;
/// Most mutations in one batch.
pub const BATCH_MAX: usize = 1000;
/// Most encoded bytes of one command, 1 MiB.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// Largest gRPC message accepted or sent, bytes: a command, or a page of entries, with room to spare.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Most entries in one page of a listing.
pub const LIST_PAGE_MAX: usize = 1000;

/// The FNV-1a hash of no bytes.
pub const FNV1A_EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// Adds bytes to an FNV-1a hash: a hash that is the same in every release, for stored values. Start with [`FNV1A_EMPTY`].
pub fn fnv1a<'b>(hash: u64, bytes: impl IntoIterator<Item = &'b u8>) -> u64 {
    bytes.into_iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Hash of a version token: names one content of a file. It is stored, so it must never change between releases.
pub fn version_of(token: &[u8]) -> u64 {
    fnv1a(FNV1A_EMPTY, token)
}
