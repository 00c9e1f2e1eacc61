//! What one command works with: the transaction, its log index, the logical clock, the counters.

use std::collections::{BTreeMap, BTreeSet};

use jindofs_proto::store::v1::{CounterRow, GcRow, InodeRow, ReservedRange, StatRow};
use jindofs_proto::v1::{FileType, OpId};

use super::intent::Finishing;
use super::{StoreError, Table, Txn, View, keys, lock, rows};

/// How far the clock of a command may lie behind the logical clock for the logical clock to stand still: one minute, more
/// than the clocks of honest leaders differ. A clock that lies further behind shows that the logical clock was wrong.
pub(super) const CLOCK_BEHIND_MAX_NS: i64 = 60_000_000_000;

/// A client is going to store content.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Begun {
    /// Names the attempt.
    pub(crate) intent: u64,
    /// Others wait for its end.
    pub(crate) end_behind: bool,
}

/// The work area of one command. [`Ctx::finish`] writes counters and statistics back.
pub(crate) struct Ctx<'a> {
    /// The transaction.
    pub(crate) txn: &'a mut dyn Txn,
    /// Log index of the command.
    pub(crate) index: u64,
    /// The logical clock: stands still while a leader's clock lies a little behind, and follows one that lies far behind,
    /// so that one wrong stamp does not decide all later times.
    pub(crate) now: i64,
    /// The client's operation that the command is, if it is one.
    pub(crate) op: Option<OpId>,
    /// Inode numbers that were set aside for its session; those that the command uses are marked.
    pub(crate) reserved: Vec<ReservedRange>,
    /// Part of a batch.
    pub(crate) batched: bool,
    /// The writing that an operation of a batch has announced.
    pub(crate) begun: Begun,
    /// Directories in which a batch has created something.
    pub(crate) grown: BTreeSet<u64>,
    /// Set while a change is made here that the under-storage has made already.
    pub(crate) finishing: Option<Finishing>,
    /// Counters; new ids come from here only.
    pub(crate) counters: CounterRow,
    loaded: CounterRow,
    deltas: BTreeMap<u32, StatRow>,
    /// Inodes that are gone and may have been locked.
    unlocked: Vec<u64>,
}

impl<'a> Ctx<'a> {
    /// Begins a command.
    pub(crate) fn load(txn: &'a mut dyn Txn, index: u64, time_ns: i64) -> Result<Ctx<'a>, StoreError> {
        let loaded = rows::counters(&*txn)?;
        let mut counters = loaded;
        counters.clock_ns = advance(counters.clock_ns, time_ns);
        Ok(Ctx {
            txn,
            index,
            now: counters.clock_ns,
            op: None,
            reserved: Vec::new(),
            batched: false,
            begun: Begun::default(),
            grown: BTreeSet::new(),
            finishing: None,
            counters,
            loaded,
            deltas: BTreeMap::new(),
            unlocked: Vec::new(),
        })
    }

    /// Reads.
    pub(crate) fn view(&self) -> &dyn View {
        &*self.txn
    }

    /// A new inode number, never given before.
    pub(crate) fn new_inode(&mut self) -> u64 {
        let id = self.counters.next_inode;
        self.counters.next_inode += 1;
        id
    }

    /// A new intent number, never given before; 0 stands for none.
    pub(crate) fn new_intent(&mut self) -> u64 {
        self.counters.next_intent += 1;
        self.counters.next_intent
    }

    /// Deletes the row of an inode for good; its locks end with it.
    pub(crate) fn drop_inode(&mut self, id: u64) {
        self.txn.delete(Table::Inode, &keys::id(id));
        if self.counters.locked_ranges > 0 {
            self.unlocked.push(id);
        }
    }

    /// Counts an inode in (`sign` 1) or out (-1) of the statistics of its mount.
    pub(crate) fn count(&mut self, row: &InodeRow, sign: i64) {
        let delta = self.deltas.entry(row.mount_id).or_default();
        match row.r#type() {
            FileType::Directory => delta.directories = delta.directories.saturating_add(sign),
            _ => delta.files = delta.files.saturating_add(sign),
        }
        let bytes = i64::try_from(row.size).unwrap_or(i64::MAX).saturating_mul(sign);
        delta.bytes = delta.bytes.saturating_add(bytes);
        let skipped = i64::try_from(row.skipped).unwrap_or(i64::MAX).saturating_mul(sign);
        delta.skipped = delta.skipped.saturating_add(skipped);
    }

    /// Counts what a listing has left out of a directory, in the place of what the one before had.
    pub(crate) fn count_skipped(&mut self, row: &mut InodeRow, skipped: u64) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let delta = self.deltas.entry(row.mount_id).or_default();
        delta.skipped = delta.skipped.saturating_add(number(skipped)).saturating_sub(number(row.skipped));
        row.skipped = skipped;
    }

    /// Hands everything keyed by `content`, and the inode of that number, to the background purge.
    pub(crate) fn discard(&mut self, content: u64) {
        let seq = self.counters.next_gc;
        self.counters.next_gc += 1;
        let row = GcRow { root_inode: content, ..GcRow::default() };
        rows::write(self.txn, Table::Gc, &keys::id(seq), &row);
    }

    /// True while removed trees wait for their purge.
    pub(crate) fn gc_pending(&self) -> bool {
        self.counters.first_gc < self.counters.next_gc
    }

    /// Drops what was counted for a mount that is gone.
    pub(crate) fn forget_stat(&mut self, mount_id: u32) {
        self.deltas.remove(&mount_id);
        self.txn.delete(Table::Stat, &keys::mount(mount_id));
    }

    /// Writes back what changed.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        for inode in std::mem::take(&mut self.unlocked) {
            lock::forget_inode(&mut self, inode)?;
        }
        if self.counters != self.loaded {
            rows::write(self.txn, Table::Meta, keys::COUNTERS, &self.counters);
        }
        for (mount_id, delta) in self.deltas {
            if delta == StatRow::default() {
                continue;
            }
            let key = keys::mount(mount_id);
            let old: StatRow = rows::read(&*self.txn, Table::Stat, &key)?.unwrap_or_default();
            let new = StatRow {
                files: old.files.saturating_add(delta.files),
                directories: old.directories.saturating_add(delta.directories),
                bytes: old.bytes.saturating_add(delta.bytes),
                skipped: old.skipped.saturating_add(delta.skipped),
            };
            rows::write(self.txn, Table::Stat, &key, &new);
        }
        Ok(())
    }
}

/// The logical clock after a command with the stamp `time_ns`.
fn advance(clock_ns: i64, time_ns: i64) -> i64 {
    if clock_ns.saturating_sub(time_ns) > CLOCK_BEHIND_MAX_NS { time_ns } else { clock_ns.max(time_ns) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_still_for_small_steps_back_and_forgets_a_stamp_from_the_far_future() {
        const SECOND: i64 = 1_000_000_000;
        let now = 1_800_000_000 * SECOND;
        let far = 4_100_000_000 * SECOND;
        assert_eq!(advance(now, now + 5 * SECOND), now + 5 * SECOND);
        assert_eq!(advance(now, now - 60 * SECOND), now);
        assert_eq!(advance(now, far), far, "what the bound of the leader lets through");
        assert_eq!(advance(far, now), now, "and it pins no later time");
        for (clock, time) in [(i64::MAX, i64::MIN), (i64::MIN, i64::MAX), (i64::MAX, i64::MAX), (0, 0)] {
            assert_eq!(advance(clock, time), time, "{clock} {time}");
        }
    }
}
