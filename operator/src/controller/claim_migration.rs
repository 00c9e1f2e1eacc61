//! From one master on a named claim to several with claims of their own, while clients go on.
//!
//! A StatefulSet's claims cannot be changed, and a new set would not take over a pod with another volume. So the old set goes
//! without its pod, which loses the label that only sets select by (the Service still finds it); the new set begins with
//! ordinal 1; its masters join; the old master hands over, goes, and comes back as ordinal 0 on a claim of its own. Each step
//! follows from what is there: an operator that dies anywhere goes on where it stopped.

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

/// On a named claim: the cluster that has left it. It is never started from again.
const SUPERSEDED: &str = "jindofs.io/superseded";

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrationStage {
    /// Nothing is to be done.
    Settled,
    /// The old set has to go.
    Leave,
    /// The old master stands beside the new set.
    Beside,
    /// The others vote: the old master may go.
    Over,
}

fn first(input: &Input<'_>) -> String {
    format!("{}-0", input.names.of(Role::Master))
}

/// Where a change from a named claim to own claims is. `on_named`: the named claim still holds the cluster.
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

/// The new set, as long as the old master is beside it.
pub(super) fn beside(set: &mut StatefulSet, wanted: i32) {
    let spec = set.spec.get_or_insert_default();
    spec.ordinals = Some(StatefulSetOrdinals { start: Some(1) });
    spec.replicas = Some(wanted - 1);
}

impl RuntimeReconciler {
    /// Lets go of the old set, and of its pod.
    pub(super) async fn leave(&self, input: &Input<'_>) -> Result<NotReady, kube::Error> {
        let params = DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
        gone(self.api::<StatefulSet>().delete(&input.names.of(Role::Master), &params).await)?;
        Ok(NotReady::passing(
            "MastersConverting",
            "the master's named claim is exchanged for claims of each master's own",
        ))
    }

    /// Keeps the old master where it is until the others vote, then lets it hand over and go. Returns what is being waited
    /// for, and true if the new set may have its place.
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
                    // The set that comes next must not find it.
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

    /// Makes the pod of the old master, which no set makes any more.
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

    /// What is on the named claim grows old from now on.
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

    /// True if a cluster has left this claim behind.
    pub(super) fn is_superseded(&self, claim: &str) -> bool {
        let claim = self.context.cache.get::<PersistentVolumeClaim>(&self.namespace, claim);
        claim.is_some_and(|claim| claim.annotations().contains_key(SUPERSEDED))
    }

    /// A master is never started from a claim that its cluster has left.
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
