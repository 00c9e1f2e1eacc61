//! Who may change what below mounts: one change at a time of a name and of an inode, and none beside one that moves a
//! directory, whose paths others are using.
//!
//! Locks are stripes of a fixed table, so that nothing has to be cleaned up; they are taken in the order of the table.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::master::state::plan::Scope;

const STRIPES: usize = 4096;
const MOUNTS: usize = 64;

/// The tables.
pub(super) struct Locks {
    stripes: Vec<Arc<Mutex<()>>>,
    mounts: Vec<Arc<RwLock<()>>>,
}

/// What is held.
pub(super) struct Guard {
    _names: Vec<OwnedMutexGuard<()>>,
    _mounts: Vec<Mount>,
}

enum Mount {
    Shared(#[expect(dead_code, reason = "held, not read")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held, not read")] OwnedRwLockWriteGuard<()>),
}

impl Locks {
    pub(super) fn new() -> Locks {
        Locks {
            stripes: (0..STRIPES).map(|_| Arc::default()).collect(),
            mounts: (0..MOUNTS).map(|_| Arc::default()).collect(),
        }
    }

    /// Waits for everything a change needs.
    pub(super) async fn take(&self, scope: &Scope) -> Guard {
        let mount = self.mounts[table(scope.mount_id)].clone();
        let mount = match scope.moves_paths {
            true => Mount::Alone(mount.write_owned().await),
            false => Mount::Shared(mount.read_owned().await),
        };
        Guard { _names: self.take_names(&scope.locks).await, _mounts: vec![mount] }
    }

    /// As [`Locks::take`], for several changes of which none moves paths.
    pub(super) async fn take_all(&self, scopes: &[Scope]) -> Guard {
        let mounts: BTreeSet<usize> = scopes.iter().map(|scope| table(scope.mount_id)).collect();
        let mut held = Vec::new();
        for mount in mounts {
            held.push(Mount::Shared(self.mounts[mount].clone().read_owned().await));
        }
        let names: Vec<Bytes> = scopes.iter().flat_map(|scope| scope.locks.iter().cloned()).collect();
        Guard { _names: self.take_names(&names).await, _mounts: held }
    }

    async fn take_names(&self, locks: &[Bytes]) -> Vec<OwnedMutexGuard<()>> {
        let mut names = Vec::new();
        for stripe in stripes(locks) {
            names.push(self.stripes[stripe].clone().lock_owned().await);
        }
        names
    }

    /// Holds what a change has that began under another leader, as far as nobody has it: whoever does is about to find out
    /// that it leads no more.
    pub(super) fn try_take(&self, locks: &[Bytes]) -> Guard {
        let taken = stripes(locks).into_iter().filter_map(|stripe| self.stripes[stripe].clone().try_lock_owned().ok());
        Guard { _names: taken.collect(), _mounts: Vec::new() }
    }
}

fn table(mount_id: u32) -> usize {
    usize::try_from(mount_id).unwrap_or(0) % MOUNTS
}

fn stripes(locks: &[Bytes]) -> Vec<usize> {
    let stripe = |key: &Bytes| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        usize::try_from(hasher.finish() % STRIPES as u64).unwrap_or(0)
    };
    let mut all: Vec<usize> = locks.iter().map(stripe).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn scope(locks: &[&'static [u8]], moves_paths: bool) -> Scope {
        let locks = locks.iter().map(|key| Bytes::from_static(key)).collect();
        Scope { mount_id: 1, locks, inodes: Vec::new(), moves_paths }
    }

    #[tokio::test]
    async fn a_change_waits_for_another_of_the_same_name_and_not_for_one_elsewhere() {
        let locks = Locks::new();
        let held = locks.take(&scope(&[b"a", b"b", b"a"], false)).await;
        assert!(locks.take(&scope(&[b"b"], false)).now_or_never().is_none());
        assert!(locks.take(&scope(&[b"c"], false)).now_or_never().is_some());
        drop(held);
        assert!(locks.take(&scope(&[b"b"], false)).now_or_never().is_some());
    }

    #[tokio::test]
    async fn while_a_directory_moves_nothing_else_changes_below_its_mount() {
        let locks = Locks::new();
        let held = locks.take(&scope(&[b"a"], true)).await;
        assert!(locks.take(&scope(&[b"c"], false)).now_or_never().is_none());
        assert!(locks.take(&Scope { mount_id: 2, ..scope(&[b"c"], false) }).now_or_never().is_some());
        drop(held);
        assert!(locks.take(&scope(&[b"c"], false)).now_or_never().is_some());
    }
}
