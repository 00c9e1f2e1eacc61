//! What is known of every member's disk and start. A message from a disk that lags behind that knowledge, however it
//! came to be, is dropped before it is looked at: votes included. A message from a start that is newer than what is known
//! is dropped too, until the disk itself has confirmed that start: see [`confirm`].
//!
//! [`confirm`]: super::confirm

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jindofs_proto::raft::v1::Header;
use jindofs_proto::store::v1::Member;

use crate::runtime::attended::{AttendedClock, Moment};
use crate::runtime::planted::{PlantedFault, is_planted};

/// A start of a member: the disk, the boot counter on it, and the nonce of that start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) incarnation: Vec<u8>,
    pub(crate) boot: u64,
    pub(crate) nonce: Vec<u8>,
}

impl Start {
    /// The start that a header claims.
    pub(crate) fn of(header: &Header) -> Start {
        Start { incarnation: header.incarnation.to_vec(), boot: header.boot, nonce: header.boot_nonce.to_vec() }
    }
}

/// A start compared with what is known, when nothing contradicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The start that is known.
    Known,
    /// Newer than what is known, or of a member of which nothing is known: to be confirmed by the disk before it is
    /// believed.
    Unconfirmed,
}

/// Why a start is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Disbelief {
    #[error("member {0} is another disk: its incarnation differs from the one that was admitted")]
    OtherDisk(u64),
    #[error("member {id} started as boot {boot}, but boot {known} of it has been seen: its disk is an old copy")]
    OldBoot { id: u64, boot: u64, known: u64 },
    #[error("member {id} started as boot {boot} twice: this disk is an old copy, or one of two copies")]
    Twin { id: u64, boot: u64 },
    #[error("member {id} says that it started as boot {boot}, which its disk has not confirmed yet: retry")]
    Unconfirmed { id: u64, boot: u64 },
}

#[derive(Debug)]
struct Peer {
    start: Start,
    /// When the disk last confirmed its start, or the last message of it arrived.
    heard: Option<LastContact>,
    /// Raft address in the member's record; empty without a record.
    recorded_address: String,
}

/// When a member was last heard from.
#[derive(Debug, Clone, Copy)]
struct LastContact {
    /// For "does it live": pauses of this process count as silence of the member.
    at: Instant,
    /// For "may it be given up": pauses of this process do not count.
    attended: Moment,
}

/// Since when the leader of a term watches the others. A follower does not hear other followers, so that a new leader
/// cannot tell how long they have been silent before.
#[derive(Debug)]
struct Watch {
    term: u64,
    since: Moment,
}

/// Shared by the Raft server, its clients and the membership duty. Holds only members that have a record, so strangers
/// cannot make it grow.
#[derive(Debug)]
pub(crate) struct Peers {
    known: Mutex<HashMap<u64, Peer>>,
    clock: AttendedClock,
    watch: Mutex<Watch>,
}

impl Default for Peers {
    fn default() -> Peers {
        Peers::with_clock(AttendedClock::of_process())
    }
}

impl Peers {
    fn with_clock(clock: AttendedClock) -> Peers {
        let watch = Mutex::new(Watch { term: 0, since: clock.now() });
        Peers { known: Mutex::default(), clock, watch }
    }

    fn contact(&self) -> LastContact {
        LastContact { at: Instant::now(), attended: self.clock.now() }
    }

    /// Takes over what the replicated member records say. The leader recorded only what it had confirmed.
    pub(crate) fn learn(&self, members: &[Member]) {
        let mut peers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for member in members {
            let start = Start {
                incarnation: member.incarnation.to_vec(),
                boot: member.boot,
                nonce: member.boot_nonce.to_vec(),
            };
            // A record older than the confirmed start leaves the start as it is.
            let _ = take(&mut peers, member.id, &start);
            if let Some(peer) = peers.get_mut(&member.id) {
                peer.recorded_address.clone_from(&member.raft_address);
            }
        }
    }

    /// Remembers a start that the disk itself has confirmed.
    ///
    /// *Errors*: what is known meanwhile and contradicts it; then nothing changes.
    pub(crate) fn believe(&self, id: u64, start: &Start) -> Result<(), Disbelief> {
        let mut peers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        take(&mut peers, id, start)?;
        if let Some(peer) = peers.get_mut(&id) {
            peer.heard = Some(self.contact());
        }
        Ok(())
    }

    /// Compares a start with what is known, without remembering it.
    pub(crate) fn judge(&self, id: u64, start: &Start) -> Result<Standing, Disbelief> {
        let peers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&id).map_or(Ok(Standing::Unconfirmed), |peer| judge(id, &peer.start, start))
    }

    /// Checks the sender of a message and notes that it was heard from. A start that is not known yet is neither believed
    /// nor noted.
    pub(crate) fn hear(&self, header: &Header) -> Result<(), Disbelief> {
        let mut peers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get_mut(&header.sender_id) else {
            // A member without a record here: a joining disk hears its leader before it has any. There is nothing to
            // contradict, and nothing is remembered that could be used against the true member later.
            return Ok(());
        };
        // The common case, without an allocation.
        let known = &peer.start;
        let same =
            known.boot == header.boot && known.nonce == header.boot_nonce && known.incarnation == header.incarnation;
        if !same {
            judge(header.sender_id, known, &Start::of(header))?;
            return Err(Disbelief::Unconfirmed { id: header.sender_id, boot: header.boot });
        }
        peer.heard = Some(self.contact());
        Ok(())
    }

    /// When a member was last heard from: tells whether it lives.
    pub(crate) fn heard(&self, id: u64) -> Option<Instant> {
        self.last_heard(id).map(|heard| heard.at)
    }

    /// How long a member has been silent while this process led in `term` and ran: tells whether the member may be given
    /// up. Measured from the first call of this or of [`Peers::watch`] in the term.
    pub(crate) fn silence(&self, id: u64, term: u64) -> Duration {
        let since = self.watch(term);
        let heard = self.last_heard(id).map_or(since, |heard| heard.attended.max(since));
        self.clock.silence_since(heard)
    }

    /// Notes that this process leads in `term`; since when, as far as was noted.
    pub(crate) fn watch(&self, term: u64) -> Moment {
        let now = self.clock.now();
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.term != term {
            *watch = Watch { term, since: now };
        }
        watch.since
    }

    fn last_heard(&self, id: u64) -> Option<LastContact> {
        let peers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&id).and_then(|peer| peer.heard)
    }

    /// Raft address in the member's record.
    pub(crate) fn recorded_address(&self, id: u64) -> Option<String> {
        let peers = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        peers.get(&id).map(|peer| peer.recorded_address.clone()).filter(|address| !address.is_empty())
    }
}

fn take(peers: &mut HashMap<u64, Peer>, id: u64, start: &Start) -> Result<(), Disbelief> {
    let Some(peer) = peers.get_mut(&id) else {
        peers.insert(id, Peer { start: start.clone(), heard: None, recorded_address: String::new() });
        return Ok(());
    };
    if judge(id, &peer.start, start)? == Standing::Unconfirmed {
        peer.start = start.clone();
    }
    Ok(())
}

fn judge(id: u64, known: &Start, start: &Start) -> Result<Standing, Disbelief> {
    if known.incarnation != start.incarnation {
        return Err(Disbelief::OtherDisk(id));
    }
    if is_planted(PlantedFault::OldCopyBelieved) {
        return Ok(Standing::Known);
    }
    if start.boot < known.boot {
        return Err(Disbelief::OldBoot { id, boot: start.boot, known: known.boot });
    }
    // A record made at admission has neither boot nor nonce yet.
    if start.boot > known.boot || known.nonce.is_empty() {
        return Ok(Standing::Unconfirmed);
    }
    if start.nonce != known.nonce {
        return Err(Disbelief::Twin { id, boot: start.boot });
    }
    Ok(Standing::Known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(disk: u8, boot: u64, nonce: u8) -> Start {
        Start { incarnation: vec![disk; 16], boot, nonce: vec![nonce; 16] }
    }

    fn header(id: u64, start: &Start) -> Header {
        Header {
            sender_id: id,
            incarnation: start.incarnation.clone().into(),
            boot: start.boot,
            boot_nonce: start.nonce.clone().into(),
            ..Header::default()
        }
    }

    #[test]
    fn old_boots_twins_and_other_disks_are_not_believed() {
        let peers = Peers::default();
        peers.believe(3, &start(1, 4, 9)).expect("first sight");
        peers.believe(3, &start(1, 4, 9)).expect("the same again");
        assert_eq!(peers.judge(3, &start(1, 3, 8)), Err(Disbelief::OldBoot { id: 3, boot: 3, known: 4 }));
        assert_eq!(peers.judge(3, &start(1, 4, 8)), Err(Disbelief::Twin { id: 3, boot: 4 }));
        assert_eq!(peers.judge(3, &start(2, 9, 9)), Err(Disbelief::OtherDisk(3)));
        peers.believe(3, &start(1, 5, 7)).expect("a later start");
        assert_eq!(peers.judge(3, &start(1, 4, 9)), Err(Disbelief::OldBoot { id: 3, boot: 4, known: 5 }));
    }

    #[test]
    fn a_header_with_a_newer_start_is_refused_until_it_is_confirmed_and_changes_nothing() {
        let peers = Peers::default();
        peers.believe(3, &start(1, 4, 9)).expect("known");
        let heard = peers.heard(3);
        let forged = header(3, &start(1, u64::MAX, 7));
        assert_eq!(peers.hear(&forged), Err(Disbelief::Unconfirmed { id: 3, boot: u64::MAX }));
        assert_eq!(peers.heard(3), heard, "a forged message is no sign of life");
        assert_eq!(peers.judge(3, &start(1, 5, 8)), Ok(Standing::Unconfirmed));
        peers.hear(&header(3, &start(1, 4, 9))).expect("the running start goes on");
        assert!(peers.heard(3) >= heard && heard.is_some());
        peers.believe(3, &start(1, 5, 8)).expect("confirmed");
        peers.hear(&header(3, &start(1, 5, 8))).expect("believed now");
    }

    #[test]
    fn strangers_are_not_remembered() {
        let peers = Peers::default();
        for id in 1..1000 {
            peers.hear(&header(id, &start(1, u64::MAX, 7))).expect("nothing is known that contradicts it");
        }
        assert!(peers.known.lock().expect("lock").is_empty());
        peers.believe(7, &start(2, 1, 1)).expect("the true member is not shut out");
    }

    #[test]
    fn the_first_start_after_an_admission_is_unconfirmed() {
        let peers = Peers::default();
        let raft_address = "h:1".to_owned();
        peers.learn(&[Member { id: 7, incarnation: vec![1; 16].into(), raft_address, ..Member::default() }]);
        assert_eq!(peers.judge(7, &start(1, 1, 1)), Ok(Standing::Unconfirmed));
        peers.believe(7, &start(1, 1, 1)).expect("confirmed");
        assert_eq!(peers.judge(7, &start(1, 1, 1)), Ok(Standing::Known));
        assert_eq!(peers.recorded_address(7).as_deref(), Some("h:1"));
        assert_eq!(peers.recorded_address(8), None);
    }

    #[test]
    fn a_leader_that_is_new_or_stood_still_gives_no_member_up_before_it_has_listened() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering};
        let elapsed = Arc::new(AtomicU64::new(0));
        let source = elapsed.clone();
        let clock = AttendedClock::over(move || Duration::from_millis(source.load(Ordering::SeqCst)));
        let run = |seconds: u64| {
            for _ in 0..seconds * 2 {
                elapsed.fetch_add(500, Ordering::SeqCst);
                clock.now();
            }
        };
        let peers = Peers::with_clock(clock.clone());
        let header = Header { sender_id: 2, boot: 1, ..Header::default() };
        peers.believe(2, &Start::of(&header)).expect("first sight");
        run(60);
        assert_eq!(peers.silence(2, 7), Duration::ZERO, "a follower does not hear its fellows");
        assert_eq!(peers.silence(3, 7), Duration::ZERO, "nor does a process that has just started");
        run(3);
        assert_eq!((peers.silence(2, 7), peers.silence(3, 7)), (Duration::from_secs(3), Duration::from_secs(3)));
        peers.hear(&header).expect("heard");
        assert_eq!((peers.silence(2, 7), peers.silence(3, 7)), (Duration::ZERO, Duration::from_secs(3)));
        elapsed.fetch_add(600_000, Ordering::SeqCst);
        assert_eq!((peers.silence(2, 7), peers.silence(3, 7)), (Duration::ZERO, Duration::ZERO), "it stood still");
        run(2);
        assert_eq!(peers.silence(2, 7), Duration::from_secs(2));
        assert_eq!(peers.silence(2, 8), Duration::ZERO, "another term");
    }
}
