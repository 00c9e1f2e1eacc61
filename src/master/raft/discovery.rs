//! How an empty disk finds the cluster that it is to join.
//!
//! A master is configured with its peers once, while members come and go: those that an empty disk is configured with may all
//! have been removed, or have lost their disks as well. The members still announce themselves at its address, where they miss the
//! disk that was lost. So a disk whose configured peers are no members asks a member that has announced itself. What follows
//! from the answers is decided in [`choice`](super::choice).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::Member;

use crate::error::Result;
use crate::master::state::query;
use crate::runtime::attended::{AttendedClock, Moment};
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{failpoint_io, now_ns};

use super::announcers::Announcers;
use super::choice::{self, Choice, Cluster, Look, Offer, PeerState, WAITING};
use super::handle::Handle;
use super::identity::{Identity, Stage};
use super::life::{BEAT, PROBE};
use super::listening::Listening;
use super::promise::{Attempt, Promise};
use super::wire::{check_address, check_id};

/// What a disk without a cluster knows of other masters, and what it has told them.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) announcers: Announcers,
    pub(super) listening: Listening,
    clock: AttendedClock,
    /// When each configured peer has last answered; the first look, for one that never has.
    answered: Mutex<BTreeMap<String, Moment>>,
    /// The incarnation that asks to be admitted, and since when.
    asking: Mutex<Option<([u8; 16], Moment)>>,
    /// As on the disk.
    promise: Mutex<Option<Promise>>,
    attempt: Mutex<Option<Attempt>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Discovery {
    pub(crate) fn new(promise: Option<Promise>) -> Discovery {
        Discovery::with_clock(promise, AttendedClock::of_process())
    }

    fn with_clock(promise: Option<Promise>, clock: AttendedClock) -> Discovery {
        Discovery {
            announcers: Announcers::default(),
            listening: Listening::new(clock.clone()),
            clock,
            answered: Mutex::default(),
            asking: Mutex::default(),
            promise: Mutex::new(promise),
            attempt: Mutex::default(),
        }
    }

    /// Forgets when peers have answered and announced themselves: a member neither asks peers
    /// nor remembers announcements.
    pub(super) fn forget_silence(&self) {
        lock(&self.answered).clear();
        self.listening.restart();
    }

    /// How long a peer that was just asked has been silent. Time in which this process did not run does not count.
    fn silence_of(&self, peer: &str, has_answered: bool) -> Duration {
        let now = self.clock.now();
        let mut answered = lock(&self.answered);
        let last = answered.entry(peer.to_owned()).or_insert(now);
        if has_answered {
            *last = now;
        }
        self.clock.silence_since(*last)
    }

    /// How long this incarnation has been asking to be admitted, since this process began with it.
    pub(super) fn unadmitted(&self, incarnation: [u8; 16]) -> Duration {
        let now = self.clock.now();
        let mut asking = lock(&self.asking);
        let since = match *asking {
            Some((known, since)) if known == incarnation => since,
            _ => now,
        };
        *asking = Some((incarnation, since));
        self.clock.silence_since(since)
    }

    /// Shows the peers that this master is about to found a cluster, until the guard is dropped.
    pub(super) fn begin_attempt(&self, cluster: Cluster) -> (AttemptGuard<'_>, Attempt) {
        let attempt = Attempt::new(cluster);
        *lock(&self.attempt) = Some(attempt);
        (AttemptGuard(self), attempt)
    }

    fn attempt(&self) -> Option<Attempt> {
        *lock(&self.attempt)
    }

    fn promise(&self) -> Option<Promise> {
        lock(&self.promise).clone()
    }
}

/// An attempt to found a cluster under way.
#[derive(Debug)]
pub(super) struct AttemptGuard<'a>(&'a Discovery);

impl Drop for AttemptGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.attempt) = None;
    }
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

/// The cluster of a member that has a place for the disk that asked, and names its leader. A cluster without one admits
/// nobody.
fn place_offered(answer: &wire::ProbeResponse) -> Option<Cluster> {
    let is_member = answer.state == Stage::Member.name();
    let has_leader = !answer.leader_raft_address.is_empty() || is_planted(PlantedFault::PlaceWithoutLeader);
    let cluster = Cluster::try_from(answer.cluster_uuid.as_ref()).ok();
    cluster.filter(|_| is_member && has_leader && answer.has_place_for_asker)
}

/// True for the answer of the leader itself.
fn is_of_leader(answer: &wire::ProbeResponse) -> bool {
    answer.leader_raft_address == answer.raft_address || is_planted(PlantedFault::PlaceWithoutLeader)
}

impl Handle {
    /// An empty disk joins a cluster that it belongs to; it never makes one.
    pub(super) async fn look_for_a_cluster(&self) -> Result<()> {
        if !self.phase().starts_with("empty") {
            self.set_phase(WAITING);
        }
        // The server of this process runs by now: what is announced from here on is heard.
        self.0.discovery.listening.time();
        let peers = self.states_of_peers().await;
        let mut choice = self.choose(&peers, None)?;
        if choice == Choice::AskAnnouncers {
            let offers = self.ask_announcers().await;
            choice = self.choose(&peers, Some(&offers))?;
            if matches!(choice, Choice::Join(_)) {
                tracing::info!(?offers, "no configured peer is a member: what has announced itself is joined");
            }
        }
        match choice {
            Choice::Join(cluster) => return self.begin_joining(cluster).await,
            Choice::Promise(promise) => return self.give_promise(promise),
            Choice::Wait(why) => self.set_phase(why),
            Choice::AskAnnouncers => {}
        }
        tokio::time::sleep(BEAT).await;
        Ok(())
    }

    /// Decides, and takes a promise from the disk that has become void.
    fn choose(&self, peers: &[(String, PeerState)], offers: Option<&[Offer]>) -> Result<Choice> {
        let discovery = &self.0.discovery;
        let promise = discovery.promise();
        let founder = self.founder();
        let look = Look { founder: founder.as_deref(), peers, promise: promise.as_ref(), offers };
        let choice = choice::choose(&look);
        if let Some(promise) = promise.as_ref().filter(|promise| choice::is_void(promise, &look)) {
            tracing::info!(founder = promise.founder, "the founder has taken its founding back: the promise ends");
            self.end_promise()?;
        }
        Ok(choice)
    }

    /// The first configured master, unless this is it.
    fn founder(&self) -> Option<String> {
        self.config().peers.first().filter(|first| **first != self.raft_address()).cloned()
    }

    pub(super) fn give_promise(&self, promise: Promise) -> Result<()> {
        tracing::info!(founder = promise.founder, "promised to join the cluster that is founded, and no other");
        failpoint_io("promise.begin")?;
        self.0.space.at_start(|| promise.store(&self.0.dir))?;
        failpoint_io("promise.recorded")?;
        *lock(&self.0.discovery.promise) = Some(promise);
        Ok(())
    }

    pub(super) async fn begin_joining(&self, cluster: Cluster) -> Result<()> {
        let _alone = self.0.life.lock().await;
        if self.identity().is_some() {
            return Ok(());
        }
        failpoint_io("join.begin")?;
        self.set_identity(Identity::new(Stage::Joining, cluster, 0))?;
        failpoint_io("join.recorded")?;
        Ok(())
    }

    /// The cluster has admitted this disk: the promise is fulfilled. Before that it stays, as the disk may be empty again.
    pub(super) fn end_promise(&self) -> Result<()> {
        if lock(&self.0.discovery.promise).is_some() {
            Promise::remove(&self.0.dir)?;
            *lock(&self.0.discovery.promise) = None;
        }
        Ok(())
    }

    /// Asks every other configured master what it is.
    pub(super) async fn states_of_peers(&self) -> Vec<(String, PeerState)> {
        let peers = self.other_peers();
        let answers = join_all(peers.iter().map(|peer| self.0.resolver.probe(peer, PROBE))).await;
        let own = &self.config().peers;
        let state = |(peer, answer): (String, Result<wire::ProbeResponse>)| {
            let silence = self.0.discovery.silence_of(&peer, answer.is_ok());
            (peer, answer.map_or(PeerState::Silent(silence), |answer| PeerState::of(&answer, own)))
        };
        peers.into_iter().zip(answers).map(state).collect()
    }

    /// Why this disk, which was not admitted so far, is to look for a cluster anew.
    pub(super) async fn reason_to_leave(&self, identity: &Identity) -> Option<String> {
        if is_planted(PlantedFault::JoiningForGood) {
            return None;
        }
        let peers = self.states_of_peers().await;
        let founder = self.founder();
        let look = Look { founder: founder.as_deref(), peers: &peers, promise: None, offers: None };
        let unadmitted = self.0.discovery.unadmitted(identity.incarnation_bytes());
        choice::reason_to_leave(identity.cluster_bytes(), &look, unadmitted)
    }

    /// The masters that have announced themselves and have a place for this disk, asked now.
    pub(super) async fn ask_announcers(&self) -> Vec<Offer> {
        let announcers = &self.0.discovery.announcers;
        let addresses = announcers.addresses();
        let answers = join_all(addresses.iter().map(|address| self.ask_for_place(address))).await;
        let mut offers = Vec::new();
        for (address, cluster) in addresses.into_iter().zip(answers) {
            let Some(cluster) = cluster else {
                announcers.forget(&address);
                continue;
            };
            announcers.confirm(&address, cluster);
            offers.push(Offer { address, cluster });
        }
        offers
    }

    /// The cluster of the master at `address`, if that and its leader have a place for this disk. A follower may hear a
    /// leader that has lost its quorum: only the leader knows whether it can admit anybody.
    async fn ask_for_place(&self, address: &str) -> Option<Cluster> {
        let request = wire::ProbeRequest {
            raft_address: self.raft_address(),
            peers: self.config().peers.clone(),
            ..wire::ProbeRequest::default()
        };
        let said = self.0.resolver.probe_with(address, request.clone(), PROBE).await.ok()?;
        let cluster = place_offered(&said)?;
        if is_of_leader(&said) {
            return Some(cluster);
        }
        check_address("Raft address", &said.leader_raft_address).ok()?;
        let said = self.0.resolver.probe_with(&said.leader_raft_address, request, PROBE).await.ok()?;
        place_offered(&said).filter(|led| *led == cluster && is_of_leader(&said))
    }

    /// Who this master is and in which start, with the nonce of the request.
    ///
    /// *Errors*: `InvalidArgument` for a nonce that does not have 16 bytes.
    pub(crate) fn probe_answer(&self, request: wire::ProbeRequest) -> Result<wire::ProbeResponse> {
        check_id("nonce of a probe", &request.nonce)?;
        // The attempt first: it ends after the identity is stored. The other way round a founding that is recorded in between
        // would look like an empty disk, and its peers would take their promises back.
        let attempt = self.0.discovery.attempt();
        let identity = self.identity();
        let attempt = attempt.filter(|_| identity.is_none());
        let promise = self.0.discovery.promise().filter(|_| identity.is_none());
        let leader = self.running().and_then(|running| {
            let id = running.look(|m| m.current_leader)?;
            running.net.book.get(id).map(|node| node.raft_address)
        });
        let stage = identity.as_ref().map(|identity| identity.stage).or(attempt.map(|_| Stage::Founding));
        let cluster = identity.as_ref().map(Identity::cluster_bytes).or(attempt.map(|attempt| attempt.cluster));
        Ok(wire::ProbeResponse {
            has_place_for_asker: self.has_place_for(&request),
            nonce: request.nonce,
            boot: identity.as_ref().map_or(0, |identity| identity.boot),
            boot_nonce: identity.as_ref().map(|_| self.0.nonce.to_vec().into()).unwrap_or_default(),
            state: stage.map_or("empty", Stage::name).to_owned(),
            cluster_uuid: cluster.map(|cluster| cluster.to_vec().into()).unwrap_or_default(),
            member_id: identity.as_ref().map_or(0, |identity| identity.member_id),
            incarnation: identity.as_ref().map(|i| i.incarnation_bytes().to_vec().into()).unwrap_or_default(),
            peers: self.config().peers.clone(),
            grpc_address: self.grpc_address(),
            raft_address: self.raft_address(),
            leader_raft_address: leader.unwrap_or_default(),
            founding_attempt: attempt.map(|attempt| attempt.nonce.to_vec().into()).unwrap_or_default(),
            promised_attempt: promise.map(|promise| promise.attempt().to_vec().into()).unwrap_or_default(),
            now_ns: now_ns(),
        })
    }

    /// Whether the sender of a probe has its place in this cluster, as far as this master knows; false if it did not ask,
    /// and while no leader lives: a member of a cluster that was given up must not draw in disks that are to found another.
    fn has_place_for(&self, request: &wire::ProbeRequest) -> bool {
        let Some(running) = self.running().filter(|_| !request.raft_address.is_empty()) else { return false };
        if !running.knows_living_leader() && !is_planted(PlantedFault::PlaceWithoutLeader) {
            return false;
        }
        let store = running.machine.store();
        let view = store.view();
        let (Ok(Some(cluster)), Ok(members)) = (query::cluster(&view), query::members(&view)) else { return false };
        has_place(&cluster.expected, &members, &request.raft_address, &request.peers)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::simulation::master_config;
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
    fn a_place_counts_only_where_a_leader_is_named_and_the_leader_says_so_itself() {
        let good = wire::ProbeResponse {
            state: "member".to_owned(),
            cluster_uuid: vec![7; 16].into(),
            has_place_for_asker: true,
            raft_address: "a:1".to_owned(),
            leader_raft_address: "b:1".to_owned(),
            ..wire::ProbeResponse::default()
        };
        assert_eq!(place_offered(&good), Some([7; 16]));
        assert!(
            !is_of_leader(&good) && is_of_leader(&wire::ProbeResponse { raft_address: "b:1".into(), ..good.clone() })
        );
        for bad in [
            wire::ProbeResponse { leader_raft_address: String::new(), ..good.clone() },
            wire::ProbeResponse { has_place_for_asker: false, ..good.clone() },
            wire::ProbeResponse { state: "joining".to_owned(), ..good.clone() },
            wire::ProbeResponse { cluster_uuid: vec![7; 15].into(), ..good.clone() },
        ] {
            assert_eq!(place_offered(&bad), None, "{bad:?}");
        }
    }

    fn open(meta_dir: &Path, host: usize) -> Handle {
        Handle::open(master_config(meta_dir.to_path_buf(), host, &[0, 1, 2])).expect("opened")
    }

    fn probe(handle: &Handle) -> wire::ProbeResponse {
        let request = wire::ProbeRequest { nonce: vec![1; 16].into(), ..wire::ProbeRequest::default() };
        handle.probe_answer(request).expect("answered")
    }

    #[test]
    fn an_attempt_to_found_is_shown_until_it_is_recorded_or_given_up() {
        let temp = tempfile::tempdir().expect("tempdir");
        let handle = open(temp.path(), 0);
        for is_recorded in [false, true] {
            assert_eq!(probe(&handle).state, "empty");
            let (shown, attempt) = handle.0.discovery.begin_attempt([7; 16]);
            let said = probe(&handle);
            assert_eq!((&said.state[..], &said.cluster_uuid[..]), ("founding", &[7; 16][..]));
            assert_eq!((&said.founding_attempt[..], said.member_id), (&attempt.nonce[..], 0));
            if is_recorded {
                handle.set_identity(Identity::new(Stage::Founding, [7; 16], 1)).expect("recorded");
                assert_eq!(probe(&handle).state, "founding", "without a gap");
            }
            drop(shown);
            let (_other, later) = handle.0.discovery.begin_attempt([7; 16]);
            assert_ne!(later.nonce, attempt.nonce, "a promise counts for one attempt");
        }
        let said = probe(&handle);
        assert_eq!((&said.state[..], said.founding_attempt.len()), ("founding", 0));
    }

    #[tokio::test]
    async fn a_promise_is_kept_over_a_restart_and_ends_with_the_word_of_the_founder_or_with_its_fulfilment() {
        let temp = tempfile::tempdir().expect("tempdir");
        let founder = "10.0.0.1:8103";
        let peers = |state: PeerState| [(founder.to_owned(), state), ("10.0.0.3:8103".to_owned(), PeerState::Empty)];
        let handle = open(temp.path(), 1);
        let asks = PeerState::Founding { cluster: [7; 16], attempt: Some([4; 16]) };
        let Choice::Promise(promise) = handle.choose(&peers(asks), None).expect("chosen") else { panic!("no promise") };
        assert!(probe(&handle).promised_attempt.is_empty(), "not before it is on the disk");
        handle.give_promise(promise.clone()).expect("given");
        drop(handle);
        let handle = open(temp.path(), 1);
        let said = probe(&handle);
        assert_eq!((&said.promised_attempt[..], &said.state[..]), (&[4; 16][..], "empty"));
        // Killed, paused or cut off: an offer of another cluster must wait.
        let offer = [Offer { address: "z:1".to_owned(), cluster: [9; 16] }];
        let silent = PeerState::Silent(Duration::from_secs(86_400));
        let choice = handle.choose(&peers(silent), Some(&offer)).expect("chosen");
        assert!(matches!(choice, Choice::Wait(_)), "{choice:?}");
        let choice = handle.choose(&peers(PeerState::Empty), Some(&offer)).expect("chosen");
        assert_eq!(choice, Choice::Join([9; 16]), "the founder has founded nothing");
        drop(handle);
        let handle = open(temp.path(), 1);
        assert!(probe(&handle).promised_attempt.is_empty(), "it ended on the disk too");
        handle.give_promise(promise).expect("given");
        handle.begin_joining([7; 16]).await.expect("begun");
        assert!(probe(&handle).promised_attempt.is_empty());
        handle.forget_joining(&handle.identity().expect("joining")).expect("not admitted");
        assert_eq!(&probe(&handle).promised_attempt[..], &[4; 16], "bound until a cluster has admitted it");
        handle.end_promise().expect("fulfilled");
        assert!(probe(&handle).promised_attempt.is_empty());
    }

    #[test]
    fn silence_and_waiting_are_counted_only_while_this_process_runs() {
        let elapsed = Arc::new(AtomicU64::new(0));
        let source = elapsed.clone();
        let clock = AttendedClock::over(move || Duration::from_millis(source.load(Ordering::SeqCst)));
        let discovery = Discovery::with_clock(None, clock.clone());
        let run = |seconds: u64| {
            for _ in 0..seconds * 2 {
                elapsed.fetch_add(500, Ordering::SeqCst);
                clock.now();
            }
        };
        run(100);
        assert_eq!(discovery.silence_of("a:1", false), Duration::ZERO, "it was not asked before");
        assert_eq!(discovery.unadmitted([1; 16]), Duration::ZERO);
        run(20);
        assert_eq!(discovery.silence_of("a:1", false), Duration::from_secs(20));
        elapsed.fetch_add(3_600_000, Ordering::SeqCst);
        assert_eq!(discovery.silence_of("a:1", false), Duration::ZERO, "this process stood still");
        assert_eq!(discovery.unadmitted([1; 16]), Duration::ZERO, "and was not there to be admitted");
        run(40);
        assert_eq!(discovery.unadmitted([1; 16]), Duration::from_secs(40));
        assert_eq!(discovery.unadmitted([2; 16]), Duration::ZERO, "another disk");
        assert_eq!(discovery.silence_of("a:1", true), Duration::ZERO);
        run(5);
        assert_eq!(discovery.silence_of("a:1", false), Duration::from_secs(5));
        discovery.forget_silence();
        assert_eq!(discovery.silence_of("a:1", false), Duration::ZERO, "nobody asked it while this disk was a member");
    }
}
