//! The leader's care for the membership: every admitted disk becomes a voter once it has caught up, every disk that was
//! replaced leaves. Driven by the replicated member records, so the next leader goes on where this one stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::raft::v1::{AdmitRequest, AdmitResponse, AnnounceRequest};
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{AdmitMember, Command, Member, RecordBoot, RecordWatermarks, RetireMember, Watermark};
use openraft::ChangeMembers;

use crate::config::MasterConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;

use super::identity::Stage;
use super::node::Running;
use super::types::Node;

/// A learner this close to the end of the log has caught up.
const LAG_MAX: u64 = 200;
/// Entries after which the acknowledged positions are recorded again. Bounds how much an old disk that is put back while
/// no leader remembers it could hide; an idle cluster writes nothing.
const WATERMARK_ENTRIES: u64 = 1_000;

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
    pub(super) voters: BTreeSet<u64>,
    pub(super) nodes: BTreeMap<u64, Node>,
    /// While two sets of voters count: the one to come.
    pub(super) joint: Option<BTreeSet<u64>>,
    pub(super) matched: BTreeMap<u64, u64>,
    last: u64,
    committed: u64,
}

pub(super) fn shape(running: &Running) -> Shape {
    running.look(|m| {
        let membership = &m.membership_config;
        let matched = m.replication.iter().flatten();
        Shape {
            voters: membership.voter_ids().collect(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
            joint: match &membership.membership().get_joint_config()[..] {
                [_, .., to] => Some(to.clone()),
                _ => None,
            },
            matched: matched.map(|(id, log_id)| (*id, log_id.map_or(0, |id| id.index))).collect(),
            last: m.last_log_index.unwrap_or(0),
            committed: m.local_committed.map_or(0, |id| id.index),
        }
    })
}

/// How many of these members are heard and hold the log, the leader included.
pub(super) fn sound(running: &Running, config: &MasterConfig, shape: &Shape, ids: impl Iterator<Item = u64>) -> usize {
    let me = running.net.me.id;
    let alive = |id: u64| running.net.peers.heard(id).is_some_and(|at| at.elapsed() < config.election_max * 2);
    let current = |id: u64| shape.matched.get(&id).is_some_and(|matched| matched + LAG_MAX >= shape.last);
    ids.filter(|id| *id == me || (alive(*id) && current(*id))).count()
}

pub(super) fn members(running: &Running) -> Result<Vec<Member>> {
    query::members(&running.machine.store().view())
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
        Ok(replaces) => answer.member_id = propose_admission(running, &request, replaces).await?,
        Err(wait) => answer.message = wait,
    }
    Ok(answer)
}

/// Whether the disk may join, and whom it replaces; or what it has to wait for.
async fn admission(
    running: &Arc<Running>,
    config: &MasterConfig,
    request: &AdmitRequest,
) -> Result<Result<u64, String>> {
    // What this leader has not yet applied may already admit the disk.
    running.read_barrier().await?;
    let known = members(running)?;
    if let Some(own) = known.iter().find(|member| member.incarnation == request.incarnation) {
        if own.retired {
            return Err(Error::new(ErrorKind::FailedPrecondition, "this disk was a member once and was replaced"));
        }
        return Ok(Ok(own.replaces));
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
        return Ok(Err(format!("the leader does not reach this disk at {}", request.raft_address)));
    }
    let Some(old) = known.iter().rev().find(|m| !m.retired && m.raft_address == request.raft_address) else {
        return Ok(Ok(0));
    };
    Ok(may_replace(running, config, &known, old).map(|()| old.id))
}

/// The conditions under which a lost disk is given up without asking anybody.
fn may_replace(running: &Running, config: &MasterConfig, known: &[Member], old: &Member) -> Result<(), String> {
    if !config.auto_replace {
        return Err(format!("member {} lost its disk and auto-replace is off", old.id));
    }
    if old.id == running.net.me.id {
        return Err("the leader itself is a member at this address".to_owned());
    }
    let shape = shape(running);
    if !shape.voters.contains(&old.id) {
        // A learner that lost its disk before it ever voted.
        return Ok(());
    }
    if let Some(other) = known.iter().find(|m| !m.retired && m.replaces != 0 && !shape.voters.contains(&m.id)) {
        return Err(format!("member {} is being replaced by {} first", other.replaces, other.id));
    }
    let silence = config.election_max * 2;
    if running.net.peers.heard(old.id).is_some_and(|at| at.elapsed() < silence) {
        return Err(format!("member {} was heard from less than {silence:?} ago", old.id));
    }
    let others = shape.voters.iter().copied().filter(|id| *id != old.id);
    if sound(running, config, &shape, others) < shape.voters.len() / 2 + 1 {
        return Err(format!("no majority without member {} is caught up", old.id));
    }
    Ok(())
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
    let outcome = running.propose(Command { command: Some(kind), ..Command::default() }).await?;
    match outcome.outcome {
        Some(Answer::Error(detail)) => Err(crate::rpc::status::from_detail(&detail)),
        Some(answer) => Ok(answer),
        None => Err(Error::internal("a command was answered with nothing")),
    }
}

/// One step towards the membership the records ask for. Called again and again while this member leads.
pub(crate) async fn reconcile(running: &Arc<Running>) -> Result<()> {
    let shape = shape(running);
    if running.leading().is_none() {
        return Ok(());
    }
    if let Some(to) = shape.joint {
        // An earlier leader began this change and did not live to end it: nobody else has one under way.
        tracing::info!(from = ?shape.voters, ?to, "unfinished change of voters goes on");
        return change(running.raft.change_membership(to, false).await);
    }
    let known = members(running)?;
    for member in known.iter().filter(|m| !m.retired && !m.leaving && !shape.nodes.contains_key(&m.id)) {
        if replaced_by(&known, member.id).is_none() {
            tracing::info!(member = member.id, "learner added");
            return change(running.raft.add_learner(member.id, node_of(member), false).await);
        }
    }
    if let Some(voters) = next_voters(running, &known, &shape).await {
        if !voters.contains(&running.net.me.id) {
            return step_aside(running, &voters, &shape).await;
        }
        tracing::info!(from = ?shape.voters, to = ?voters, "voters change");
        return change(running.raft.change_membership(voters, false).await);
    }
    retire(running, &known, &shape).await?;
    record_watermarks(running, &known, &shape).await
}

/// A leader that has to go lets one of those who stay do it.
async fn step_aside(running: &Running, voters: &BTreeSet<u64>, shape: &Shape) -> Result<()> {
    let staying = voters.intersection(&shape.voters);
    let Some(next) = staying.max_by_key(|id| shape.matched.get(id).copied().unwrap_or(0)) else {
        return Err(Error::unavailable("no voter stays that could lead"));
    };
    let leader = running.transfer_leader(*next).await?;
    tracing::info!(leader, "leadership handed over, to be removed");
    Ok(())
}

fn change<T>(result: Result<T, impl std::fmt::Display>) -> Result<()> {
    result.map(|_| ()).map_err(|error| Error::unavailable(format!("membership change: {error}")))
}

fn replaced_by(known: &[Member], id: u64) -> Option<&Member> {
    known.iter().find(|member| member.replaces == id && !member.retired)
}

/// The voters to change to, if any has to go or any learner is ready.
async fn next_voters(running: &Running, known: &[Member], shape: &Shape) -> Option<BTreeSet<u64>> {
    let leaving = |id: &u64| known.iter().any(|member| member.id == *id && member.leaving);
    let staying: BTreeSet<u64> = shape.voters.iter().copied().filter(|id| !leaving(id)).collect();
    let waiting = known.iter().filter(|m| !m.retired && !m.leaving && !m.learner);
    let waiting = waiting.filter(|m| shape.nodes.contains_key(&m.id) && !shape.voters.contains(&m.id));
    let mut fresh = Vec::new();
    for member in waiting {
        if !is_ready(running, member, shape).await {
            continue;
        }
        if staying.contains(&member.replaces) {
            let mut voters = shape.voters.clone();
            voters.remove(&member.replaces);
            voters.insert(member.id);
            return Some(voters);
        }
        fresh.push(member.id);
    }
    // An even number of voters survives no more than the odd one below it.
    fresh.truncate(VOTERS_MAX.saturating_sub(staying.len()));
    if (staying.len() + fresh.len()).is_multiple_of(2) {
        fresh.pop();
    }
    let next: BTreeSet<u64> = staying.into_iter().chain(fresh).collect();
    (!next.is_empty() && next != shape.voters).then_some(next)
}

/// Our own check, not openraft's: the learner holds the log, and its identity says so on its disk. A disk that votes
/// must remember that it is a member.
async fn is_ready(running: &Running, member: &Member, shape: &Shape) -> bool {
    let matched = shape.matched.get(&member.id).copied().unwrap_or(0);
    if matched < member.id || matched + LAG_MAX < shape.last {
        return false;
    }
    let address = running.net.book.get(member.id).map_or_else(|| member.raft_address.clone(), |node| node.raft_address);
    let probe = running.net.resolver.probe(&address, Duration::from_secs(1)).await;
    probe.is_ok_and(|p| {
        p.member_id == member.id && p.incarnation == member.incarnation && p.state == Stage::Member.name()
    })
}

async fn retire(running: &Running, known: &[Member], shape: &Shape) -> Result<()> {
    for member in known.iter().filter(|member| !member.retired && !shape.voters.contains(&member.id)) {
        let successor = replaced_by(known, member.id);
        if !member.leaving && successor.is_none_or(|successor| !shape.voters.contains(&successor.id)) {
            continue;
        }
        if shape.nodes.contains_key(&member.id) {
            let gone = BTreeSet::from([member.id]);
            change(running.raft.change_membership(ChangeMembers::RemoveNodes(gone), false).await)?;
        }
        propose(running, Kind::RetireMember(RetireMember { member_id: member.id })).await?;
        tracing::info!(member = member.id, "member retired");
    }
    Ok(())
}

async fn record_watermarks(running: &Running, known: &[Member], shape: &Shape) -> Result<()> {
    let acked = |id: u64| {
        let matched = if id == running.net.me.id { shape.last } else { shape.matched.get(&id).copied().unwrap_or(0) };
        matched.min(shape.committed)
    };
    let live = known.iter().filter(|member| shape.voters.contains(&member.id));
    let news: Vec<Watermark> = live
        .filter(|member| acked(member.id) >= member.acked_index + WATERMARK_ENTRIES)
        .map(|member| Watermark { member_id: member.id, acked_index: acked(member.id) })
        .collect();
    if news.is_empty() {
        return Ok(());
    }
    propose(running, Kind::RecordWatermarks(RecordWatermarks { watermarks: news })).await.map(|_| ())
}

/// Where a member says that it is.
pub(super) fn announced(news: &AnnounceRequest) -> Node {
    Node {
        raft_address: news.raft_address.clone(),
        grpc_address: news.grpc_address.clone(),
        incarnation: news.incarnation.to_vec(),
    }
}

/// A member says that it started, or where it is now: record it, after making sure that it is really there.
pub(crate) async fn take_announcement(running: &Arc<Running>, news: &AnnounceRequest) -> Result<()> {
    if running.leading().is_none() {
        return Ok(());
    }
    let known = members(running)?;
    let Some(member) = known.iter().find(|m| m.id == news.member_id && m.incarnation == news.incarnation) else {
        return Ok(());
    };
    let moved = member.raft_address != news.raft_address || member.grpc_address != news.grpc_address;
    if moved && news.member_id != running.net.me.id {
        let probe = running.net.resolver.probe(&news.raft_address, Duration::from_secs(2)).await?;
        if probe.member_id != news.member_id || probe.incarnation != news.incarnation {
            return Err(Error::new(ErrorKind::Foreign, format!("another disk answers at {}", news.raft_address)));
        }
    }
    let node = announced(news);
    // First: it may be needed for the quorum that is to record it.
    running.net.book.set(news.member_id, &node);
    if moved || member.boot != news.boot || member.boot_nonce != news.boot_nonce {
        let record = RecordBoot {
            member_id: news.member_id,
            boot: news.boot,
            boot_nonce: news.boot_nonce.clone(),
            raft_address: news.raft_address.clone(),
            grpc_address: news.grpc_address.clone(),
        };
        propose(running, Kind::RecordBoot(record)).await?;
    }
    let stale = running.look(|m| m.membership_config.get_node(&news.member_id).is_some_and(|known| *known != node));
    if stale {
        tracing::info!(member = news.member_id, address = news.raft_address, "member moved");
        let nodes = BTreeMap::from([(news.member_id, node)]);
        change(running.raft.change_membership(ChangeMembers::SetNodes(nodes), true).await)?;
    }
    Ok(())
}
