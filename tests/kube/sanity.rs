//! csi-sanity, the conformance tests of the Container Storage Interface: against the node plugin and volumes of a real
//! cluster. A spec that it leaves out fails, unless the specification leaves it to us and we do not announce it.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::program;
use crate::csi::{Site, serve};
use crate::support::{fuse_works, left_out};

/// Why specs are left out, and which: groups or single ones, by name.
const OPTIONAL: [(&str, &[&str]); 5] = [
    (
        "the product has no controller: volumes are made by the operator. The one of this test does what the node's specs need",
        &[
            "Controller Service [Controller Server] GetCapacity",
            "Controller Service [Controller Server] ListVolumes",
            "GroupController Service [GroupController Server]",
            "GroupController Service [GroupController VolumeGroupSnapshots]",
        ],
    ),
    (
        "nothing is attached to a node: attachRequired is false",
        &[
            "Controller Service [Controller Server] ControllerPublishVolume",
            "Controller Service [Controller Server] ControllerUnpublishVolume",
            "Controller Service [Controller Server] volume lifecycle",
        ],
    ),
    (
        "the under-storage is neither copied nor kept as it was",
        &[
            "Controller Service [Controller Server] CreateVolume should create volume from an existing source snapshot",
            "Controller Service [Controller Server] CreateVolume should fail when the volume source snapshot is not found",
            "Controller Service [Controller Server] CreateVolume should create volume from an existing source volume",
            "Controller Service [Controller Server] CreateVolume should fail when the volume source volume is not found",
            "ListSnapshots [Controller Server]",
            "DeleteSnapshot [Controller Server]",
            "CreateSnapshot [Controller Server]",
        ],
    ),
    (
        "a Dataset is as large as its under-storage",
        &["ExpandVolume [Controller Server]", "Node Service NodeExpandVolume"],
    ),
    (
        "a volume has no attributes that a VolumeAttributesClass could change: those of a mount are changed in the Dataset",
        &[
            "Controller Service [Controller Server] CreateVolume should create volume with a volume attribute class",
            "Controller Service [Controller Server] CreateVolume should not create volume with an invalid volume attribute class",
            "ModifyVolume [Controller Server]",
        ],
    ),
];

struct Spec {
    name: String,
    state: String,
    why: String,
}

/// All specs of a report of ginkgo.
fn specs(report: &Path) -> Vec<Spec> {
    let text = std::fs::read(report).expect("a report");
    let suites: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let specs = suites.as_array().expect("suites").iter().flat_map(|suite| suite["SpecReports"].as_array());
    let texts = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let spec = |spec: &serde_json::Value| {
        let groups = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().map(texts);
        let name: Vec<String> = groups.chain([texts(&spec["LeafNodeText"])]).collect();
        Spec { name: name.join(" "), state: texts(&spec["State"]), why: texts(&spec["Failure"]["Message"]) }
    };
    specs.flatten().map(spec).collect()
}

fn is_within(name: &str, listed: &str) -> bool {
    name.strip_prefix(listed).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs csi-sanity beside $KUBECTL: make kube-test"]
async fn csi_sanity_passes_and_leaves_out_nothing_but_what_the_specification_makes_optional() {
    let test = "csi_sanity_passes_and_leaves_out_nothing_but_what_the_specification_makes_optional";
    let sanity = PathBuf::from(program()).with_file_name("csi-sanity");
    if !fuse_works(test) || !left_out(test, (!sanity.exists()).then_some("csi-sanity in the directory of $KUBECTL")) {
        return;
    }
    let site = Site::start(1);
    let dir = tempfile::tempdir().expect("tempdir");
    let [socket, report] = ["csi.sock", "report.json"].map(|name| dir.path().join(name));
    serve(&site, &socket).await;
    let mut command = Command::new(sanity);
    command.arg(format!("--csi.endpoint=unix:{}", socket.display()));
    command.arg(format!("--csi.mountdir={}", site.kubelet.join("a mount").display()));
    command.arg(format!("--csi.stagingdir={}", site.kubelet.join("staging").display()));
    command.arg(format!("--ginkgo.json-report={}", report.display())).arg("--ginkgo.no-color");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let said = super::text(&output);
    assert!(report.exists(), "{said}");
    let specs = specs(&report);
    let listed: Vec<&str> = OPTIONAL.iter().flat_map(|(_, names)| names.iter().copied()).collect();
    let mut wrong = Vec::new();
    let ran: Vec<&Spec> = specs.iter().filter(|spec| spec.state == "passed").collect();
    for spec in specs.iter().filter(|spec| spec.state != "passed") {
        let skipped = ["skipped", "pending"].contains(&spec.state.as_str());
        if !skipped || !listed.iter().any(|listed| is_within(&spec.name, listed)) {
            wrong.push(format!("{}: {} {}", spec.state, spec.name, spec.why));
        }
    }
    for listed in listed {
        if !specs.iter().any(|spec| spec.state != "passed" && is_within(&spec.name, listed)) {
            wrong.push(format!("listed as left out, and is not: {listed}"));
        }
    }
    println!("csi-sanity: {} specs passed, {} are optional and not ours", ran.len(), specs.len() - ran.len());
    assert!(wrong.is_empty() && output.status.success(), "{}\n{said}", wrong.join("\n"));
    for name in ["Node Service should work", "Node Service should be idempotent"] {
        assert!(ran.iter().any(|spec| spec.name == name), "{name} did not run");
    }
    site.assert_nothing_published();
}
