//! The resources of the guide, as `kubectl` creates and shows them.

use super::{GUIDE, Namespace, text};

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn the_guides_resources_are_created_and_shown_as_the_guide_says() {
    let space = Namespace::new("resources");
    let created = space.feed(&["create"], GUIDE);
    assert_eq!(text(&created), "dataset.data.fluid.io/demo created\njindoruntime.data.fluid.io/demo created\n");
    let shown = space.ok(&["get", "dataset"]);
    let header: Vec<&str> = shown.lines().next().unwrap_or_default().split("  ").map(str::trim).collect();
    let header: Vec<&str> = header.into_iter().filter(|column| !column.is_empty()).collect();
    assert_eq!(header, ["NAME", "UFS TOTAL SIZE", "CACHED", "CACHE CAPACITY", "CACHED PERCENTAGE", "PHASE", "AGE"]);
    space.ok(&["scale", "jindoruntime", "demo", "--replicas=3"]);
    assert_eq!(space.json(&["get", "jindo", "demo"])["spec"]["replicas"], 3);
    let all = space.ok(&["get", "fluid"]);
    assert!(all.contains("dataset.data.fluid.io/demo") && all.contains("jindoruntime.data.fluid.io/demo"), "{all}");
    let (dataset, runtime) = GUIDE.split_once("\n---\n").expect("two documents");
    for document in [dataset, runtime] {
        let given: serde_json::Value = serde_saphyr::from_str(document).expect("yaml");
        let kept = space.json(&["get", given["kind"].as_str().unwrap_or_default(), "demo"]);
        let mut spec = kept["spec"].clone();
        if given["kind"] == "JindoRuntime" {
            spec["replicas"] = 2.into();
        }
        assert_eq!(spec, given["spec"]);
    }
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_field_nobody_knows_is_kept_and_a_value_that_cannot_be_is_refused() {
    let space = Namespace::new("fields");
    let (dataset, runtime) = GUIDE.split_once("\n---\n").expect("two documents");
    let later = runtime.replace("  master:\n", "  later: {deep: [1, two]}\n  master:\n    later: true\n");
    space.create(&later);
    let kept = space.json(&["get", "jindo", "demo"]);
    assert_eq!(kept["spec"]["later"], serde_json::json!({"deep": [1, "two"]}));
    assert_eq!(kept["spec"]["master"]["later"], true);
    for (from, to, word) in [
        ("oss://<OSS_BUCKET>/<BUCKET_DIR>", "x", "mountPoint"),
        ("name: demo\nspec", "name: demo\nspec:\n  placement: Nowhere #", "placement"),
    ] {
        let refused = space.feed(&["create"], &dataset.replacen(from, to, 1));
        assert!(!refused.status.success() && text(&refused).contains(word), "{}", text(&refused));
    }
}
