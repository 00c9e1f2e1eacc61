//! Ways to install: the chart, the kustomize base and the manifest make the same objects, and the API server takes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::site::install;
use super::{kubectl, ok, program, text};
use crate::support::ROOT;

/// Where the chart's objects go, which exists once the operator is installed.
const SPACE: &str = "jindofs-system";
/// Every value that can be another one.
const OTHER_VALUES: &str = "
image: { repository: registry.example.com/jindofs, tag: '1', pullPolicy: Always }
imagePullSecrets: [{ name: registry }]
crds: { install: false }
operator:
  replicas: 1
  resources: { limits: { memory: 1Gi, cpu: 2 } }
  nodeSelector: { disk: ssd }
  tolerations: [{ key: infra, operator: Exists }]
  priorityClassName: system-cluster-critical
csi:
  driver: jindo.example.com
  kubeletDir: /var/lib/k0s/kubelet
  resources: { limits: { memory: 1Gi } }
  nodeSelector: { disk: ssd }
  tolerations: []
  priorityClassName: system-cluster-critical
networkPolicy: { enabled: false }
podMonitor: { enabled: true }
";

/// The helm that was built beside kubectl, or the one of the path; without any the tests of the chart are left out.
fn helm() -> Option<Command> {
    let beside = Path::new(&program()).with_file_name("helm");
    let name = if beside.is_absolute() && beside.exists() { beside } else { "helm".into() };
    match Command::new(&name).arg("version").output() {
        Ok(output) if output.status.success() => Some(Command::new(name)),
        _ => {
            // Only a cluster of others comes without: ours brings helm along.
            assert!(std::env::var_os("JINDOFS_KUBE_SINCE").is_none(), "helm is missing beside {}", program());
            eprintln!("left out: the chart, as there is no helm beside {} or in the PATH", program());
            None
        }
    }
}

/// What the chart makes with values of a file, if any.
fn render(mut helm: Command, values: Option<&str>) -> Output {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), values.unwrap_or_default()).expect("written");
    let version: Value = serde_json::from_str(&ok(&kubectl(&["version", "-o", "json"]))).expect("json");
    let version = version["serverVersion"]["gitVersion"].as_str().expect("a version").to_owned();
    helm.args(["template", "jindofs", "deploy/chart", "-n", SPACE, "--kube-version", &version, "-f"]).arg(file.path());
    helm.current_dir(ROOT).output().expect("helm runs")
}

/// Numbers alike: helm prints 1.0 as 1.
fn plain(value: Value) -> Value {
    match value {
        Value::Array(all) => all.into_iter().map(plain).collect(),
        Value::Object(all) => all.into_iter().map(|(key, value)| (key, plain(value))).collect(),
        Value::Number(number) => json!(number.as_f64()),
        other => other,
    }
}

/// Objects by kind and name.
fn objects(yaml: &str) -> BTreeMap<String, Value> {
    let says = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
    let named = |document: &str| {
        let one: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}:\n{document}"));
        let (kind, name) = (one["kind"].as_str(), one["metadata"]["name"].as_str());
        (format!("{} {}", kind.expect("a kind"), name.expect("a name")), one)
    };
    let text = format!("\n{yaml}");
    text.split("\n---\n").filter(|document| document.lines().any(says)).map(named).collect()
}

fn manifest() -> String {
    ok(&Command::new(format!("{ROOT}/deploy/manifest")).output().expect("it runs"))
}

/// The API server would take it.
fn assert_accepted(what: &str, yaml: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), yaml).expect("written");
    let path = file.path().display().to_string();
    let done = kubectl(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", &path]);
    assert!(done.status.success(), "{what}: {}", text(&done));
    let lines = text(&done).lines().filter(|line| line.ends_with("(server dry run)")).count();
    assert_eq!(
        lines,
        objects(yaml).len(),
        "{what}: every object is looked at, and no warning is printed: {}",
        text(&done)
    );
    assert_eq!(text(&done).lines().count(), lines, "{what}: {}", text(&done));
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn the_chart_makes_what_the_manifest_makes_but_for_the_namespace_and_the_keeping_of_definitions() {
    let Some(helm) = helm() else { return };
    let mut chart = objects(&String::from_utf8_lossy(&render(helm, None).stdout));
    let mut ours = objects(&manifest());
    // Helm makes namespaces itself: --create-namespace.
    assert!(ours.remove("Namespace jindofs-system").is_some());
    // What is uninstalled must not take every Dataset along.
    for (name, definition) in chart.iter_mut().filter(|(name, _)| name.starts_with("CustomResourceDefinition ")) {
        let metadata = definition["metadata"].as_object_mut().expect("metadata");
        assert_eq!(metadata.remove("annotations"), Some(json!({"helm.sh/resource-policy": "keep"})), "{name}");
    }
    assert_eq!(chart.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
    for (name, object) in &ours {
        assert_eq!(plain(chart[name].clone()), plain(object.clone()), "{name}");
    }
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn every_way_to_install_is_taken_by_the_api_server() {
    // The definitions and the namespace are there: a dry run makes neither.
    install();
    assert_accepted("deploy/manifest", &manifest());
    let base = format!("{ROOT}/deploy/kustomize");
    let kustomized = ok(&kubectl(&["kustomize", &base]));
    let alike = |yaml: &str| -> BTreeMap<String, Value> {
        objects(yaml).into_iter().map(|(name, object)| (name, plain(object))).collect()
    };
    assert!(alike(&kustomized) == alike(&manifest()), "the base makes what the manifest makes");
    assert_accepted("deploy/kustomize", &kustomized);
    let Some(helm) = helm() else { return };
    assert_accepted("deploy/chart", &String::from_utf8_lossy(&render(helm, None).stdout));
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn every_value_of_the_chart_changes_what_it_says() {
    let Some(helm) = helm() else { return };
    let rendered = render(helm, Some(OTHER_VALUES));
    assert!(rendered.status.success(), "{}", text(&rendered));
    let mut all = objects(&String::from_utf8_lossy(&rendered.stdout));
    assert!(all.keys().all(|name| !name.starts_with("CustomResource") && !name.starts_with("NetworkPolicy")));
    assert!(all.contains_key("CSIDriver jindo.example.com"), "{:?}", all.keys());
    // Nobody has its definition here.
    assert!(all.remove("PodMonitor jindofs").is_some());
    let operator = &all["Deployment jindofs-operator"]["spec"];
    assert_eq!(operator["replicas"], 1);
    let pods = [
        ("Deployment jindofs-operator", json!([{"key": "infra", "operator": "Exists"}])),
        ("DaemonSet jindofs-csi", Value::Null),
    ];
    for (name, tolerations) in pods {
        let pod = &all[name]["spec"]["template"]["spec"];
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]), "{name}");
        assert_eq!(pod["nodeSelector"], json!({"disk": "ssd"}), "{name}");
        assert_eq!(pod["priorityClassName"], "system-cluster-critical", "{name}");
        assert_eq!(pod["tolerations"], tolerations, "{name}");
        assert_eq!(pod["containers"][0]["image"], "registry.example.com/jindofs:1", "{name}");
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always", "{name}");
        let env = pod["containers"][0]["env"].as_array().expect("variables");
        assert!(env.contains(&json!({"name": "CSI_DRIVER", "value": "jindo.example.com"})), "{name}: {env:?}");
    }
    let container = &operator["template"]["spec"]["containers"][0];
    assert_eq!(
        container["resources"],
        json!({"limits": {"memory": "1Gi", "cpu": 2}, "requests": {"cpu": "50m", "memory": "64Mi"}})
    );
    let plugin = &all["DaemonSet jindofs-csi"]["spec"]["template"]["spec"];
    assert_eq!(plugin["volumes"][0]["hostPath"]["path"], "/var/lib/k0s/kubelet");
    assert_eq!(plugin["containers"][0]["volumeMounts"][0]["mountPath"], "/var/lib/k0s/kubelet");
    assert_eq!(plugin["containers"][0]["resources"]["limits"]["memory"], "1Gi");
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn helm_has_nothing_to_say_against_the_chart_and_its_schema_refuses_what_cannot_be() {
    let Some(mut lint) = helm() else { return };
    let linted = lint.args(["lint", "--strict", "deploy/chart"]).current_dir(ROOT).output().expect("helm runs");
    assert!(linted.status.success() && !text(&linted).contains("[WARNING]"), "{}", text(&linted));
    for (values, said) in [
        ("imagee: {}", "additional properties 'imagee' not allowed"),
        ("operator: { replicas: 0 }", "at '/operator/replicas': minimum: got 0, want 1"),
        ("operator: { replicas: two }", "at '/operator/replicas': got string, want integer"),
        ("csi: { kubeletDir: kubelet }", "at '/csi/kubeletDir': 'kubelet' does not match pattern"),
        ("csi: { driver: 'A driver' }", "at '/csi/driver': 'A driver' does not match pattern"),
        ("image: { tag: '' }", "at '/image/tag': '' does not match pattern"),
        ("image: { pullPolicy: Sometimes }", "at '/image/pullPolicy': value must be one of"),
        (
            "csi: { resources: { limits: { memory: lots } } }",
            "at '/csi/resources/limits/memory': 'lots' does not match",
        ),
        ("imagePullSecrets: [registry]", "at '/imagePullSecrets/0': got string, want object"),
    ] {
        let Some(helm) = helm() else { return };
        let refused = render(helm, Some(values));
        assert!(!refused.status.success() && text(&refused).contains(said), "{values}: {}", text(&refused));
    }
}
