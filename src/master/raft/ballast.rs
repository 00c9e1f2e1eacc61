//! The ballast: a file that takes room while there is plenty, so that it can be given back when the disk is full.
//!
//! One part of it is for the running process, which spends it when a write finds no room. The rest is for starts: a start
//! writes a few small files before it serves, and must not depend on what others left free. The length of the file is
//! what is left of the ballast, and shrinking a file needs no room. The content is never read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Name in the metadata directory.
const FILE: &str = "BALLAST";
/// Bytes allocated at a time, so that a disk that others fill meanwhile is noticed between two steps.
const STEP_BYTES: u64 = 4 << 20;
/// Share of the ballast that only a start may spend: one part in so many.
const START_SHARE: u64 = 4;

/// What may be spent of a ballast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spend {
    /// All but what is kept for starts.
    Running,
    /// Everything.
    Start,
}

/// The ballast of one metadata directory.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    /// Bytes it has when it is whole.
    target: u64,
    /// Bytes that are allocated now.
    bytes: u64,
}

impl Ballast {
    /// Finds what is left in `dir`; one that is larger than `target` is cut down to it.
    pub(super) fn open(dir: &Path, target: u64) -> Ballast {
        let path = dir.join(FILE);
        let bytes = path.metadata().map_or(0, |meta| meta.len());
        let mut ballast = Ballast { path, target, bytes };
        if bytes > target {
            ballast.shrink_to(target);
        }
        ballast
    }

    /// Bytes allocated now.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are missing from a whole ballast.
    pub(super) fn missing(&self) -> u64 {
        self.target.saturating_sub(self.bytes)
    }

    /// Bytes of a whole ballast that a running process may spend.
    pub(super) fn spare(&self) -> u64 {
        self.target - self.kept_for_start()
    }

    fn kept_for_start(&self) -> u64 {
        self.target / START_SHARE
    }

    /// Gives room back. Returns how much.
    pub(super) fn spend(&mut self, who: Spend) -> u64 {
        let keep = match who {
            Spend::Running => self.kept_for_start(),
            Spend::Start => 0,
        };
        let before = self.bytes;
        if before > keep {
            self.shrink_to(keep);
        }
        before.saturating_sub(self.bytes)
    }

    fn shrink_to(&mut self, bytes: u64) {
        let cut = OpenOptions::new().write(true).open(&self.path).and_then(|file| file.set_len(bytes));
        match cut {
            Ok(()) => self.bytes = bytes,
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "the ballast cannot be spent"),
        }
    }

    /// Allocates one step more. Returns whether more is missing.
    ///
    /// *Errors*: no room, or another fault of the disk; then the ballast is as it was.
    pub(super) fn grow(&mut self) -> io::Result<bool> {
        let step = self.missing().min(STEP_BYTES);
        if step == 0 {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.path)?;
        if let Err(error) = allocate(&file, self.bytes, step) {
            // Whatever part of the step was allocated goes back: the length says what there is.
            file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += step;
        Ok(self.missing() > 0)
    }
}

/// Makes the file system set `length` bytes aside: by its own call, or by content where it has none. Such content is not
/// zeros, which a file system may store as a hole.
fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, length) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    let mut state = offset | 1;
    let mut block = vec![0_u8; 64 << 10];
    let end = offset + length;
    let mut at = offset;
    while at < end {
        for word in block.chunks_exact_mut(8) {
            // xorshift64: incompressible, and cheap.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let count = usize::try_from((end - at).min(block.len() as u64)).unwrap_or(block.len());
        file.write_all_at(&block[..count], at)?;
        at += count as u64;
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ballast_is_allocated_spent_in_two_parts_and_made_again() {
        use std::os::unix::fs::MetadataExt;
        let temp = tempfile::tempdir().expect("tempdir");
        let mut ballast = Ballast::open(temp.path(), 8 << 20);
        while ballast.grow().expect("there is room") {}
        let meta = temp.path().join(FILE).metadata().expect("stat");
        assert_eq!((meta.len(), ballast.missing()), (8 << 20, 0));
        assert!(meta.blocks() * 512 >= 8 << 20, "the room is really taken: {} blocks", meta.blocks());
        assert_eq!(ballast.spend(Spend::Running), 6 << 20);
        assert_eq!(ballast.spend(Spend::Running), 0, "the rest is for starts");
        let mut found = Ballast::open(temp.path(), 8 << 20);
        assert_eq!(found.spend(Spend::Start), 2 << 20);
        assert_eq!((found.bytes(), found.missing()), (0, 8 << 20));
        while found.grow().expect("there is room") {}
        assert_eq!(Ballast::open(temp.path(), 1 << 20).bytes(), 1 << 20, "a smaller setting cuts it down");
    }
}
