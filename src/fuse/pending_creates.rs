//! The creates that are not committed yet: the files that this mount shows although the masters do not have them, and
//! the tasks that wait for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use jindofs_proto::v1::MutationResponse;
use tokio::sync::watch;

use crate::client::writer::WriteIntent;
use crate::error::{Error, Result};
use crate::runtime::lock;

/// A create that is on its way to the masters.
#[derive(Debug)]
pub(super) struct PendingCreate {
    pub(super) parent: u64,
    name: Box<[u8]>,
    since: Instant,
    /// The outcome; `None` while it is pending.
    outcome: watch::Sender<Option<Result<()>>>,
    /// Inode of the file that another client created under the same name at the same time; 0 if there is none.
    superseded_by: AtomicU64,
    /// The write intent that the masters recorded with the create, until a caller takes it.
    write_intent: Mutex<Option<WriteIntent>>,
}

impl PendingCreate {
    /// Waits until the masters have answered. Cancel-safe.
    ///
    /// *Errors*: why the create failed.
    pub(super) async fn done(&self) -> Result<()> {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err(Error::internal("a file was given up while it was made")),
        }
    }

    /// Inode of the file that another client created under the same name at the same time.
    pub(super) fn superseded_by(&self) -> Option<u64> {
        Some(self.superseded_by.load(Ordering::Acquire)).filter(|inode| *inode != 0)
    }

    /// Records that another client created the file, as `inode`.
    pub(super) fn set_superseded_by(&self, inode: u64) {
        self.superseded_by.store(inode, Ordering::Release);
    }

    /// Returns the write intent that was recorded with the create to the first caller.
    pub(super) fn take_write_intent(&self) -> Option<WriteIntent> {
        lock(&self.write_intent).take()
    }
}

#[derive(Debug, Default)]
struct Tables {
    inodes: HashMap<u64, Arc<PendingCreate>>,
    names: HashMap<(u64, Box<[u8]>), u64>,
}

/// All pending creates of one mount.
#[derive(Debug, Default)]
pub(super) struct PendingCreates {
    inner: Mutex<Tables>,
    /// Number of entries, so that the common case of none takes no lock.
    count: AtomicUsize,
}

impl PendingCreates {
    fn inner(&self) -> MutexGuard<'_, Tables> {
        lock(&self.inner)
    }

    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Adds a pending create. Returns `None` if one of this name is pending already.
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

    /// The create of an inode, if it is pending, or has failed while the file is open.
    pub(super) fn get(&self, inode: u64) -> Option<Arc<PendingCreate>> {
        if self.is_empty() {
            return None;
        }
        self.inner().inodes.get(&inode).cloned()
    }

    /// The inode that is being created under this name.
    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        self.inner().names.get(&(parent, Box::from(name))).copied()
    }

    /// Sets the outcome. A failed create is kept while the file is `open`, so that its handles get the error.
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

    /// Drops a failed create after the last close: no handle is left that could ask for the outcome.
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

    /// The pending creates in a directory.
    pub(super) fn bound_for(&self, directory: u64) -> Vec<Arc<PendingCreate>> {
        if self.is_empty() {
            return Vec::new();
        }
        self.inner().inodes.values().filter(|pending| pending.parent == directory).cloned().collect()
    }

    /// True while a create is pending.
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
