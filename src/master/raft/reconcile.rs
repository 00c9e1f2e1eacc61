//! The leader brings the voters in line with the member records: every admitted disk becomes a voter once it has caught
//! up, every disk that was replaced or removed leaves. Each step is derived from what is replicated, so the next leader
//! continues where this one stopped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Member, RecordWatermarks, RetireMember, Watermark};
use openraft::ChangeMembers;

use crate::error::{Error, Result};
use crate::master::state::lineage::{predecessors, successor};

use super::identity::Stage;
use super::membership::{Shape, VOTERS_MAX, change, members, node_of, propose, shape};
use super::node::Running;

/// Entries after which the acknowledged positions are recorded again. Bounds how much an old disk that is put back while
/// no leader remembers it could hide; an idle cluster writes nothing.
const WATERMARK_ENTRIES: u64 = 1_000;

/// How long a learner may take to say that it knows its membership.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One step towards the membership the records ask for. Called again and again while this member leads.
pub(crate) async fn reconcile(running: &Arc<Running>) -> Result<()> {
    let shape = shape(running);
    let Some(term) = running.leading() else { return Ok(()) };
    running.net.peers.watch(term);
    if let Some(to) = shape.joint() {
        // An earlier leader began this change and did not live to end it: no other leader has one under way.
        tracing::info!(from = ?shape.voters, ?to, "unfinished change of voters goes on");
        return change(running.raft.change_membership(to.clone(), false).await);
    }
    let known = members(running)?;
    for member in known.iter().filter(|m| !m.retired && !m.leaving && !shape.nodes.contains_key(&m.id)) {
        if successor(&known, member.id).is_none() {
            tracing::info!(member = member.id, "learner added");
            return change(running.raft.add_learner(member.id, node_of(member), false).await);
        }
    }
    let ready = ready_learners(running, &known, &shape).await;
    if let Some(voters) = choose_voters(&known, &shape.voters, &ready, |id| running.matched(&shape, id)) {
        if !voters.contains(&running.net.me.id) {
            return step_aside(running, &voters, &shape).await;
        }
        tracing::info!(from = ?shape.voters, to = ?voters, "voters change");
        return change(running.raft.change_membership(voters, false).await);
    }
    retire(running, &known, &shape).await?;
    record_watermarks(running, &known, &shape).await
}

impl Running {
    /// How far a member's log is known to match; this leader's own first of all.
    fn matched(&self, shape: &Shape, id: u64) -> u64 {
        if id == self.net.me.id { u64::MAX } else { shape.matched.get(&id).copied().unwrap_or(0) }
    }
}

/// A leader that has to go lets one of the voters that stay remove it.
async fn step_aside(running: &Running, voters: &BTreeSet<u64>, shape: &Shape) -> Result<()> {
    let staying = voters.intersection(&shape.voters);
    let Some(next) = staying.max_by_key(|id| running.matched(shape, **id)) else {
        return Err(Error::unavailable("no voter stays that could lead"));
    };
    let leader = running.transfer_leader(*next).await?;
    tracing::info!(leader, "leadership handed over, to be removed");
    Ok(())
}

/// Learners that may vote now, in the order of their admission. One whose place was taken by another disk may not.
async fn ready_learners(running: &Running, known: &[Member], shape: &Shape) -> Vec<u64> {
    let mut ready = Vec::new();
    let wanted = known.iter().filter(|m| !m.retired && !m.leaving && !m.learner);
    for member in wanted.filter(|m| shape.nodes.contains_key(&m.id) && !shape.voters.contains(&m.id)) {
        if successor(known, member.id).is_none() && is_ready(running, member, shape).await {
            ready.push(member.id);
        }
    }
    ready
}

/// Our own check, not openraft's: the learner holds the log, and its identity says so on its disk. A disk that votes
/// must remember that it is a member.
async fn is_ready(running: &Running, member: &Member, shape: &Shape) -> bool {
    let matched = shape.matched.get(&member.id).copied().unwrap_or(0);
    if matched < member.id || !running.is_current(shape, matched) {
        return false;
    }
    let address = running.net.book.get(member.id).map_or_else(|| member.raft_address.clone(), |node| node.raft_address);
    let probe = running.net.resolver.probe(&address, PROBE_TIMEOUT).await;
    probe.is_ok_and(|p| {
        p.member_id == member.id && p.incarnation == member.incarnation && p.state == Stage::Member.name()
    })
}

/// The voters to change to, if the voters are not yet what the records and the `ready` learners ask for.
///
/// A ready replacement comes in for every voter that it stands in for. Otherwise voters that leave and learners that join
/// are exchanged at once, to an odd number: an even number of voters survives no more losses than the odd one below it.
/// Where a voter that leaves would make the number even, it stays until there is a learner in its place.
fn choose_voters(
    known: &[Member],
    voters: &BTreeSet<u64>,
    ready: &[u64],
    matched: impl Fn(u64) -> u64,
) -> Option<BTreeSet<u64>> {
    for id in ready {
        let replaced: BTreeSet<u64> = predecessors(known, *id).intersection(voters).copied().collect();
        if !replaced.is_empty() {
            return Some(voters.difference(&replaced).copied().chain([*id]).collect());
        }
    }
    // A retired voter is there only if it was promoted and replaced in the same moment.
    let leaves = |id: &u64| known.iter().any(|member| member.id == *id && (member.leaving || member.retired));
    let (leaving, staying): (BTreeSet<u64>, BTreeSet<u64>) = voters.iter().partition(|id| leaves(id));
    let room = VOTERS_MAX.saturating_sub(staying.len());
    let mut next = staying;
    let mut joining: Vec<u64> = ready.iter().copied().take(room).collect();
    if (next.len() + joining.len()).is_multiple_of(2) {
        match joining.pop() {
            Some(_) => {}
            None => next.extend(leaving.into_iter().max_by_key(|id| matched(*id))),
        }
    }
    next.extend(joining);
    (!next.is_empty() && next != *voters).then_some(next)
}

/// Retires every member that does not vote and is being removed or was replaced. A replacement that lost its disk before
/// it voted is retired as soon as the next disk is admitted in its place.
async fn retire(running: &Running, known: &[Member], shape: &Shape) -> Result<()> {
    let gone = |member: &&Member| member.retired || member.leaving || successor(known, member.id).is_some();
    // Ascending: a member is retired before the one that replaced it.
    for member in known.iter().filter(|member| !shape.voters.contains(&member.id)).filter(gone) {
        if shape.nodes.contains_key(&member.id) {
            let nodes = BTreeSet::from([member.id]);
            change(running.raft.change_membership(ChangeMembers::RemoveNodes(nodes), false).await)?;
        }
        if !member.retired {
            propose(running, Kind::RetireMember(RetireMember { member_id: member.id })).await?;
            tracing::info!(member = member.id, "member retired");
        }
    }
    Ok(())
}

/// Records up to which index each voter's own disk holds the log: a disk that comes back with less is an old copy.
async fn record_watermarks(running: &Running, known: &[Member], shape: &Shape) -> Result<()> {
    let acked = |id: u64| {
        // What this leader has appended and not yet flushed may be gone after a crash.
        let flushed = if id == running.net.me.id {
            running.log.flushed_index()
        } else {
            shape.matched.get(&id).copied().unwrap_or(0)
        };
        flushed.min(shape.committed)
    };
    let live = known.iter().filter(|member| shape.voters.contains(&member.id));
    let watermarks: Vec<Watermark> = live
        .filter(|member| acked(member.id) >= member.acked_index + WATERMARK_ENTRIES)
        .map(|member| Watermark { member_id: member.id, acked_index: acked(member.id) })
        .collect();
    if watermarks.is_empty() {
        return Ok(());
    }
    propose(running, Kind::RecordWatermarks(RecordWatermarks { watermarks })).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, replaces: u64) -> Member {
        Member { id, replaces, ..Member::default() }
    }

    fn retired(id: u64, replaces: u64) -> Member {
        Member { retired: true, ..member(id, replaces) }
    }

    fn leaving(id: u64) -> Member {
        Member { leaving: true, ..member(id, 0) }
    }

    fn choose(known: &[Member], voters: &[u64], ready: &[u64]) -> Option<Vec<u64>> {
        let voters = voters.iter().copied().collect();
        choose_voters(known, &voters, ready, |id| id).map(|next| next.into_iter().collect())
    }

    #[test]
    fn a_replacement_takes_the_place_of_the_voter_that_was_lost_first_however_many_died_in_between() {
        let base = [member(1, 0), member(2, 0), member(3, 0)];
        let with = |more: &[Member]| [&base[..], more].concat();
        assert_eq!(choose(&with(&[member(10, 3)]), &[1, 2, 3], &[10]), Some(vec![1, 2, 10]));
        assert_eq!(choose(&with(&[member(10, 3), member(11, 10)]), &[1, 2, 3], &[11]), Some(vec![1, 2, 11]));
        let chain = with(&[retired(10, 3), retired(11, 10), member(12, 11)]);
        assert_eq!(choose(&chain, &[1, 2, 3], &[12]), Some(vec![1, 2, 12]));
        // It was lost after it had voted, before the one that it replaced was retired.
        assert_eq!(choose(&with(&[member(10, 3), member(11, 10)]), &[1, 2, 10], &[11]), Some(vec![1, 2, 11]));
        assert_eq!(choose(&chain, &[1, 2, 3], &[]), None, "it waits until it has caught up");
    }

    #[test]
    fn two_replacements_come_in_one_after_the_other_among_five() {
        let known = [1, 2, 3, 4, 5].map(|id| member(id, 0));
        let known = [&known[..], &[member(10, 4), member(11, 5)]].concat();
        assert_eq!(choose(&known, &[1, 2, 3, 4, 5], &[10, 11]), Some(vec![1, 2, 3, 5, 10]));
        assert_eq!(choose(&known, &[1, 2, 3, 5, 10], &[11]), Some(vec![1, 2, 3, 10, 11]));
    }

    #[test]
    fn no_change_leaves_an_even_number_of_voters_or_none() {
        let known = [member(1, 0), member(2, 0), leaving(3), member(10, 0), member(11, 0)];
        assert_eq!(choose(&known, &[1, 2, 3], &[]), None, "it stays until there is a learner in its place");
        assert_eq!(choose(&known, &[1, 2, 3], &[10]), Some(vec![1, 2, 10]));
        assert_eq!(choose(&known, &[1, 2, 3], &[10, 11]), Some(vec![1, 2, 10]));
        assert_eq!(choose(&known[..2], &[1], &[2]), None, "the second of two waits for a third");
        let most = [member(1, 0), leaving(2), leaving(3)];
        assert_eq!(choose(&most, &[1, 2, 3], &[]), Some(vec![1]));
        let three = [member(1, 0), member(2, 0), leaving(3), leaving(4), leaving(5)];
        assert_eq!(choose(&three, &[1, 2, 3, 4, 5], &[]), Some(vec![1, 2, 5]), "the most complete one stays for now");
        assert_eq!(choose(&[leaving(1)], &[1], &[]), None);
    }
}
