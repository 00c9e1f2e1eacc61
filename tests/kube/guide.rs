//! The guide's Dataset while it is used, and a load of it.

use super::eventually;
use super::site::{Guide, Oss, install};
use crate::data::content;

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_dataset_in_use_is_not_taken_from_its_pods_and_its_deletion_says_who_holds_it() {
    install();
    let oss = Oss::start(&[("small", b"hello\n".to_vec())]);
    let guide = Guide::new("in-use", &oss);
    guide.ok("for file in pvc secret dataset pod; do kubectl create -f $file.yaml; done");
    guide.wait_ready("nginx");
    guide.ok("kubectl delete -f dataset.yaml --wait=false");
    let held = eventually("the Dataset says who holds it", || {
        let events = guide.ok("kubectl describe dataset demo");
        events.contains("DatasetInUse").then_some(events)
    });
    assert!(held.contains("nginx"), "{held}");
    assert_eq!(guide.ok("kubectl exec nginx -- cat /data/small"), "hello\n", "nothing was taken from it");
    guide.ok("kubectl delete -f pod.yaml");
    guide.ok("kubectl wait --for=delete dataset/demo jindoruntime/demo --timeout=60s");
    guide.ok("kubectl delete -f pvc.yaml -f secret.yaml");
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_load_caches_everything_and_the_columns_say_so() {
    install();
    let oss = Oss::start(&[("large", content(9_000_000, 2)), ("dir/inner", content(70_000, 3))]);
    let guide = Guide::new("load", &oss);
    guide.write("dataset", &oss.dataset().replace("12Gi", "64Mi"));
    let load = "apiVersion: data.fluid.io/v1alpha1\nkind: DataLoad\nmetadata: {name: demo}\nspec: {dataset: {name: demo}, ttlSecondsAfterFinished: 20}\n";
    guide.write("load", load);
    // The load waits for the Dataset.
    guide.ok("for file in load pvc secret dataset; do kubectl create -f $file.yaml; done");
    guide.ok("kubectl wait --for=jsonpath={.status.phase}=Complete dataload/demo --timeout=120s");
    let shown = guide.ok("kubectl get dataload demo --no-headers");
    let row: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(row[..3], ["demo", "demo", "Complete"], "{shown}");
    let row = eventually("all is cached", || Some(guide.bound()).filter(|row| row[4] == "100.0%"));
    assert_eq!(row[1], row[2], "the total is what is cached");
    guide.ok("kubectl wait --for=delete dataload/demo --timeout=60s");
    guide.ok("kubectl delete -f dataset.yaml -f pvc.yaml -f secret.yaml");
}
