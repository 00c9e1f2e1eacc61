//! Locks: who has to be refused one, what a lock shows to those who get it, and what is stored before one is given up.
//!
//! As on NFS a `flock` is a lock on the whole file that `fcntl` sees. Ranges are few, so that a file is three cells to the model.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::closes::Behind;
use super::judge::{DONE, LOST, Verdict, allow};
use super::model::{Area, Errno, Id, Model, Slot};

/// What a record lock covers: start and length, 0 for all that follows.
pub(super) type Range = (u64, u64);

pub(super) const RANGES: [Range; 4] = [(0, 10), (10, 10), (0, 20), (0, 0)];

const WHOLE: Range = (0, 0);

/// Starts of the cells of a file.
const CELLS: [u64; 3] = [0, 10, 20];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockKind {
    /// `flock`, of the open file.
    File,
    /// `fcntl`, of the process.
    Range(Range),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockMode {
    Shared,
    Exclusive,
}

/// What is asked for, without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LockRequest {
    pub(super) kind: LockKind,
    /// `None` to give it up.
    pub(super) mode: Option<LockMode>,
}

impl LockRequest {
    pub(super) fn command(self, slot: usize) -> Value {
        let mode = match self.mode {
            Some(LockMode::Shared) => "shared",
            Some(LockMode::Exclusive) => "exclusive",
            None => "none",
        };
        let kind = if self.kind == LockKind::File { "flock" } else { "fcntl" };
        let (start, length) = self.range();
        json!(["lock", slot, kind, mode, start, length])
    }

    fn range(self) -> Range {
        match self.kind {
            LockKind::File => WHOLE,
            LockKind::Range(range) => range,
        }
    }

    fn covers(self, cell: usize) -> bool {
        let (start, length) = self.range();
        CELLS[cell] >= start && (length == 0 || CELLS[cell] < start + length)
    }

    fn owner(self, slot: Slot) -> Owner {
        match self.kind {
            LockKind::File => Owner::OpenFile(slot),
            LockKind::Range(_) => Owner::Process(slot.0),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    OpenFile(Slot),
    /// By client.
    Process(usize),
}

impl Owner {
    fn client(self) -> usize {
        match self {
            Owner::OpenFile((client, _)) | Owner::Process(client) => client,
        }
    }
}

/// Everybody's locks.
#[derive(Debug, Default)]
pub(super) struct Locks {
    held: BTreeMap<(Id, Owner), [Option<LockMode>; 3]>,
    /// Owners that have asked for a lock of a file and have not closed it since: their closes store what others have cut off.
    asked: BTreeSet<(Id, Owner)>,
    /// Mounts on which a `flock` of a file ended with a close: other mounts are told after that close has returned.
    freed: BTreeSet<(Id, usize)>,
}

/// Whose locks may end with a close.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) of_process: bool,
    pub(super) of_open_file: bool,
}

impl Locks {
    fn is_free(&self, node: Id, owner: Owner, request: LockRequest) -> bool {
        let others = self.held.iter().filter(|((of, other), _)| *of == node && *other != owner);
        others.flat_map(|(_, cells)| cells.iter().enumerate()).all(|(cell, held)| match (held, request.mode) {
            (Some(LockMode::Exclusive), _) | (Some(_), Some(LockMode::Exclusive)) => !request.covers(cell),
            _ => true,
        })
    }

    fn set(&mut self, node: Id, owner: Owner, request: LockRequest) {
        let cells = self.held.entry((node, owner)).or_default();
        for (_, cell) in cells.iter_mut().enumerate().filter(|(number, _)| request.covers(*number)) {
            *cell = request.mode;
        }
        if cells.iter().all(Option::is_none) {
            self.held.remove(&(node, owner));
        }
    }

    /// A handle is closed: as POSIX has it, that ends all record locks of its process on the file.
    pub(super) fn close(&mut self, slot: Slot, mount: usize, node: Id) -> Ended {
        let (process, open_file) = (Owner::Process(slot.0), Owner::OpenFile(slot));
        self.held.remove(&(node, process));
        if self.held.remove(&(node, open_file)).is_some() {
            self.freed.insert((node, mount));
        }
        Ended { of_process: self.asked.remove(&(node, process)), of_open_file: self.asked.remove(&(node, open_file)) }
    }

    /// The file has no name any more: nobody can have a lock on it.
    pub(super) fn drop_file(&mut self, node: Id) {
        self.held.retain(|(of, _), _| *of != node);
    }

    /// Locks of these clients end with the session of their mount.
    pub(super) fn drop_clients(&mut self, clients: &BTreeSet<usize>) {
        self.held.retain(|(_, owner), _| !clients.contains(&owner.client()));
        self.asked.retain(|(_, owner)| !clients.contains(&owner.client()));
    }

    /// True if another client than these has asked for a lock of the file.
    pub(super) fn concern_others(&self, node: Id, clients: &BTreeSet<usize>) -> bool {
        self.asked.iter().any(|(of, owner)| *of == node && !clients.contains(&owner.client()))
    }
}

impl Model {
    /// True for a lock that cannot be asked for through the handle, or whose end has no certain outcome.
    pub(super) fn skips_lock(&self, slot: Slot, request: LockRequest) -> bool {
        let Some(handle) = self.handles.get(&slot) else { return true };
        if self.nodes[handle.node].area == Area::Outside {
            return true;
        }
        let key = (self.mounts[slot.0], handle.node);
        match (request.mode, request.kind) {
            (None, _) => {
                !self.locks.held.contains_key(&(handle.node, request.owner(slot)))
                    || self.has_same_base(key.0, key.1)
                    || self.lost.contains(&key)
            }
            // What the handle shows after that, of a version that is older than what is staged here, is not certain.
            _ if self.staged.get(&key).is_some_and(|staged| handle.opened < staged.from) => true,
            (Some(LockMode::Shared), LockKind::Range(_)) => !handle.reads,
            (Some(LockMode::Exclusive), LockKind::Range(_)) => !handle.writes,
            (Some(_), LockKind::File) => false,
        }
    }

    /// True if a lock must be granted that may still be refused for a moment: a close on another mount has just freed it.
    pub(super) fn may_be_refused_for_now(&self, slot: Slot, request: LockRequest) -> bool {
        let (mount, node) = (self.mounts[slot.0], self.handles[&slot].node);
        let freed = self.locks.freed.iter().any(|(of, by)| *of == node && *by != mount);
        request.mode.is_some() && freed && self.locks.is_free(node, request.owner(slot), request)
    }

    pub(super) fn lock(&mut self, slot: Slot, request: LockRequest, code: Option<Errno>) -> Verdict {
        let (mount, handle) = (self.mounts[slot.0], self.handles[&slot].clone());
        let (node, owner) = (handle.node, request.owner(slot));
        if request.mode.is_none() {
            allow(code, &DONE)?;
            self.store_under_lock(mount, node);
            self.locks.set(node, owner, request);
            return Ok(());
        }
        self.locks.asked.insert((node, owner));
        if !self.nodes[node].named || self.lost.contains(&(mount, node)) {
            return allow(code, &LOST[1..]);
        }
        if !self.locks.is_free(node, owner, request) {
            return allow(code, &[Some(libc::EAGAIN)]);
        }
        allow(code, &DONE)?;
        self.locks.set(node, owner, request);
        self.locks.freed.retain(|(of, _)| *of != node);
        // Whoever gets a lock sees the newest version, unless something of it waits to be stored here.
        self.note_open(mount, node);
        if !self.staged.contains_key(&(mount, node)) {
            self.move_handles(mount, &handle);
        }
        Ok(())
    }

    /// What was written under a lock is stored before the lock is given up. Nobody is told if it cannot be.
    fn store_under_lock(&mut self, mount: usize, node: Id) {
        let is_due = |model: &Model| model.staged.get(&(mount, node)).is_some_and(|staged| staged.is_due());
        if !self.is_left_to_others(mount, node) && is_due(self) && !self.is_stale(mount, node) {
            self.stored(mount, node);
        }
    }

    /// The close of an open file that has asked for a `flock` stores what was changed, by whomever, unless it is only new.
    pub(super) fn store_behind_lock(&mut self, mount: usize, node: Id) -> Option<Behind> {
        let staged = self.staged.get(&(mount, node)).filter(|staged| staged.is_due() && !staged.new)?;
        if !self.nodes[node].named || self.is_stale(mount, node) {
            return None;
        }
        if self.has_same_base(mount, node) {
            return Some(Behind::MayBeStored(node, staged.content.clone()));
        }
        self.stored(mount, node);
        Some(Behind::Stored(node))
    }
}
