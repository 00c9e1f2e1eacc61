//! Masters while the API server, DNS and nodes of the cluster go away, one pod reads, and one makes names, each of which must
//! be there at the end once it was acknowledged.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::begin;
use crate::kube::running::{delete, pods, start};
use crate::kube::site::script;
use crate::kube::{NODES, eventually, kubectl, ok};
use crate::support::long;

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_leader_that_is_asked_to_go_hands_over_and_reading_and_writing_go_on_without_api_server_and_without_dns() {
    begin();
    let site = start("outage", 3);
    let begun = SystemTime::now();
    assert!(!delete(&site, &site.leader(), &[], false), "with its volume it is who it was");
    let pause = site.longest_pause(begun);
    println!("the leader's pod was deleted: longest pause of writers {pause:?}");
    assert!(pause < Duration::from_millis(500), "a leader that is asked to go hands over first");
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
    begin();
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
    eventually("the pod is on another node", || {
        let found = site.space.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"]);
        let at = String::from_utf8_lossy(&found.stdout).into_owned();
        (found.status.success() && !at.is_empty() && at != *node).then_some(())
    });
    let after = site.wait_ready(3);
    assert_eq!(after[pod], before[pod], "with its volume it is who it was");
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
