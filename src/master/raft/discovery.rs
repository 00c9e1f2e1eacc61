//! How an empty disk finds the cluster that it is to join.
//!
//! A master is configured with its peers once, while members come and go: those that an empty disk is configured with may all
//! have been removed, or have lost their disks as well. The members still announce themselves at its address, where they miss the
//! disk that was lost. So a disk whose configured peers are no members asks a member that has announced itself.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use futures::future::join_all;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::Member;

use crate::error::Result;
use crate::master::state::query;
use crate::runtime::now_ns;
use crate::runtime::planted::{PlantedFault, is_planted};

use super::handle::Handle;
use super::identity::Stage;
use super::life::PROBE;
use super::wire::check_id;

/// Most announcers that are remembered, so that strangers cannot fill the memory.
const ANNOUNCERS_MAX: usize = 8;

/// Raft addresses at which members say to be, each with the cluster that they name; the newest comes last. Nothing of it is
/// believed before the master at the address was asked.
#[derive(Debug, Default)]
pub(crate) struct Announcers(Mutex<VecDeque<(String, [u8; 16])>>);

impl Announcers {
    /// Remembers the sender of an announcement that this master cannot judge, as its own disk is no member's.
    pub(crate) fn note(&self, news: &wire::AnnounceRequest) {
        let Ok(cluster) = <[u8; 16]>::try_from(news.cluster_uuid.as_ref()) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(address, _)| *address != news.raft_address);
        known.push_back((news.raft_address.clone(), cluster));
        if known.len() > ANNOUNCERS_MAX {
            known.pop_front();
        }
    }

    /// Forgets an address that did not answer as hoped: a member that is there announces itself again.
    pub(crate) fn forget(&self, address: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(known, _)| known != address);
    }

    fn all(&self) -> Vec<(String, [u8; 16])> {
        if is_planted(PlantedFault::AnnouncersIgnored) {
            return Vec::new();
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The addresses of those that name this cluster.
    pub(crate) fn of_cluster(&self, cluster: [u8; 16]) -> Vec<String> {
        self.all().into_iter().filter(|(_, named)| *named == cluster).map(|(address, _)| address).collect()
    }
}

/// The cluster of a master that answers as a member.
fn cluster_of_member(answer: &wire::ProbeResponse) -> Option<[u8; 16]> {
    let is_member = answer.state == Stage::Member.name();
    <[u8; 16]>::try_from(answer.cluster_uuid.as_ref()).ok().filter(|_| is_member)
}

/// Whether an empty disk at the address `asker`, configured with `peers`, has its place in this cluster.
///
/// It is not enough that a master is expected there: the machine may have been set up for a new cluster since. So the disk must
/// also be configured with another master of this cluster, whether that is still a member or was one.
fn has_place(expected: &[String], members: &[Member], asker: &str, peers: &[String]) -> bool {
    let known: BTreeSet<&String> = members.iter().map(|member| &member.raft_address).chain(expected).collect();
    let is_expected = expected.iter().any(|address| address == asker);
    is_expected && peers.iter().any(|peer| peer != asker && known.contains(peer))
}

impl Handle {
    /// The cluster that an empty disk is to join, by the word of a member that answers now.
    pub(super) async fn find_cluster(&self) -> Option<[u8; 16]> {
        let peers = self.other_peers();
        let answers = join_all(peers.iter().map(|peer| self.0.resolver.probe(peer, PROBE))).await;
        if let Some(cluster) = answers.iter().flatten().find_map(cluster_of_member) {
            return Some(cluster);
        }
        let announcers = self.0.announcers.all();
        let request = wire::ProbeRequest {
            raft_address: self.raft_address(),
            peers: self.config().peers.clone(),
            ..wire::ProbeRequest::default()
        };
        let asked = announcers.iter().map(|(address, _)| self.0.resolver.probe_with(address, request.clone(), PROBE));
        let answers = join_all(asked).await;
        let mut found = None;
        for ((address, _), answer) in announcers.iter().zip(answers) {
            match answer.ok().filter(|answer| answer.has_place_for_asker).as_ref().and_then(cluster_of_member) {
                Some(cluster) => found = found.or(Some((address, cluster))),
                None => self.0.announcers.forget(address),
            }
        }
        let (address, cluster) = found?;
        tracing::info!(
            address,
            "no configured peer is a member: the cluster is joined through a member that announced itself"
        );
        Some(cluster)
    }

    /// Who this master is and in which start, with the nonce of the request.
    ///
    /// *Errors*: `InvalidArgument` for a nonce that does not have 16 bytes.
    pub(crate) fn probe_answer(&self, request: wire::ProbeRequest) -> Result<wire::ProbeResponse> {
        check_id("nonce of a probe", &request.nonce)?;
        let identity = self.identity();
        let leader = self.running().and_then(|running| {
            let id = running.look(|m| m.current_leader)?;
            running.net.book.get(id).map(|node| node.raft_address)
        });
        Ok(wire::ProbeResponse {
            has_place_for_asker: self.has_place_for(&request),
            nonce: request.nonce,
            boot: identity.as_ref().map_or(0, |identity| identity.boot),
            boot_nonce: identity.as_ref().map(|_| self.0.nonce.to_vec().into()).unwrap_or_default(),
            state: identity.as_ref().map_or("empty", |identity| identity.stage.name()).to_owned(),
            cluster_uuid: identity.as_ref().map(|i| i.cluster_bytes().to_vec().into()).unwrap_or_default(),
            member_id: identity.as_ref().map_or(0, |identity| identity.member_id),
            incarnation: identity.as_ref().map(|i| i.incarnation_bytes().to_vec().into()).unwrap_or_default(),
            peers: self.config().peers.clone(),
            grpc_address: self.grpc_address(),
            raft_address: self.raft_address(),
            leader_raft_address: leader.unwrap_or_default(),
            now_ns: now_ns(),
        })
    }

    /// Whether the sender of a probe has its place in this cluster, as far as this master knows; false if it did not ask.
    fn has_place_for(&self, request: &wire::ProbeRequest) -> bool {
        let Some(store) = self.store().filter(|_| !request.raft_address.is_empty()) else { return false };
        let view = store.view();
        let (Ok(Some(cluster)), Ok(members)) = (query::cluster(&view), query::members(&view)) else { return false };
        has_place(&cluster.expected, &members, &request.raft_address, &request.peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|address| (*address).to_owned()).collect()
    }

    #[test]
    fn a_disk_has_its_place_where_it_is_expected_and_configured_with_another_master_of_the_cluster() {
        let member =
            |id, address: &str, retired| Member { id, raft_address: address.to_owned(), retired, ..Member::default() };
        let members =
            [member(1, "a:1", true), member(2, "b:1", true), member(3, "c:1", false), member(4, "d:1", false)];
        let expected = owned(&["c:1", "d:1", "e:1"]);
        let cases: [(&str, &[&str], bool); 7] = [
            ("c:1", &["a:1", "b:1", "c:1"], true),
            ("c:1", &["d:1"], true),
            // The other one is expected, and has not been admitted yet.
            ("c:1", &["e:1", "c:1"], true),
            ("a:1", &["a:1", "c:1"], false),
            // Another cluster is founded on this machine, with others or alone.
            ("c:1", &["x:1", "y:1", "c:1"], false),
            ("c:1", &["c:1"], false),
            ("c:1", &[], false),
        ];
        for (asker, peers, has) in cases {
            assert_eq!(has_place(&expected, &members, asker, &owned(peers)), has, "{asker} configured with {peers:?}");
        }
    }

    #[test]
    fn the_newest_announcers_are_remembered_each_once() {
        let announcers = Announcers::default();
        let note = |port: usize, cluster: u8| {
            announcers.note(&wire::AnnounceRequest {
                raft_address: format!("h:{port}"),
                cluster_uuid: vec![cluster; 16].into(),
                ..wire::AnnounceRequest::default()
            });
        };
        note(1, 7);
        (1..=ANNOUNCERS_MAX).for_each(|port| note(port, 8));
        assert_eq!(announcers.of_cluster([7; 16]), Vec::<String>::new(), "the newest announcement counts");
        assert_eq!(announcers.of_cluster([8; 16]).len(), ANNOUNCERS_MAX);
        note(100, 7);
        let of_cluster = announcers.of_cluster([8; 16]);
        assert!(of_cluster.len() == ANNOUNCERS_MAX - 1 && !of_cluster.contains(&"h:1".to_owned()), "{of_cluster:?}");
        announcers.forget("h:100");
        assert_eq!(announcers.of_cluster([7; 16]), Vec::<String>::new());
        announcers
            .note(&wire::AnnounceRequest { cluster_uuid: vec![1; 17].into(), ..wire::AnnounceRequest::default() });
        assert_eq!(announcers.all().len(), ANNOUNCERS_MAX - 1);
    }
}
