//! What of each inode waits to be stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use super::{Staged, Staging, WriteGuard};

/// What of an inode waits to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsaved {
    /// Nothing.
    Nothing,
    /// That the file is there: nothing was written to it, and everybody sees the same empty file.
    New,
    /// That nothing is in the file any more: it was cut off, and nothing was written to it since.
    Emptied,
    /// Content.
    Written,
}

/// Whether a task stores what is left of a file after a close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinalizeState {
    Idle,
    Running,
    /// It was closed once more since.
    Again,
}

/// One [`Unsaved`] for all threads.
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
    /// A handle of it was closed. False if somebody stores what is left after a close already, who does so once more then.
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

    /// False if a handle was closed since it was begun: it begins again.
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

    /// It has no name any more, but the kernel may still have one that leads to it.
    pub(in crate::fuse) fn unlink_stale_name(&self) {
        self.name_is_stale.store(true, Ordering::Release);
        self.mark_unlinked();
    }

    /// True if who comes to it by a name means what has that name now.
    pub(in crate::fuse) fn has_stale_name(&self) -> bool {
        self.name_is_stale.load(Ordering::Acquire)
    }

    /// Whose handles share it.
    pub(in crate::fuse) fn node(&self) -> u64 {
        self.node
    }
}

impl WriteGuard {
    /// It has no name any more, but the kernel may still have one that leads to it.
    pub(in crate::fuse) fn unlink_stale_name(&mut self) {
        self.staged.unlink_stale_name();
        self.mark_unlinked();
    }

    pub(in crate::fuse) fn staged(&self) -> Arc<Staged> {
        self.staged.clone()
    }

    /// The file is new, and not stored yet: it was made in `session`.
    pub(in crate::fuse) fn mark_new(&mut self, session: Option<Bytes>) {
        if !self.is_dirty() {
            self.staged.unsaved.set(Unsaved::New);
        }
        self.work.created_in = session;
    }

    /// True if the masters have forgotten a file that was made here and is not stored: `session` is another one than that in
    /// which it was made, or they were told to.
    pub(in crate::fuse) fn is_forgotten(&self, session: Option<&Bytes>) -> bool {
        self.work.created_in.is_some() && self.work.created_in.as_ref() != session
    }

    /// The masters are told to forget a file that was made here and cannot be stored.
    pub(in crate::fuse) fn detach_from_session(&mut self) {
        self.work.created_in = self.work.created_in.take().map(|_| Bytes::new());
    }

    /// True if nothing is in it any more.
    pub(in crate::fuse) fn is_emptied(&self) -> bool {
        self.staged.unsaved.get() == Unsaved::Emptied
    }

    /// The intent of the last attempt to store it, if that has failed.
    pub(in crate::fuse) fn given_up(&self) -> Option<u64> {
        self.work.given_up
    }
}

impl Staging {
    /// Inodes that have a name, and content or the mere file not stored.
    pub(in crate::fuse) fn unsaved(&self) -> Vec<u64> {
        self.inodes_that(|_| true)
    }

    /// Files that wait to be stored, empty.
    pub(in crate::fuse) fn unwritten(&self) -> Vec<u64> {
        self.inodes_that(|staged| !staged.is_written())
    }

    fn inodes_that(&self, are: impl Fn(&Staged) -> bool) -> Vec<u64> {
        let table = self.table();
        table.values().filter(|staged| staged.is_due() && are(staged)).map(|staged| staged.inode).collect()
    }

    /// True while something is being brought, changed or stored, or waits to be stored though its node is not `open_to_write`.
    pub(in crate::fuse) fn is_busy(&self, open_to_write: impl Fn(u64) -> bool) -> bool {
        let waits = |staged: &Staged| staged.is_due() && !open_to_write(staged.node);
        self.table().values().any(|staged| staged.work.try_lock().is_err() || waits(staged))
    }

    /// The node through which a file was changed that is not stored: it stands for the file until that is.
    pub(in crate::fuse) fn changed_node(&self, inode: u64) -> Option<u64> {
        self.ready(inode).filter(|staged| staged.is_due() && !staged.is_new()).map(|staged| staged.node)
    }
}
