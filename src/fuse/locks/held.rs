//! Which owners may hold locks, as far as this process knows: so that a close asks masters only where there is something
//! to give up, and what was lost with a session is noticed.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// An owner of locks on a file: inode, and the kernel's number of a process's files (`fcntl`) or of an open file (`flock`).
pub(super) type Owner = (u64, u64);

/// Whether an owner may ask for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// It may.
    Free,
    /// What somebody of the same number had is not given up yet.
    Busy,
    /// It has lost what it had, and does not know.
    Lost,
}

#[derive(Debug, Default)]
struct Holding {
    /// Handles it has asked through: with the last close of each of them its locks end.
    handles: BTreeSet<u64>,
    /// It has, or may have, a lock.
    held: bool,
    lost: bool,
    leaving: bool,
}

/// Everybody who has asked for locks and has not closed since.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// The session they are held in.
    session: Bytes,
    owners: HashMap<Owner, Holding>,
    by_handle: HashMap<u64, BTreeSet<Owner>>,
}

impl Table {
    /// What was held in another session than `session` is lost. Inodes of it.
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

    /// It may have closed another handle of the file meanwhile: then this lock is given up with the next close.
    fn hold(&mut self, owner: Owner, handle: u64) {
        let holding = self.note(owner, handle);
        (holding.held, holding.leaving) = (true, false);
    }

    fn remove(&mut self, owner: Owner) {
        for handle in self.owners.remove(&owner).map(|holding| holding.handles).unwrap_or_default() {
            if let Some(owners) = self.by_handle.get_mut(&handle) {
                owners.remove(&owner);
                if owners.is_empty() {
                    self.by_handle.remove(&handle);
                }
            }
        }
    }
}

impl Held {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before masters are asked for a lock through a handle.
    pub(super) fn ask(&self, owner: Owner, handle: u64) -> Admission {
        let mut table = self.table();
        let holding = table.owners.entry(owner).or_default();
        if holding.leaving {
            return Admission::Busy;
        }
        if holding.lost {
            return Admission::Lost;
        }
        table.note(owner, handle);
        Admission::Free
    }

    /// A lock was granted in a session. Inodes whose locks of an earlier session are found to be lost.
    pub(super) fn granted(&self, owner: Owner, handle: u64, session: &Bytes) -> BTreeSet<u64> {
        let mut table = self.table();
        let lost = table.move_to(session);
        table.hold(owner, handle);
        lost
    }

    /// Nobody knows whether a lock was granted.
    pub(super) fn doubt(&self, owner: Owner, handle: u64) {
        self.table().hold(owner, handle);
    }

    /// The session that lives now, or none does. Inodes whose locks are found to be lost.
    pub(super) fn lives(&self, session: Option<&Bytes>) -> BTreeSet<u64> {
        self.table().move_to(session.unwrap_or(&Bytes::new()))
    }

    /// True if a close by an owner is of any concern.
    pub(super) fn knows(&self, owner: Owner) -> bool {
        self.table().owners.get(&owner).is_some_and(|holding| !holding.leaving)
    }

    /// True if an owner may have something to give up.
    pub(super) fn has(&self, owner: Owner) -> bool {
        self.table().owners.get(&owner).is_some_and(|holding| holding.held && !holding.leaving)
    }

    /// Gives up all that an owner has lost: it may ask anew.
    pub(super) fn forgive(&self, owner: Owner) {
        if let Some(holding) = self.table().owners.get_mut(&owner) {
            holding.lost = false;
        }
    }

    /// True if somebody may hold a lock on a file.
    pub(super) fn holds(&self, inode: u64) -> bool {
        let table = self.table();
        table.owners.iter().any(|((of, _), holding)| *of == inode && holding.held)
    }

    /// Owners that have asked through a handle.
    pub(super) fn of_handle(&self, handle: u64) -> Vec<Owner> {
        self.table().by_handle.get(&handle).map(|owners| owners.iter().copied().collect()).unwrap_or_default()
    }

    /// An owner has closed; true if masters have to be told. Then [`Held::left`] is to be called.
    pub(super) fn leave(&self, owner: Owner) -> bool {
        let mut table = self.table();
        let Some(holding) = table.owners.get_mut(&owner).filter(|holding| !holding.leaving) else { return false };
        if holding.held {
            holding.leaving = true;
            return true;
        }
        table.remove(owner);
        false
    }

    /// What an owner had is given up.
    pub(super) fn left(&self, owner: Owner) {
        let mut table = self.table();
        if table.owners.get(&owner).is_some_and(|holding| holding.leaving) {
            table.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = (1, 10);
    const B: Owner = (2, 20);

    fn session(name: &'static str) -> Bytes {
        Bytes::from_static(name.as_bytes())
    }

    #[test]
    fn masters_are_told_of_a_close_only_by_whom_they_gave_something() {
        let held = Held::default();
        assert_eq!((held.ask(A, 5), held.ask(B, 6)), (Admission::Free, Admission::Free));
        held.granted(A, 5, &session("one"));
        assert!(held.has(A) && !held.has(B) && held.knows(B), "B was refused");
        assert_eq!((held.of_handle(5), held.of_handle(6)), (vec![A], vec![B]));
        assert!(held.leave(A) && !held.leave(A) && !held.leave(B));
        assert_eq!(held.ask(A, 7), Admission::Busy, "another one with the number of A waits for it");
        held.left(A);
        assert_eq!(held.ask(A, 7), Admission::Free);
        assert_eq!((held.of_handle(5), held.of_handle(6), held.of_handle(7)), (vec![], vec![], vec![A]));
        held.doubt(A, 7);
        assert!(held.leave(A), "what may have been granted is given up too");
        held.granted(A, 7, &session("one"));
        held.left(A);
        assert!(held.has(A) && held.leave(A), "granted while it was given up: nobody knows which came first");
    }

    #[test]
    fn what_was_held_in_a_session_that_is_gone_is_lost_until_it_is_given_up() {
        let held = Held::default();
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
