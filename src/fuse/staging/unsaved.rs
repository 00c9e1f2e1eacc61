//! Tracks what of each staged inode waits to be stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use super::{Staged, Staging, WriteGuard};

/// What of a staged inode waits to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsaved {
    /// Nothing.
    Nothing,
    /// The existence of the file: nothing was written to it, and all clients see the same empty file.
    New,
    /// A truncation to zero: nothing was written to the file since.
    Emptied,
    /// Content.
    Written,
}

/// Whether a task finalizes the file, that is stores what is left after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinalizeState {
    Idle,
    Running,
    /// Another handle was closed since; the task runs once more.
    Again,
}

/// An [`Unsaved`] that all threads may read.
#[derive(Debug)]
pub(super) struct UnsavedCell(AtomicU8);

impl UnsavedCell {
    pub(super) fn new() -> UnsavedCell {
        UnsavedCell(AtomicU8::new(Unsaved::Nothing as u8))
    }

    pub(super) fn get(&self) -> Unsaved {
        let all = [Unsaved::Nothing, Unsaved::New, Unsaved::Emptied];
        let stored = self.0.load(Ordering::Acquire);
        all.into_iter().find(|unsaved| *unsaved as u8 == stored).unwrap_or(Unsaved::Written)
    }

    pub(super) fn set(&self, unsaved: Unsaved) {
        self.0.store(unsaved as u8, Ordering::Release);
    }
}

impl Staged {
    /// Records that a handle was closed. Returns false if a task already finalizes the file; that task then runs once
    /// more.
    pub(in crate::fuse) fn begin_finalize(&self) -> bool {
        let closed = |before| {
            Some(if before == FinalizeState::Idle as u8 {
                FinalizeState::Running as u8
            } else {
                FinalizeState::Again as u8
            })
        };
        self.finalizing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, closed) == Ok(FinalizeState::Idle as u8)
    }

    /// Returns false if another handle was closed since [`Staged::begin_finalize`]: the task has to run again.
    pub(in crate::fuse) fn end_finalize(&self) -> bool {
        let ended = |before| {
            Some(if before == FinalizeState::Again as u8 {
                FinalizeState::Running as u8
            } else {
                FinalizeState::Idle as u8
            })
        };
        self.finalizing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, ended) != Ok(FinalizeState::Again as u8)
    }

    /// Marks the file as unlinked while the kernel may still have a name cached that leads to it.
    pub(in crate::fuse) fn unlink_stale_name(&self) {
        self.name_is_stale.store(true, Ordering::Release);
        self.mark_unlinked();
    }

    /// True if a lookup by a cached name means the file that has the name now, not this one.
    pub(in crate::fuse) fn has_stale_name(&self) -> bool {
        self.name_is_stale.load(Ordering::Acquire)
    }

    /// The node whose handles share the content.
    pub(in crate::fuse) fn node(&self) -> u64 {
        self.node
    }
}

impl WriteGuard {
    /// Marks the file as unlinked while the kernel may still have a name cached that leads to it.
    pub(in crate::fuse) fn unlink_stale_name(&mut self) {
        self.staged.unlink_stale_name();
        self.mark_unlinked();
    }

    pub(in crate::fuse) fn staged(&self) -> Arc<Staged> {
        self.staged.clone()
    }

    /// Records that the file is new, not stored, and was created in `session`.
    pub(in crate::fuse) fn mark_new(&mut self, session: Option<Bytes>) {
        if !self.is_dirty() {
            self.staged.unsaved.set(Unsaved::New);
        }
        self.work.created_in = session;
    }

    /// True if the masters have forgotten a file that was created here and is not stored: because `session` is not the
    /// one in which it was created, or because they were asked to.
    pub(in crate::fuse) fn is_forgotten(&self, session: Option<&Bytes>) -> bool {
        self.work.created_in.is_some() && self.work.created_in.as_ref() != session
    }

    /// Records that the masters are asked to forget a file that was created here and cannot be stored.
    pub(in crate::fuse) fn detach_from_session(&mut self) {
        self.work.created_in = self.work.created_in.take().map(|_| Bytes::new());
    }

    /// True if the file was truncated to zero and not written since.
    pub(in crate::fuse) fn is_emptied(&self) -> bool {
        self.staged.unsaved.get() == Unsaved::Emptied
    }

    /// The write intent of the last attempt to store the content, if that attempt failed.
    pub(in crate::fuse) fn given_up(&self) -> Option<u64> {
        self.work.given_up
    }
}

impl Staging {
    /// Inodes that have a name and something to store.
    pub(in crate::fuse) fn unsaved(&self) -> Vec<u64> {
        self.inodes_that(|_| true)
    }

    /// Inodes that have a name and something to store, but no content.
    pub(in crate::fuse) fn unwritten(&self) -> Vec<u64> {
        self.inodes_that(|staged| !staged.is_written())
    }

    fn inodes_that(&self, are: impl Fn(&Staged) -> bool) -> Vec<u64> {
        let table = self.table();
        table.values().filter(|staged| staged.is_due() && are(staged)).map(|staged| staged.inode).collect()
    }

    /// True while content is fetched, changed or stored, or waits to be stored although its node is not
    /// `open_to_write`.
    pub(in crate::fuse) fn is_busy(&self, open_to_write: impl Fn(u64) -> bool) -> bool {
        let waits = |staged: &Staged| staged.is_due() && !open_to_write(staged.node);
        self.table().values().any(|staged| staged.work.try_lock().is_err() || waits(staged))
    }

    /// The node through which a file was changed, until that change is stored: it stands for the file until then.
    pub(in crate::fuse) fn changed_node(&self, inode: u64) -> Option<u64> {
        self.ready(inode).filter(|staged| staged.is_due() && !staged.is_new()).map(|staged| staged.node)
    }
}
