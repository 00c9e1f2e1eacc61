//! Masters while Kubernetes does to their pods what it does, one pod reads, and one makes names, each of which must be there
//! at the end once it was acknowledged.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::running::{IMAGE, Site, pods, prepare, start};
use super::site::script;
use super::{NODES, eventually, kubectl, long, ok};

/// Kills whoever of the operators acts, at this moment.
fn kill_the_operator() {
    let name = "app.kubernetes.io/name=jindofs-operator";
    ok(&kubectl(&["-n", "jindofs-system", "delete", "pods", "-l", name, "--force", "--grace-period=0"]));
}

/// Deletes a master's pod, and its claim if that is asked for, and waits until the masters are three again. Returns whether
/// a new member has taken its place.
fn delete(site: &Site, pod: &str, options: &[&str], claim: bool) -> bool {
    let (before, uid) = (site.wait_ready(3), site.uids(&[pod.to_owned()]));
    if claim {
        site.space.ok(&["delete", "pvc", &format!("meta-vol-{pod}"), "--wait=false"]);
    }
    site.space.ok(&[&["delete", "pod", pod, "--wait=false"], options].concat());
    eventually("another pod has taken its place", || (site.uids(&[pod.to_owned()]) != uid).then_some(()));
    let after = eventually("as many members as before, with or without a new one", || {
        Some(site.wait_ready(3)).filter(|after| !claim || after[pod] != before[pod])
    });
    for other in pods(3).iter().filter(|other| *other != pod) {
        assert_eq!(after[other], before[other], "{other} is who it was");
    }
    after[pod] != before[pod]
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn masters_whose_pods_and_volumes_are_deleted_lose_nothing_and_come_back_by_themselves() {
    let site = start("masters", 3);
    let begun = SystemTime::now();
    assert!(!delete(&site, &site.leader(), &[], false), "with its volume it is who it was");
    let pause = site.longest_pause(begun);
    println!("the leader's pod was deleted: longest pause of writers {pause:?}");
    assert!(pause < Duration::from_millis(500), "a leader that is asked to go hands over first");
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
fn reading_and_writing_go_on_without_api_server_and_without_dns() {
    let site = start("outage", 3);
    let begun = SystemTime::now();
    ok(&script("control", &["apiserver", "stop"]));
    // The reader and the writer go on meanwhile, and say at the end if they could not.
    crate::support::after(Duration::from_secs(if long() { 300 } else { 10 }));
    ok(&script("control", &["apiserver", "start"]));
    println!("without API server: longest pause {:?}", site.longest_pause(begun));
    let before = site.wait_ready(3);
    let (leader, begun) = (site.leader(), SystemTime::now());
    ok(&script("control", &["coredns", "stop"]));
    // It gets another address, which nobody can look up.
    let pod = pods(3).into_iter().find(|pod| *pod != leader).expect("a follower");
    site.space.ok(&["delete", "pod", &pod, "--force", "--grace-period=0"]);
    crate::support::after(Duration::from_secs(if long() { 60 } else { 10 }));
    ok(&script("control", &["coredns", "start"]));
    assert_eq!(site.wait_ready(3), before, "they are who they were");
    println!("without DNS: longest pause {:?}", site.longest_pause(begun));
    site.assert_nothing_lost();
    site.wait_bound();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_node_that_loses_its_power_is_named_and_drained_nodes_give_their_masters_away_one_by_one() {
    let site = start("power", 3);
    let before = site.wait_ready(3);
    let safe = [site.node_of("reader"), site.node_of("writer")];
    let homes: Vec<(String, String)> = pods(3).into_iter().map(|pod| (site.node_of(&pod), pod)).collect();
    let nodes: BTreeSet<&String> = homes.iter().map(|(node, _)| node).collect();
    assert_eq!(nodes.len(), 3, "each master has a node of its own: {homes:?}");
    let (node, pod) = homes.iter().find(|(node, _)| !safe.contains(node)).expect("another node");
    ok(&script("node", &[node, "power-off"]));
    let told = eventually("the dead node is named", || {
        let runtime = site.space.json(&["get", "jindo", "demo"]);
        let conditions = runtime["status"]["conditions"].as_array()?;
        let settled = conditions.iter().find(|one| one["type"] == "Settled" && one["reason"] == "NodeLost")?;
        settled["message"].as_str().map(str::to_owned)
    });
    let command = format!("kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute");
    assert!(told.contains(&command), "{told}");
    assert_eq!(site.space.json(&["get", "dataset", "demo"])["status"]["phase"], "Bound", "two masters are enough");
    ok(&kubectl(&["taint", "node", node, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"]));
    let after = site.wait_ready(3);
    assert_eq!(after[pod], before[pod], "with its volume it is who it was");
    assert_ne!(site.node_of(pod), *node);
    ok(&script("node", &[node, "start"]));
    ok(&kubectl(&["taint", "node", node, "node.kubernetes.io/out-of-service-"]));

    // Two at once: the second waits until the masters of the first are voters again.
    let begun = SystemTime::now();
    let drain = |node: &str| {
        let ours = ["--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector=release=demo", "--timeout=120s"];
        kubectl(&[&["drain", node], &ours[..]].concat())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| drain(NODES[1]));
        ok(&drain(NODES[0]));
        ok(&other.join().expect("it ends"));
    });
    assert_eq!(site.wait_ready(3), before, "they are who they were, on the node that is left");
    for node in &NODES[..2] {
        ok(&kubectl(&["uncordon", node]));
    }
    ok(&drain(NODES[2]));
    ok(&kubectl(&["uncordon", NODES[2]]));
    assert_eq!(site.wait_ready(3), before);
    println!("all nodes drained: longest pause {:?}", site.longest_pause(begun));
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
