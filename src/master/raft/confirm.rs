//! A claim of a start is believed only after the disk behind it has confirmed it.
//!
//! Every message carries a member id, the incarnation of a disk, its boot and a nonce of that start; anybody who reaches
//! the port can write them. What is believed decides later which disk is an old copy, and the leader replicates it, so a
//! false claim would shut the true disk out for good. Therefore the claimed address is asked with a fresh nonce, and the
//! process that answers must run with exactly the claimed start. Before a move is believed, the addresses where the member
//! was last are asked too: a process that runs there with the same disk wins, and the claim is one of a copy.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::raft::v1::{AnnounceRequest, Header, ProbeResponse};

use crate::error::{Error, Result};

use super::peers::{Standing, Start};
use super::types::Node;
use super::wire::{Net, check_address, check_id};

/// Longest wait for the answer of one address.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before the sender of a message is asked again after it did not confirm its start.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// A member's word on its start and on where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) id: u64,
    pub(crate) start: Start,
    pub(crate) node: Node,
}

impl Claim {
    /// The claim of an announcement.
    ///
    /// *Errors*: `InvalidArgument` for what no member can claim.
    pub(crate) fn from_wire(news: &AnnounceRequest) -> Result<Claim> {
        check_id("cluster uuid", &news.cluster_uuid)?;
        check_id("incarnation", &news.incarnation)?;
        check_id("boot nonce", &news.boot_nonce)?;
        check_address("Raft address", &news.raft_address)?;
        check_address("gRPC address", &news.grpc_address)?;
        if news.member_id == 0 || news.boot == 0 {
            return Err(Error::invalid("an announcement needs a member id and a boot, both above 0"));
        }
        let incarnation = news.incarnation.to_vec();
        Ok(Claim {
            id: news.member_id,
            start: Start { incarnation: incarnation.clone(), boot: news.boot, nonce: news.boot_nonce.to_vec() },
            node: Node {
                raft_address: news.raft_address.clone(),
                grpc_address: news.grpc_address.clone(),
                incarnation,
            },
        })
    }
}

/// What one address answered when it was asked about a start.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// Nothing: no process listens, or it does not answer in time.
    Silent,
    /// Another disk, or none.
    OtherDisk,
    /// The claimed start.
    SameStart,
    /// The same disk in another start: another process.
    OtherStart { boot: u64 },
}

/// What comes of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The disk has confirmed it.
    Believed,
    /// Another process runs with the same disk: where, and in which start.
    Copy { address: String, boot: u64 },
    /// Not confirmed; the claim may be made again.
    Unconfirmed(String),
}

/// Decides on a claim by what the claimed address and those where the member was last have answered.
fn decide(claim: &Claim, claimed: &Answer, last: &[(String, Answer)], was_heard: bool) -> Verdict {
    let at = &claim.node.raft_address;
    let other = |(address, answer): &(String, Answer)| match answer {
        Answer::OtherStart { boot } => Some(Verdict::Copy { address: address.clone(), boot: *boot }),
        _ => None,
    };
    if let Some(copy) = last.iter().find_map(other) {
        return copy;
    }
    match claimed {
        Answer::OtherStart { boot } => Verdict::Copy { address: at.clone(), boot: *boot },
        Answer::Silent => Verdict::Unconfirmed(format!("no master answers at {at}")),
        Answer::OtherDisk => Verdict::Unconfirmed(format!("another disk answers at {at}")),
        // A process that was just alive and does not answer now may only be slow, or cut off from this member.
        Answer::SameStart if was_heard && !last.is_empty() && last.iter().all(|(_, one)| *one == Answer::Silent) => {
            Verdict::Unconfirmed(format!("member {} was alive elsewhere a moment ago", claim.id))
        }
        Answer::SameStart => Verdict::Believed,
    }
}

/// What a confirmation is under way for. Only members with a record, and only addresses that are known of them, have
/// slots, so strangers can neither make them many nor keep the slot of an honest claim busy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Slot {
    /// The sender of a message.
    Sender(u64),
    /// A claim with an address where a master is known or configured.
    At(u64, String),
    /// A claim with any other address.
    Elsewhere(u64),
    /// A confirmed claim on its way into the log.
    Record(u64),
}

/// The confirmations under way.
#[derive(Debug, Default)]
pub(crate) struct Confirmations(Mutex<HashSet<Slot>>);

impl Confirmations {
    /// Takes a slot until the permit is dropped; none while it is taken.
    pub(super) fn begin(self: &Arc<Self>, slot: Slot) -> Option<Permit> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.insert(slot.clone()).then(|| Permit { all: self.clone(), slot })
    }
}

/// A slot that is taken.
#[derive(Debug)]
pub(super) struct Permit {
    all: Arc<Confirmations>,
    slot: Slot,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.slot);
    }
}

impl Net {
    /// Addresses where the member was last, as far as known: on record, and confirmed since.
    fn last_addresses(&self, id: u64) -> BTreeSet<String> {
        let booked = self.book.get(id).map(|node| node.raft_address);
        booked.into_iter().chain(self.peers.recorded_address(id)).collect()
    }

    async fn ask(&self, address: &str, start: &Start) -> (Answer, Option<ProbeResponse>) {
        let Ok(answer) = self.resolver.probe(address, ANSWER_TIMEOUT).await else { return (Answer::Silent, None) };
        let same_disk = answer.cluster_uuid == self.me.cluster[..] && answer.incarnation == start.incarnation;
        let judged = match (same_disk, answer.boot == start.boot && answer.boot_nonce == start.nonce) {
            (false, _) => Answer::OtherDisk,
            (true, true) => Answer::SameStart,
            (true, false) => Answer::OtherStart { boot: answer.boot },
        };
        (judged, Some(answer))
    }

    /// Asks the disk behind a claim, and if it confirms it and `remember` is set, remembers start and address.
    ///
    /// Ends within [`ANSWER_TIMEOUT`].
    pub(super) async fn confirm(&self, claim: &Claim, remember: bool) -> Verdict {
        let mut last = self.last_addresses(claim.id);
        last.remove(&claim.node.raft_address);
        let asked =
            last.iter().map(|address| async move { (address.clone(), self.ask(address, &claim.start).await.0) });
        let claimed = self.ask(&claim.node.raft_address, &claim.start);
        let ((mut claimed, said), last) = tokio::join!(claimed, join_all(asked));
        let as_claimed = |said: &ProbeResponse| {
            said.member_id == claim.id
                && said.raft_address == claim.node.raft_address
                && said.grpc_address == claim.node.grpc_address
        };
        if claimed == Answer::SameStart && !said.as_ref().is_some_and(as_claimed) {
            claimed = Answer::OtherDisk;
        }
        // Of the claimed start itself it says nothing that it is alive.
        let other_start = self.peers.judge(claim.id, &claim.start) == Ok(Standing::Unconfirmed);
        let was_heard = other_start && self.peers.heard(claim.id).is_some_and(|at| at.elapsed() < self.alive_timeout);
        let verdict = decide(claim, &claimed, &last, was_heard);
        if verdict != Verdict::Believed || !remember {
            return verdict;
        }
        if let Err(disbelief) = self.peers.believe(claim.id, &claim.start) {
            return Verdict::Unconfirmed(disbelief.to_string());
        }
        // Members that have all moved can only elect a leader, who records it, where each of them is now.
        self.book.set(claim.id, &claim.node);
        Verdict::Believed
    }

    /// Begins to ask the sender of a message for a start that is not known, where that member was last. A member that
    /// moved announces itself.
    pub(super) fn confirm_sender(self: &Arc<Net>, header: &Header) {
        let Some(permit) = self.confirmations.begin(Slot::Sender(header.sender_id)) else { return };
        let (net, id, start) = (self.clone(), header.sender_id, Start::of(header));
        tokio::spawn(async move {
            let addresses = net.last_addresses(id);
            let answers = join_all(addresses.iter().map(|address| net.ask(address, &start))).await;
            let answers: Vec<Answer> = answers.into_iter().map(|(answer, _)| answer).collect();
            let contradicts = |answer: &Answer| matches!(answer, Answer::OtherStart { .. });
            if answers.contains(&Answer::SameStart) && !answers.iter().any(contradicts) {
                match net.peers.believe(id, &start) {
                    Ok(()) => tracing::info!(member = id, boot = start.boot, "start of a member confirmed"),
                    Err(disbelief) => tracing::info!(%disbelief, "start of a member not believed"),
                }
            } else {
                tracing::info!(member = id, boot = start.boot, "start of a member not confirmed by its disk");
                tokio::time::sleep(RETRY_DELAY).await;
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news() -> AnnounceRequest {
        AnnounceRequest {
            cluster_uuid: vec![1; 16].into(),
            member_id: 3,
            incarnation: vec![2; 16].into(),
            boot: 4,
            boot_nonce: vec![5; 16].into(),
            raft_address: "new:1".to_owned(),
            grpc_address: "new:2".to_owned(),
            ..AnnounceRequest::default()
        }
    }

    #[test]
    fn claims_that_no_member_can_make_are_refused() {
        Claim::from_wire(&news()).expect("good");
        let bad = [
            AnnounceRequest { cluster_uuid: Vec::new().into(), ..news() },
            AnnounceRequest { incarnation: vec![2; 1 << 20].into(), ..news() },
            AnnounceRequest { boot_nonce: vec![5; 15].into(), ..news() },
            AnnounceRequest { member_id: 0, ..news() },
            AnnounceRequest { boot: 0, ..news() },
            AnnounceRequest { raft_address: "h".repeat(300), ..news() },
            AnnounceRequest { grpc_address: "nonsense".to_owned(), ..news() },
        ];
        for news in bad {
            Claim::from_wire(&news).expect_err("refused");
        }
    }

    #[test]
    fn a_claim_is_decided_by_the_disk_at_the_claimed_and_at_the_last_address() {
        let claim = Claim::from_wire(&news()).expect("good");
        let twin = Answer::OtherStart { boot: 9 };
        let copy = |address: &str| Verdict::Copy { address: address.to_owned(), boot: 9 };
        let judge = |claimed: &Answer, last: Option<&Answer>, was_heard| {
            let last: Vec<_> = last.map(|answer| ("old:1".to_owned(), answer.clone())).into_iter().collect();
            decide(&claim, claimed, &last, was_heard)
        };
        let all = [Answer::Silent, Answer::OtherDisk, Answer::SameStart, twin.clone()];
        for claimed in &all {
            for was_heard in [false, true] {
                // The process at the last address wins, whatever its boot is.
                assert_eq!(judge(claimed, Some(&twin), was_heard), copy("old:1"));
                for last in [None, Some(&Answer::Silent), Some(&Answer::OtherDisk), Some(&Answer::SameStart)] {
                    let verdict = judge(claimed, last, was_heard);
                    let alive = was_heard && last == Some(&Answer::Silent);
                    match claimed {
                        Answer::SameStart if !alive => assert_eq!(verdict, Verdict::Believed, "{last:?}"),
                        Answer::OtherStart { .. } => assert_eq!(verdict, copy("new:1"), "{last:?}"),
                        _ => assert!(matches!(verdict, Verdict::Unconfirmed(_)), "{claimed:?} {last:?}: {verdict:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_slot_is_taken_once_and_free_again_when_its_permit_is_dropped() {
        let all = Arc::new(Confirmations::default());
        let permit = all.begin(Slot::Sender(1)).expect("free");
        assert!(all.begin(Slot::Sender(1)).is_none());
        let other = all.begin(Slot::Elsewhere(1)).expect("another slot");
        drop((permit, other));
        assert!(all.begin(Slot::Sender(1)).is_some());
        assert_eq!(all.0.lock().expect("lock").len(), 0, "the last permit is dropped at once");
    }
}
