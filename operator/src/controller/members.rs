//! How many masters there are, and which of them is restarted when: what the members say decides, never a list of pods.

use std::sync::Arc;

use jindofs_proto::v1::{MemberStatus, Role};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};

use super::masters::{Masters, Said};
use super::runtime_reconciler::RuntimeReconciler;
use crate::desired::{self, Input, MASTER_RAFT, replicas};

/// Label of a pod: the version of the StatefulSet's template it was made from.
const REVISION: &str = "controller-revision-hash";

/// How the other members reach the master of this ordinal.
pub(super) fn address(input: &Input<'_>, ordinal: i32) -> String {
    format!("{}:{MASTER_RAFT}", input.names.master_host(ordinal))
}

/// Replicas of the StatefulSet now: masters leave the group before their pods go.
pub(super) fn set_size(input: &Input<'_>, live: Option<&StatefulSet>, masters: &Masters) -> i32 {
    let wanted = replicas(input);
    let now = live.and_then(|set| set.spec.as_ref()?.replicas).unwrap_or(wanted);
    let Some((_, leader)) = masters.leader() else { return wanted.max(now) };
    let leaving = |ordinal: &i32| {
        let own = address(input, *ordinal);
        leader.expected.contains(&own) || leader.members.iter().any(|member| member.raft_address == own)
    };
    if (wanted..now).any(|ordinal| leaving(&ordinal)) { now } else { wanted }
}

/// True if the master of this ordinal votes.
pub(super) fn votes(input: &Input<'_>, masters: &Masters, ordinal: i32) -> bool {
    let own = address(input, ordinal);
    let Some((_, leader)) = masters.leader() else { return false };
    let voter = |member: &MemberStatus| matches!(member.role(), Role::Leader | Role::Voter);
    leader.members.iter().any(|member| member.raft_address == own && voter(member))
}

/// Asks for the members that are wanted. Who is admitted and removed when is the leader's business.
pub(super) async fn set_members(input: &Input<'_>, masters: &Masters) -> Said<()> {
    let Some((_, leader)) = masters.leader() else { return Ok(()) };
    let wanted: Vec<String> = (0..replicas(input)).map(|ordinal| address(input, ordinal)).collect();
    let missing: Vec<String> = wanted.iter().filter(|one| !leader.expected.contains(one)).cloned().collect();
    if !missing.is_empty() {
        return masters.add(missing).await;
    }
    let extra: Vec<String> = leader.expected.iter().filter(|one| !wanted.contains(one)).cloned().collect();
    if extra.is_empty() { Ok(()) } else { masters.remove(extra).await }
}

fn outdated(set: &StatefulSet, pod: &Pod) -> bool {
    let status = set.status.as_ref();
    let seen = status.and_then(|status| status.observed_generation) == set.metadata.generation;
    let newest = status.and_then(|status| status.update_revision.as_ref());
    seen && newest.is_some() && pod.labels().get(REVISION) != newest
}

/// Why this master must stay: another one is away. A pod that is deleted and not made again yet is not in any list.
pub(super) fn away(wanted: i32, pods: &[Arc<Pod>], taken: &str) -> Option<String> {
    let others = usize::try_from(wanted - 1).unwrap_or(0);
    let ready = pods.iter().filter(|pod| pod.name_any() != taken && super::pod_diagnosis::ready(pod)).count();
    (ready < others).then(|| format!("{ready} of the {others} other masters are ready"))
}

/// Makes sure that the others can do without a master for a while, and that it does not lead.
///
/// *Errors*: why it must stay for now.
pub(super) async fn spare(input: &Input<'_>, pods: &[Arc<Pod>], masters: &Masters, ordinal: i32) -> Said<()> {
    let pod = format!("{}-{ordinal}", input.names.of(desired::Role::Master));
    if let Some(why) = away(replicas(input), pods, &pod) {
        return Err(why);
    }
    let Some((leader, status)) = masters.leader() else { return Err("no master leads".to_owned()) };
    let own = address(input, ordinal);
    if let Some(member) = status.members.iter().find(|member| member.raft_address == own)
        && let Ok(Some(why)) | Err(why) = masters.must_not_restart(member.id).await
    {
        return Err(why);
    }
    if leader == pod {
        masters.transfer().await.map_err(|why| format!("it does not hand over: {why}"))?;
    }
    Ok(())
}

fn ordinal(pod: &Pod) -> Option<i32> {
    pod.name_any().rsplit_once('-')?.1.parse().ok()
}

impl RuntimeReconciler {
    /// Restarts one master that is not as it should be, if the others can do without it; the leader last, and only after
    /// it has handed over. Returns why nothing happens now, if something is to be done.
    pub(super) async fn roll(
        &self,
        input: &Input<'_>,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        masters: &Masters,
    ) -> Result<Option<String>, kube::Error> {
        let leader = masters.leader().map(|(leader, _)| leader);
        let mut old: Vec<&Arc<Pod>> = pods.iter().filter(|pod| outdated(set, pod)).collect();
        // Where nobody leads a new image may be what is missing: nothing is taken from anybody by one that is not ready.
        old.retain(|pod| leader.is_some() || !super::pod_diagnosis::ready(pod));
        old.sort_by_key(|pod| (leader == Some(pod.name_any().as_str()), pod.name_any()));
        let Some(next) = old.first() else { return Ok(None) };
        let name = next.name_any();
        if let Some(ordinal) = ordinal(next)
            && leader.is_some()
            && replicas(input) > 1
            && let Err(why) = spare(input, pods, masters, ordinal).await
        {
            return Ok(Some(format!("{name} is not restarted yet: {why}")));
        }
        self.restart(&name).await.map(|()| Some(format!("{name} is restarted")))
    }

    async fn restart(&self, pod: &str) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.context.cache.client.clone(), &self.namespace);
        super::apply::gone(api.delete(pod, &DeleteParams::default()).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_master_is_taken_away_while_another_is_gone_and_not_made_again_yet() {
        let pod = |name: &str, ready: &str| -> Arc<Pod> {
            let yaml = format!(
                "metadata: {{name: {name}}}\nstatus: {{conditions: [{{type: Ready, status: '{ready}'}}]}}\nspec: {{containers: []}}"
            );
            Arc::new(serde_saphyr::from_str(&yaml).expect("a pod"))
        };
        let all = [pod("m-0", "True"), pod("m-1", "True"), pod("m-2", "True")];
        assert_eq!(away(3, &all, "m-0"), None);
        assert!(away(3, &all[..2], "m-0").is_some(), "m-2 is between two lives");
        assert!(away(3, &[all[0].clone(), all[1].clone(), pod("m-2", "False")], "m-0").is_some());
        assert_eq!(
            away(3, &[all[0].clone(), all[1].clone(), pod("m-2", "False")], "m-2"),
            None,
            "it is the broken one"
        );
        assert_eq!(away(1, &all[..1], "m-0"), None);
    }
}
