//! The owners that may hold locks, as far as this process knows: a close asks the masters only if there is a lock to
//! release, and locks that were lost with a session are detected.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::runtime::lock;

/// An owner of locks on a file: the inode, and the kernel's number of a process's descriptor table (`fcntl`) or of an
/// open file (`flock`).
pub(super) type Owner = (u64, u64);

/// Whether an owner may request a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Free,
    /// The locks of a previous owner with the same number are not released yet.
    Busy,
    /// It has lost its locks with a session and does not know it.
    Lost,
}

/// Whether an owner that has a lock is about to release it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// It is unknown or has no locks.
    Absent,
    /// There is no sign of it.
    None,
    /// One of its handles was flushed and not released since: either by its last close, or by the close of a duplicate.
    Flushed,
    /// Its last close has arrived: its locks are being released.
    Released,
}

#[derive(Debug, Default)]
struct Holding {
    /// The handles that it used for requests: the last close of each releases its locks.
    handles: BTreeSet<u64>,
    /// It holds, or may hold, a lock.
    held: bool,
    /// Number of grants, including possible ones.
    grants: u64,
    /// The value of `grants` when it released all locks; 0 before.
    freed: u64,
    lost: bool,
    leaving: bool,
    /// The last close of one of its handles has arrived.
    released: bool,
}

/// All owners that have requested locks and have not closed since.
#[derive(Debug, Default)]
pub(super) struct LockOwners {
    table: Mutex<Table>,
    /// Notified when an owner was released or removed.
    departures: Notify,
}

#[derive(Debug, Default)]
struct Table {
    /// The session in which the locks are held.
    session: Bytes,
    owners: HashMap<Owner, Holding>,
    by_handle: HashMap<u64, BTreeSet<Owner>>,
    /// Handles of owners that were flushed and not released since.
    flushed: HashSet<u64>,
}

impl Table {
    /// Marks the locks of other sessions than `session` as lost, and returns the inodes concerned.
    fn move_to(&mut self, session: &Bytes) -> BTreeSet<u64> {
        if self.session == *session {
            return BTreeSet::new();
        }
        self.session = session.clone();
        let mut inodes = BTreeSet::new();
        for ((inode, _), holding) in self.owners.iter_mut().filter(|(_, holding)| holding.held) {
            (holding.held, holding.lost) = (false, true);
            inodes.insert(*inode);
        }
        inodes
    }

    fn note(&mut self, owner: Owner, handle: u64) -> &mut Holding {
        self.by_handle.entry(handle).or_default().insert(owner);
        let holding = self.owners.entry(owner).or_default();
        holding.handles.insert(handle);
        holding
    }

    /// The owner may have closed another handle of the file meanwhile: then this lock is released by the next close.
    fn hold(&mut self, owner: Owner, handle: u64) {
        let holding = self.note(owner, handle);
        (holding.held, holding.leaving, holding.released) = (true, false, false);
        holding.grants += 1;
    }

    fn remove(&mut self, owner: Owner) {
        for handle in self.owners.remove(&owner).map(|holding| holding.handles).unwrap_or_default() {
            if let Some(owners) = self.by_handle.get_mut(&handle) {
                owners.remove(&owner);
                if owners.is_empty() {
                    self.by_handle.remove(&handle);
                    self.flushed.remove(&handle);
                }
            }
        }
    }
}

impl LockOwners {
    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// To be called before the masters are asked for a lock through a handle.
    pub(super) fn ask(&self, owner: Owner, handle: u64) -> Admission {
        let mut table = self.table();
        let holding = table.owners.entry(owner).or_default();
        if holding.leaving || holding.released {
            return Admission::Busy;
        }
        if holding.lost {
            return Admission::Lost;
        }
        table.note(owner, handle);
        Admission::Free
    }

    /// Records a lock that was granted in a session. Returns inodes whose locks of an earlier session are lost.
    pub(super) fn granted(&self, owner: Owner, handle: u64, session: &Bytes) -> BTreeSet<u64> {
        let mut table = self.table();
        let lost = table.move_to(session);
        table.hold(owner, handle);
        lost
    }

    /// Records that a lock may have been granted: the outcome is unknown.
    pub(super) fn doubt(&self, owner: Owner, handle: u64) {
        self.table().hold(owner, handle);
    }

    /// Sets the current session, if there is one. Returns inodes whose locks are lost.
    pub(super) fn lives(&self, session: Option<&Bytes>) -> BTreeSet<u64> {
        self.table().move_to(session.unwrap_or(&Bytes::new()))
    }

    /// True if a close by this owner matters.
    pub(super) fn knows(&self, owner: Owner) -> bool {
        self.table().owners.get(&owner).is_some_and(|holding| !holding.leaving)
    }

    /// True if the owner may have to release a lock.
    pub(super) fn has(&self, owner: Owner) -> bool {
        self.table().owners.get(&owner).is_some_and(|holding| holding.held && !holding.leaving)
    }

    /// Number of locks granted to an owner, including possible ones.
    pub(super) fn grants(&self, owner: Owner) -> u64 {
        self.table().owners.get(&owner).map_or(0, |holding| holding.grants)
    }

    /// Records that all locks of the first `grants` grants of an owner are released.
    pub(super) fn freed(&self, owner: Owner, grants: u64) {
        if let Some(holding) = self.table().owners.get_mut(&owner) {
            holding.freed = holding.freed.max(grants);
        }
    }

    /// True if the owner may hold a lock that it has not released.
    pub(super) fn keeps(&self, owner: Owner) -> bool {
        let table = self.table();
        table
            .owners
            .get(&owner)
            .is_some_and(|holding| holding.held && !holding.leaving && holding.freed < holding.grants)
    }

    /// Clears the lost locks of an owner: it may request locks again.
    pub(super) fn forgive(&self, owner: Owner) {
        if let Some(holding) = self.table().owners.get_mut(&owner) {
            holding.lost = false;
        }
    }

    /// True if an owner that used one of these handles may hold a lock.
    pub(super) fn holds_through(&self, handles: &[u64]) -> bool {
        let table = self.table();
        let mut owners = handles.iter().filter_map(|handle| table.by_handle.get(handle)).flatten();
        owners.any(|owner| table.owners.get(owner).is_some_and(|holding| holding.held))
    }

    /// A handle, or a duplicate of it, was closed.
    pub(super) fn flush(&self, handle: u64) {
        let mut table = self.table();
        if table.by_handle.contains_key(&handle) {
            table.flushed.insert(handle);
        }
    }

    /// The last close of a handle has arrived. Returns the owners that used it, for each of which [`LockOwners::leave`]
    /// has to be called.
    pub(super) fn release(&self, handle: u64) -> Vec<Owner> {
        let mut table = self.table();
        table.flushed.remove(&handle);
        let owners: Vec<Owner> = table.by_handle.get(&handle).into_iter().flatten().copied().collect();
        for owner in &owners {
            if let Some(holding) = table.owners.get_mut(owner) {
                holding.released = true;
            }
        }
        drop(table);
        self.departures.notify_waiters();
        owners
    }

    /// Whether an owner is about to release its locks.
    pub(super) fn departure(&self, owner: Owner) -> Departure {
        let table = self.table();
        match table.owners.get(&owner) {
            None => Departure::Absent,
            Some(holding) if holding.leaving || holding.released => Departure::Released,
            Some(holding) if holding.handles.iter().any(|handle| table.flushed.contains(handle)) => Departure::Flushed,
            Some(_) => Departure::None,
        }
    }

    /// The flush was that of a duplicate: callers stop waiting for the release.
    pub(super) fn stays(&self, owner: Owner) {
        let mut table = self.table();
        let handles = table.owners.get(&owner).map(|holding| holding.handles.clone()).unwrap_or_default();
        table.flushed.retain(|handle| !handles.contains(handle));
    }

    /// Completes at the next departure after this call.
    pub(super) fn next_departure(&self) -> Notified<'_> {
        self.departures.notified()
    }

    /// True if a lock of the session `client` is one of ours.
    pub(super) fn is_session(&self, client: &Bytes) -> bool {
        self.table().session == *client
    }

    /// An owner has closed. Returns true if the masters have to release its locks; then [`LockOwners::left`] has to be
    /// called.
    pub(super) fn leave(&self, owner: Owner) -> bool {
        let mut table = self.table();
        let Some(holding) = table.owners.get_mut(&owner).filter(|holding| !holding.leaving) else { return false };
        if holding.held {
            holding.leaving = true;
            return true;
        }
        table.remove(owner);
        drop(table);
        self.departures.notify_waiters();
        false
    }

    /// The locks of an owner are released.
    pub(super) fn left(&self, owner: Owner) {
        let mut table = self.table();
        if table.owners.get(&owner).is_some_and(|holding| holding.leaving) {
            table.remove(owner);
        }
        drop(table);
        self.departures.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const A: Owner = (1, 10);
    const B: Owner = (2, 20);

    fn session(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn masters_are_told_of_a_close_only_by_whom_they_gave_something() {
        let held = LockOwners::default();
        assert_eq!((held.ask(A, 5), held.ask(B, 6)), (Admission::Free, Admission::Free));
        held.granted(A, 5, &session("one"));
        assert!(held.has(A) && !held.has(B) && held.knows(B), "B was refused");
        assert_eq!((held.departure(A), held.departure((7, 1))), (Departure::None, Departure::Absent));
        assert!(held.leave(A) && !held.leave(A) && !held.leave(B));
        assert_eq!(held.ask(A, 7), Admission::Busy, "another one with the number of A waits for it");
        held.left(A);
        assert_eq!(held.ask(A, 7), Admission::Free);
        held.doubt(A, 7);
        assert!(held.leave(A), "what may have been granted is given up too");
        held.granted(A, 7, &session("one"));
        held.left(A);
        assert!(held.has(A) && held.leave(A), "granted while it was given up: nobody knows which came first");
    }

    #[test]
    fn an_owner_keeps_nothing_once_all_that_it_was_granted_is_given_up_and_is_told_of_at_its_close() {
        let held = LockOwners::default();
        assert_eq!((held.ask(A, 5), held.keeps(A), held.grants(A)), (Admission::Free, false, 0));
        held.granted(A, 5, &session("one"));
        held.granted(A, 5, &session("one"));
        held.freed(A, 1);
        assert!(held.keeps(A), "the second was granted while the first was given up");
        held.freed(A, 2);
        assert!(!held.keeps(A) && held.has(A));
        held.granted(A, 5, &session("one"));
        assert!(held.keeps(A) && held.leave(A));
    }

    #[test]
    fn an_owner_may_depart_after_a_flush_and_does_after_a_release() {
        let held = LockOwners::default();
        assert_eq!(held.ask(A, 5), Admission::Free);
        held.granted(A, 5, &session("one"));
        held.flush(6);
        assert_eq!(held.departure(A), Departure::None, "the flush of another handle");
        held.flush(5);
        assert_eq!(held.departure(A), Departure::Flushed);
        held.stays(A);
        assert_eq!(held.departure(A), Departure::None, "it was a duplicate");
        let waiting = held.next_departure();
        assert_eq!((held.release(6), held.release(5)), (vec![], vec![A]));
        assert!(waiting.now_or_never().is_some());
        assert_eq!((held.departure(A), held.ask(A, 7)), (Departure::Released, Admission::Busy));
        assert!(held.leave(A));
        held.left(A);
        assert_eq!((held.departure(A), held.release(5)), (Departure::Absent, vec![]));
    }

    #[test]
    fn what_was_held_in_a_session_that_is_gone_is_lost_until_it_is_given_up() {
        let held = LockOwners::default();
        assert_eq!((held.ask(A, 5), held.ask(B, 6)), (Admission::Free, Admission::Free));
        assert!(held.granted(A, 5, &session("one")).is_empty());
        assert!(held.lives(Some(&session("one"))).is_empty());
        assert_eq!(held.granted(B, 6, &session("two")), [1].into(), "A had its lock in the first session");
        assert_eq!((held.ask(A, 5), held.ask(B, 6)), (Admission::Lost, Admission::Free));
        held.forgive(A);
        assert_eq!(held.ask(A, 5), Admission::Free);
        assert_eq!(held.lives(None), [2].into());
        assert!(!held.leave(B), "nobody has anything of it any more");
        assert_eq!(held.ask(B, 6), Admission::Free, "it was closed");
    }
}
