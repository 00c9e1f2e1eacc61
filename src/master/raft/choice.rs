//! Which cluster an empty disk joins, and when a disk that was not admitted gives up: decided from what the masters
//! answered, without a clock and without the network.
//!
//! The word of configured masters comes first. A configured master that is a member is believed at once. A founding among the
//! configured masters comes next, and excludes everything else from the promise on: see [`promise`](super::promise). Only
//! where each configured master has said that it is no member, or has been silent for long, do those count that have
//! announced themselves, and only if all of them speak of one cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use jindofs_proto::raft::v1 as wire;

use super::identity::Stage;
use super::promise::Promise;

/// Silence of a configured master after which this disk does not wait for it any more. Masters that are set up together start
/// within this time, so that none of them is drawn into an old cluster while another one boots; a lost disk is replaced
/// later by no more than that.
pub(super) const PEER_SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a disk asks one cluster to admit it. A cluster that lives needs a few election timeouts: to elect a leader, and for
/// that one to see that the old disk is silent. To look anew costs nothing where the same cluster is found again.
pub(super) const ADMISSION_TIMEOUT: Duration = Duration::from_secs(60);

/// Most masters that a reason names: it becomes part of error messages.
const NAMED_MAX: usize = 3;

/// What an empty disk says while nothing is unusual. All its reasons begin with the word "empty", which the operator and the
/// Fluid runtime look for.
pub(super) const WAITING: &str = "empty: waiting to be provisioned, or for a peer that is a member";

pub(super) type Cluster = [u8; 16];

/// What a configured master is, by its own word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerState {
    /// It does not answer, and has not done so for this long while this process ran.
    Silent(Duration),
    /// It belongs to no cluster.
    Empty,
    /// It founds a cluster; with the attempt while it asks for promises.
    Founding {
        cluster: Cluster,
        attempt: Option<[u8; 16]>,
    },
    /// It has asked, or is about to ask, to be admitted.
    Joining(Cluster),
    Member(Cluster),
    /// A state that passes, or that this release does not know.
    Other,
}

impl PeerState {
    /// The state of a master that has answered. `own_peers` is the list that this master is configured with: an attempt to
    /// found a cluster of other masters is not promised to.
    pub(super) fn of(answer: &wire::ProbeResponse, own_peers: &[String]) -> PeerState {
        let is = |stage: Stage| answer.state == stage.name();
        if answer.state == "empty" {
            return PeerState::Empty;
        }
        let Ok(cluster) = Cluster::try_from(answer.cluster_uuid.as_ref()) else { return PeerState::Other };
        if is(Stage::Founding) {
            let attempt = <[u8; 16]>::try_from(answer.founding_attempt.as_ref()).ok();
            return PeerState::Founding { cluster, attempt: attempt.filter(|_| answer.peers == own_peers) };
        }
        if is(Stage::Joining) {
            return PeerState::Joining(cluster);
        }
        if is(Stage::Member) { PeerState::Member(cluster) } else { PeerState::Other }
    }
}

/// A master that has announced itself, and whose leader has a place for this disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) address: String,
    pub(super) cluster: Cluster,
}

/// What an empty disk knows at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    /// The first configured master, which alone may found; `None` on that master itself.
    pub(super) founder: Option<&'a str>,
    /// The other configured masters.
    pub(super) peers: &'a [(String, PeerState)],
    pub(super) promise: Option<&'a Promise>,
    /// What those offer that have announced themselves; `None` before they were asked.
    pub(super) offers: Option<&'a [Offer]>,
}

/// What an empty disk does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    Join(Cluster),
    /// Promises the founder to join this cluster and no other.
    Promise(Promise),
    /// Asks those that have announced themselves, then decides again.
    AskAnnouncers,
    /// Does nothing for the reason given.
    Wait(String),
}

impl Look<'_> {
    fn founder_state(&self) -> Option<&PeerState> {
        let founder = self.founder?;
        self.peers.iter().find(|(address, _)| address == founder).map(|(_, state)| state)
    }
}

/// True if the founder has taken a promise back: it is empty or belongs elsewhere, or another master is configured to found.
pub(super) fn is_void(promise: &Promise, look: &Look<'_>) -> bool {
    if look.founder != Some(promise.founder.as_str()) {
        return true;
    }
    match look.founder_state() {
        // Silence takes nothing back, nor does a state that passes.
        None | Some(PeerState::Silent(_) | PeerState::Other) => false,
        Some(PeerState::Empty | PeerState::Joining(_)) => true,
        Some(PeerState::Member(cluster)) => *cluster != promise.cluster(),
        // Another attempt gets a promise of its own, without a gap between the two.
        Some(PeerState::Founding { cluster, attempt }) => *cluster != promise.cluster() && attempt.is_none(),
    }
}

/// Decides for an empty disk.
pub(super) fn choose(look: &Look<'_>) -> Choice {
    if let Some(promise) = look.promise.filter(|promise| !is_void(promise, look)) {
        return keep(promise, look);
    }
    let mut members = BTreeMap::new();
    for (address, state) in look.peers {
        if let PeerState::Member(cluster) = state {
            members.entry(*cluster).or_insert(address.as_str());
        }
    }
    match members.keys().copied().collect::<Vec<_>>()[..] {
        [] => {}
        [cluster] => return Choice::Join(cluster),
        _ => return Choice::Wait(contradiction("configured masters are members of", &members)),
    }
    if let Some(choice) = look.peers.iter().find_map(|peer| heed_founding(peer, look)) {
        return choice;
    }
    let is_awaited = |state: &PeerState| match state {
        PeerState::Silent(time) => *time < PEER_SILENCE_MAX,
        PeerState::Other => true,
        _ => false,
    };
    let awaited = look.peers.iter().filter(|(_, state)| is_awaited(state)).map(|(address, _)| address.as_str());
    let awaited: Vec<&str> = awaited.take(NAMED_MAX).collect();
    if !awaited.is_empty() {
        return Choice::Wait(format!("{WAITING}; waits for {}", awaited.join(", ")));
    }
    match look.offers {
        None => Choice::AskAnnouncers,
        Some(offers) => choose_offer(offers, look.peers),
    }
}

/// A promise that was given: only the cluster of the founder is joined.
fn keep(promise: &Promise, look: &Look<'_>) -> Choice {
    let (founder, cluster) = (&promise.founder, name(promise.cluster()));
    match look.founder_state() {
        Some(PeerState::Member(founded)) => Choice::Join(*founded),
        Some(PeerState::Founding { cluster, attempt: Some(attempt) })
            if *attempt != promise.attempt() || *cluster != promise.cluster() =>
        {
            Choice::Promise(Promise::new(founder, *cluster, *attempt))
        }
        Some(PeerState::Silent(_)) => Choice::Wait(format!(
            "empty: promised to {founder}, which founds cluster {cluster} and does not answer. Way out: start that master, \
             with an empty directory if its own is lost; or name another master first in \
             namespace.backend.raft.initial-conf, everywhere"
        )),
        _ => Choice::Wait(format!("empty: promised to {founder}, which founds cluster {cluster}")),
    }
}

/// What a founding by a configured master asks for; `None` for a master that founds nothing.
fn heed_founding((address, state): &(String, PeerState), look: &Look<'_>) -> Option<Choice> {
    let PeerState::Founding { cluster, attempt } = state else { return None };
    Some(match attempt.filter(|_| look.founder == Some(address.as_str())) {
        Some(attempt) => Choice::Promise(Promise::new(address, *cluster, attempt)),
        None => Choice::Wait(format!("empty: {address} founds cluster {}", name(*cluster))),
    })
}

/// Joins the one cluster that everybody speaks of. A configured master that is joining a cluster has chosen it by the same
/// rule: it must be the same one.
fn choose_offer(offers: &[Offer], peers: &[(String, PeerState)]) -> Choice {
    let Some(first) = offers.first() else { return Choice::Wait(WAITING.to_owned()) };
    let mut named: BTreeMap<Cluster, &str> = BTreeMap::new();
    for offer in offers {
        named.entry(offer.cluster).or_insert(&offer.address);
    }
    for (address, state) in peers {
        if let PeerState::Joining(cluster) = state {
            named.entry(*cluster).or_insert(address);
        }
    }
    match named.len() {
        1 => Choice::Join(first.cluster),
        _ => Choice::Wait(contradiction("a master is expected here, or joins from a configured address, in", &named)),
    }
}

fn contradiction(what: &str, named: &BTreeMap<Cluster, &str>) -> String {
    let clusters = named.iter().take(NAMED_MAX).map(|(cluster, address)| format!("{} ({address})", name(*cluster)));
    format!(
        "empty: {what} different clusters, so none is joined: {}. Way out: name only masters of the right cluster in \
         namespace.backend.raft.initial-conf, or take this address out of the other one with `jindoctl cluster remove`",
        clusters.collect::<Vec<_>>().join(" and ")
    )
}

/// Why a disk that `chosen` has not admitted for the time `unadmitted` is to look for a cluster anew; `None` while it goes on
/// asking.
pub(super) fn reason_to_leave(chosen: Cluster, look: &Look<'_>, unadmitted: Duration) -> Option<String> {
    for (address, state) in look.peers {
        match state {
            PeerState::Member(cluster) if *cluster != chosen => {
                return Some(format!("configured master {address} is a member of cluster {}", name(*cluster)));
            }
            PeerState::Founding { cluster, .. } if *cluster != chosen && look.founder == Some(address.as_str()) => {
                return Some(format!("configured master {address} founds cluster {}", name(*cluster)));
            }
            _ => {}
        }
    }
    (unadmitted >= ADMISSION_TIMEOUT)
        .then(|| format!("cluster {} has not admitted this disk within {ADMISSION_TIMEOUT:?}", name(chosen)))
}

fn name(cluster: Cluster) -> String {
    uuid::Uuid::from_bytes(cluster).simple().to_string()
}

#[cfg(test)]
mod tests;
