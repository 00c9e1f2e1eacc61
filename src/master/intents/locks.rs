//! Who may change what below mounts: one change at a time of a name and of an inode, and none beside one that moves a
//! directory, whose paths others are using.
//!
//! Each name and inode has a lock of its own while somebody wants it: a change may take as long as its under-storage does not
//! answer, and others must not wait for it by chance. Locks are taken in the order of their keys.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::master::state::plan::Scope;
use crate::runtime::lock;

type Names = Mutex<HashMap<Bytes, Arc<tokio::sync::Mutex<()>>>>;

/// The tables.
#[derive(Default)]
pub(super) struct Locks {
    names: Arc<Names>,
    mounts: Mutex<HashMap<u32, Arc<RwLock<()>>>>,
}

/// What is held.
pub(super) struct Guard {
    _names: Vec<Name>,
    _mount: Option<Mount>,
}

/// A name or inode that is held, or waited for.
struct Name {
    key: Bytes,
    names: Arc<Names>,
    held: Option<OwnedMutexGuard<()>>,
}

enum Mount {
    Shared(#[expect(dead_code, reason = "held, not read")] OwnedRwLockReadGuard<()>),
    Alone(#[expect(dead_code, reason = "held, not read")] OwnedRwLockWriteGuard<()>),
}

fn table(names: &Names) -> MutexGuard<'_, HashMap<Bytes, Arc<tokio::sync::Mutex<()>>>> {
    lock(names)
}

impl Locks {
    pub(super) fn new() -> Locks {
        Locks::default()
    }

    /// Waits for everything a change needs.
    pub(super) async fn take(&self, scope: &Scope) -> Guard {
        let mount = self.mount(scope.mount_id);
        let mount = match scope.moves_paths {
            true => Mount::Alone(mount.write_owned().await),
            false => Mount::Shared(mount.read_owned().await),
        };
        let mut names = Vec::new();
        for key in in_order(&scope.locks) {
            let (mut name, lock) = self.name(key);
            name.held = Some(lock.lock_owned().await);
            names.push(name);
        }
        Guard { _names: names, _mount: Some(mount) }
    }

    /// Everything a change needs that moves no paths, if nobody has any of it.
    pub(super) fn try_all(&self, scope: &Scope) -> Option<Guard> {
        let mount = self.mount(scope.mount_id).try_read_owned().ok()?;
        let mut names = Vec::new();
        for key in in_order(&scope.locks) {
            let (mut name, lock) = self.name(key);
            name.held = Some(lock.try_lock_owned().ok()?);
            names.push(name);
        }
        Some(Guard { _names: names, _mount: Some(Mount::Shared(mount)) })
    }

    fn mount(&self, id: u32) -> Arc<RwLock<()>> {
        lock(&self.mounts).entry(id).or_default().clone()
    }

    /// Holds what a change has that began under another leader, as far as nobody has it: whoever does is about to find out
    /// that it leads no more.
    pub(super) fn try_take(&self, locks: &[Bytes]) -> Guard {
        let mut names = Vec::new();
        for key in in_order(locks) {
            let (mut name, lock) = self.name(key);
            name.held = lock.try_lock_owned().ok();
            names.push(name);
        }
        Guard { _names: names, _mount: None }
    }

    /// The lock of a name, and what forgets it when nobody wants it any more.
    fn name(&self, key: Bytes) -> (Name, Arc<tokio::sync::Mutex<()>>) {
        let lock = table(&self.names).entry(key.clone()).or_default().clone();
        (Name { key, names: self.names.clone(), held: None }, lock)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let mut names = table(&self.names);
        self.held = None;
        // Whoever waits for it has it too. They have asked for it under the lock of the table.
        if names.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            names.remove(&self.key);
        }
    }
}

fn in_order(locks: &[Bytes]) -> Vec<Bytes> {
    let mut all = locks.to_vec();
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
    async fn only_what_is_held_or_waited_for_is_remembered() {
        let locks = Locks::new();
        let held = locks.take(&scope(&[b"a", b"b"], false)).await;
        {
            let wanted = scope(&[b"b"], false);
            let mut waiting = Box::pin(locks.take(&wanted));
            assert!((&mut waiting).now_or_never().is_none());
            assert!(locks.take(&scope(&[b"a"], false)).now_or_never().is_none(), "given up");
            drop(held);
            assert_eq!(table(&locks.names).len(), 1, "somebody waits for it");
            drop(waiting.await);
        }
        assert!(table(&locks.names).is_empty());
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
