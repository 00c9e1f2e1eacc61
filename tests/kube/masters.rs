//! Masters while Kubernetes does to their pods what it does, one pod reads, and one makes names, each of which must be there
//! at the end once it was acknowledged.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::running::{IMAGE, delete, pods, prepare, start};
use super::site::script;
use super::{NODES, eventually, kubectl, ok};
use crate::support::long;

/// Kills whoever of the operators acts, at this moment.
fn kill_the_operator() {
    let name = "app.kubernetes.io/name=jindofs-operator";
    ok(&kubectl(&["-n", "jindofs-system", "delete", "pods", "-l", name, "--force", "--grace-period=0"]));
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn masters_whose_pods_and_volumes_are_deleted_lose_nothing_and_come_back_by_themselves() {
    let site = start("masters", 3);
    assert!(!delete(&site, &site.leader(), &[], false), "with its volume it is who it was");
    let force = ["--force", "--grace-period=0"];
    let begun = SystemTime::now();
    assert!(!delete(&site, &site.leader(), &force, false));
    println!("the leader's pod was deleted by force: longest pause {:?}", site.longest_pause(begun));
    let leader = site.leader();
    let follower = pods(3).into_iter().find(|pod| *pod != leader).expect("a follower");
    assert!(delete(&site, &follower, &[], true), "a lost volume is replaced by a new member");
    let begun = SystemTime::now();
    assert!(delete(&site, &site.leader(), &[], true));
    println!("the leader has lost pod and volume: longest pause {:?}", site.longest_pause(begun));
    // Somebody has deleted a volume itself: nothing but the operator would ever notice.
    let pod = pods(3).into_iter().find(|pod| *pod != site.leader()).expect("a follower");
    let before = site.wait_ready(3);
    let claim = format!("meta-vol-{pod}");
    let volume = site.space.ok(&["get", "pvc", &claim, "-o", "jsonpath={.spec.volumeName}"]);
    ok(&kubectl(&["delete", "pv", &volume, "--wait=false"]));
    ok(&kubectl(&["patch", "pv", &volume, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]));
    eventually("a claim without its volume is exchanged", || {
        Some(site.wait_ready(3)).filter(|after| after[&pod] != before[&pod])
    });
    site.space.ok(&[&["delete", "pods", "-l", "role=jindofs-master"], &force[..]].concat());
    site.wait_ready(3);
    site.assert_nothing_lost();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn masters_are_added_removed_and_get_another_image_while_operators_are_killed() {
    let site = start("scale", 3);
    let first = site.wait_ready(3);
    for count in [5, 3, 5, 3] {
        site.set_masters(count);
        kill_the_operator();
        let now = site.wait_ready(count);
        for pod in pods(3) {
            assert_eq!(now[&pod], first[&pod], "{pod} is who it was");
        }
        eventually("each master has a claim, and nobody else", || {
            let claims = site.space.json(&["get", "pvc", "-l", "role=jindofs-master"]);
            (claims["items"].as_array()?.len() == count).then_some(())
        });
    }
    for node in NODES {
        ok(&script(
            "node",
            &[node, "exec", "ctr", "-n", "k8s.io", "images", "tag", "--force", IMAGE, "localhost/jindofs:next"],
        ));
    }
    let (before, led, begun) = (site.uids(&pods(3)), site.leader(), SystemTime::now());
    site.patch(r#"{"jindoVersion":{"image":"localhost/jindofs","imageTag":"next"}}"#);
    let mut order: Vec<String> = Vec::new();
    eventually("every master is another pod", || {
        let now = site.uids(&pods(3));
        let other = |pod: &&String| now.get(*pod).is_some_and(|uid| *uid != before[*pod]) && !order.contains(pod);
        let new: Vec<String> = pods(3).iter().filter(other).cloned().collect();
        order.extend(new);
        (order.len() == 3).then_some(())
    });
    assert_eq!(order.last(), Some(&led), "the leader is the last: {order:?}");
    assert_eq!(site.wait_ready(3), first, "they are who they were");
    let image = site.space.ok(&["get", "pod", &led, "-o", "jsonpath={.spec.containers[0].image}"]);
    assert_eq!(image, "localhost/jindofs:next");
    println!("another image: longest pause {:?}", site.longest_pause(begun));
    site.assert_nothing_lost();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn one_master_on_a_named_claim_becomes_several_and_one_again_though_its_pod_is_lost_on_the_way() {
    let site = start("grow", 1);
    site.set_masters(3);
    let label = r"jsonpath={.metadata.labels.jindofs\.io/stateful-set}";
    eventually("the first master stands alone", || {
        let labelled = site.space.kubectl(&["get", "pod", "demo-jindofs-master-0", "-o", label]);
        (labelled.status.success() && labelled.stdout.is_empty()).then_some(())
    });
    site.space.ok(&["delete", "pod", "demo-jindofs-master-0"]);
    let own: BTreeSet<String> = pods(3).iter().map(|pod| format!("meta-vol-{pod}")).collect();
    eventually("each master has a claim of its own", || (site.claims() == own).then_some(()));
    println!("three masters: {:?}", site.wait_ready(3));
    let superseded = r"jsonpath={.metadata.annotations.jindofs\.io/superseded}";
    assert!(!site.space.ok(&["get", "pvc", "demo-jindo-master-meta", "-o", superseded]).is_empty());
    site.set_masters(1);
    println!("one master: {:?}", site.wait_ready(1));
    assert_eq!(site.claims(), BTreeSet::from(["meta-vol-demo-jindofs-master-0".to_owned()]));
    for _ in 0..if long() { 3 } else { 0 } {
        for count in [3, 5, 3, 1] {
            site.set_masters(count);
            println!("{count} masters: {:?}", site.wait_ready(count));
        }
    }
    site.assert_nothing_lost();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn three_empty_masters_found_one_cluster_and_none_before_the_slowest_has_come() {
    // The claim of the third waits for a class that nobody provisions.
    let site = prepare("cold", 3);
    let claim = "meta-vol-demo-jindofs-master-2";
    let blocked = format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}}}\nspec: {{accessModes: [ReadWriteOnce], \
         storageClassName: nobody, resources: {{requests: {{storage: 1Gi}}}}}}\n"
    );
    site.space.create(&blocked);
    site.create();
    let waits = eventually("two masters run and the third is named", || {
        let pods = site.space.json(&["get", "pods", "-l", "role=jindofs-master"]);
        let running = pods["items"].as_array()?.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        let dataset = site.space.json(&["get", "dataset", "demo"]);
        let said = dataset["status"]["conditions"][0]["message"].as_str()?.to_owned();
        (running == 2 && said.contains("master-2")).then_some(said)
    });
    println!("while the third is missing: {waits}");
    crate::support::after(Duration::from_secs(if long() { 600 } else { 8 }));
    let status = site.status().expect("they answer");
    assert!(status["quorum"] == false && status["leader"].is_null(), "nobody has founded anything: {status}");
    site.space.ok(&["delete", "pvc", claim, "--wait=false"]);
    site.space.ok(&["delete", "pod", "demo-jindofs-master-2", "--wait=false"]);
    site.run();
    let recorded = site.space.ok(&["get", "jindo", "demo", "-o", "jsonpath={.status.cluster.uuid}"]);
    let status = site.status().expect("they answer");
    assert_eq!(status["cluster"].as_str(), Some(recorded.as_str()), "{status}");
    site.assert_nothing_lost();
}
