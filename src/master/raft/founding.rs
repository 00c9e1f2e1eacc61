//! Founding: the one way a cluster comes into being, asked for once, on the first master of the list. All the others must be
//! empty, and [promise](super::promise) to join what is founded and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Found, Member};

use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{die, failpoint_io};

use super::disk_parts::Part;
use super::disk_space::is_out_of_space;
use super::handle::Handle;
use super::identity::{Identity, Stage};
use super::life::{BEAT, PROBE};
use super::listening::LISTENING_EXTENSION_MAX;
use super::membership;
use super::promise::Attempt;

/// Longest wait for the promises of the peers. A peer may be in the middle of a look at others, which takes up to three times
/// as long as it waits for one answer.
const PROMISE_TIMEOUT: Duration = Duration::from_secs(15);

/// True for a peer that asks a cluster to admit it, and was not admitted as far as it knows. It leaves that cluster, and is
/// empty again, when it sees that the first configured master is about to found another one.
fn is_unadmitted(answer: &wire::ProbeResponse) -> bool {
    answer.state == Stage::Joining.name() && answer.member_id == 0
}

fn cluster_of(answer: &wire::ProbeResponse) -> uuid::fmt::Simple {
    uuid::Uuid::from_slice(&answer.cluster_uuid).unwrap_or_default().simple()
}

/// Checks a peer that is to join what is founded: it is configured with the same masters, and is empty or may become so.
///
/// *Errors*: `FailedPrecondition`.
fn check_empty(peer: &str, answer: &wire::ProbeResponse, own_peers: &[String]) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorKind::FailedPrecondition, format!("not founded: {why}")));
    if answer.peers != own_peers {
        return refuse(format!(
            "master {peer} is configured with other masters: {} there, {} here",
            answer.peers.join(","),
            own_peers.join(",")
        ));
    }
    if answer.state != "empty" && !is_unadmitted(answer) {
        return refuse(format!("master {peer} is not empty: it is {} of cluster {}", answer.state, cluster_of(answer)));
    }
    Ok(())
}

/// The error for a peer that has not promised in time.
fn without_promise(peer: &str, answer: &wire::ProbeResponse) -> Error {
    if is_unadmitted(answer) {
        return Error::unavailable(format!(
            "not founded: master {peer} asks cluster {} to admit it, and does not leave it. Way out: stop {peer} and start it \
             with an empty directory; if that cluster still expects a master at this address, take it out there with \
             `jindoctl cluster remove`; then call again",
            cluster_of(answer)
        ));
    }
    Error::unavailable(format!(
        "not founded: master {peer} does not promise to join this cluster and no other. It may be of an older release, or \
         busy: all masters need one release; call again"
    ))
}

/// True if a founding that could not be stored is certainly not on the disk: there was no room, and `found` says that no file
/// is there. The lack of room may also strike when the name of the file is synced, after the file was put in place.
fn is_unrecorded(error: &Error, found: &Result<Part<Identity>>) -> bool {
    is_out_of_space(error) && matches!(found, Ok(Part::Missing))
}

/// The masters of a cluster that is founded, the founder first, at the address `own` that it has now.
fn founders(promised: Option<&[String]>, configured: &[String], own: &str) -> Vec<String> {
    let Some([_, others @ ..]) = promised else { return configured.to_vec() };
    let others = others.iter().filter(|other| *other != own).cloned();
    [own.to_owned()].into_iter().chain(others).collect()
}

impl Handle {
    /// Founds a cluster with the uuid the caller stored, or finishes doing so. A master that has just started listens for a
    /// few seconds first: a living cluster may miss its disk.
    ///
    /// *Errors*: `FailedPrecondition` or `Unavailable` with the peer that stands in the way; then nothing was changed.
    pub async fn provision(&self, uuid: [u8; 16]) -> Result<Vec<u64>> {
        {
            let _alone = self.0.life.lock().await;
            self.begin_founding(uuid).await?;
            self.found().await?;
        }
        let expected = self.voters_expected();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // While two sets of voters count, the change to the second may yet fail: only the first is certain.
            let certain = |running: std::sync::Arc<super::node::Running>| {
                running.look(|m| m.membership_config.membership().get_joint_config().first().cloned())
            };
            let voters: Vec<u64> = self.running().and_then(certain).into_iter().flatten().collect();
            if voters.len() >= expected {
                return Ok(voters);
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Timeout,
                    format!(
                        "the cluster is founded, but only {} of {expected} masters vote yet: call again",
                        voters.len()
                    ),
                ));
            }
            tokio::time::sleep(BEAT / 4).await;
        }
    }

    async fn begin_founding(&self, uuid: [u8; 16]) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorKind::FailedPrecondition, format!("not founded: {why}")));
        if let Some(identity) = self.identity() {
            if identity.cluster_bytes() == uuid && matches!(identity.stage, Stage::Founding | Stage::Member) {
                return Ok(());
            }
            return refuse(format!("this master already belongs to cluster {}", identity.cluster));
        }
        let own = self.raft_address();
        if self.0.config.peers.first() != Some(&own) {
            let first = self.0.config.peers.first().cloned().unwrap_or_default();
            return refuse(format!("only the first configured master founds: that is {first}, this is {own}"));
        }
        let count = self.0.config.peers.len();
        if count.is_multiple_of(2) || count > membership::VOTERS_MAX {
            return refuse(format!(
                "namespace.backend.raft.initial-conf lists {count} masters: list 1, 3, 5 or 7, as an even number survives no \
                 more losses than the odd one below it"
            ));
        }
        // Before the peers are asked to promise anything: as long as one of them stands in the way nothing is written.
        self.probe_empty_peers().await?;
        if !is_planted(PlantedFault::FoundedUnheard) {
            self.listen_for_announcers().await?;
        }
        self.refuse_if_missed().await?;
        let (_shown, attempt) = self.0.discovery.begin_attempt(uuid);
        self.collect_promises(&attempt).await?;
        failpoint_io("found.begin")?;
        // The founder is member 1: the index of the first leader's blank entry, which admits nobody else.
        if let Err(error) = self.set_identity(Identity::of_founder(uuid, 1, self.0.config.peers.clone())) {
            if !is_unrecorded(&error, &self.0.dir.load()) {
                // The file may hold the founding by now, while this master would tell its peers that it is empty.
                die(&format!("the founding cannot be recorded: {error}"));
            }
            return Err(error);
        }
        failpoint_io("found.recorded")?;
        Ok(())
    }

    /// Refuses to found while a living cluster that misses the disk of this master has announced itself here.
    ///
    /// *Errors*: `FailedPrecondition` with the master that has announced itself.
    async fn refuse_if_missed(&self) -> Result<()> {
        let offers = self.ask_announcers().await;
        let Some(offer) = offers.first() else { return Ok(()) };
        let cluster = uuid::Uuid::from_bytes(offer.cluster).simple();
        Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "not founded: master {} leads or follows the leader of cluster {cluster}, which misses the disk that was \
                 here: it is joined instead",
                offer.address
            ),
        ))
    }

    /// Waits until a living cluster that misses the disk of this master must have announced itself here. A master that has
    /// been up for long does not wait.
    ///
    /// *Errors*: `Unavailable` if this process stood still so often that it is not certain that it would have heard it.
    async fn listen_for_announcers(&self) -> Result<()> {
        if !self.0.config.listen_before_founding {
            return Ok(());
        }
        let listening = &self.0.discovery.listening;
        let begun = Instant::now();
        while listening.time() < listening.needed(self.0.config.election_max) {
            let needed = listening.needed(self.0.config.election_max);
            if begun.elapsed() > needed + LISTENING_EXTENSION_MAX {
                return Err(Error::unavailable(format!(
                    "not founded: this process stood still while it listened for {needed:?} to a cluster that may miss its \
                     disk: call again"
                )));
            }
            tokio::time::sleep(BEAT / 4).await;
        }
        Ok(())
    }

    /// The answers of the other configured masters, which must all be there, configured as this one, and empty, or about to
    /// be.
    ///
    /// *Errors*: `Unavailable` or `FailedPrecondition` with the peer that stands in the way.
    async fn probe_empty_peers(&self) -> Result<Vec<(String, wire::ProbeResponse)>> {
        let peers = self.other_peers();
        let answers = join_all(peers.iter().map(|peer| self.0.resolver.probe(peer, PROBE))).await;
        let mut empty = Vec::new();
        for (peer, answer) in peers.into_iter().zip(answers) {
            // A peer that does not answer is not an empty peer.
            let answer =
                answer.map_err(|error| error.context(format!("not founded: master {peer} must answer first")))?;
            check_empty(&peer, &answer, &self.0.config.peers)?;
            empty.push((peer, answer));
        }
        Ok(empty)
    }

    /// Waits until every other configured master has promised to join what this attempt founds, and nothing else.
    ///
    /// A peer that is joining another cluster sees the attempt, leaves that cluster, and promises then.
    ///
    /// *Errors*: as [`Handle::probe_empty_peers`]; `Unavailable` if one does not promise.
    async fn collect_promises(&self, attempt: &Attempt) -> Result<()> {
        let deadline = Instant::now() + PROMISE_TIMEOUT;
        loop {
            let answers = self.probe_empty_peers().await?;
            let is_missing = |answer: &wire::ProbeResponse| answer.promised_attempt != attempt.nonce[..];
            let Some((peer, answer)) = answers.iter().find(|(_, answer)| is_missing(answer)) else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(without_promise(peer, answer));
            }
            tokio::time::sleep(BEAT / 4).await;
        }
    }

    /// Every step may have happened before a crash; each is repeated without harm.
    pub(super) async fn found(&self) -> Result<()> {
        let Some(identity) = self.identity() else { return Err(Error::internal("founding without an identity")) };
        if identity.stage == Stage::Member {
            return Ok(());
        }
        self.set_phase("founding");
        let running = self.start_raft(&identity).await?;
        let node = self.own_node(&identity);
        let initialized = running.raft.is_initialized().await;
        if !initialized.map_err(|error| Error::internal(format!("raft has stopped: {error}")))? {
            let members = BTreeMap::from([(1_u64, node)]);
            running.raft.initialize(members).await.map_err(|error| Error::internal(format!("initialize: {error}")))?;
        }
        failpoint_io("found.initialized")?;
        let wait = running.raft.wait(Some(Duration::from_secs(30)));
        wait.metrics(|m| m.current_leader == Some(1), "the founder leads")
            .await
            .map_err(|error| Error::unavailable(format!("the founder does not become leader: {error}")))?;
        let found = Found {
            cluster_uuid: identity.cluster_bytes().to_vec().into(),
            expected: self.founders(&identity),
            founder: Some(Member {
                id: 1,
                incarnation: identity.incarnation_bytes().to_vec().into(),
                raft_address: self.raft_address(),
                grpc_address: self.grpc_address(),
                boot: identity.boot,
                boot_nonce: self.0.nonce.to_vec().into(),
                ..Member::default()
            }),
        };
        membership::propose(&running, Kind::Found(found)).await?;
        failpoint_io("found.proposed")?;
        self.change_identity(|identity| (identity.stage, identity.founders) = (Stage::Member, None))?;
        failpoint_io("found.member")?;
        Ok(())
    }

    /// The masters of the cluster that is founded: those that have promised, whatever is configured now.
    fn founders(&self, identity: &Identity) -> Vec<String> {
        let configured = &self.0.config.peers;
        let founders = founders(identity.founders.as_deref(), configured, &self.raft_address());
        if founders != *configured {
            tracing::warn!(
                ?founders,
                ?configured,
                "the founding goes on with the masters that have promised to join, and other ones are configured now: add \
                 those with `jindoctl cluster add`, and remove the others, once the cluster is founded"
            );
        }
        founders
    }

    /// How many masters vote at the end of a founding: no more than it has founders, whatever is configured now.
    fn voters_expected(&self) -> usize {
        let cluster = self.store().and_then(|store| query::cluster(&store.view()).ok().flatten());
        let configured = self.0.config.peers.len();
        cluster.map_or(configured, |cluster| cluster.expected.len().min(configured))
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::MetaDir;
    use super::super::simulation::master_config;
    use super::*;

    fn answer(state: &str, member_id: u64) -> wire::ProbeResponse {
        let peers = vec!["a:1".to_owned(), "b:1".to_owned()];
        let cluster_uuid = vec![7; 16].into();
        wire::ProbeResponse {
            state: state.to_owned(),
            member_id,
            peers,
            cluster_uuid,
            ..wire::ProbeResponse::default()
        }
    }

    #[test]
    fn a_peer_that_no_cluster_has_admitted_yet_may_still_promise_and_one_that_has_a_member_id_may_not() {
        let own = ["a:1".to_owned(), "b:1".to_owned()];
        for (state, member_id, may) in [
            ("empty", 0, true),
            ("joining", 0, true),
            ("joining", 4, false),
            ("member", 4, false),
            ("founding", 0, false),
        ] {
            let checked = check_empty("b:1", &answer(state, member_id), &own);
            assert_eq!(checked.is_ok(), may, "{state} {member_id}: {checked:?}");
        }
        let error = check_empty("b:1", &answer("joining", 0), &own[..1]).expect_err("configured with others");
        assert!(error.message.contains("configured with other masters"), "{error}");
    }

    #[test]
    fn a_peer_that_goes_on_joining_is_named_with_its_cluster_and_the_way_out() {
        let error = without_promise("b:1", &answer("joining", 0));
        let cluster = uuid::Uuid::from_bytes([7; 16]).simple().to_string();
        assert!(["b:1", &cluster, "Way out"].iter().all(|part| error.message.contains(part)), "{error}");
        assert!(without_promise("b:1", &answer("empty", 0)).message.contains("older release"));
    }

    #[test]
    fn a_founding_without_room_is_given_up_only_if_no_file_holds_it() {
        let temp = tempfile::tempdir().expect("tempdir");
        let dir = MetaDir::open(temp.path()).expect("opened");
        let error = |code| Error::from(std::io::Error::from_raw_os_error(code)).context("IDENTITY");
        assert!(is_unrecorded(&error(libc::ENOSPC), &dir.load()));
        assert!(!is_unrecorded(&error(libc::EIO), &dir.load()), "the disk may say anything");
        // The file was put in place, and there was no room to sync its name.
        dir.store(&Identity::of_founder([7; 16], 1, vec!["a:1".to_owned()])).expect("stored");
        assert!(!is_unrecorded(&error(libc::ENOSPC), &dir.load()));
        std::fs::write(temp.path().join("IDENTITY"), "{").expect("written");
        assert!(!is_unrecorded(&error(libc::ENOSPC), &dir.load()), "what cannot be read may be the founding");
        assert!(!is_unrecorded(&error(libc::ENOSPC), &Err(error(libc::EIO))));
    }

    #[test]
    fn the_founders_are_those_that_promised_and_the_configured_ones_where_no_list_was_kept() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (promised, configured) = (list(&["a:1", "b:1", "c:1"]), list(&["a:1", "d:1", "e:1"]));
        assert_eq!(founders(Some(&promised), &configured, "a:1"), promised);
        assert_eq!(founders(None, &configured, "a:1"), configured);
        let moved = founders(Some(&promised), &configured, "z:1");
        assert_eq!(moved, ["z:1", "b:1", "c:1"], "the founder is where it is now");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_founding_that_goes_on_with_another_configuration_expects_those_that_have_promised() {
        let temp = tempfile::tempdir().expect("tempdir");
        let config = |hosts: &[usize]| master_config(temp.path().to_path_buf(), 0, hosts);
        let promised = config(&[0, 1, 2]).peers;
        let handle = Handle::open(config(&[0, 1, 2])).expect("opened");
        handle.set_identity(Identity::of_founder([7; 16], 1, promised.clone())).expect("recorded");
        drop(handle);
        let handle = Handle::open(config(&[0, 3, 4])).expect("opened");
        handle.found().await.expect("founded");
        let store = handle.store().expect("a member has a state");
        let cluster = query::cluster(&store.view()).expect("readable").expect("founded");
        assert_eq!(cluster.expected, promised);
        let identity = handle.identity().expect("a member");
        assert_eq!((identity.stage, identity.founders), (Stage::Member, None));
    }
}
