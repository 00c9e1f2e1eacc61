//! Reads of a follower without a quorum round: in a group of three, the follower that asks is the second vote.
//!
//! A read index needs proof that nobody else led when the read arrived. A leader gets it by a round of heartbeats that
//! begins after the read. But a follower that asks says, after its read arrived, "the leader I follow is you, in this
//! term"; with the leader's own word that is a majority of three. Whoever leads later needed the vote of one of the two
//! after it gave its word, so nothing was acknowledged elsewhere before the read. Both look at the state of raft's core
//! itself: a vote that was granted there cannot have left the process before, while metrics may lag behind it.

use super::node::Running;
use super::types::{LogId, Vote};

/// Largest group in which two are a majority.
const VOTERS_MAX: usize = 3;

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
