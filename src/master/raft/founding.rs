//! Founding: the one way a cluster comes into being, asked for once, on the first master of the list. All the others must be
//! empty, and [promise](super::promise) to join what is founded and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use jindofs_proto::raft::v1 as wire;
use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Found, Member};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::planted::{PlantedFault, is_planted};
use crate::runtime::{die, failpoint_io};

use super::disk_space::is_out_of_space;
use super::handle::Handle;
use super::identity::{Identity, Stage};
use super::life::{BEAT, PROBE};
use super::listening::{LISTENING_MIN, LISTENING_TIMEOUT};
use super::membership;
use super::promise::Attempt;

/// Longest wait for the promises of the peers. A peer may be in the middle of a look at others, which takes up to three times
/// as long as it waits for one answer.
const PROMISE_TIMEOUT: Duration = Duration::from_secs(15);

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
        let expected = self.0.config.peers.len();
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
        self.refuse_if_missed().await?;
        let (_shown, attempt) = self.0.discovery.begin_attempt(uuid);
        self.collect_promises(&attempt).await?;
        if !is_planted(PlantedFault::FoundedUnheard) {
            self.listen_for_announcers().await?;
            self.refuse_if_missed().await?;
        }
        failpoint_io("found.begin")?;
        // The founder is member 1: the index of the first leader's blank entry, which admits nobody else.
        if let Err(error) = self.set_identity(Identity::new(Stage::Founding, uuid, 1)) {
            if !is_out_of_space(&error) {
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
        let deadline = Instant::now() + LISTENING_TIMEOUT;
        while self.0.discovery.listening.time() < LISTENING_MIN {
            if Instant::now() > deadline {
                return Err(Error::unavailable(format!(
                    "not founded: this process stood still while it listened for {LISTENING_MIN:?} to a cluster that may miss \
                     its disk: call again"
                )));
            }
            tokio::time::sleep(BEAT / 4).await;
        }
        Ok(())
    }

    /// The answers of the other configured masters, which must all be there, empty, and configured as this one.
    ///
    /// *Errors*: `Unavailable` or `FailedPrecondition` with the peer that stands in the way.
    async fn probe_empty_peers(&self) -> Result<Vec<(String, wire::ProbeResponse)>> {
        let refuse = |why: String| Err(Error::new(ErrorKind::FailedPrecondition, format!("not founded: {why}")));
        let peers = self.other_peers();
        let answers = join_all(peers.iter().map(|peer| self.0.resolver.probe(peer, PROBE))).await;
        let mut empty = Vec::new();
        for (peer, answer) in peers.into_iter().zip(answers) {
            // A peer that does not answer is not an empty peer.
            let answer =
                answer.map_err(|error| error.context(format!("not founded: master {peer} must answer first")))?;
            if answer.peers != self.0.config.peers {
                return refuse(format!(
                    "master {peer} is configured with other masters: {} there, {} here",
                    answer.peers.join(","),
                    self.0.config.peers.join(",")
                ));
            }
            if answer.state != "empty" {
                let cluster = uuid::Uuid::from_slice(&answer.cluster_uuid).unwrap_or_default().simple();
                return refuse(format!("master {peer} is not empty: it is {} of cluster {cluster}", answer.state));
            }
            empty.push((peer, answer));
        }
        Ok(empty)
    }

    /// Waits until every other configured master has promised to join what this attempt founds, and nothing else.
    ///
    /// *Errors*: as [`Handle::probe_empty_peers`]; `Unavailable` if one does not promise.
    async fn collect_promises(&self, attempt: &Attempt) -> Result<()> {
        let deadline = Instant::now() + PROMISE_TIMEOUT;
        loop {
            let answers = self.probe_empty_peers().await?;
            let is_missing = |answer: &wire::ProbeResponse| answer.promised_attempt != attempt.nonce[..];
            let Some((peer, _)) = answers.iter().find(|(_, answer)| is_missing(answer)) else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(Error::unavailable(format!(
                    "not founded: master {peer} does not promise to join this cluster and no other. It may be of an older \
                     release, or busy: all masters need one release; call again"
                )));
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
            expected: self.0.config.peers.clone(),
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
        self.change_identity(|identity| identity.stage = Stage::Member)?;
        failpoint_io("found.member")?;
        Ok(())
    }
}
