//! What lies in each under-storage, as the leader counts it while somebody wants to know.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::runtime::lock;

/// How long one question keeps the leader counting.
const WANTED: Duration = Duration::from_secs(300);

/// Everything below a mount's under-storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Files or objects.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// When the count ended, nanoseconds since the epoch.
    pub counted_ns: i64,
}

/// Sizes by mount.
#[derive(Debug, Default)]
pub struct Sizes {
    counted: Mutex<HashMap<u32, Size>>,
    asked: Mutex<Option<Instant>>,
}

impl Sizes {
    /// Somebody wants them counted and kept up to date for a while.
    pub fn want(&self) {
        *lock(&self.asked) = Some(Instant::now());
    }

    /// True while the last question is not long ago.
    pub fn wanted(&self) -> bool {
        let asked = *lock(&self.asked);
        asked.is_some_and(|asked| asked.elapsed() < WANTED)
    }

    /// The last complete count of a mount.
    pub fn of(&self, mount: u32) -> Option<Size> {
        lock(&self.counted).get(&mount).copied()
    }

    /// Takes the count of a mount.
    pub fn set(&self, mount: u32, size: Size) {
        lock(&self.counted).insert(mount, size);
    }

    /// Keeps only the mounts that are still there.
    pub fn retain(&self, is_there: impl Fn(u32) -> bool) {
        lock(&self.counted).retain(|mount, _| is_there(*mount));
    }
}
