//! How many names are being removed from each directory at this time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::runtime::lock;

type Counts = Mutex<HashMap<u64, usize>>;

/// Removals under way, by directory.
#[derive(Debug, Default)]
pub(super) struct Removals(Arc<Counts>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Removal {
    directory: u64,
    all: Arc<Counts>,
}

impl Removals {
    /// Counts a removal from `directory`.
    pub(super) fn begin(&self, directory: u64) -> Removal {
        *lock(&self.0).entry(directory).or_default() += 1;
        Removal { directory, all: self.0.clone() }
    }
}

impl Removal {
    /// Removals from the same directory, this one included.
    pub(super) fn count(&self) -> usize {
        lock(&self.all).get(&self.directory).copied().unwrap_or(1)
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        match all.get_mut(&self.directory) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(all.remove(&self.directory)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removals_are_counted_by_directory_until_they_end() {
        let removals = Removals::default();
        let (first, second, other) = (removals.begin(1), removals.begin(1), removals.begin(2));
        assert_eq!((first.count(), second.count(), other.count()), (2, 2, 1));
        drop(first);
        assert_eq!(second.count(), 1);
        drop((second, other));
        assert!(lock(&removals.0).is_empty(), "nothing is remembered");
    }
}
