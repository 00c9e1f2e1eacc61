//! Every pod that we render or install has no more rights than it needs.

use serde_json::{Value, json};

use super::*;

const GUIDE: &str = include_str!("../../../deploy/samples/dataset.yaml");
const OPERATOR: &str = include_str!("../../../deploy/kustomize/operator.yaml");
const CSI: &str = include_str!("../../../deploy/kustomize/csi.yaml");

/// What a pod may do beyond the least.
#[derive(Default)]
struct Allowed {
    privileged: bool,
    root: bool,
    talks_to_kubernetes: bool,
}

fn assert_confined(what: &str, pod: &Value, allowed: &Allowed) {
    if !allowed.talks_to_kubernetes {
        assert_eq!(pod["automountServiceAccountToken"], false, "{what}: nothing in it needs a token");
    }
    let context = &pod["securityContext"];
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{what}");
    if !allowed.root && !allowed.privileged {
        assert_eq!(context["runAsNonRoot"], true, "{what}");
        assert_eq!(context["runAsUser"], 10_001, "{what}");
    }
    for field in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
        assert!(pod[field].is_null(), "{what}: {field}");
    }
    for container in pod["containers"].as_array().expect("containers") {
        let context = &container["securityContext"];
        assert_eq!(context["readOnlyRootFilesystem"], true, "{what}");
        if allowed.privileged {
            assert_eq!(context["privileged"], true, "{what}: it is allowed to and needs to");
            continue;
        }
        assert!(context["privileged"].is_null(), "{what}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{what}");
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{what}");
        assert!(context["runAsUser"].is_null() && context["seccompProfile"].is_null(), "{what}: the pod's hold");
    }
}

fn pod<T: serde::Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("json")["spec"]["template"]["spec"].clone()
}

#[test]
fn pods_of_a_runtime_have_no_token_no_capability_and_nothing_to_write_to_but_their_volumes() {
    let (dataset, runtime) = GUIDE.split_once("\n---\n").expect("two documents");
    let dataset: Dataset = serde_saphyr::from_str(dataset).expect("a Dataset");
    let mut runtime: JindoRuntime = serde_saphyr::from_str(runtime).expect("a JindoRuntime");
    for (replicas, host_path) in [(1, false), (3, true)] {
        runtime.spec.master.replicas = Some(replicas);
        if host_path {
            let level = &mut runtime.spec.tiered_store.as_mut().expect("levels").levels[0];
            level.path = Some("/mnt/disk".to_owned());
            level.volume_type = Some(crate::crd::VolumeType::HostPath);
        }
        let made = objects(&Input::new(&dataset, &runtime, "i")).expect("objects");
        assert_confined("master", &pod(&made.masters), &Allowed::default());
        // A directory of the node belongs to root.
        assert_confined("worker", &pod(&made.workers), &Allowed { root: host_path, ..Allowed::default() });
        assert_confined("fuse", &pod(&made.fuse), &Allowed { privileged: true, ..Allowed::default() });
    }
}

#[test]
fn operator_and_node_plugin_are_as_confined_as_their_work_allows() {
    let deployment: Value = serde_saphyr::from_str(OPERATOR).expect("yaml");
    assert_confined("operator", &pod(&deployment), &Allowed { talks_to_kubernetes: true, ..Allowed::default() });
    let daemons = CSI.split("\n---\n").map(|one| serde_saphyr::from_str::<Value>(one).expect("yaml"));
    let daemon = daemons.into_iter().find(|one| one["kind"] == "DaemonSet").expect("a DaemonSet");
    // It tells events, and may do nothing else.
    let allowed = Allowed { privileged: true, talks_to_kubernetes: true, ..Allowed::default() };
    assert_confined("node plugin", &pod(&daemon), &allowed);
}

#[test]
fn raft_is_open_to_masters_only_and_calls_to_those_of_the_runtime_the_operator_and_clients() {
    let (dataset, runtime) = GUIDE.split_once("\n---\n").expect("two documents");
    let dataset: Dataset = serde_saphyr::from_str(dataset).expect("a Dataset");
    let mut runtime: JindoRuntime = serde_saphyr::from_str(runtime).expect("a JindoRuntime");
    let mut input = Input::new(&dataset, &runtime, "i");
    input.operator_namespace = "elsewhere";
    let policy = serde_json::to_value(objects(&input).expect("objects").policy).expect("json");
    let rules = policy["spec"]["ingress"].as_array().expect("rules");
    let who = |port: u16| -> Vec<&Value> {
        let opens =
            |rule: &&Value| rule["ports"].as_array().is_some_and(|all| all.iter().any(|one| one["port"] == port));
        rules.iter().filter(opens).map(|rule| &rule["from"]).collect()
    };
    let labels = |role: &str| json!({"app": "jindofs", "release": "demo", "role": role});
    assert_eq!(who(8103), [&json!([{"podSelector": {"matchLabels": labels("jindofs-master")}}])]);
    for port in [8101, 6101] {
        let from = who(port);
        assert_eq!(from.len(), 1, "{port}");
        assert_eq!(from[0][0]["podSelector"]["matchLabels"], json!({"app": "jindofs", "release": "demo"}));
        assert_eq!(from[0][1]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "elsewhere");
        assert_eq!(from[0][2], json!({"podSelector": {"matchLabels": {"jindofs.io/client": "demo"}}}));
    }
    let open: Vec<u64> = rules
        .iter()
        .filter(|rule| rule["from"].is_null())
        .flat_map(|rule| rule["ports"].as_array().into_iter().flatten().filter_map(|port| port["port"].as_u64()))
        .collect();
    assert_eq!(open, [8104, 6104, 10_001], "probes and metrics");
    // Every port of a pod is in the policy: one that is not could not be reached by anybody.
    let made = objects(&input).expect("objects");
    for pod in [pod(&made.masters), pod(&made.workers), pod(&made.fuse)] {
        for port in pod["containers"][0]["ports"].as_array().expect("ports") {
            let port = port["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
            assert!(!who(port).is_empty(), "{port}");
        }
    }
    runtime.spec.network_mode = Some(NetworkMode::HostNetwork);
    assert!(objects(&Input::new(&dataset, &runtime, "i")).expect("objects").policy.is_none());
}
