//! Events about pods whose mount was replaced.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use serde::{Deserialize, Serialize};

use super::published::Volume;
use crate::events::{EventMessage, publish, recorder};

/// The pod that a volume is published for, as the kubelet names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pod {
    namespace: String,
    name: String,
    uid: String,
}

impl Pod {
    /// The pod in the context of a request, if the kubelet names it.
    pub(super) fn of(context: &BTreeMap<String, String>) -> Option<Pod> {
        let said = |what: &str| context.get(&format!("csi.storage.k8s.io/pod.{what}")).cloned();
        Some(Pod { namespace: said("namespace")?, name: said("name")?, uid: said("uid")? })
    }
}

/// Records events about pods; does nothing outside of Kubernetes.
#[derive(Clone)]
pub(super) struct PodEvents(Option<(Client, String)>);

impl PodEvents {
    pub(super) async fn new(node: &str) -> PodEvents {
        match Client::try_default().await {
            Ok(client) => PodEvents(Some((client, node.to_owned()))),
            Err(error) => {
                tracing::info!(%error, "no Kubernetes to talk to: pods are told nothing");
                PodEvents(None)
            }
        }
    }

    /// Reports that a mount has ended and another one was bound in its place.
    pub(super) async fn replaced(&self, volume: &Volume) {
        let (Some((client, node)), Some(pod)) = (&self.0, &volume.pod) else { return };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let note = format!(
            "the mount of volume {} has ended and another one is bound in its place: files that were open are lost, and \
             containers that do not mount it with mountPropagation HostToContainer see it only after the pod is restarted",
            volume.volume
        );
        // A recorder that is reused would update its last event, which needs another permission.
        let recorder = recorder(client.clone(), "jindofs-csi", node);
        publish(&recorder, &about, EventMessage::new("MountReplaced", note, true)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_known_where_the_kubelet_names_it_whole() {
        let said = |names: &[&str]| {
            let pairs = names.iter().map(|name| (format!("csi.storage.k8s.io/pod.{name}"), (*name).to_owned()));
            Pod::of(&pairs.collect())
        };
        let pod = Pod { namespace: "namespace".into(), name: "name".into(), uid: "uid".into() };
        assert_eq!(said(&["namespace", "name", "uid"]), Some(pod));
        assert_eq!(said(&["namespace", "name"]), None);
    }
}
