//! One call at a time for a volume and for a target. A turn lasts as long as the work, also when the caller has gone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// What is worked on.
#[derive(Debug, Clone, Default)]
pub(super) struct KeyedLock(Arc<Mutex<HashSet<String>>>);

/// Held for as long as the work lasts.
#[derive(Debug)]
pub(super) struct KeyedLockGuard {
    locks: KeyedLock,
    key: String,
}

impl KeyedLock {
    /// The turn for `key`; `None` while somebody else has it.
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
