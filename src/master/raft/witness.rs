//! Reads without a quorum round: in a group of three, one follower that says whom it follows is the second vote.
//!
//! A read index needs proof that nobody else led when the read arrived. A leader gets it by a round of heartbeats that
//! begins after the read. But a follower that asks says, after its read arrived, "the leader I follow is you, in this
//! term"; with the leader's own word that is a majority of three. Whoever leads later needed the vote of one of the two
//! after it gave its word, so nothing was acknowledged elsewhere before the read. Both look at the state of raft's core
//! itself: a vote that was granted there cannot have left the process before, while metrics may lag behind it.
//!
//! For its own reads a leader asks one follower for its word, which costs less than heartbeats to all. A follower that
//! does not answer at once is not asked again for a while; then a quorum round decides.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jindofs_proto::raft::v1 as wire;

use super::node::Running;
use super::types::{LogId, Vote};

/// Largest group in which two are a majority.
const VOTERS_MAX: usize = 3;
/// How long a follower may take to give its word.
const ANSWER: Duration = Duration::from_millis(50);
/// How long one that did not is left alone.
const SILENCE: Duration = Duration::from_secs(5);

/// The follower whose word this leader asks for.
#[derive(Debug, Default)]
pub(super) struct Witness(Mutex<Asked>);

#[derive(Debug, Default)]
struct Asked {
    member: Option<u64>,
    /// Nobody is asked before.
    not_before: Option<Instant>,
}

impl Witness {
    /// The one asked last if it still may be, else another; nobody while the last failure is young.
    fn choose(&self, voters: &[u64]) -> Option<u64> {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.not_before.is_some_and(|time| Instant::now() < time) {
            return None;
        }
        if asked.member.is_none_or(|member| !voters.contains(&member)) {
            asked.member = voters.first().copied();
        }
        asked.member
    }

    /// The one asked has failed: later the next one is tried.
    fn failed(&self, voters: &[u64]) {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = voters.iter().position(|voter| Some(*voter) == asked.member).map_or(0, |place| place + 1);
        asked.member = voters.get(place % voters.len().max(1)).copied();
        asked.not_before = Some(Instant::now() + SILENCE);
    }
}

/// The term of a vote that a majority has given to `leader`.
fn term_of(vote: &Vote, leader: u64) -> Option<u64> {
    (vote.committed && vote.leader_id.node_id == leader).then_some(vote.leader_id.term)
}

impl Running {
    /// The term in which this member follows `leader` now; 0 for none. Terms begin at 1.
    pub(super) async fn vouched_term(&self, leader: u64) -> u64 {
        let term = self.raft.with_raft_state(move |state| term_of(state.vote_ref(), leader)).await;
        // Raft has stopped: nobody is vouched for.
        term.ok().flatten().unwrap_or(0)
    }

    /// A read index proved by the word of one follower; none if that takes long or does not suffice.
    pub(super) async fn witnessed_round(&self) -> Option<LogId> {
        let me = self.net.me.id;
        let voters: Vec<u64> = self.look(|m| m.membership_config.voter_ids().filter(|id| *id != me).collect());
        if voters.is_empty() || voters.len() >= VOTERS_MAX {
            return None;
        }
        let member = self.witness.choose(&voters)?;
        let term = match tokio::time::timeout(ANSWER, self.ask_word(member)).await {
            Ok(Some(term)) => term,
            Ok(None) | Err(_) => {
                self.net.forget_reads_client();
                self.witness.failed(&voters);
                return None;
            }
        };
        self.confirmed_by(member, term).await
    }

    async fn ask_word(&self, member: u64) -> Option<u64> {
        let node = self.net.book.get(member)?;
        let mut client = self.net.reads_client(member, &node.raft_address).await.ok()?;
        let request = wire::VouchRequest { header: Some(self.net.me.header(member)) };
        let answer = client.vouch(request).await.ok()?.into_inner();
        self.net.check(answer.header.as_ref()).ok()?;
        Some(answer.vouched_term)
    }

    /// The read index of this leader, if the word of `sender`, which follows it in `term`, makes a majority.
    pub(super) async fn confirmed_by(&self, sender: u64, term: u64) -> Option<LogId> {
        let me = self.net.me.id;
        let look = move |state: &openraft::RaftState<super::types::TypeConfig>| {
            let members = &state.membership_state;
            let settled = members.effective().log_id() == members.committed().log_id();
            let [voters] = &members.effective().membership().get_joint_config()[..] else { return None };
            let two_suffice = settled && voters.len() <= VOTERS_MAX && voters.contains(&me) && voters.contains(&sender);
            let leads = state.server_state == openraft::ServerState::Leader
                && term_of(state.vote_ref(), me) == Some(term)
                && sender != me;
            // What earlier leaders have acknowledged lies before the first entry of this term.
            let committed = state.cluster_committed().copied();
            committed.filter(|id| two_suffice && leads && id.leader_id.term == term && id.leader_id.node_id == me)
        };
        self.raft.with_raft_state(look).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_that_fails_is_left_alone_and_then_the_next_one_is_asked() {
        let witness = Witness::default();
        assert_eq!(witness.choose(&[2, 3]), Some(2));
        assert_eq!(witness.choose(&[2, 3]), Some(2), "the connection is kept");
        witness.failed(&[2, 3]);
        assert_eq!(witness.choose(&[2, 3]), None);
        witness.0.lock().expect("lock").not_before = None;
        assert_eq!(witness.choose(&[2, 3]), Some(3));
        assert_eq!(witness.choose(&[4]), Some(4), "it is no voter any more");
        assert_eq!(Witness::default().choose(&[]), None);
    }
}
