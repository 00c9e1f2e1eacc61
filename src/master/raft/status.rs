//! The status that a member reports: the replicated membership as this member sees it, with every member that counts,
//! whether that member answers or not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jindofs_proto::store::v1::Member;
use jindofs_proto::v1::{MemberStatus, Role, StatusResponse, VoterSet};
use openraft::async_runtime::Instant as _;

use crate::master::state::query;

use super::membership::{Shape, members, node_of, replaced_voter, shape};
use super::node::Running;
use super::progress::tolerated_losses;
use super::types::LogId;

/// Fills in what a running member knows. Leaves out what its store cannot be read for.
pub(super) fn fill_status(running: &Running, own: &mut MemberStatus, status: &mut StatusResponse, lease: Duration) {
    let me = running.net.me.id;
    own.applied = *running.applied_index().borrow();
    running.look(|m| {
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        status.leader_id = m.current_leader.unwrap_or(0);
        status.term = m.current_term;
        status.committed = index(m.local_committed);
        let heard = m.last_quorum_acked.is_some_and(|at| at.elapsed() < lease * 2);
        let alone = m.membership_config.voter_ids().count() == 1;
        status.quorum = m.current_leader == Some(me) && (heard || alone);
        own.last_log = m.last_log_index.unwrap_or(0);
        own.snapshot = index(m.snapshot);
    });
    let shape = shape(running);
    let known = members(running).unwrap_or_default();
    own.role = role(&shape, status.leader_id, me).into();
    let each = |set: &BTreeSet<u64>| VoterSet { member_ids: set.iter().copied().collect() };
    status.voter_sets = shape.voter_sets.iter().map(each).collect();
    if status.quorum {
        let losses = tolerated_losses(&shape.voter_sets, |id| running.is_heard(id));
        status.tolerated_losses = u32::try_from(losses).ok();
    }
    status.members = replicated_members(running, &known, &shape, status.leader_id);
    if let Ok(Some(cluster)) = query::cluster(&running.machine.store().view()) {
        status.expected = cluster.expected;
    }
}

fn role(shape: &Shape, leader: u64, id: u64) -> Role {
    match (leader == id, shape.voters.contains(&id)) {
        (true, _) => Role::Leader,
        (false, true) => Role::Voter,
        (false, false) => Role::Learner,
    }
}

/// Every node of the Raft membership and every member on record that is not retired, by id.
fn replicated_members(running: &Running, known: &[Member], shape: &Shape, leader: u64) -> Vec<MemberStatus> {
    let me = running.net.me.id;
    let mut nodes = shape.nodes.clone();
    for member in known.iter().filter(|member| !member.retired) {
        nodes.entry(member.id).or_insert_with(|| node_of(member));
    }
    let rows: BTreeMap<u64, &Member> = known.iter().map(|member| (member.id, member)).collect();
    let one = |(id, node)| {
        let row = rows.get(&id);
        let node = running.net.book.get(id).unwrap_or(node);
        let matched = shape.matched.get(&id).copied().unwrap_or(0);
        MemberStatus {
            id,
            address: node.grpc_address,
            raft_address: node.raft_address,
            role: role(shape, leader, id).into(),
            last_log: if id == me { shape.last } else { matched },
            heard: leader == me && running.is_heard(id),
            replaces: row.and_then(|row| replaced_voter(known, row, &shape.voters)).unwrap_or(0),
            leaving: row.is_some_and(|row| row.leaving),
            stays_learner: row.is_some_and(|row| row.learner),
            ..MemberStatus::default()
        }
    };
    nodes.into_iter().map(one).collect()
}
