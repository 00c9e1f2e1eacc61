//! Those that say to be members, at an address where an empty disk or one that joins cannot judge them.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jindofs_proto::raft::v1 as wire;

use crate::runtime::planted::{PlantedFault, is_planted};

/// Most announcers that are remembered, so that strangers cannot fill the memory.
const ANNOUNCERS_MAX: usize = 8;
/// Most of them that one sender may fill before they are confirmed: one that names address after address evicts only itself.
const UNCONFIRMED_PER_SENDER_MAX: usize = 2;

/// Somebody who says to be a member.
#[derive(Debug, Clone)]
struct Announcer {
    raft_address: String,
    /// As announced; once confirmed, as the master at the address has said.
    cluster: [u8; 16],
    /// Where the announcement came from; unknown where the transport does not tell.
    sender: Option<IpAddr>,
    /// The master at the address was asked, and it is a member that has a place for this disk.
    confirmed: bool,
}

/// Raft addresses at which members say to be, each with the cluster that they name; the newest comes last. Nothing of it is
/// believed before the master at the address was asked. One that has answered well stays until it does not: neither
/// announcements from elsewhere nor one with its own address, which anybody can send, take its place.
#[derive(Debug, Default)]
pub(crate) struct Announcers(Mutex<VecDeque<Announcer>>);

impl Announcers {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Announcer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers the sender of an announcement that this master cannot judge, as its own disk is no member's. The caller
    /// has checked the length of the address.
    pub(crate) fn note(&self, news: &wire::AnnounceRequest, sender: Option<IpAddr>) {
        let Ok(cluster) = <[u8; 16]>::try_from(news.cluster_uuid.as_ref()) else { return };
        let mut known = self.lock();
        if known.iter().any(|one| one.confirmed && one.raft_address == news.raft_address) {
            return;
        }
        known.retain(|one| one.raft_address != news.raft_address);
        let is_of_sender = |one: &Announcer| !one.confirmed && one.sender == sender;
        if known.iter().filter(|one| is_of_sender(one)).count() >= UNCONFIRMED_PER_SENDER_MAX {
            evict(&mut known, is_of_sender);
        }
        let raft_address = news.raft_address.clone();
        known.push_back(Announcer { raft_address, cluster, sender, confirmed: false });
        if known.len() > ANNOUNCERS_MAX {
            evict(&mut known, |one| !one.confirmed);
        }
    }

    /// Remembers that the master at the address is a member of `cluster` with a place for this disk.
    pub(super) fn confirm(&self, raft_address: &str, cluster: [u8; 16]) {
        let mut known = self.lock();
        if let Some(one) = known.iter_mut().find(|one| one.raft_address == raft_address) {
            (one.cluster, one.confirmed) = (cluster, true);
        }
    }

    /// Forgets an address that did not answer as hoped: a member that is there announces itself again.
    pub(super) fn forget(&self, raft_address: &str) {
        self.lock().retain(|one| one.raft_address != raft_address);
    }

    /// The addresses of all.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.select(|_| true)
    }

    /// The addresses of those that were asked, and are members of this cluster with a place for this disk. Anybody can
    /// announce an address: one that was not asked is told nothing but a probe.
    pub(super) fn confirmed_of(&self, cluster: [u8; 16]) -> Vec<String> {
        self.select(|one| one.confirmed && one.cluster == cluster)
    }

    fn select(&self, is_meant: impl Fn(&Announcer) -> bool) -> Vec<String> {
        if is_planted(PlantedFault::AnnouncersIgnored) {
            return Vec::new();
        }
        self.lock().iter().filter(|one| is_meant(one)).map(|one| one.raft_address.clone()).collect()
    }
}

/// Removes the oldest one that may go.
fn evict(known: &mut VecDeque<Announcer>, may_go: impl Fn(&Announcer) -> bool) {
    if let Some(oldest) = known.iter().position(may_go) {
        known.remove(oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(raft_address: &str, cluster: u8) -> wire::AnnounceRequest {
        wire::AnnounceRequest {
            raft_address: raft_address.to_owned(),
            cluster_uuid: vec![cluster; 16].into(),
            ..wire::AnnounceRequest::default()
        }
    }

    fn sender(number: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, number]))
    }

    impl Announcers {
        /// The addresses of all that name this cluster, asked or not.
        fn of_cluster(&self, cluster: [u8; 16]) -> Vec<String> {
            self.select(|one| one.cluster == cluster)
        }
    }

    #[test]
    fn only_those_that_were_asked_count_and_only_for_the_cluster_that_they_have_named_then() {
        let announcers = Announcers::default();
        announcers.note(&news("member:1", 7), sender(1));
        announcers.note(&news("stranger:1", 7), sender(2));
        announcers.note(&news("other:1", 7), sender(3));
        assert_eq!(announcers.confirmed_of([7; 16]), Vec::<String>::new());
        announcers.confirm("member:1", [7; 16]);
        announcers.confirm("other:1", [8; 16]);
        assert_eq!(announcers.confirmed_of([7; 16]), ["member:1"]);
        assert_eq!(announcers.confirmed_of([8; 16]), ["other:1"]);
        announcers.forget("member:1");
        assert_eq!(announcers.confirmed_of([7; 16]), Vec::<String>::new());
    }

    #[test]
    fn the_newest_announcers_are_remembered_each_once() {
        let announcers = Announcers::default();
        let note = |number: u8, cluster: u8| announcers.note(&news(&format!("h:{number}"), cluster), sender(number));
        note(1, 7);
        (1..=8).for_each(|number| note(number, 8));
        assert_eq!(announcers.of_cluster([7; 16]), Vec::<String>::new(), "the newest announcement counts");
        assert_eq!(announcers.of_cluster([8; 16]).len(), ANNOUNCERS_MAX);
        note(100, 7);
        let of_cluster = announcers.of_cluster([8; 16]);
        assert!(of_cluster.len() == ANNOUNCERS_MAX - 1 && !of_cluster.contains(&"h:1".to_owned()), "{of_cluster:?}");
        announcers.forget("h:100");
        assert_eq!(announcers.of_cluster([7; 16]), Vec::<String>::new());
        announcers.note(
            &wire::AnnounceRequest { cluster_uuid: vec![1; 17].into(), ..wire::AnnounceRequest::default() },
            None,
        );
        assert_eq!(announcers.addresses().len(), ANNOUNCERS_MAX - 1);
    }

    #[test]
    fn a_stranger_that_announces_many_addresses_evicts_no_member() {
        for stranger in [sender(200), None] {
            let announcers = Announcers::default();
            announcers.note(&news("member:1", 7), sender(1));
            for port in 1..1_000 {
                announcers.note(&news(&format!("stranger:{port}"), 9), stranger);
            }
            assert_eq!(announcers.of_cluster([7; 16]), ["member:1"], "not even before it was asked");
            assert_eq!(announcers.of_cluster([9; 16]), ["stranger:998", "stranger:999"]);
        }
    }

    #[test]
    fn a_member_that_has_answered_is_evicted_and_renamed_by_nobody() {
        let announcers = Announcers::default();
        announcers.note(&news("member:1", 7), sender(1));
        announcers.confirm("member:1", [7; 16]);
        for number in 2..=255 {
            announcers.note(&news(&format!("stranger:{number}"), 9), sender(number));
            announcers.note(&news("member:1", 9), sender(number));
        }
        assert_eq!(announcers.of_cluster([7; 16]), ["member:1"]);
        assert_eq!(announcers.addresses().len(), ANNOUNCERS_MAX);
        announcers.forget("member:1");
        assert_eq!(announcers.of_cluster([7; 16]), Vec::<String>::new(), "it does not answer any more");
        // Nobody is left to go but the newest one.
        (0..=8u8).for_each(|number| announcers.note(&news(&format!("m:{number}"), 7), sender(number)));
        announcers.addresses().iter().for_each(|address| announcers.confirm(address, [7; 16]));
        announcers.note(&news("late:1", 7), sender(99));
        assert!(!announcers.addresses().contains(&"late:1".to_owned()), "{:?}", announcers.addresses());
    }
}
