//! What was asked of this worker since it started, and how much of that was not cached.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes sent to readers. Those who read a cache file by its descriptor are not seen.
#[derive(Debug, Default)]
pub(in crate::worker) struct Demand {
    read: AtomicU64,
    missed: AtomicU64,
}

impl Demand {
    /// Counts bytes of a read; `cached` if nothing had to be fetched for them.
    pub(in crate::worker) fn count(&self, bytes: u64, cached: bool) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        if !cached {
            self.missed.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes sent.
    pub(in crate::worker) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Those that had to be fetched from the under-storage first.
    pub(in crate::worker) fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}
