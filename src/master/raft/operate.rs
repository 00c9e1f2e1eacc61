//! What operators ask of the membership. Each wish is checked by the leader and recorded in the state; [`membership`]
//! carries it out, also under the next leader.
//!
//! [`membership`]: super::membership

use std::collections::BTreeSet;

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{ExpectMembers, Member, PromoteMember, RemoveMembers};

use crate::error::{Error, ErrorKind, Result};
use crate::master::state::lineage::{plan_removal, predecessors, successor};
use crate::master::state::query;
use crate::types::address::host_port;

use super::handle::Handle;
use super::membership::{Shape, VOTERS_MAX, is_moving, members, propose, shape};
use super::node::Running;
use super::wire::check_address;

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::FailedPrecondition, why))
}

impl Handle {
    /// Lets masters join at these Raft addresses. Returns all that are expected now.
    ///
    /// *Errors*: `InvalidArgument` for what is no host:port, `FailedPrecondition` for more voters than are allowed.
    pub async fn add_members(&self, addresses: Vec<String>, learners: bool) -> Result<Vec<String>> {
        let running = self.leading_now().await?;
        if addresses.is_empty() {
            return Err(Error::invalid("no address is given: name the Raft host:port of each new master"));
        }
        // One address in one form: what is expected is compared with what a master says of itself.
        let read = |address: &String| {
            let address = host_port(address).map_err(Error::invalid)?;
            check_address("Raft address of a new master", &address)?;
            Ok(address)
        };
        let addresses = addresses.iter().map(read).collect::<Result<Vec<String>>>()?;
        let cluster = query::cluster(&running.machine.store().view())?.unwrap_or_default();
        let voters = cluster.expected.iter().filter(|address| !cluster.learners.contains(address));
        let voters: BTreeSet<&String> = if learners { voters.collect() } else { voters.chain(&addresses).collect() };
        if voters.len() > VOTERS_MAX {
            return refuse(format!("{} voters would be expected, {VOTERS_MAX} is the most", voters.len()));
        }
        propose(&running, Kind::ExpectMembers(ExpectMembers { raft_addresses: addresses, learners })).await?;
        expected(&running)
    }

    /// Removes members, with those that were to replace them. Returns the addresses that are expected now. Repeated it
    /// changes nothing.
    ///
    /// *Errors*: `NotFound`; `FailedPrecondition` if too few voters would be left, an even number of them, or no majority
    /// of them that is heard and caught up; `Unavailable` if the membership changed in between: ask again.
    pub async fn remove_members(&self, ids: Vec<u64>, addresses: Vec<String>) -> Result<Vec<String>> {
        let running = self.leading_now().await?;
        if ids.is_empty() && addresses.is_empty() {
            return Err(Error::invalid("nobody is named: give member ids or Raft addresses"));
        }
        let known = members(&running)?;
        let wish = RemoveMembers { member_ids: ids, raft_addresses: addresses, checked_ids: Vec::new() };
        let leaving = plan_removal(&known, &expected(&running)?, &wish)?.leaving;
        may_remove(&running, &known, &leaving)?;
        // The state machine decides once more what the removal takes, and refuses if that is more than was checked.
        let checked_ids = leaving.into_iter().collect();
        propose(&running, Kind::RemoveMembers(RemoveMembers { checked_ids, ..wish })).await?;
        expected(&running)
    }

    /// Lets a learner become a voter.
    ///
    /// *Errors*: `NotFound`, `FailedPrecondition` for one that is retired or being removed.
    pub async fn promote_member(&self, id: u64) -> Result<()> {
        let running = self.leading_now().await?;
        propose(&running, Kind::PromoteMember(PromoteMember { member_id: id })).await.map(|_| ())
    }

    /// Why the member must not be restarted now; `None` if it may: a majority without it is heard and caught up, and
    /// nobody is on the way in or out.
    ///
    /// *Errors*: `NotFound` for no member of the group.
    pub async fn must_not_restart(&self, id: u64) -> Result<Option<String>> {
        let running = self.leading_now().await?;
        let shape = shape(&running);
        if !shape.nodes.contains_key(&id) {
            return Err(Error::new(ErrorKind::NotFound, format!("member {id} is not in the group")));
        }
        Ok(reason_to_wait(&running, &members(&running)?, &shape, id))
    }

    /// This member, while it leads and a quorum says so.
    async fn leading_now(&self) -> Result<std::sync::Arc<Running>> {
        let running = self.must_run()?;
        if running.leading().is_none() {
            return Err(running.not_leader());
        }
        running.read_barrier().await?;
        Ok(running)
    }
}

fn expected(running: &Running) -> Result<Vec<String>> {
    Ok(query::cluster(&running.machine.store().view())?.unwrap_or_default().expected)
}

/// Checks that the voters can do without the `leaving` members.
fn may_remove(running: &Running, known: &[Member], leaving: &BTreeSet<u64>) -> Result<()> {
    let shape = shape(running);
    // While the voters are being changed, the set to come is the one that is left.
    let voters = shape.joint().unwrap_or(&shape.voters);
    let left: BTreeSet<u64> = voters.difference(leaving).copied().collect();
    if left.len() == voters.len() {
        return Ok(());
    }
    if left.is_empty() {
        return refuse("no voter would be left");
    }
    // One that takes the place of a voter that stays makes them no more.
    let joins = |m: &Member| !m.retired && !m.learner && !leaving.contains(&m.id) && !voters.contains(&m.id);
    let adds = |m: &Member| successor(known, m.id).is_none() && predecessors(known, m.id).is_disjoint(&left);
    if left.len().is_multiple_of(2) && !known.iter().any(|m| joins(m) && adds(m)) {
        return refuse(format!(
            "{} voters would be left, which survive no more losses than {}: name one more member, or add one first",
            left.len(),
            left.len() - 1
        ));
    }
    let majority = left.len() / 2 + 1;
    if running.count_sound(&shape, left.iter().copied()) < majority {
        return refuse(format!("no majority of the voters that stay ({left:?}) is heard and caught up"));
    }
    Ok(())
}

fn reason_to_wait(running: &Running, known: &[Member], shape: &Shape, id: u64) -> Option<String> {
    if !shape.voters.contains(&id) {
        return None;
    }
    if shape.joint().is_some() {
        return Some("the voters are being changed".to_owned());
    }
    // One that is silent may never arrive: then only the count below decides.
    let moving = |m: &&Member| m.id != id && is_moving(known, m, &shape.voters) && running.is_heard(m.id);
    if let Some(other) = known.iter().find(moving) {
        return Some(format!("member {} is on its way {}", other.id, if other.leaving { "out" } else { "in" }));
    }
    let majority = shape.voters.len() / 2 + 1;
    let others = shape.voters.iter().copied().filter(|other| *other != id);
    let sound = running.count_sound(shape, others);
    (sound < majority).then(|| {
        format!("without it {sound} of {} voters are heard and caught up, {majority} are needed", shape.voters.len())
    })
}
