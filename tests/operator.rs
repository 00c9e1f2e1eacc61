//! What the operator makes of the guide's resources is what our own programs take.

use std::process::{Command, Output};

use crate::support::cluster::binary;

fn operator() -> Command {
    // Built beside the others: it belongs to the same workspace.
    Command::new(binary("jindofs").with_file_name("jindofs-operator"))
}

fn render(yaml: &str) -> Output {
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("dataset.yaml");
    std::fs::write(&file, yaml).expect("written");
    operator().arg("render").arg(&file).output().expect("jindofs-operator runs")
}

const GUIDE: &str = include_str!("../deploy/samples/dataset.yaml");

#[test]
fn the_rendered_settings_are_accepted_by_the_roles_they_are_for() {
    let output = render(&GUIDE.replace("  master:\n", "  master:\n    replicas: 3\n"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let config = text.split("---\n").find(|document| document.contains("kind: ConfigMap")).expect("a ConfigMap");
    let config: serde_json::Value = serde_saphyr::from_str(config).expect("yaml");
    let dir = tempfile::tempdir().expect("tempdir");
    for role in ["master", "worker", "fuse"] {
        let file = dir.path().join(role);
        std::fs::write(&file, config["data"][format!("{role}.toml")].as_str().expect("a file")).expect("written");
        let mut check = Command::new(binary("jindofs"));
        check.args(["check-config", "--role", role, "--config"]).arg(&file);
        // As the pod has it.
        check.env("NAMESPACE_BACKEND_RAFT_HOSTNAME", "demo-jindofs-master-1.demo-jindofs-master.default.svc");
        let checked = check.env("STORAGE_ADDRESS", "10.244.1.7").output().expect("jindofs runs");
        assert!(checked.status.success(), "{role}: {}", String::from_utf8_lossy(&checked.stderr));
    }
}

#[test]
fn resources_that_cannot_be_served_are_refused_with_every_reason() {
    let output = render(&GUIDE.replace("oss://", "hdfs://").replace("  master:\n", "  master:\n    replicas: 2\n"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("InvalidMasterReplicas: master.replicas is 2") && said.contains("UnknownScheme"), "{said}");
    let alone = render(GUIDE.split("\n---\n").next().unwrap_or_default());
    assert!(String::from_utf8_lossy(&alone.stderr).contains("a Dataset and a JindoRuntime are needed"));
}

#[test]
fn a_field_without_effect_is_a_warning_and_the_rest_is_rendered() {
    let output = render(&GUIDE.replacen("      path: /\n", "      path: /\n      shared: true\n", 1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !output.stdout.is_empty(), "{said}");
    assert!(said.starts_with("warning: spec.mounts[0].shared has no effect: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
