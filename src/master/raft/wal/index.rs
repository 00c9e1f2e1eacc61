//! What the log holds, in memory: where each entry stands, and the newest entries themselves.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;

use crate::master::raft::types::{Entry, LogId, Vote};

/// Most bytes of entries kept in memory for replication and apply; older ones are read from their segment.
const CACHE_BYTES_MAX: u64 = 32 << 20;

/// Where an entry's payload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) log_id: LogId,
    /// Unset until the writer has put it into a segment.
    pub(super) place: Option<Place>,
    pub(super) cached: Option<Entry>,
    bytes: u64,
    /// Bytes of this and every earlier entry since the log was opened.
    total: u64,
}

/// The log as openraft sees it. Changed at once by every call; the disk follows in the same order.
#[derive(Debug, Default)]
pub(super) struct LogIndex {
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    pub(super) committed: Option<LogId>,
    /// Index up to which everything is on this disk; never beyond the end of the log.
    pub(super) flushed: u64,
    slots: VecDeque<Slot>,
    /// Index from which on entries are cached.
    cached_from: u64,
    cached_bytes: u64,
    total: u64,
    /// Indexes of the membership entries held.
    memberships: VecDeque<u64>,
    pub(super) files: HashMap<u64, Arc<File>>,
}

impl LogIndex {
    /// Index of the entry the next one must have, once there is any.
    pub(super) fn next_index(&self) -> Option<u64> {
        self.last().map(|id| id.index + 1)
    }

    /// The newest log id, purged ones included.
    pub(super) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.log_id).or(self.purged)
    }

    fn first_index(&self) -> u64 {
        self.slots.front().map_or(u64::MAX, |slot| slot.log_id.index)
    }

    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first_index())?).ok()?)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first_index())?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    /// Indexes held, as `start..end`.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        match (self.slots.front(), self.slots.back()) {
            (Some(first), Some(last)) => first.log_id.index..last.log_id.index + 1,
            _ => 0..0,
        }
    }

    pub(super) fn push(&mut self, log_id: LogId, bytes: u64, cached: Option<Entry>, place: Option<Place>) {
        self.total += bytes;
        if self.slots.is_empty() {
            self.cached_from = log_id.index;
        }
        if cached.is_some() {
            self.cached_bytes += bytes;
        } else {
            self.cached_from = log_id.index + 1;
        }
        self.slots.push_back(Slot { log_id, place, cached, bytes, total: self.total });
        self.shrink_cache();
    }

    /// Remembers that the entry at `index` is a membership.
    pub(super) fn note_membership(&mut self, index: u64) {
        self.memberships.push_back(index);
    }

    /// Index of the newest membership held.
    pub(super) fn newest_membership(&self) -> Option<u64> {
        self.memberships.back().copied()
    }

    /// Remembers where an entry stands, unless it was truncated meanwhile.
    pub(super) fn placed(&mut self, log_id: LogId, place: Place) {
        if let Some(slot) = self.slot_mut(log_id.index)
            && slot.log_id == log_id
        {
            slot.place = Some(place);
        }
    }

    fn shrink_cache(&mut self) {
        while self.cached_bytes > CACHE_BYTES_MAX {
            let index = self.cached_from;
            let Some(slot) = self.slot_mut(index) else { return };
            if slot.place.is_none() {
                return;
            }
            slot.cached = None;
            let bytes = slot.bytes;
            self.cached_bytes = self.cached_bytes.saturating_sub(bytes);
            self.cached_from += 1;
        }
    }

    /// Notes that `log_id` and everything before it is durable, unless it was truncated meanwhile.
    pub(super) fn note_flushed(&mut self, log_id: LogId) {
        // A purged entry counts as well: a snapshot that is durable stands for it.
        let held = self.slot(log_id.index).is_some_and(|slot| slot.log_id == log_id);
        if held || self.purged.is_some_and(|purged| log_id.index <= purged.index) {
            self.flushed = self.flushed.max(log_id.index);
        }
    }

    /// Drops every entry after `last`; all of them without one.
    pub(super) fn truncate_after(&mut self, last: Option<LogId>) {
        self.flushed = self.flushed.min(last.map_or(0, |last| last.index));
        while self.slots.back().is_some_and(|slot| last.is_none_or(|last| slot.log_id.index > last.index)) {
            if let Some(slot) = self.slots.pop_back() {
                self.forget(&slot);
                self.total = self.total.saturating_sub(slot.bytes);
            }
        }
        while self.memberships.back().is_some_and(|index| last.is_none_or(|last| *index > last.index)) {
            self.memberships.pop_back();
        }
        self.cached_from = self.cached_from.min(self.slots.back().map_or(0, |slot| slot.log_id.index + 1));
    }

    /// Drops every entry up to `upto`.
    pub(super) fn purge(&mut self, upto: LogId) {
        while self.slots.front().is_some_and(|slot| slot.log_id.index <= upto.index) {
            if let Some(slot) = self.slots.pop_front() {
                self.forget(&slot);
            }
        }
        while self.memberships.front().is_some_and(|index| *index <= upto.index) {
            self.memberships.pop_front();
        }
        self.cached_from = self.cached_from.max(upto.index + 1);
        if self.purged.is_none_or(|old| old.index < upto.index) {
            self.purged = Some(upto);
        }
    }

    fn forget(&mut self, slot: &Slot) {
        if slot.cached.is_some() {
            self.cached_bytes = self.cached_bytes.saturating_sub(slot.bytes);
        }
    }

    /// Bytes of the entries after `index`.
    pub(super) fn bytes_after(&self, index: u64) -> u64 {
        let before = match self.slot(index) {
            Some(slot) => slot.total,
            None => {
                self.slots.front().filter(|slot| slot.log_id.index > index).map_or(self.total, |s| s.total - s.bytes)
            }
        };
        self.total.saturating_sub(before)
    }

    /// The highest index whose purge leaves at least `keep` bytes of log.
    pub(super) fn purge_point(&self, keep: u64) -> Option<u64> {
        let border = self.total.checked_sub(keep)?;
        let count = self.slots.partition_point(|slot| slot.total <= border);
        self.slots.get(count.checked_sub(1)?).map(|slot| slot.log_id.index)
    }
}
