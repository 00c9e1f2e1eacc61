//! Tracks how a version was changed: whether its content is a prefix of the new content, and whether all writes were
//! appends, which can be repeated behind another version.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jindofs_proto::v1::Attr;

use crate::error::Result;

use super::{Spool, WriteGuard, WritePosition};

/// How a version was changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changes {
    /// Length of the prefix that is unchanged, as far as the version reaches.
    pub(super) unchanged: u64,
    /// All writes were appends.
    pub(super) appends_only: bool,
    /// An attempt to store the content failed after it began: part of it may be stored.
    pub(super) may_be_stored: bool,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes { unchanged: u64::MAX, appends_only: true, may_be_stored: false }
    }
}

impl Changes {
    /// Records a write to content of `length` bytes.
    pub(super) fn note_write(&mut self, place: WritePosition, length: u64) {
        match place {
            WritePosition::End => self.unchanged = self.unchanged.min(length),
            WritePosition::At(offset) => {
                *self = Changes { unchanged: self.unchanged.min(offset), appends_only: false, ..*self }
            }
        }
    }

    /// Records a truncation or extension.
    pub(super) fn note_length(&mut self, length: u64) {
        *self = Changes { unchanged: self.unchanged.min(length), appends_only: false, ..*self };
    }
}

impl WriteGuard {
    /// True if the base version is a prefix of the content.
    pub(in crate::fuse) fn extends_base(&self) -> bool {
        let base = &self.work.base;
        self.work.changes.unchanged >= base.size && self.length() >= base.size && !base.version_token.is_empty()
    }

    /// Offset of the first appended byte, if all changes were appends and there are any.
    pub(in crate::fuse) fn appended_from(&self) -> Option<u64> {
        let from = self.work.base.size;
        let Changes { appends_only, may_be_stored, .. } = self.work.changes;
        (appends_only && !may_be_stored && self.is_dirty() && !self.is_new() && self.length() > from).then_some(from)
    }

    /// Records that the write intent `intent` failed with an unknown outcome: the content must not be appended a second
    /// time.
    pub(in crate::fuse) fn doubt(&mut self, intent: u64) {
        self.work.changes.may_be_stored = true;
        self.work.given_up = Some(intent);
    }

    /// True if an attempt to store the content failed after it began.
    pub(in crate::fuse) fn may_be_stored(&self) -> bool {
        self.work.changes.may_be_stored
    }

    /// Moves the appended bytes behind the version `base`; `content` holds both.
    pub(in crate::fuse) fn append_to(&mut self, base: Attr, content: &Arc<Spool>) -> Result<()> {
        self.spool()?.replace_by(content);
        self.work.streaming = None;
        self.work.changes = Changes { unchanged: base.size, ..Changes::default() };
        let mtime_ns = self.staged.mtime_ns.load(Ordering::Acquire);
        self.set_base(base);
        self.staged.mtime_ns.store(mtime_ns, Ordering::Release);
        Ok(())
    }

    /// Reads appended bytes.
    ///
    /// *Errors*: those of the disk.
    pub(in crate::fuse) fn appended(&self, offset: u64, size: u32) -> Result<Vec<u8>> {
        self.staged.read(offset, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_at_an_offset_is_no_append_and_may_still_leave_the_beginning_as_it_was() {
        let mut changes = Changes::default();
        changes.note_write(WritePosition::End, 10);
        changes.note_write(WritePosition::End, 20);
        assert!(changes.appends_only && changes.unchanged == 10);
        changes.note_write(WritePosition::At(10), 30);
        assert!(!changes.appends_only && changes.unchanged == 10);
        changes.note_length(4);
        changes.note_write(WritePosition::End, 4);
        assert!(!changes.appends_only && changes.unchanged == 4);
    }
}
