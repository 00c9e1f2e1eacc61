//! Which member stands in for which: a pure function of the member rows, shared by the commands that change them and by
//! the leader that acts on them, so that both agree.
//!
//! A new disk replaces the live member at its address. If that member was a replacement itself and lost its disk before
//! it voted, the new disk stands in for the whole chain, down to the voter that was lost first.

use std::collections::{BTreeMap, BTreeSet};

use jindofs_proto::store::v1::{Member, RemoveMembers};

use super::Refusal;
use super::fault::{Step, refuse};

/// The live member that stands in for member `id`, if there is one: admitted in its place, or in that of one that was. The
/// replacements in between may be retired.
pub fn successor(members: &[Member], id: u64) -> Option<&Member> {
    members.iter().filter(|member| !member.retired).find(|member| predecessors(members, member.id).contains(&id))
}

/// Every member that member `id` stands in for, retired ones included.
pub fn predecessors(members: &[Member], id: u64) -> BTreeSet<u64> {
    let replaces: BTreeMap<u64, u64> = members.iter().map(|member| (member.id, member.replaces)).collect();
    let mut found = BTreeSet::new();
    let mut at = id;
    // Ids rise with each admission, so a chain that does not fall is damaged and ends here.
    while let Some(before) = replaces.get(&at).copied().filter(|before| *before != 0 && *before < at) {
        found.insert(before);
        at = before;
    }
    found
}

/// The live members at `address` that no other live member stands in for: what a new disk there can replace.
pub fn occupants<'a>(members: &'a [Member], address: &'a str) -> impl Iterator<Item = &'a Member> {
    let here = move |member: &&Member| !member.retired && member.raft_address == address;
    members.iter().filter(here).filter(|member| successor(members, member.id).is_none())
}

/// What a removal comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Every live member that leaves once it is applied: by this removal or an earlier one.
    pub leaving: BTreeSet<u64>,
    /// Addresses at which no master is expected any more.
    pub addresses: BTreeSet<String>,
}

/// Decides what a removal comes to. It takes the members that are named, and the live members that stand in for them,
/// which would otherwise join in their place. It never takes a member that one of them was to replace: that one may vote.
///
/// *Errors*: `NotFound` for an id that was never given, and for an address at which no master is known or expected.
pub fn plan_removal(members: &[Member], expected: &[String], request: &RemoveMembers) -> Step<Removal> {
    for id in &request.member_ids {
        if !members.iter().any(|member| member.id == *id) {
            return refuse(Refusal::NoSuchMember { member: *id });
        }
    }
    for address in &request.raft_addresses {
        if !expected.contains(address) && !members.iter().any(|member| member.raft_address == *address) {
            return refuse(Refusal::NoMasterAt { address: address.clone().into() });
        }
    }
    let live = || members.iter().filter(|member| !member.retired);
    let named = |member: &&Member| {
        request.member_ids.contains(&member.id) || request.raft_addresses.contains(&member.raft_address)
    };
    let mut going: BTreeSet<u64> = live().filter(named).map(|member| member.id).collect();
    // Ascending, so that a replacement of a replacement is found as well.
    for member in live() {
        if !going.is_disjoint(&predecessors(members, member.id)) {
            going.insert(member.id);
        }
    }
    let leaves = |member: &Member| member.leaving || going.contains(&member.id);
    let mut addresses: BTreeSet<String> = request.raft_addresses.iter().cloned().collect();
    for member in live().filter(|member| going.contains(&member.id)) {
        // A replacement that is called off leaves its address to the member that it was to replace.
        if !live().any(|other| other.raft_address == member.raft_address && !leaves(other)) {
            addresses.insert(member.raft_address.clone());
        }
    }
    Ok(Removal { leaving: live().filter(|member| leaves(member)).map(|member| member.id).collect(), addresses })
}
