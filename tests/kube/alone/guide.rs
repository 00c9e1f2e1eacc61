//! The guide, word for word: its files, its commands, and what it says they print.

use super::{begin, left_on};
use crate::data::content;
use crate::kube::site::{Guide, Oss};
use crate::kube::{NODES, eventually};

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn the_guide_works_word_for_word_and_leaves_nothing_behind() {
    begin();
    let oss =
        Oss::start(&[("large", content(9_000_000, 1)), ("small", b"hello\n".to_vec()), ("dir/inner", b"x".to_vec())]);
    let guide = Guide::in_default_namespace(&oss);
    let volumes = guide.ok("kubectl get pv -o name");

    let made = [
        ("pvc", "persistentvolumeclaim/demo-jindo-master-meta created\n"),
        ("secret", "secret/access-key created\n"),
        ("dataset", "dataset.data.fluid.io/demo created\njindoruntime.data.fluid.io/demo created\n"),
    ];
    let begun = std::time::Instant::now();
    for (file, told) in made {
        assert_eq!(guide.ok(&format!("kubectl create -f {file}.yaml")), told);
    }
    eventually("the Dataset is Bound", || {
        guide
            .ok("kubectl get dataset")
            .lines()
            .any(|line| line.contains("Bound") && !line.contains("NotBound"))
            .then_some(())
    });
    println!("Bound {:?} after the first command", begun.elapsed());
    // The guide's own line: 531.89MiB 0.00B 24.00GiB 0.0% Bound.
    let row = eventually("both workers are counted", || Some(guide.bound()).filter(|row| row[3] == "24.00GiB"));
    assert_eq!(row[..6], ["demo", "8.58MiB", "0.00B", "24.00GiB", "0.0%", "Bound"]);

    assert_eq!(guide.ok("kubectl create -f pod.yaml"), "pod/nginx created\n");
    guide.wait_ready("nginx");
    let listed = guide.ok("kubectl exec -it nginx -- ls /data");
    assert_eq!(listed, "dir\nlarge\nsmall\n");
    let read = guide.ok("kubectl exec nginx -- md5sum /data/large");
    let stored = guide.ok(&format!("md5sum {}", oss.files.join("large").display()));
    assert_eq!(read.split(' ').next(), stored.split(' ').next(), "byte for byte");

    let find = "master_node=$(kubectl get pod -o wide | awk '/demo-jindofs-master-0/ {print $7}')";
    let node = guide.ok(&format!("{find}; echo $master_node")).trim().to_owned();
    let volume = "kubectl get pvc demo-jindo-master-meta -o jsonpath={.spec.volumeName}";
    let before = guide.ok(volume);
    let tainted =
        guide.ok(&format!("{find}; kubectl taint node $master_node test-jindofs-master=reschedule:NoSchedule"));
    assert_eq!(tainted, format!("node/{node} tainted\n"));
    assert_eq!(guide.ok("kubectl delete pod demo-jindofs-master-0"), "pod \"demo-jindofs-master-0\" deleted\n");
    let moved = std::time::Instant::now();
    let again = guide.ok("kubectl delete -f pod.yaml && kubectl create -f pod.yaml");
    assert_eq!(again, "pod \"nginx\" deleted\npod/nginx created\n");
    guide.wait_ready("nginx");
    assert_eq!(guide.ok("kubectl exec -it nginx -- ls /data"), listed, "the same files as before");
    println!("the files are listed again {:?} after the master's pod was deleted", moved.elapsed());
    let now = guide.ok(&format!("{find}; echo $master_node")).trim().to_owned();
    assert!(NODES.contains(&now.as_str()) && now != node, "it moved from {node} to {now}");
    assert_eq!(guide.ok(volume), before, "the same volume");

    assert_eq!(guide.ok("kubectl delete -f pod.yaml"), "pod \"nginx\" deleted\n");
    assert_eq!(
        guide.ok(&format!("kubectl taint node {node} test-jindofs-master-")),
        format!("node/{node} untainted\n")
    );
    assert_eq!(
        guide.ok("kubectl delete -f dataset.yaml"),
        "dataset.data.fluid.io \"demo\" deleted\njindoruntime.data.fluid.io \"demo\" deleted\n"
    );
    assert_eq!(guide.ok("kubectl delete -f pvc.yaml"), "persistentvolumeclaim \"demo-jindo-master-meta\" deleted\n");
    guide.ok("kubectl delete -f secret.yaml");

    let kinds = "pods,statefulsets,daemonsets,services,configmaps,poddisruptionbudgets,pvc,controllerrevisions";
    eventually("nothing of it is left in Kubernetes", || {
        guide.ok(&format!("kubectl get {kinds} -l release=demo -o name")).is_empty().then_some(())
    });
    assert_eq!(guide.ok("kubectl get pvc,dataset,jindoruntime -o name"), "");
    // Those of an earlier cluster may still have been on their way out.
    let came = |now: String| now.lines().any(|one| !volumes.lines().any(|before| before == one));
    eventually("its volumes are gone", || (!came(guide.ok("kubectl get pv -o name"))).then_some(()));
    assert!(!guide.ok("kubectl get nodes --show-labels").contains("fluid.io/f-"), "a node is still labelled");
    for node in NODES {
        assert_eq!(left_on(node), "", "left on {node}");
    }
    drop(oss);
}
