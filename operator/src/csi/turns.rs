//! One call at a time for a volume and for a target. A turn lasts as long as the work, also when the caller has gone.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// What is worked on.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashSet<String>>>);

/// Held for as long as the work lasts.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    key: String,
}

impl Turns {
    /// The turn for `key`; `None` while somebody else has it.
    pub(super) fn take(&self, key: impl Into<String>) -> Option<Turn> {
        let key = key.into();
        let free = lock(&self.0).insert(key.clone());
        free.then(|| Turn { turns: self.clone(), key })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.turns.0).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_had_by_one_and_free_again_when_it_ends() {
        let turns = Turns::default();
        let first = turns.take("a").expect("free");
        assert!(turns.take("a").is_none() && turns.take("b").is_some());
        drop(first);
        assert!(turns.take("a").is_some());
    }
}
