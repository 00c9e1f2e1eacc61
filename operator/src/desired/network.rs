//! Who may reach the pods of a runtime, where the cluster's network asks: there is no authentication on the ports yet.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names::{MANAGER, Role};
use super::settings::{FUSE_HTTP, MASTER_HTTP, MASTER_RAFT, MASTER_RPC, WORKER_HTTP, WORKER_RPC};
use super::{Input, on_host};

/// On pods of the runtime's namespace: they may call masters and workers; its value is the name of the runtime.
const CLIENT_LABEL: &str = "jindofs.io/client";

fn selector(labels: &[(&str, &str)]) -> LabelSelector {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }
}

fn pods(selector: LabelSelector) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(selector), ..NetworkPolicyPeer::default() }
}

/// Whoever is in `from`, or anybody if it is none, may reach `ports`.
fn rule(ports: &[u16], from: Option<Vec<NetworkPolicyPeer>>) -> NetworkPolicyIngressRule {
    let port = |number: &u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(*number))),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    };
    NetworkPolicyIngressRule { from, ports: Some(ports.iter().map(port).collect()) }
}

/// Raft is for the masters, calls are for the runtime's own pods, the operator and clients, probes and metrics for anybody.
/// None on the network of the nodes: policies see no pods there.
pub(super) fn policy(input: &Input<'_>) -> Option<NetworkPolicy> {
    if on_host(input) {
        return None;
    }
    let names = &input.names;
    let own = || selector(&[("app", "jindofs"), ("release", &names.name)]);
    let operator = NetworkPolicyPeer {
        namespace_selector: Some(selector(&[("kubernetes.io/metadata.name", input.operator_namespace)])),
        ..pods(selector(&[("app.kubernetes.io/name", MANAGER)]))
    };
    let callers = vec![pods(own()), operator, pods(selector(&[(CLIENT_LABEL, &names.name)]))];
    let masters = vec![pods(names.label_selector(Role::Master))];
    Some(NetworkPolicy {
        metadata: names.meta(names.policy(), None),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(own()),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(vec![
                rule(&[MASTER_RAFT], Some(masters)),
                rule(&[MASTER_RPC, WORKER_RPC], Some(callers)),
                rule(&[MASTER_HTTP, WORKER_HTTP, FUSE_HTTP], None),
            ]),
            ..NetworkPolicySpec::default()
        }),
    })
}
