//! Serialises calls for one volume and for one target. The lock is held as long as the work lasts, also if the caller
//! has given up.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// A set of locked keys. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyedLock(Arc<Mutex<HashSet<String>>>);

/// Unlocks its key when it is dropped.
#[derive(Debug)]
pub(super) struct KeyedLockGuard {
    locks: KeyedLock,
    key: String,
}

impl KeyedLock {
    /// Locks `key`; `None` while it is locked.
    pub(super) fn try_lock(&self, key: impl Into<String>) -> Option<KeyedLockGuard> {
        let key = key.into();
        let free = lock(&self.0).insert(key.clone());
        free.then(|| KeyedLockGuard { locks: self.clone(), key })
    }
}

impl Drop for KeyedLockGuard {
    fn drop(&mut self) {
        lock(&self.locks.0).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_had_by_one_and_free_again_when_it_ends() {
        let locks = KeyedLock::default();
        let first = locks.try_lock("a").expect("free");
        assert!(locks.try_lock("a").is_none() && locks.try_lock("b").is_some());
        drop(first);
        assert!(locks.try_lock("a").is_some());
    }
}
