//! A master's claim whose volume is gone, or which somebody wants to be exchanged: the master comes back on a new one, as a new
//! member, if the others can do without it until then.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};

use super::apply::gone;
use super::masters::Masters;
use super::members::spare;
use super::runtime_reconciler::RuntimeReconciler;
use crate::desired::{self, Input, Role};

/// On a claim of a master: it shall be exchanged for an empty one.
const REPLACE: &str = "jindofs.io/replace";

/// Why a claim is to be exchanged; none if it is not. No other claim is ever deleted while its runtime lives.
fn reason(claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let lost = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost");
    let asked = claim.annotations().get(REPLACE).is_some_and(|value| value == "true");
    match () {
        () if claim.metadata.deletion_timestamp.is_some() => None,
        () if lost => Some("has lost its volume"),
        () if asked => Some("is to be replaced"),
        () => None,
    }
}

impl RuntimeReconciler {
    /// Exchanges at most one claim. Returns what is done or waited for, if anything is.
    pub(super) async fn exchange_claim(
        &self,
        input: &Input<'_>,
        pods: &[Arc<Pod>],
        masters: &Masters,
    ) -> Result<Option<String>, kube::Error> {
        for (ordinal, name) in (0_i32..).zip(desired::metadata_claims(input)) {
            let Some(claim) = self.context.cache.get::<PersistentVolumeClaim>(&self.namespace, &name) else { continue };
            let Some(why) = reason(&claim) else { continue };
            let pod = format!("{}-{ordinal}", input.names.of(Role::Master));
            if desired::replicas(input) == 1 {
                return Ok(Some(format!("claim {name} {why}, and its master is the only one: nothing is deleted")));
            }
            if let Err(held) = spare(input, pods, masters, ordinal).await {
                return Ok(Some(format!("claim {name} {why}; it is not exchanged yet: {held}")));
            }
            let this = Preconditions { uid: claim.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
            gone(self.api::<PersistentVolumeClaim>().delete(&name, &params).await)?;
            gone(self.api::<Pod>().delete(&pod, &DeleteParams::default()).await)?;
            return Ok(Some(format!("claim {name} {why}: {pod} comes back on a new one")));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_claim_without_its_volume_or_with_the_annotation_is_exchanged() {
        let claim = |yaml: &str| reason(&serde_saphyr::from_str(yaml).expect("a claim"));
        assert_eq!(claim("status: {phase: Bound}"), None);
        assert_eq!(claim("status: {phase: Pending}"), None);
        assert_eq!(claim("status: {phase: Lost}"), Some("has lost its volume"));
        let asked = "metadata: {annotations: {jindofs.io/replace: 'true'}}";
        assert_eq!(claim(asked), Some("is to be replaced"));
        assert_eq!(claim("metadata: {annotations: {jindofs.io/replace: 'false'}}"), None);
        let going = "metadata: {deletionTimestamp: 2026-01-01T00:00:00Z}\nstatus: {phase: Lost}";
        assert_eq!(claim(going), None);
    }
}
