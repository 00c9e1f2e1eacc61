//! Founds a cluster, once. Its uuid is recorded in the status and on the metadata claims before the masters are told to
//! found it: whatever dies in between, the same founding is repeated, and no second cluster is founded.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use uuid::Uuid;

use super::masters::Masters;
use super::runtime_reconciler::RuntimeReconciler;
use super::status::NotReady;
use crate::crd::{ClusterStatus, JindoRuntime, RuntimeStatus};
use crate::desired::{Input, Role, metadata_claims, named_claim, replicas};

/// Annotation on a claim: the cluster whose metadata it holds.
const CLUSTER: &str = "jindofs.io/cluster";
/// Annotation on a claim: that cluster was founded.
const FOUNDED: &str = "jindofs.io/founded";

/// A uuid, and whether its cluster was founded.
type Recorded = (Uuid, bool);

fn cluster_of(bytes: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(bytes).ok()
}

impl RuntimeReconciler {
    /// The cluster that is recorded on a claim.
    pub(super) fn note(&self, claim: &str) -> Option<Recorded> {
        let claim = self.context.cache.get::<PersistentVolumeClaim>(&self.namespace, claim)?;
        let notes = claim.metadata.annotations.as_ref()?;
        let uuid = notes.get(CLUSTER)?.parse().ok()?;
        Some((uuid, notes.get(FOUNDED).is_some_and(|value| value == "true")))
    }

    /// The recorded cluster; if the status has none, that of the claims: a runtime that is created again finds its
    /// metadata.
    fn recorded(&self, input: &Input<'_>, status: &RuntimeStatus) -> Result<Option<Recorded>, NotReady> {
        if let Some(cluster) = &status.cluster
            && let Some(uuid) = cluster.uuid.as_deref().and_then(|uuid| uuid.parse().ok())
        {
            return Ok(Some((uuid, cluster.founded == Some(true))));
        }
        let noted: Vec<Recorded> = metadata_claims(input).iter().filter_map(|claim| self.note(claim)).collect();
        let different: BTreeSet<Uuid> = noted.iter().map(|one| one.0).collect();
        if different.len() > 1 {
            return Err(NotReady::new(
                "ForeignMetadata",
                format!(
                    "the claims of the masters hold metadata of different clusters: {different:?}; delete those of the wrong one"
                ),
            ));
        }
        Ok(noted.first().map(|first| (first.0, noted.iter().any(|one| one.1))))
    }

    /// Refuses to abandon a named claim that holds a cluster for empty volumes.
    pub(super) fn check_cluster_kept(&self, input: &Input<'_>, status: &RuntimeStatus) -> Result<(), NotReady> {
        let claim = named_claim(input).filter(|_| replicas(input) > 1 || input.own_claims);
        let founded_elsewhere = status.cluster.as_ref().is_some_and(|cluster| cluster.uuid.is_some());
        match claim.filter(|claim| !self.is_superseded(claim)).and_then(|claim| Some((self.note(&claim)?, claim))) {
            Some(((uuid, true), claim)) if !founded_elsewhere => Err(NotReady::new(
                "ClaimHoldsCluster",
                format!(
                    "the claim {claim} holds the metadata of cluster {uuid}, and {} masters would start with empty claims of \
                     their own: set master.replicas to 1 to go on with it, or name no claim to start anew",
                    replicas(input)
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Founds the cluster if it was never founded. Returns whether it exists.
    pub(super) async fn found(
        &self,
        input: &Input<'_>,
        runtime: &JindoRuntime,
        status: &mut RuntimeStatus,
        masters: &Masters,
    ) -> Result<Result<(), NotReady>, kube::Error> {
        let recorded = match self.recorded(input, status) {
            Ok(recorded) => recorded,
            Err(not_ready) => return Ok(Err(not_ready)),
        };
        let alive: BTreeSet<Uuid> = masters.answers().filter_map(|(_, one)| cluster_of(&one.cluster_uuid)).collect();
        if let Some(found) = alive.iter().find(|one| recorded.is_some_and(|(uuid, _)| uuid != **one)) {
            let wanted = recorded.map(|(uuid, _)| uuid).unwrap_or_default();
            return Ok(Err(NotReady::new(
                "ForeignMetadata",
                format!(
                    "a master's volume belongs to cluster {found}, this runtime to {wanted}: give it back its own volume"
                ),
            )));
        }
        if let Some(uuid) = alive.first() {
            // The cluster exists: this is recorded if it was not.
            self.record(input, runtime, status, (*uuid, true)).await?;
            return Ok(Ok(()));
        }
        let wanted = replicas(input);
        let pods: Vec<String> = (0..wanted).map(|one| format!("{}-{one}", input.names.of(Role::Master))).collect();
        let empty = |pod: &String| {
            let own = masters.status(pod).and_then(|status| status.self_.as_ref());
            own.is_some_and(|own| own.state.starts_with("empty"))
        };
        let silent: Vec<&str> = pods.iter().filter(|pod| !empty(pod)).map(String::as_str).collect();
        if !silent.is_empty() {
            return Ok(Err(NotReady::passing("MastersStarting", format!("waiting for {}", silent.join(", ")))));
        }
        let uuid = match recorded {
            Some((uuid, true)) => {
                return Ok(Err(NotReady::new(
                    "MetadataLost",
                    format!(
                        "cluster {uuid} was founded before, and every master now has an empty volume: bring its volume back; \
                         or, if that metadata may be forgotten, delete the JindoRuntime and create it again"
                    ),
                )));
            }
            Some((uuid, false)) => uuid,
            None => Uuid::new_v4(),
        };
        self.record(input, runtime, status, (uuid, false)).await?;
        if let Err(why) = masters.provision(&pods[0], uuid).await {
            return Ok(Err(NotReady::passing("Founding", format!("the cluster is not founded yet: {why}"))));
        }
        self.record(input, runtime, status, (uuid, true)).await?;
        Ok(Ok(()))
    }

    /// Records the cluster in the status and on the claims, before anything depends on it.
    async fn record(
        &self,
        input: &Input<'_>,
        runtime: &JindoRuntime,
        status: &mut RuntimeStatus,
        (uuid, founded): Recorded,
    ) -> Result<(), kube::Error> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.context.cache.client.clone(), &self.namespace);
        for claim in metadata_claims(input) {
            if self.note(&claim) == Some((uuid, founded)) {
                continue;
            }
            let notes = json!({"metadata": {"annotations": {CLUSTER: uuid.to_string(), FOUNDED: founded.to_string()}}});
            super::apply::gone(api.patch(&claim, &PatchParams::default(), &Patch::Merge(notes)).await)?;
        }
        let cluster = status.cluster.get_or_insert_with(ClusterStatus::default);
        let (text, before) = (Some(uuid.to_string()), (cluster.uuid.clone(), cluster.founded));
        (cluster.uuid, cluster.founded) = (text.clone(), Some(founded));
        if before != (text, Some(founded)) {
            self.write_runtime(runtime, status).await?;
        }
        Ok(())
    }
}
