//! Diagnoses why a pod does not run, from its conditions, container states and events.

use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::Context;
use super::status::NotReady;

/// A container that is being created for longer than this waits for something.
const START_TIMEOUT_SECONDS: i64 = 5;

/// True if the pod is ready and not being deleted.
pub(super) fn ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|(status, _)| status == "True") && pod.metadata.deletion_timestamp.is_none()
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str)> {
    let all = pod.status.as_ref()?.conditions.as_ref()?;
    let one = all.iter().find(|one| one.type_ == kind)?;
    Some((one.status.as_str(), one.message.as_deref().unwrap_or_default()))
}

/// Why a pod does not run; `None` if it runs or is only starting.
pub(super) async fn why(context: &Context, pod: &Pod) -> Result<Option<NotReady>, kube::Error> {
    let name = pod.name_any();
    if let Some(not_ready) = lost_node(context, pod) {
        return Ok(Some(not_ready));
    }
    if let Some(("False", message)) = condition(pod, "PodScheduled") {
        return Ok(Some(NotReady::new("Unschedulable", format!("pod {name}: {message}"))));
    }
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    for container in containers.into_iter().flatten() {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else { continue };
        let reason = waiting.reason.clone().unwrap_or_default();
        if reason != "ContainerCreating" && reason != "PodInitializing" {
            let message = waiting.message.clone().unwrap_or_default();
            let look = if reason == "CrashLoopBackOff" { format!("; see kubectl logs {name}") } else { String::new() };
            return Ok(Some(NotReady::new(reason, format!("pod {name}: {message}{look}"))));
        }
    }
    let starting = status.is_none_or(|status| status.phase.as_deref() != Some("Running"));
    let made = pod.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    let now = k8s_openapi::jiff::Timestamp::now().as_second();
    if !starting || made.is_none_or(|made| now - made < START_TIMEOUT_SECONDS) {
        return Ok(None);
    }
    warning(context, pod).await
}

/// Reports a node that does not answer. Its pods keep their names and volumes, because only people can know whether it
/// is off.
fn lost_node(context: &Context, pod: &Pod) -> Option<NotReady> {
    let node = context.cache.get::<Node>("", pod.spec.as_ref()?.node_name.as_deref()?)?;
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|one| one.type_ == "Ready")?;
    (ready.status != "True").then(|| {
        let (pod, node) = (pod.name_any(), node.name_any());
        let message = format!(
            "node {node} of pod {pod} does not answer: if it is off for good, let go of its pods with kubectl taint node {node} \
             node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
        );
        NotReady::new("NodeLost", message)
    })
}

/// The last warning event of a pod.
async fn warning(context: &Context, pod: &Pod) -> Result<Option<NotReady>, kube::Error> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Event> = Api::namespaced(context.cache.client.clone(), &namespace);
    let of = format!("involvedObject.kind=Pod,involvedObject.name={name},type=Warning");
    let mut events = api.list(&ListParams::default().fields(&of)).await?.items;
    events.retain(|event| event.involved_object.uid == pod.metadata.uid);
    events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    Ok(events.pop().map(|event| {
        let reason = event.reason.unwrap_or_else(|| "PodNotStarting".to_owned());
        NotReady::new(reason, format!("pod {name}: {}", event.message.unwrap_or_default()))
    }))
}
