//! Files that are made and not recorded yet: what this mount shows of them, and who waits for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use jindofs_proto::v1::MutationResponse;
use tokio::sync::watch;

use crate::client::writer::WriteIntent;
use crate::error::{Error, Result};
use crate::runtime::lock;

/// One file on its way to the masters.
#[derive(Debug)]
pub(super) struct PendingCreate {
    pub(super) parent: u64,
    name: Box<[u8]>,
    since: Instant,
    /// What came of it.
    outcome: watch::Sender<Option<Result<()>>>,
    /// The file of this name that was made elsewhere at the same time.
    superseded_by: AtomicU64,
    /// The writing that was announced with it, until somebody takes it.
    write_intent: Mutex<Option<WriteIntent>>,
}

impl PendingCreate {
    /// Waits until the masters have it. Cancel-safe.
    ///
    /// *Errors*: why they do not.
    pub(super) async fn done(&self) -> Result<()> {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err(Error::internal("a file was given up while it was made")),
        }
    }

    /// The file of this name that was made elsewhere at the same time.
    pub(super) fn superseded_by(&self) -> Option<u64> {
        Some(self.superseded_by.load(Ordering::Acquire)).filter(|inode| *inode != 0)
    }

    /// It was made elsewhere, as `inode`.
    pub(super) fn set_superseded_by(&self, inode: u64) {
        self.superseded_by.store(inode, Ordering::Release);
    }

    /// The writing that was announced with it, once.
    pub(super) fn take_write_intent(&self) -> Option<WriteIntent> {
        lock(&self.write_intent).take()
    }
}

#[derive(Debug, Default)]
struct Tables {
    inodes: HashMap<u64, Arc<PendingCreate>>,
    names: HashMap<(u64, Box<[u8]>), u64>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct PendingCreates {
    inner: Mutex<Tables>,
    /// Number of inodes: most of the time there are none, and nobody should wait to learn that.
    count: AtomicUsize,
}

impl PendingCreates {
    fn inner(&self) -> MutexGuard<'_, Tables> {
        lock(&self.inner)
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// A file is about to be made; `None` if one of this name is already.
    pub(super) fn add(&self, inode: u64, parent: u64, name: &[u8]) -> Option<Arc<PendingCreate>> {
        let mut inner = self.inner();
        if inner.names.contains_key(&(parent, Box::from(name))) {
            return None;
        }
        let (outcome, name, since) = (watch::Sender::new(None), Box::from(name), Instant::now());
        let pending = PendingCreate {
            parent,
            name,
            since,
            outcome,
            superseded_by: AtomicU64::new(0),
            write_intent: Mutex::default(),
        };
        let pending = Arc::new(pending);
        inner.names.insert((parent, pending.name.clone()), inode);
        inner.inodes.insert(inode, pending.clone());
        self.count.store(inner.inodes.len(), Ordering::Release);
        Some(pending)
    }

    /// The file, if it is being made, or could not be made and is open.
    pub(super) fn get(&self, inode: u64) -> Option<Arc<PendingCreate>> {
        if self.is_empty() {
            return None;
        }
        self.inner().inodes.get(&inode).cloned()
    }

    /// The file of this name, if it is being made.
    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        self.inner().names.get(&(parent, Box::from(name))).copied()
    }

    /// The masters have answered. A file that could not be made stays known for as long as it is `open`.
    pub(super) fn finish(&self, inode: u64, outcome: Result<MutationResponse>, open: impl FnOnce() -> bool) {
        let pending = {
            let mut inner = self.inner();
            let Some(pending) = inner.inodes.get(&inode).cloned() else { return };
            inner.names.remove(&(pending.parent, pending.name.clone()));
            if outcome.is_ok() || !open() {
                inner.inodes.remove(&inode);
            }
            self.count.store(inner.inodes.len(), Ordering::Release);
            pending
        };
        let outcome = outcome.map(|done| {
            *lock(&pending.write_intent) = WriteIntent::from_response(done, pending.since);
        });
        pending.outcome.send_replace(Some(outcome));
    }

    /// The last handle is closed: nobody asks for the outcome any more.
    pub(super) fn closed(&self, inode: u64) {
        if self.is_empty() {
            return;
        }
        let mut inner = self.inner();
        if inner.inodes.get(&inode).is_some_and(|pending| pending.outcome.borrow().is_some()) {
            inner.inodes.remove(&inode);
            self.count.store(inner.inodes.len(), Ordering::Release);
        }
    }

    /// What is on its way into a directory.
    pub(super) fn bound_for(&self, directory: u64) -> Vec<Arc<PendingCreate>> {
        if self.is_empty() {
            return Vec::new();
        }
        self.inner().inodes.values().filter(|pending| pending.parent == directory).cloned().collect()
    }

    /// True while anything is on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.inner().inodes.values().any(|pending| pending.outcome.borrow().is_none())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_file_is_known_by_name_until_it_is_made_and_those_who_wait_are_told() {
        let pending_creates = PendingCreates::default();
        let pending = pending_creates.add(7, 1, b"f").expect("new");
        assert!(pending_creates.add(8, 1, b"f").is_none(), "the name is taken");
        assert_eq!(pending_creates.named(1, b"f"), Some(7));
        assert!(
            pending_creates.bound_for(1)[0].done().now_or_never().is_none() && pending_creates.bound_for(2).is_empty()
        );
        pending_creates.finish(7, Ok(MutationResponse::default()), || true);
        pending.done().await.expect("made");
        assert!(
            pending_creates.get(7).is_none() && pending_creates.named(1, b"f").is_none() && pending_creates.is_empty()
        );
    }

    #[tokio::test]
    async fn a_file_that_could_not_be_made_is_an_error_to_its_handles_until_the_last_is_closed() {
        let pending_creates = PendingCreates::default();
        pending_creates.add(7, 1, b"f").expect("new");
        pending_creates.finish(7, Err(Error::internal("no")), || true);
        assert!(pending_creates.named(1, b"f").is_none(), "the name is free");
        assert!(!pending_creates.is_busy());
        pending_creates.get(7).expect("known").done().await.expect_err("an error");
        pending_creates.closed(7);
        assert!(pending_creates.get(7).is_none());
    }
}
