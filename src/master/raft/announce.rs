//! How a member that starts or moves becomes known to its peers, and how they judge what it says of its disk.
//!
//! A starting member announces itself before its Raft runs, a running one again and again. The receiver believes what it
//! knows already; anything else it has confirmed by the disk first (see [`confirm`]). The leader records what was
//! confirmed, so that it outlives the processes that know it.
//!
//! [`confirm`]: super::confirm

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::AnnounceVerdict;
use jindofs_proto::store::v1::RecordBoot;
use jindofs_proto::store::v1::command::Command as Kind;
use openraft::ChangeMembers;

use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;

use super::confirm::{Claim, Slot, Verdict};
use super::handle::{Handle, Opened};
use super::identity::Identity;
use super::membership::{change, members, node_of, propose};
use super::node::Running;
use super::peers::Standing;
use super::quorum::has_quorum_in_each;
use super::wire::Net;

/// How often a running member repeats its announcement. A first master that has just started founds only after several of
/// these, see [`listening`](super::listening).
pub(super) const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause of a starting member between two rounds of announcements.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long a starting member waits for peers that have not answered, once a majority has.
const GRACE_PERIOD: Duration = Duration::from_secs(1);
/// Longest wait of a member for the answer to an announcement.
pub(super) const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait of the receiver for the disk behind an announcement; shorter than its sender waits. The confirmation
/// goes on, and the next announcement finds what came of it.
const JUDGE_TIMEOUT: Duration = Duration::from_millis(700);
/// Longest wait for another process with this disk where it was last.
const LAST_ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for an answer at the member's own address.
const OWN_ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a peer's refusal counts after it was last repeated.
const REFUSAL_TTL: Duration = Duration::from_secs(10);

/// Longest stored text of a refusal, in characters.
const REASON_CHARS_MAX: usize = 500;

/// What the peers of a starting member say of its disk.
pub(super) enum Welcome {
    /// A majority of each set of voters knows the disk as this member's.
    Given,
    /// Its place was given to another disk.
    Replaced,
}

/// The peers that refuse this disk as an old copy or a copy, and why.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<BTreeMap<u64, (String, Instant)>>);

impl Refusals {
    /// Notes what a peer said last: a refusal, or none.
    fn note(&self, peer: u64, reason: Option<String>) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => drop(refusals.insert(peer, (reason, Instant::now()))),
            None => drop(refusals.remove(&peer)),
        }
    }

    /// The peers whose refusal counts.
    fn peers(&self) -> BTreeSet<u64> {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().filter(|(_, (_, at))| at.elapsed() < REFUSAL_TTL).map(|(id, _)| *id).collect()
    }

    /// Why a peer refuses this disk; `None` if none does.
    pub(crate) fn reason(&self) -> Option<String> {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.values().find(|(_, at)| at.elapsed() < REFUSAL_TTL).map(|(reason, _)| reason.clone())
    }
}

/// The sending side.
impl Handle {
    fn announcement(&self, identity: &Identity, last_log_index: u64, starting: bool) -> wire::AnnounceRequest {
        wire::AnnounceRequest {
            cluster_uuid: identity.cluster_bytes().to_vec().into(),
            member_id: identity.member_id,
            incarnation: identity.incarnation_bytes().to_vec().into(),
            boot: identity.boot,
            boot_nonce: self.0.nonce.to_vec().into(),
            last_log_index,
            raft_address: self.raft_address(),
            grpc_address: self.grpc_address(),
            starting,
            disk_full: self.0.space.usage().full,
            disk_free_bytes: self.0.space.usage().free,
        }
    }

    async fn announce_at(&self, address: &str, news: wire::AnnounceRequest) -> Result<wire::AnnounceResponse> {
        let call = async {
            let mut client = self.0.resolver.connect(address, ANNOUNCE_TIMEOUT).await?;
            let answer = client.announce(news).await;
            answer.map(tonic::Response::into_inner).map_err(|status| crate::rpc::status::from_status(&status))
        };
        tokio::time::timeout(ANNOUNCE_TIMEOUT, call)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("master {address} does not answer"))))
    }

    /// Announces a starting member until a majority of each of `voter_sets` knows its disk; `last` is the last index of its
    /// log.
    ///
    /// *Errors*: refusals of this disk, with the way out.
    pub(super) async fn ask_peers(
        &self,
        identity: &Identity,
        voter_sets: &[BTreeSet<u64>],
        addresses: &BTreeSet<String>,
        last: u64,
    ) -> Result<Welcome> {
        let mut welcome = BTreeSet::from([identity.member_id]);
        let mut heard = BTreeSet::new();
        let mut enough_since: Option<Instant> = None;
        loop {
            let silent = addresses.iter().filter(|address| !heard.contains(*address));
            let news = self.announcement(identity, last, true);
            let answers = silent.map(|address| {
                let news = news.clone();
                async move { (address, self.announce_at(address, news).await) }
            });
            for (address, answer) in join_all(answers).await {
                let Ok(answer) = answer else { continue };
                heard.insert(address.clone());
                match answer.verdict() {
                    AnnounceVerdict::Reverted => {
                        // A peer's text is cut: it is stored.
                        let reason: String = answer.reason.chars().take(REASON_CHARS_MAX).collect();
                        self.change_identity(|identity| identity.reverted = Some(reason.clone()))?;
                        return Err(self.reverted(&reason));
                    }
                    AnnounceVerdict::Copy => return Err(self.copied(&answer.reason)),
                    AnnounceVerdict::Foreign if self.0.config.peers.contains(address) => {
                        return Err(self.foreign(identity, address));
                    }
                    AnnounceVerdict::Retired => return Ok(Welcome::Replaced),
                    AnnounceVerdict::Welcome => {
                        welcome.insert(answer.member_id);
                    }
                    AnnounceVerdict::Foreign | AnnounceVerdict::Unspecified => {}
                }
            }
            if has_quorum_in_each(voter_sets, &welcome) {
                let since = *enough_since.get_or_insert_with(Instant::now);
                if heard.len() == addresses.len() || since.elapsed() > GRACE_PERIOD {
                    return Ok(Welcome::Given);
                }
            } else {
                let known = welcome.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
                let needed: Vec<String> = voter_sets.iter().map(|voters| format!("{voters:?}")).collect();
                let needed = needed.join(" and of ");
                self.set_phase(format!("recovering: members {known} are here, a majority of {needed} is needed"));
            }
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }

    /// Refuses a directory that another process runs with, at the address on record or at this master's own. Peers refuse
    /// it too; a sole master has none.
    ///
    /// *Errors*: `FailedPrecondition` with the way out.
    pub(super) async fn refuse_copy(&self, identity: &Identity, opened: &Opened) -> Result<()> {
        let own = self.raft_address();
        let mut asked = BTreeMap::from([(own.clone(), OWN_ADDRESS_TIMEOUT)]);
        if let Some(recorded) =
            opened.net.peers.recorded_address(identity.member_id).filter(|recorded| *recorded != own)
        {
            asked.insert(recorded, LAST_ADDRESS_TIMEOUT);
        }
        let answers = asked.iter().map(|(address, timeout)| self.0.resolver.probe(address, *timeout));
        for (address, answer) in asked.keys().zip(join_all(answers).await) {
            // An address that does not answer is no other process.
            let Ok(answer) = answer else { continue };
            let same_disk = answer.cluster_uuid == identity.cluster_bytes()[..]
                && answer.incarnation == identity.incarnation_bytes()[..];
            if same_disk && answer.boot_nonce != self.0.nonce[..] {
                return Err(self.copied(&copy_reason(identity.member_id, address, answer.boot)));
            }
        }
        Ok(())
    }

    fn reverted(&self, reason: &str) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "namespace.meta-dir {} must not be used: {reason}. It would vote against what it once acknowledged. Way \
                 out: put the newest disk back, or move this directory aside and start with an empty one",
                self.0.dir.path().display()
            ),
        )
    }

    fn copied(&self, reason: &str) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "namespace.meta-dir {} must not be used: {reason}, so this directory is a copy. Two processes must not vote \
                 as one member. Way out: put this master's own directory back, or move this one aside and start with an \
                 empty one; to move the member here, stop the other process first",
                self.0.dir.path().display()
            ),
        )
    }

    fn foreign(&self, identity: &Identity, address: &str) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "namespace.meta-dir {} belongs to cluster {}, but master {address} belongs to another: give this master its \
                 own directory, or an empty one",
                self.0.dir.path().display(),
                identity.cluster
            ),
        )
    }

    /// Announces a running member to all others again and again. Returns when a peer says that this disk was replaced.
    ///
    /// *Errors*: `FailedPrecondition` when so many peers refuse this disk that the cluster goes on without it.
    pub(super) async fn keep_announcing(&self, identity: &Identity, running: &Arc<Running>) -> Result<()> {
        loop {
            let last = running.look(|m| m.last_log_index.unwrap_or(0));
            let news = self.announcement(identity, last, false);
            if running.leading().is_some() {
                let recorded = match Claim::from_wire(&news) {
                    Ok(claim) => take_announcement(running, &claim).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = recorded {
                    tracing::info!(%error, "own address not recorded yet");
                }
            }
            let mut addresses: BTreeSet<String> = self.other_peers().into_iter().collect();
            let nodes = running.look(|m| m.membership_config.nodes().map(|(id, _)| *id).collect::<Vec<_>>());
            let known = nodes.into_iter().filter_map(|id| running.net.book.get(id)).map(|node| node.raft_address);
            addresses.extend(known);
            addresses.remove(&self.raft_address());
            let answers = addresses.iter().map(|address| self.announce_at(address, news.clone()));
            for answer in join_all(answers).await.into_iter().flatten() {
                if answer.verdict() == AnnounceVerdict::Retired {
                    return Ok(());
                }
                self.note_answer(running, answer)?;
            }
            // The leader learns at once that a disk is full, or has room again.
            let _ = tokio::time::timeout(ANNOUNCE_INTERVAL, self.0.space.changed()).await;
        }
    }

    /// Remembers whether a peer refuses this running member, and ends the member if so many do that together with this vote
    /// they are a majority: then the others can go on without it, and with another process in its place.
    fn note_answer(&self, running: &Running, answer: wire::AnnounceResponse) -> Result<()> {
        let me = running.net.me.id;
        let voter_sets = running.look(|m| m.membership_config.membership().get_joint_config().clone());
        // A process that says to be this very member is no peer, but all there is to contradict a sole master.
        if answer.member_id == me && voter_sets != [BTreeSet::from([me])] {
            return Ok(());
        }
        let error = match answer.verdict() {
            AnnounceVerdict::Reverted => self.reverted(&answer.reason),
            AnnounceVerdict::Copy => self.copied(&answer.reason),
            AnnounceVerdict::Welcome => {
                running.net.refusals.note(answer.member_id, None);
                return Ok(());
            }
            AnnounceVerdict::Unspecified | AnnounceVerdict::Retired | AnnounceVerdict::Foreign => return Ok(()),
        };
        tracing::error!(peer = answer.member_id, reason = answer.reason, "a peer refuses this disk");
        running.net.refusals.note(answer.member_id, Some(answer.reason));
        let mut refusing = running.net.refusals.peers();
        refusing.insert(me);
        if has_quorum_in_each(&voter_sets, &refusing) { Err(error) } else { Ok(()) }
    }
}

fn copy_reason(id: u64, address: &str, boot: u64) -> String {
    format!("member {id} runs with the same disk at {address}, as boot {boot}")
}

/// The receiving side.
impl Handle {
    /// Compares what a starting or running member says of its disk with what is known here, and has news confirmed by the
    /// disk before they are believed.
    ///
    /// *Errors*: `InvalidArgument` for what no member can say; `Unavailable` while it cannot be judged: announce it again.
    pub(crate) async fn judge_announcement(
        &self,
        news: wire::AnnounceRequest,
        sender: Option<IpAddr>,
    ) -> Result<wire::AnnounceResponse> {
        let claim = Claim::from_wire(&news)?;
        let Some(opened) = self.opened() else {
            self.0.discovery.announcers.note(&news, sender);
            self.0.discovery.listening.note_announcement();
            return Err(self.not_ready());
        };
        let judged = self.judge_claim(&opened, &claim, &news).await;
        if !judged.as_ref().is_ok_and(|answer| answer.verdict() == AnnounceVerdict::Welcome) {
            opened.net.refused.fetch_add(1, Ordering::Relaxed);
        }
        judged
    }

    async fn judge_claim(
        &self,
        opened: &Opened,
        claim: &Claim,
        news: &wire::AnnounceRequest,
    ) -> Result<wire::AnnounceResponse> {
        let net = &opened.net;
        let answer = |verdict: AnnounceVerdict, reason: String| {
            Ok(wire::AnnounceResponse { verdict: verdict.into(), reason, member_id: net.me.id })
        };
        if news.cluster_uuid != net.me.cluster[..] {
            return answer(AnnounceVerdict::Foreign, "this is another cluster".to_owned());
        }
        if claim.id == net.me.id {
            return self.judge_own_id(net, claim);
        }
        let members = query::members(&opened.machine.store().view())?;
        let Some(member) = members.iter().find(|member| member.id == claim.id) else {
            // Its admission is in the log at least, or this disk is far behind.
            return match opened.voters_in_log()?.get_node(&claim.id) {
                Some(node) if node.incarnation == news.incarnation => answer(AnnounceVerdict::Welcome, String::new()),
                _ => Err(Error::unavailable("the member is not known here yet")),
            };
        };
        if member.retired {
            return answer(AnnounceVerdict::Retired, format!("member {} was replaced", member.id));
        }
        let standing = match net.peers.judge(claim.id, &claim.start) {
            Ok(standing) => standing,
            Err(disbelief) => return answer(AnnounceVerdict::Reverted, disbelief.to_string()),
        };
        // The log of a running member grows while its announcement travels.
        let acked = self.acknowledged_by(claim.id).max(member.acked_index);
        let behind = (news.starting && news.last_log_index < acked).then(|| {
            format!("its log ends at {}, but it has acknowledged {acked}: its disk is an old copy", news.last_log_index)
        });
        let known = net.book.get(claim.id).unwrap_or_else(|| node_of(member));
        if standing == Standing::Unconfirmed || known != claim.node {
            // A copy of a running disk is behind too: to say that it is a copy names the better way out.
            match self.confirm(net, claim, behind.is_none()).await? {
                Verdict::Believed => {}
                Verdict::Copy { address, boot } => {
                    return answer(AnnounceVerdict::Copy, copy_reason(claim.id, &address, boot));
                }
                Verdict::Unconfirmed(why) if behind.is_none() => return Err(Error::unavailable(why)),
                Verdict::Unconfirmed(_) => {}
            }
        }
        if let Some(reason) = behind {
            return answer(AnnounceVerdict::Reverted, reason);
        }
        net.disks.note(claim.id, news.disk_full, news.disk_free_bytes);
        self.record(net, claim);
        answer(AnnounceVerdict::Welcome, String::new())
    }

    /// Another process says to be this member.
    fn judge_own_id(&self, net: &Net, claim: &Claim) -> Result<wire::AnnounceResponse> {
        let answer = |verdict: AnnounceVerdict, reason: String| {
            Ok(wire::AnnounceResponse { verdict: verdict.into(), reason, member_id: net.me.id })
        };
        if claim.start.nonce == net.me.nonce {
            // This process itself, by another name of its address.
            return answer(AnnounceVerdict::Welcome, String::new());
        }
        if claim.start.incarnation != net.me.incarnation {
            return answer(AnnounceVerdict::Reverted, format!("member {} is another disk", claim.id));
        }
        tracing::error!(address = claim.node.raft_address, boot = claim.start.boot, "another process has this disk");
        if self.running().is_none() {
            return Err(Error::unavailable("a member with this disk is starting here too"));
        }
        answer(AnnounceVerdict::Copy, copy_reason(claim.id, &self.raft_address(), net.me.boot))
    }

    /// Has a claim confirmed, and believed if `remember` is set, one at a time for each address where a master is known.
    async fn confirm(&self, net: &Arc<Net>, claim: &Claim, remember: bool) -> Result<Verdict> {
        let at = claim.node.raft_address.clone();
        let is_known = self.0.config.peers.contains(&at)
            || net.peers.recorded_address(claim.id).as_ref() == Some(&at)
            || net.book.get(claim.id).is_some_and(|node| node.raft_address == at);
        let slot = if is_known { Slot::At(claim.id, at) } else { Slot::Elsewhere(claim.id) };
        let busy = || Error::unavailable(format!("the disk of member {} is being asked: announce it again", claim.id));
        let permit = net.confirmations.begin(slot).ok_or_else(busy)?;
        let (net, claim) = (net.clone(), claim.clone());
        let confirmed = tokio::spawn(async move {
            let verdict = net.confirm(&claim, remember).await;
            tracing::info!(member = claim.id, boot = claim.start.boot, ?verdict, "announcement");
            drop(permit);
            verdict
        });
        match tokio::time::timeout(JUDGE_TIMEOUT, confirmed).await {
            Ok(verdict) => verdict.map_err(|error| Error::internal(format!("confirmation: {error}"))),
            Err(_) => Err(busy()),
        }
    }

    /// Lets the leader record a confirmed claim.
    fn record(&self, net: &Arc<Net>, claim: &Claim) {
        let Some(running) = self.running().filter(|running| running.leading().is_some()) else { return };
        // The record of an earlier announcement may wait for a quorum: one waits for each member.
        let Some(permit) = net.confirmations.begin(Slot::Record(claim.id)) else { return };
        let claim = claim.clone();
        tokio::spawn(async move {
            if let Err(error) = take_announcement(&running, &claim).await {
                tracing::warn!(member = claim.id, %error, "announcement not recorded; it is repeated");
            }
            drop(permit);
        });
    }
}

/// Records a confirmed start of a member, and where it is now, in the log and in the membership.
pub(crate) async fn take_announcement(running: &Arc<Running>, claim: &Claim) -> Result<()> {
    if running.leading().is_none() {
        return Ok(());
    }
    let known = members(running)?;
    let Some(member) = known.iter().find(|m| m.id == claim.id && m.incarnation == claim.start.incarnation) else {
        return Ok(());
    };
    let node = &claim.node;
    // First: it may be needed for the quorum that is to record it.
    running.net.book.set(claim.id, node);
    let moved = member.raft_address != node.raft_address || member.grpc_address != node.grpc_address;
    if moved || member.boot != claim.start.boot || member.boot_nonce != claim.start.nonce {
        let record = RecordBoot {
            member_id: claim.id,
            boot: claim.start.boot,
            boot_nonce: claim.start.nonce.clone().into(),
            raft_address: node.raft_address.clone(),
            grpc_address: node.grpc_address.clone(),
        };
        propose(running, Kind::RecordBoot(record)).await?;
    }
    let stale = running.look(|m| m.membership_config.get_node(&claim.id).is_some_and(|known| known != node));
    if stale {
        tracing::info!(member = claim.id, address = node.raft_address, "member moved");
        let nodes = BTreeMap::from([(claim.id, node.clone())]);
        change(running.raft.change_membership(ChangeMembers::SetNodes(nodes), true).await)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_counts_until_its_peer_takes_it_back() {
        let refusals = Refusals::default();
        refusals.note(2, None);
        assert_eq!(refusals.reason(), None);
        refusals.note(2, Some("an old copy".to_owned()));
        refusals.note(3, Some("a copy".to_owned()));
        assert_eq!(refusals.peers(), BTreeSet::from([2, 3]));
        refusals.note(2, None);
        assert_eq!(refusals.reason().as_deref(), Some("a copy"));
        refusals.note(3, None);
        assert_eq!(refusals.reason(), None);
    }
}
