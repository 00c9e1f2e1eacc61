//! Admission of disks to the membership, and where members are. [`reconcile`] makes voters of those that were admitted.
//!
//! [`reconcile`]: super::reconcile

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::raft::v1::{AdmitRequest, AdmitResponse};
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{AdmitMember, Command, Member};

use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::lineage::{occupants, predecessors, successor};
use crate::master::state::query;
use crate::master::wording::answer_of;
use crate::runtime::planted::{PlantedFault, is_planted};

use super::node::Running;
use super::types::Node;

pub(crate) use super::reconcile::reconcile;

/// Most voters: more make every write slower and survive hardly more.
pub(super) const VOTERS_MAX: usize = 7;

/// How long to wait before asking again, for each reason to wait.
const RETRY: Duration = Duration::from_millis(300);

pub(crate) fn node_of(member: &Member) -> Node {
    Node {
        raft_address: member.raft_address.clone(),
        grpc_address: member.grpc_address.clone(),
        incarnation: member.incarnation.to_vec(),
    }
}

/// The membership as openraft has it.
pub(super) struct Shape {
    /// Members of any voter set.
    pub(super) voters: BTreeSet<u64>,
    /// The voter sets in force: one, or two while the voters are being changed.
    pub(super) voter_sets: Vec<BTreeSet<u64>>,
    pub(super) nodes: BTreeMap<u64, Node>,
    /// Up to which index each member's log is known to match; empty unless this member leads.
    pub(super) matched: BTreeMap<u64, u64>,
    pub(super) last: u64,
    pub(super) committed: u64,
    pub(super) purged: u64,
}

impl Shape {
    /// While two voter sets are in force: the one to come.
    pub(super) fn joint(&self) -> Option<&BTreeSet<u64>> {
        match &self.voter_sets[..] {
            [_, .., to] => Some(to),
            _ => None,
        }
    }
}

pub(super) fn shape(running: &Running) -> Shape {
    running.look(|m| {
        let membership = &m.membership_config;
        let matched = m.replication.iter().flatten();
        Shape {
            voters: membership.voter_ids().collect(),
            voter_sets: membership.membership().get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
            matched: matched.map(|(id, log_id)| (*id, log_id.map_or(0, |id| id.index))).collect(),
            last: m.last_log_index.unwrap_or(0),
            committed: m.local_committed.map_or(0, |id| id.index),
            purged: m.purged.map_or(0, |id| id.index),
        }
    })
}

pub(super) fn members(running: &Running) -> Result<Vec<Member>> {
    Ok(query::members(&running.machine.store().view())?)
}

/// Answers a request to join. On a follower: whom to ask instead.
pub(crate) async fn admit(
    running: &Arc<Running>,
    config: &MasterConfig,
    request: AdmitRequest,
) -> Result<AdmitResponse> {
    let me = &running.net.me;
    let mut answer = AdmitResponse {
        cluster_uuid: me.cluster.to_vec().into(),
        retry_after_ms: u64::try_from(RETRY.as_millis()).unwrap_or(300),
        ..AdmitResponse::default()
    };
    if request.cluster_uuid != me.cluster[..] {
        return Err(Error::new(ErrorKind::Foreign, "the request to join is for another cluster"));
    }
    if running.leading().is_none() {
        let hint = running.leader_hint();
        let leader = hint.and_then(|hint| running.net.book.get(hint.id)).map(|node| node.raft_address);
        answer.message = "this member does not lead".to_owned();
        answer.leader_raft_address = leader.unwrap_or_default();
        return Ok(answer);
    }
    match admission(running, config, &request).await? {
        Admission::Granted { replaces } => {
            answer.member_id = propose_admission(running, &request, replaces).await?;
        }
        Admission::Delayed(why) => answer.message = why,
        Admission::IncarnationUsed(why) => {
            answer.incarnation_is_used = true;
            answer.message = why;
        }
    }
    Ok(answer)
}

/// What becomes of a request to join.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    /// The disk joins in the place of this member; of none where it is 0.
    Granted { replaces: u64 },
    /// The disk asks again later.
    Delayed(String),
    /// No disk is ever admitted with this incarnation again.
    IncarnationUsed(String),
}

/// True for a member of which a start with its member id is recorded.
fn has_started(member: &Member) -> bool {
    member.boot != 0
}

/// Decides about a disk whose incarnation the records know as `own`; `has_acknowledged` if the member `own` votes, or has
/// acknowledged entries to this leader.
///
/// A disk stores its member id before it opens its log and before it announces a start. So a disk without a member id is an older
/// copy if the records show a later step of its incarnation: entries that it has acknowledged would be missing.
fn admit_again(own: &Member, request: &AdmitRequest, has_acknowledged: bool) -> Admission {
    if own.retired {
        return Admission::IncarnationUsed(format!("this disk was member {} and was replaced", own.id));
    }
    let is_older_copy = request.member_id == 0 && (has_started(own) || has_acknowledged);
    if is_older_copy && !is_planted(PlantedFault::UnnumberedCopyAdmitted) {
        return Admission::IncarnationUsed(format!(
            "this disk is a copy from before it became member {}: what it has stored since is missing",
            own.id
        ));
    }
    Admission::Granted { replaces: own.replaces }
}

/// Whether the disk may join, and whom it replaces.
async fn admission(running: &Arc<Running>, config: &MasterConfig, request: &AdmitRequest) -> Result<Admission> {
    // What this leader has not yet applied may already admit the disk.
    running.read_barrier().await?;
    let known = members(running)?;
    if let Some(own) = known.iter().find(|member| member.incarnation == request.incarnation) {
        let shape = shape(running);
        let has_acknowledged = shape.voters.contains(&own.id) || shape.matched.get(&own.id).is_some_and(|at| *at > 0);
        return Ok(admit_again(own, request, has_acknowledged));
    }
    let cluster = query::cluster(&running.machine.store().view())?;
    let expected = cluster.map(|cluster| cluster.expected).unwrap_or_default();
    if !expected.contains(&request.raft_address) {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("no master is expected at {}; expected are {}", request.raft_address, expected.join(", ")),
        ));
    }
    let probe = running.net.resolver.probe(&request.raft_address, Duration::from_secs(2)).await;
    if !probe.is_ok_and(|probe| probe.incarnation == request.incarnation) {
        return Ok(Admission::Delayed(format!("the leader does not reach this disk at {}", request.raft_address)));
    }
    // Where two members are on record at one address, only one that is silent can have lost its disk.
    let mut silent = occupants(&known, &request.raft_address).filter(|member| running.has_been_silent(member.id));
    let old = silent.next().or_else(|| occupants(&known, &request.raft_address).next());
    let Some(old) = old else {
        return Ok(Admission::Granted { replaces: 0 });
    };
    Ok(match may_replace(running, config, &known, old) {
        Ok(()) => Admission::Granted { replaces: old.id },
        Err(why) => Admission::Delayed(why),
    })
}

/// The conditions under which a lost disk is replaced without asking a person. With `auto-replace` off only one that has
/// nothing to lose is.
fn may_replace(running: &Running, config: &MasterConfig, known: &[Member], old: &Member) -> Result<(), String> {
    let shape = shape(running);
    // The voter that leaves as soon as the new disk votes: the member at the address, or the one that it stands in for.
    let mut replaced = predecessors(known, old.id);
    replaced.insert(old.id);
    if !config.auto_replace && !has_nothing_to_lose(old, &replaced, &shape.voters) {
        return Err(format!("member {} lost its disk and auto-replace is off", old.id));
    }
    if shape.joint().is_some() {
        return Err("the voters are being changed".to_owned());
    }
    for id in replaced.iter().filter(|id| **id == old.id || shape.voters.contains(id)) {
        if *id == running.net.me.id {
            return Err("the leader itself is a member at this address".to_owned());
        }
        if !running.has_been_silent(*id) {
            let silence = running.silence();
            return Err(format!("member {id} has not been silent for {silence:?} while this leader listened"));
        }
    }
    if replaced.is_disjoint(&shape.voters) {
        // A learner that lost its disk before it ever voted, in the place of no voter.
        return Ok(());
    }
    // A replacement that is itself silent may never come back: it must not keep the next lost disk waiting.
    for other in known.iter().filter(|m| m.id != old.id && running.is_heard(m.id)) {
        if let Some(voter) = replaced_voter(known, other, &shape.voters) {
            return Err(format!("member {voter} is being replaced by {} first", other.id));
        }
    }
    let others = shape.voters.iter().copied().filter(|id| !replaced.contains(id));
    if running.count_sound(&shape, others) < shape.voters.len() / 2 + 1 {
        return Err(format!("no majority without member {} is heard and caught up", old.id));
    }
    Ok(())
}

/// True for a member that stands in for no voter, itself included, and of which no start was ever recorded. Its disk may never
/// have heard that it was admitted, and be empty again with another incarnation: giving it up needs no decision of a person.
fn has_nothing_to_lose(member: &Member, replaced: &BTreeSet<u64>, voters: &BTreeSet<u64>) -> bool {
    !has_started(member) && replaced.is_disjoint(voters)
}

/// The voter whose place a live member takes once it has caught up.
pub(super) fn replaced_voter(known: &[Member], member: &Member, voters: &BTreeSet<u64>) -> Option<u64> {
    let waits = !member.retired && !voters.contains(&member.id) && successor(known, member.id).is_none();
    predecessors(known, member.id).into_iter().rev().find(|id| waits && voters.contains(id))
}

/// True for a member that is on its way into the voters in the place of one, or out of the group.
pub(super) fn is_moving(known: &[Member], member: &Member, voters: &BTreeSet<u64>) -> bool {
    !member.retired && (member.leaving || replaced_voter(known, member, voters).is_some())
}

async fn propose_admission(running: &Running, request: &AdmitRequest, replaces: u64) -> Result<u64> {
    let admit = AdmitMember {
        incarnation: request.incarnation.clone(),
        raft_address: request.raft_address.clone(),
        grpc_address: request.grpc_address.clone(),
        replaces,
    };
    match propose(running, Kind::AdmitMember(admit)).await? {
        Answer::MemberId(id) => {
            tracing::info!(member = id, replaces, address = request.raft_address, "member admitted");
            Ok(id)
        }
        other => Err(Error::internal(format!("an admission was answered with {other:?}"))),
    }
}

pub(crate) async fn propose(running: &Running, kind: Kind) -> Result<Answer> {
    answer_of(running.propose(Command { command: Some(kind), ..Command::default() }).await?)
}

pub(super) fn change<T>(result: Result<T, impl std::fmt::Display>) -> Result<()> {
    result.map(|_| ()).map_err(|error| Error::unavailable(format!("membership change: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_a_member_id_is_admitted_again_only_while_its_incarnation_has_done_nothing() {
        let own = Member { id: 9, replaces: 3, ..Member::default() };
        let started = Member { boot: 4, ..own.clone() };
        let retired = Member { retired: true, ..own.clone() };
        let asks = |member_id| AdmitRequest { member_id, ..AdmitRequest::default() };
        let granted = Admission::Granted { replaces: 3 };
        // The answer that carried the member id was lost.
        assert_eq!(admit_again(&own, &asks(0), false), granted);
        assert_eq!(admit_again(&own, &asks(9), true), granted);
        assert_eq!(admit_again(&started, &asks(9), true), granted);
        let copies = [(&started, 0, false), (&own, 0, true), (&retired, 0, false), (&retired, 9, true)];
        for (own, member_id, has_acknowledged) in copies {
            let admission = admit_again(own, &asks(member_id), has_acknowledged);
            assert!(matches!(admission, Admission::IncarnationUsed(_)), "{own:?}, asked as {member_id}: {admission:?}");
        }
    }

    #[test]
    fn only_a_member_that_never_started_and_stands_in_for_no_voter_has_nothing_to_lose() {
        let admitted = Member { id: 9, ..Member::default() };
        let started = Member { boot: 1, boot_nonce: vec![1; 16].into(), ..admitted.clone() };
        let voters = BTreeSet::from([1, 2, 3]);
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        assert!(has_nothing_to_lose(&admitted, &set(&[9]), &voters));
        assert!(has_nothing_to_lose(&admitted, &set(&[7, 9]), &voters), "nor did the one that it was to replace vote");
        assert!(!has_nothing_to_lose(&started, &set(&[9]), &voters));
        assert!(!has_nothing_to_lose(&admitted, &set(&[3, 9]), &voters), "a voter would leave for the new disk");
        assert!(!has_nothing_to_lose(&admitted, &set(&[9]), &set(&[1, 2, 9])));
    }
}
