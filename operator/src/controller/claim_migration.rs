//! Migration from one master on a named claim to several masters with claims of their own, without an interruption for
//! clients.
//!
//! The claims of a StatefulSet cannot be changed, and a new set would not adopt a pod with another volume. So the old
//! set is deleted without its pod, which loses the label that only sets select by (the Service still selects it). The
//! new set begins with ordinal 1, and its masters join. Then the old master transfers leadership, is deleted, and comes
//! back as ordinal 0 on a claim of its own. Each step follows from the observed state, so an operator that dies at any
//! point continues where it stopped.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetOrdinals};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Resource, ResourceExt};
use serde_json::json;

use super::apply::gone;
use super::masters::Masters;
use super::members::votes;
use super::object_cache::claims_of;
use super::runtime_reconciler::RuntimeReconciler;
use super::status::NotReady;
use crate::crd::JindoRuntime;
use crate::desired::{self, Input, OWNED, Role};

/// Annotation on a named claim: the cluster that has left it. No master is started from such a claim.
const SUPERSEDED: &str = "jindofs.io/superseded";

/// Stage of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrationStage {
    /// No migration is needed, or it is finished.
    Settled,
    /// The old set has to be deleted.
    Leave,
    /// The old master runs beside the new set.
    Beside,
    /// The new masters vote: the old master may be deleted.
    Over,
}

fn first(input: &Input<'_>) -> String {
    format!("{}-0", input.names.of(Role::Master))
}

/// The current stage. `on_named`: the named claim still holds the cluster.
pub(super) fn stage(
    input: &Input<'_>,
    live: Option<&StatefulSet>,
    on_named: bool,
    pods: &[Arc<Pod>],
    masters: &Masters,
) -> MigrationStage {
    let (Some(claim), wanted) = (desired::named_claim(input), desired::replicas(input)) else {
        return MigrationStage::Settled;
    };
    let spec = live.and_then(|set| set.spec.as_ref());
    let begins = spec.and_then(|spec| spec.ordinals.as_ref()?.start).unwrap_or(0);
    let old = pods.iter().find(|pod| pod.name_any() == first(input) && claims_of(pod).any(|one| one == claim));
    match live {
        Some(_) if !input.own_claims && wanted > 1 => MigrationStage::Leave,
        None if (on_named || old.is_some()) && wanted > 1 => MigrationStage::Beside,
        Some(_) if begins == 1 => {
            let voters = (1..wanted).filter(|ordinal| votes(input, masters, *ordinal)).count();
            if i32::try_from(voters).is_ok_and(|voters| voters == wanted - 1) {
                MigrationStage::Over
            } else {
                MigrationStage::Beside
            }
        }
        _ => MigrationStage::Settled,
    }
}

/// Shapes the new set while the old master runs beside it.
pub(super) fn beside(set: &mut StatefulSet, wanted: i32) {
    let spec = set.spec.get_or_insert_default();
    spec.ordinals = Some(StatefulSetOrdinals { start: Some(1) });
    spec.replicas = Some(wanted - 1);
}

impl RuntimeReconciler {
    /// Deletes the old set without its pod.
    pub(super) async fn leave(&self, input: &Input<'_>) -> Result<NotReady, kube::Error> {
        let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        gone(self.api::<StatefulSet>().delete(&input.names.of(Role::Master), &params).await)?;
        Ok(NotReady::passing(
            "MastersConverting",
            "the master's named claim is exchanged for claims of each master's own",
        ))
    }

    /// Keeps the old master running until the others vote, then transfers its leadership and deletes it. Returns what
    /// is being waited for, and true if the new set may be applied.
    pub(super) async fn convert(
        &self,
        input: &Input<'_>,
        stage: MigrationStage,
        pods: &[Arc<Pod>],
        masters: &Masters,
    ) -> Result<(NotReady, bool), kube::Error> {
        let waits = |what: &str| NotReady::passing("MastersConverting", what);
        let name = first(input);
        let old = pods.iter().find(|pod| pod.name_any() == name);
        match (stage, old) {
            (MigrationStage::Over, None) => {
                self.supersede(input).await?;
                Ok((waits("the first master comes back on a claim of its own"), true))
            }
            (MigrationStage::Over, Some(_)) => {
                if masters.leader().is_some_and(|(leader, _)| leader == name)
                    && let Err(why) = masters.transfer().await
                {
                    return Ok((waits(&format!("{name} does not hand over yet: {why}")), false));
                }
                gone(self.api::<Pod>().delete(&name, &DeleteParams::default()).await)?;
                Ok((waits("the first master gives up the named claim"), false))
            }
            (_, Some(pod)) => {
                if pod.labels().contains_key(OWNED) {
                    let patch = json!({"metadata": {"labels": {OWNED: null}}});
                    gone(self.api::<Pod>().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await)?;
                    // The next set must not adopt the pod.
                    return Ok((waits("the first master is let go of"), false));
                }
                Ok((waits("the new masters join"), true))
            }
            (_, None) => {
                self.bring_back(input).await?;
                Ok((waits("the first master is brought back: the others do not vote yet"), true))
            }
        }
    }

    /// Creates the pod of the old master, for which no set exists any more.
    async fn bring_back(&self, input: &Input<'_>) -> Result<(), kube::Error> {
        let mut runtime: JindoRuntime = input.runtime.clone();
        runtime.spec.master.replicas = Some(1);
        let alone = Input { runtime: &runtime, names: input.names.clone(), own_claims: false, ..*input };
        let Ok(objects) = desired::objects(&alone) else { return Ok(()) };
        let Some(template) = objects.masters.spec.map(|spec| spec.template) else { return Ok(()) };
        let mut metadata = template.metadata.unwrap_or_default();
        metadata.name = Some(first(input));
        metadata.owner_references = input.runtime.controller_owner_ref(&()).map(|owner| vec![owner]);
        metadata.labels.get_or_insert_default().remove(OWNED);
        let mut spec = template.spec.unwrap_or_default();
        spec.hostname = Some(first(input));
        spec.subdomain = Some(input.names.of(Role::Master));
        let pod = Pod { metadata, spec: Some(spec), ..Pod::default() };
        match self.api::<Pod>().create(&PostParams::default(), &pod).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            other => other.map(drop),
        }
    }

    /// Marks the named claim: its metadata is outdated from now on.
    async fn supersede(&self, input: &Input<'_>) -> Result<(), kube::Error> {
        let Some(claim) = desired::named_claim(input) else { return Ok(()) };
        let status = input.runtime.status.as_ref().and_then(|status| status.cluster.as_ref());
        let uuid = status.and_then(|cluster| cluster.uuid.clone()).unwrap_or_default();
        let patch = json!({"metadata": {"annotations": {SUPERSEDED: uuid}}});
        gone(self.api::<PersistentVolumeClaim>().patch(&claim, &PatchParams::default(), &Patch::Merge(patch)).await)
    }

    /// True if the cluster that was founded here still has its metadata on the named claim.
    pub(super) fn on_named_claim(&self, input: &Input<'_>, recorded: Option<&str>) -> bool {
        let Some(claim) = desired::named_claim(input).filter(|claim| !self.is_superseded(claim)) else { return false };
        let noted = self.note(&claim).filter(|(_, founded)| *founded);
        noted.is_some_and(|(uuid, _)| recorded == Some(uuid.to_string().as_str()))
    }

    /// True if the cluster has left this claim.
    pub(super) fn is_superseded(&self, claim: &str) -> bool {
        let claim = self.context.cache.get::<PersistentVolumeClaim>(&self.namespace, claim);
        claim.is_some_and(|claim| claim.annotations().contains_key(SUPERSEDED))
    }

    /// Refuses to start a master from a claim that its cluster has left.
    pub(super) fn check_not_superseded(&self, input: &Input<'_>) -> Result<(), NotReady> {
        let claim = desired::named_claim(input).filter(|_| desired::replicas(input) == 1 && !input.own_claims);
        match claim.filter(|claim| self.is_superseded(claim)) {
            Some(claim) => Err(NotReady::new(
                "ClaimSuperseded",
                format!(
                    "the claim {claim} holds old metadata: the cluster went on to claims of each master's own. Set \
                     master.replicas to 3 to go on with those, or name another claim to start anew"
                ),
            )),
            None => Ok(()),
        }
    }
}
