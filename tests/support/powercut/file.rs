//! A regular file in two states, what programs read and what a power cut leaves, and the sectors in which they differ.
//!
//! A sector that differs is *dirty* until an fsync writes it. After an fsync that failed it is *lost*: the kernel has
//! marked its page clean, so it reads as written, no later fsync writes it, and it reaches the disk only if a program
//! writes it again. This is what ext4 and XFS do with data since Linux 4.13.

use super::content::{Content, Sectors};

/// A regular file.
#[derive(Default)]
pub struct File {
    now: Content,
    durable: Content,
    dirty: Sectors,
    lost: Sectors,
}

impl File {
    /// Length in bytes, as programs see it.
    pub fn size(&self) -> u64 {
        self.now.size
    }

    /// Bytes from `offset`, fewer at the end of the file.
    pub fn read(&self, offset: u64, size: usize) -> Vec<u8> {
        self.now.read(offset, size)
    }

    /// Puts bytes at `offset`; the file grows as needed.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut touched = Sectors::default();
        self.now.write(offset, data, &mut touched);
        self.touch(touched);
    }

    /// Makes the file exactly `size` long.
    pub fn truncate(&mut self, size: u64) {
        let mut touched = Sectors::default();
        self.now.truncate(size, &mut touched);
        self.touch(touched);
    }

    fn touch(&mut self, touched: Sectors) {
        self.lost.remove(&touched);
        self.dirty.add(touched);
    }

    /// The length and every dirty sector are durable from here on. Lost sectors stay as the disk has them.
    pub fn sync(&mut self) {
        self.durable.take_sectors(&self.now, std::mem::take(&mut self.dirty));
    }

    /// The fsync failed: every dirty sector is lost.
    pub fn fail_sync(&mut self) {
        self.lost.add(std::mem::take(&mut self.dirty));
    }

    /// The kernel drops its clean pages: lost sectors read as the disk has them. Returns the number of bytes dropped.
    pub fn drop_caches(&mut self) -> u64 {
        let lost = std::mem::take(&mut self.lost);
        let bytes = lost.bytes();
        self.now.copy_sectors(&self.durable, lost);
        bytes
    }

    /// What was not durable is gone. `spares` is asked for each dirty page, and for a length that differs, whether the
    /// disk happened to have it. Returns the number of bytes that are gone; `None` if nothing has changed.
    pub fn power_cut(&mut self, spares: &mut impl FnMut() -> bool) -> Option<u64> {
        let size = self.now.size;
        let changed = size != self.durable.size || !self.dirty.is_empty() || !self.lost.is_empty();
        let (spared, gone) = std::mem::take(&mut self.dirty).partition(&mut *spares);
        let bytes = gone.bytes() + std::mem::take(&mut self.lost).bytes();
        let kept_size = if changed && spares() { size } else { self.durable.size };
        self.durable.copy_sectors(&self.now, spared);
        // Clears what lies beyond the end, where a later growth must read zeros.
        self.durable.truncate(kept_size, &mut Sectors::default());
        self.now.clone_from(&self.durable);
        (changed && (bytes > 0 || kept_size != size)).then_some(bytes)
    }
}
