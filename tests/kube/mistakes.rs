//! What a user gets wrong, and what `kubectl describe dataset` says then.

use super::running::create_secret;
use super::site::{Oss, PVC, dataset, install};
use super::{Namespace, eventually};

/// Reason and message of the Dataset's condition `Ready`, once the reason is `wanted`.
fn told(space: &Namespace, wanted: &str) -> String {
    eventually(&format!("the Dataset says {wanted}"), || {
        let found = space.json(&["get", "dataset", "demo"]);
        let conditions = found["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|one| one["type"] == "Ready")?;
        let (reason, message) = (ready["reason"].as_str()?, ready["message"].as_str()?);
        (reason == wanted).then(|| message.to_owned())
    })
}

fn delete(space: &Namespace) {
    space.ok(&["delete", "dataset,jindoruntime", "--all", "--timeout=60s"]);
    // Pods of the next case have the same names.
    space.ok(&["wait", "--for=delete", "pods", "-l", "release=demo", "--timeout=60s"]);
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn every_mistake_is_named_with_what_to_write_instead() {
    install();
    let oss = Oss::start(&[("small", b"hello\n".to_vec())]);
    let space = Namespace::new("mistakes");
    let good = oss.dataset().replace("12Gi", "64Mi");
    let small = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let (only_dataset, only_runtime) = good.split_once("\n---\n").expect("two documents");
    space.create(only_dataset);
    assert!(told(&space, "RuntimeNotFound").contains("create one"));
    delete(&space);
    space.create(only_runtime);
    eventually("the runtime says that nothing is to be served", || {
        let found = space.json(&["get", "jindoruntime", "demo"]);
        (found["status"]["conditions"][0]["reason"] == "DatasetNotFound").then_some(())
    });
    delete(&space);

    let again = format!(
        "    - mountPoint: oss://guide/data\n      name: more\n      path: /below\n      options: {{fs.oss.endpoint: {}}}\n",
        oss.endpoint
    );
    let mistakes = [
        (good.clone(), "ClaimNotFound", "demo-jindo-master-meta"),
        (small("oss://", "hdfs://"), "UnknownScheme", "hdfs://guide/data"),
        (small("64Mi", "1Mi"), "InvalidTieredStore", "quota"),
        (small("  master:\n", "  master:\n    replicas: 2\n"), "InvalidMasterReplicas", "write 1, 3, 5 or 7"),
        (small("  mounts:\n", &format!("  mounts:\n{again}")), "OverlappingMounts", "/below"),
    ];
    for (yaml, reason, word) in mistakes {
        space.create(&yaml);
        let message = told(&space, reason);
        assert!(message.contains(word), "{reason}: {message}");
        delete(&space);
    }

    space.create(&PVC.replace("30Gi", "1Mi"));
    space.create(&good);
    assert!(told(&space, "ClaimTooSmall").contains("256Mi"));
    delete(&space);
    space.ok(&["delete", "pvc", "demo-jindo-master-meta", "--timeout=60s"]);
    space.create(PVC);
    space.create(&good);
    let message = told(&space, "FailedMount");
    assert!(message.contains("secret \"access-key\" not found"), "{message}");
    delete(&space);
    let keys = ["--from-literal=fs.oss.accessKeyId=nobody", "--from-literal=fs.oss.accessKeySecret=wrong"];
    space.ok(&[&["create", "secret", "generic", "access-key"], &keys[..]].concat());
    space.create(&good);
    let message = told(&space, "RuntimeMountUfsFailed");
    println!("wrong keys: {message}");
    assert!(message.contains("oss://guide/data"), "{message}");
    delete(&space);
    space.ok(&["delete", "secret", "access-key"]);
    create_secret(&space);
    space.create(&small(
        "  replicas: 2\n",
        "  replicas: 2\n  jindoVersion: {image: localhost/nothing, imageTag: here}\n",
    ));
    let message = eventually("the image is named", || {
        let found = space.json(&["get", "dataset", "demo"]);
        let said = found["status"]["conditions"][0]["message"].as_str()?.to_owned();
        said.contains("localhost/nothing:here").then_some(said)
    });
    println!("{message}");
    // No master leads that could be asked whether another pod may take its place.
    space.ok(&["patch", "jindo", "demo", "--type=merge", "-p", r#"{"spec":{"jindoVersion":null}}"#]);
    told(&space, "DatasetReady");
    delete(&space);
    space.ok(&["delete", "pvc", "demo-jindo-master-meta", "--timeout=60s"]);
    space.create(PVC);
    space.create(&small("oss://guide/data", "oss://nowhere/data"));
    let message = told(&space, "RuntimeMountUfsFailed");
    assert!(message.contains("oss://nowhere/data"), "{message}");
    // Corrected in place, it goes on.
    space.ok(&[
        "patch",
        "dataset",
        "demo",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/mounts/0/mountPoint","value":"oss://guide/data"}]"#,
    ]);
    told(&space, "DatasetReady");
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn metadata_is_never_silently_left_behind_nor_started_empty() {
    install();
    let oss = Oss::start(&[("small", b"hello\n".to_vec())]);
    let space = Namespace::new("metadata");
    create_secret(&space);
    space.create(PVC);
    let one = oss.dataset().replace("12Gi", "64Mi");
    space.create(&one);
    told(&space, "DatasetReady");
    let uuid = |space: &Namespace| space.ok(&["get", "jindo", "demo", "-o", "jsonpath={.status.cluster.uuid}"]);
    let founded = uuid(&space);
    delete(&space);
    let three = one.replacen("  master:\n", "  master:\n    replicas: 3\n", 1);
    space.create(&three);
    let message = told(&space, "ClaimHoldsCluster");
    assert!(message.contains(&founded) && message.contains("set master.replicas to 1"), "{message}");
    space.ok(&["patch", "jindo", "demo", "--type=merge", "-p", r#"{"spec":{"master":{"replicas":1}}}"#]);
    told(&space, "DatasetReady");
    assert_eq!(uuid(&space), founded, "the same cluster goes on");

    space.ok(&["delete", "pvc", "demo-jindo-master-meta", "--wait=false"]);
    space.ok(&["delete", "pod", "demo-jindofs-master-0"]);
    space.ok(&["wait", "--for=delete", "pvc/demo-jindo-master-meta", "--timeout=60s"]);
    space.create(PVC);
    let message = told(&space, "MetadataLost");
    assert!(message.contains(&founded) && message.contains("delete the JindoRuntime"), "{message}");
    assert_eq!(space.json(&["get", "dataset", "demo"])["status"]["phase"], "Failed");
}

/// Message of a resource's condition `UnsupportedField`, while it has one.
fn named(space: &Namespace, kind: &str) -> Option<String> {
    let found = space.json(&["get", kind, "demo"]);
    let conditions = found["status"]["conditions"].as_array()?;
    let one = conditions.iter().find(|one| one["type"] == "UnsupportedField" && one["status"] == "True")?;
    Some(one["message"].as_str()?.to_owned())
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn fields_without_effect_are_named_where_they_stand_until_they_are_taken_out() {
    install();
    let space = Namespace::new("unsupported");
    let yaml = dataset("http://oss.test")
        .replacen("      path: /\n", "      path: /\n      shared: true\n", 1)
        .replacen("  replicas: 2\n", "  replicas: 2\n  user: somebody\n", 1);
    space.create(&yaml);
    let load = "apiVersion: data.fluid.io/v1alpha1\nkind: DataLoad\nmetadata: {name: demo}\nspec: {dataset: {name: demo}, loadMetadata: true}\n";
    space.create(load);
    let set = [("dataset", "spec.mounts[0].shared"), ("jindoruntime", "spec.user"), ("dataload", "spec.loadMetadata")];
    for (kind, path) in set {
        let message = eventually(&format!("the {kind} names {path}"), || named(&space, kind));
        assert!(message.starts_with(&format!("{path} has no effect: ")), "{message}");
    }
    let events = eventually("each is told", || {
        let events = space.json(&["get", "events", "--field-selector", "reason=UnsupportedField"]);
        events["items"].as_array().filter(|all| all.len() >= set.len()).cloned()
    });
    assert!(events.iter().all(|one| one["type"] == "Warning"), "{events:?}");
    assert_eq!(events.len(), set.len(), "each is told once: {events:?}");
    for (kind, at) in
        [("dataset", "/spec/mounts/0/shared"), ("jindoruntime", "/spec/user"), ("dataload", "/spec/loadMetadata")]
    {
        let patch = format!(r#"[{{"op":"remove","path":"{at}"}}]"#);
        space.ok(&["patch", kind, "demo", "--type=json", "-p", &patch]);
        eventually(&format!("nothing of the {kind} is named"), || named(&space, kind).is_none().then_some(()));
    }
    space.ok(&["delete", "dataload,dataset,jindoruntime", "--all", "--timeout=60s"]);
}
