//! The cluster's identity and its members.
//!
//! A member id is the log index of the entry that admitted it, so none is ever used twice; the founder is member 1.

use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{
    AdmitMember, ClusterRow, ExpectMembers, Found, Member, PromoteMember, RecordBoot, RecordWatermarks, RemoveMembers,
    RetireMember,
};

use super::apply::done;
use super::context::Ctx;
use super::fault::{Step, refuse};
use super::lineage;
use super::{Refusal, StoreError, Table, View, keys, rows};

/// Most member rows, retired ones included.
pub(super) const MEMBERS_MAX: usize = 100_000;

/// Most addresses masters are expected at.
const EXPECTED_MAX: usize = 32;

/// Founds the cluster. Repeated with the same uuid it changes nothing.
pub(super) fn found(ctx: &mut Ctx<'_>, request: &Found) -> Step<Answer> {
    let Some(founder) = &request.founder else { return refuse(Refusal::NoFounder) };
    if request.cluster_uuid.len() != 16 {
        return refuse(Refusal::BadClusterUuid);
    }
    if founder.id == 0 {
        return refuse(Refusal::NoFounderId);
    }
    match rows::read::<ClusterRow>(ctx.view(), Table::Meta, keys::CLUSTER)? {
        Some(row) if row.cluster_uuid == request.cluster_uuid => return Ok(done()),
        Some(_) => return refuse(Refusal::FoundedOtherwise),
        None => {}
    }
    let row = ClusterRow {
        cluster_uuid: request.cluster_uuid.clone(),
        expected: request.expected.clone(),
        ..ClusterRow::default()
    };
    put_cluster(ctx, &row);
    put(ctx, founder);
    Ok(done())
}

/// Admits a new member, whose id is the index of this entry. The same incarnation always gets its first id.
///
/// The leader has decided what the new disk replaces by what it had applied. Another admission or a removal may stand
/// before this entry in the log, also one of an earlier leader; so what the leader saw is checked again here.
///
/// *Errors*: `FailedPrecondition` for a retired disk and where no master is expected; `Unavailable` if the members at the
/// address are not those that the leader saw: the disk asks again.
pub(super) fn admit(ctx: &mut Ctx<'_>, request: &AdmitMember) -> Step<Answer> {
    if request.incarnation.len() != 16 {
        return refuse(Refusal::BadIncarnation);
    }
    let members = all(ctx.view())?;
    if let Some(known) = members.iter().find(|member| member.incarnation == request.incarnation) {
        if known.retired {
            return refuse(Refusal::DiskRetired { member: known.id });
        }
        return Ok(Answer::MemberId(known.id));
    }
    if members.len() >= MEMBERS_MAX {
        return refuse(Refusal::TooManyMembers { most: MEMBERS_MAX as u64 });
    }
    let row = cluster(ctx.view())?;
    if !row.expected.contains(&request.raft_address) {
        return refuse(Refusal::NotExpected { address: request.raft_address.clone().into() });
    }
    let mut occupants = lineage::occupants(&members, &request.raft_address);
    let as_seen = match request.replaces {
        0 => occupants.next().is_none(),
        replaced => occupants.any(|member| member.id == replaced),
    };
    if !as_seen {
        return refuse(Refusal::MembersChanged { address: request.raft_address.clone().into() });
    }
    let member = Member {
        id: ctx.index,
        learner: row.learners.contains(&request.raft_address),
        incarnation: request.incarnation.clone(),
        raft_address: request.raft_address.clone(),
        grpc_address: request.grpc_address.clone(),
        replaces: request.replaces,
        ..Member::default()
    };
    put(ctx, &member);
    Ok(Answer::MemberId(member.id))
}

/// Records a start of a member, and where it is reached now.
///
/// No bound is set on how far a boot rises: a disk counts its starts also where the cluster does not hear of them. The
/// leader proposes only what the disk itself has confirmed.
///
/// *Errors*: `Foreign` for a boot older than the recorded one, or another start with the same number: an old copy of
/// the disk.
pub(super) fn record_boot(ctx: &mut Ctx<'_>, request: &RecordBoot) -> Step<Answer> {
    if request.boot == 0 || request.boot_nonce.len() != 16 {
        return refuse(Refusal::BadBoot);
    }
    let mut member = live(ctx.view(), request.member_id)?;
    let known = member.boot;
    if request.boot < known || (request.boot == known && known != 0 && request.boot_nonce != member.boot_nonce) {
        return refuse(Refusal::OldBoot { member: member.id, boot: request.boot, known });
    }
    member.boot = request.boot;
    member.boot_nonce = request.boot_nonce.clone();
    if !request.raft_address.is_empty() && request.raft_address != member.raft_address {
        expect_elsewhere(ctx, &member.raft_address, &request.raft_address)?;
        member.raft_address = request.raft_address.clone();
    }
    if !request.grpc_address.is_empty() {
        member.grpc_address = request.grpc_address.clone();
    }
    put(ctx, &member);
    Ok(done())
}

/// Raises what members are known to have stored. Never lowers it.
pub(super) fn record_watermarks(ctx: &mut Ctx<'_>, request: &RecordWatermarks) -> Step<Answer> {
    for mark in &request.watermarks {
        let Some(mut member) = get(ctx.view(), mark.member_id)? else { continue };
        if mark.acked_index > member.acked_index {
            member.acked_index = mark.acked_index;
            put(ctx, &member);
        }
    }
    Ok(done())
}

/// Ends a membership. The row stays: its incarnation is never admitted again.
pub(super) fn retire(ctx: &mut Ctx<'_>, request: &RetireMember) -> Step<Answer> {
    let Some(mut member) = get(ctx.view(), request.member_id)? else {
        return refuse(Refusal::NoSuchMember { member: request.member_id });
    };
    if !member.retired {
        member.retired = true;
        put(ctx, &member);
    }
    Ok(done())
}

/// Lets masters join at these addresses.
pub(super) fn expect(ctx: &mut Ctx<'_>, request: &ExpectMembers) -> Step<Answer> {
    let mut row = cluster(ctx.view())?;
    for address in &request.raft_addresses {
        let known = row.expected.contains(address);
        if known && request.learners != row.learners.contains(address) {
            let address = address.clone().into();
            return refuse(match request.learners {
                true => Refusal::ExpectedAsVoter { address },
                false => Refusal::ExpectedAsLearner { address },
            });
        }
        if !known {
            row.expected.push(address.clone());
            if request.learners {
                row.learners.push(address.clone());
            }
        }
    }
    if row.expected.len() > EXPECTED_MAX {
        return refuse(Refusal::TooManyExpected { most: EXPECTED_MAX as u64 });
    }
    put_cluster(ctx, &row);
    Ok(done())
}

/// Marks members that have to go, with those that were to replace them, and forgets their addresses. Repeated it changes
/// nothing.
///
/// *Errors*: `NotFound`; `Unavailable` if a member would leave that the leader has not checked, because the membership
/// has changed since.
pub(super) fn remove(ctx: &mut Ctx<'_>, request: &RemoveMembers) -> Step<Answer> {
    let mut row = cluster(ctx.view())?;
    let members = all(ctx.view())?;
    let removal = lineage::plan_removal(&members, &row.expected, request)?;
    if let Some(id) = removal.leaving.iter().find(|id| !request.checked_ids.contains(id)) {
        return refuse(Refusal::UncheckedMember { member: *id });
    }
    for member in members.into_iter().filter(|m| !m.leaving && removal.leaving.contains(&m.id)) {
        put(ctx, &Member { leaving: true, ..member });
    }
    row.expected.retain(|address| !removal.addresses.contains(address));
    row.learners.retain(|address| !removal.addresses.contains(address));
    put_cluster(ctx, &row);
    Ok(done())
}

/// A learner may become a voter.
pub(super) fn promote(ctx: &mut Ctx<'_>, request: &PromoteMember) -> Step<Answer> {
    let member = live(ctx.view(), request.member_id)?;
    if member.leaving {
        return refuse(Refusal::MemberLeaving { member: member.id });
    }
    let mut row = cluster(ctx.view())?;
    row.learners.retain(|address| *address != member.raft_address);
    put_cluster(ctx, &row);
    put(ctx, &Member { learner: false, ..member });
    Ok(done())
}

/// A member that moved is expected where it is now: there its disk may be lost one day.
fn expect_elsewhere(ctx: &mut Ctx<'_>, from: &str, to: &str) -> Step {
    let mut row = cluster(ctx.view())?;
    let known = row.expected.iter().any(|address| address == to);
    for list in [&mut row.expected, &mut row.learners] {
        if let Some(address) = list.iter_mut().find(|address| *address == from && !known) {
            to.clone_into(address);
        }
    }
    put_cluster(ctx, &row);
    Ok(())
}

fn cluster(view: &dyn View) -> Result<ClusterRow, StoreError> {
    Ok(rows::read(view, Table::Meta, keys::CLUSTER)?.unwrap_or_default())
}

fn put_cluster(ctx: &mut Ctx<'_>, row: &ClusterRow) {
    rows::write(ctx.txn, Table::Meta, keys::CLUSTER, row);
}

fn live(view: &dyn View, id: u64) -> Step<Member> {
    match get(view, id)? {
        Some(member) if !member.retired => Ok(member),
        Some(_) => refuse(Refusal::MemberRetired { member: id }),
        None => refuse(Refusal::NoSuchMember { member: id }),
    }
}

fn get(view: &dyn View, id: u64) -> Result<Option<Member>, StoreError> {
    rows::read(view, Table::Member, &keys::id(id))
}

fn put(ctx: &mut Ctx<'_>, member: &Member) {
    rows::write(ctx.txn, Table::Member, &keys::id(member.id), member);
}

/// Every member there ever was, by id.
pub(super) fn all(view: &dyn View) -> Result<Vec<Member>, StoreError> {
    Ok(rows::scan(view, Table::Member, &[], MEMBERS_MAX)?.into_iter().map(|(_, member)| member).collect())
}
