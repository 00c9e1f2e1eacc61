//! Three masters with a volume each, as the operator makes them, while Kubernetes does to their pods what it does, one pod
//! reads, and every name that was acknowledged must be there at the end.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;

use super::site::{KEY, Oss, PVC, SECRET, dataset, install, script};
use super::{Namespace, eventually, kubectl, ok, text};
use crate::data::content;

/// Reads a file for as long as it lives, and says so whenever it is not what it was.
const READER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: reader }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: reader
      image: registry.openanolis.cn/openanolis/nginx:1.14.1-8.6
      command: [sh, -c]
      args:
        - |
          want=$(md5sum < /data/oss/large) && echo "begun $want"
          while :; do
            now=$(md5sum < /data/oss/large) && [ "$now" = "$want" ] && ls /data/oss/dir > /dev/null || echo "WRONG $(date) $now"
            sleep 0.2
          done
      volumeMounts: [{ mountPath: /data, name: data, mountPropagation: HostToContainer }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: demo } }]
"#;

struct Site {
    space: Namespace,
    written: BTreeSet<String>,
    /// Masters as of the last time all were ready.
    masters: Cell<usize>,
    _oss: Oss,
}

/// Pods of `count` masters.
fn pods(count: usize) -> Vec<String> {
    (0..count).map(|one| format!("demo-jindofs-master-{one}")).collect()
}

/// Creates the guide's resources with so many masters, and a reader.
fn start(test: &str, masters: usize) -> Site {
    install();
    let oss = Oss::start(&[("large", content(3_000_000, 5)), ("dir/inner", b"x".to_vec())]);
    let space = Namespace::new(test);
    let keys =
        [format!("--from-literal=fs.oss.accessKeyId={KEY}"), format!("--from-literal=fs.oss.accessKeySecret={SECRET}")];
    space.ok(&["create", "secret", "generic", "access-key", &keys[0], &keys[1]]);
    // What lies outside of the mount is kept by the masters alone.
    let resources = dataset()
        .replace("path: /\n", "path: /oss\n")
        .replace("  master:\n", &format!("  master:\n    replicas: {masters}\n"))
        .replace("12Gi", "64Mi");
    assert!(space.feed(&["create"], PVC).status.success());
    let created = space.feed(&["create"], &resources);
    assert!(created.status.success(), "{}", text(&created));
    let site = Site { space, written: BTreeSet::new(), masters: Cell::new(masters), _oss: oss };
    site.wait_bound();
    site.wait_ready(masters);
    assert!(site.space.feed(&["create"], READER).status.success());
    site.space.ok(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=120s"]);
    eventually("the reader reads", || site.space.ok(&["logs", "reader"]).contains("begun").then_some(()));
    site
}

impl Site {
    /// Runs `jindoctl` in a pod that runs, against all masters.
    fn jindoctl(&self, arguments: &[&str]) -> Output {
        let host = |pod: &String| format!("{pod}.demo-jindofs-master.{}.svc:8101", self.space.name);
        let masters = pods(self.masters.get()).iter().map(host).collect::<Vec<_>>().join(",");
        eventually("a pod of a master runs a command", || {
            pods(3).iter().find_map(|pod| {
                let output = self.space.kubectl(
                    &[&["exec", pod, "--", "jindoctl", "--timeout", "60", "--masters", &masters], arguments].concat(),
                );
                let said = String::from_utf8_lossy(&output.stderr);
                // A pod that is away: another one can ask. 137 and 143 are the signals its container ended with.
                let ran = output.status.success() || said.contains("command terminated with exit code");
                let away = !ran || matches!(output.status.code(), Some(137 | 143));
                (!away).then_some(output)
            })
        })
    }

    fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.jindoctl(&["cluster", "status", "-o", "json"]).stdout).ok()
    }

    fn wait_bound(&self) {
        eventually("the Dataset is Bound", || {
            (self.space.json(&["get", "dataset", "demo"])["status"]["phase"] == "Bound").then_some(())
        });
    }

    /// Ids of the voters by pod, once exactly `count` masters serve and are ready.
    fn wait_ready(&self, count: usize) -> BTreeMap<String, String> {
        let voters = eventually("the masters are ready voters", || {
            let pods = self.space.json(&["get", "pods", "-l", "role=jindofs-master"]);
            let ready = |pod: &&serde_json::Value| {
                pod["status"]["containerStatuses"][0]["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null()
            };
            let items = pods["items"].as_array()?;
            if items.len() != count || items.iter().filter(ready).count() != count {
                return None;
            }
            let status = self.status()?;
            let members = status["members"].as_array()?;
            let votes =
                |member: &&serde_json::Value| ["leader", "voter"].contains(&member["role"].as_str().unwrap_or(""));
            let pod = |member: &serde_json::Value| {
                member["address"].as_str().unwrap_or("").split('.').next().unwrap_or("").to_owned()
            };
            let voters = members.iter().filter(votes);
            let voters: BTreeMap<String, String> =
                voters.map(|member| (pod(member), member["id"].as_str().unwrap_or("").to_owned())).collect();
            (status["quorum"] == true && voters.len() == count && members.len() == count).then_some(voters)
        });
        self.masters.set(count);
        voters
    }

    fn leader(&self) -> String {
        eventually("somebody leads", || {
            let address = self.status()?["leader"]["address"].as_str()?.to_owned();
            address.split('.').next().map(str::to_owned)
        })
    }

    /// Makes directories; each that was acknowledged must be there for ever.
    fn write(&mut self, count: usize) {
        for _ in 0..count {
            let name = format!("d{}", self.written.len());
            // The pod may go before it has told that the directory is made: then another one makes it again.
            let made = self.jindoctl(&["fs", "mkdir", "-p", &format!("/{name}")]);
            assert!(made.status.success(), "{}", text(&made));
            self.written.insert(name);
        }
    }

    fn assert_nothing_lost(&self) {
        let listed: serde_json::Value =
            serde_json::from_slice(&self.jindoctl(&["fs", "ls", "/", "-o", "json"]).stdout).expect("JSON");
        let names = listed.as_array().expect("an array").iter().filter_map(|entry| entry["name"].as_str());
        let names: BTreeSet<String> = names.map(str::to_owned).collect();
        let lost: Vec<&String> = self.written.difference(&names).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let digest = self.jindoctl(&["cluster", "digest"]);
        assert!(digest.status.success(), "{}", text(&digest));
        let said = self.space.ok(&["logs", "reader"]);
        assert!(said.starts_with("begun") && !said.contains("WRONG"), "the reader has seen something else: {said}");
    }
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn masters_whose_pods_and_volumes_are_deleted_lose_nothing_and_come_back_by_themselves() {
    let mut site = start("masters", 3);
    site.write(3);
    let leader = site.leader();
    site.space.ok(&["delete", "pod", &leader, "--wait=false"]);
    site.write(5);
    let before = site.wait_ready(3);
    println!("the leader's pod was deleted: {before:?}");
    for who in ["a follower", "the leader"] {
        let leader = site.leader();
        let pod = if who == "the leader" {
            leader
        } else {
            pods(3).into_iter().find(|pod| *pod != leader).expect("a follower")
        };
        let before = site.wait_ready(3);
        site.space.ok(&["delete", "pvc", &format!("meta-vol-{pod}"), "--wait=false"]);
        site.space.ok(&["delete", "pod", &pod, "--wait=false"]);
        site.write(5);
        let after = eventually("a new member has taken its place", || {
            let after = site.wait_ready(3);
            (after[&pod] != before[&pod]).then_some(after)
        });
        println!("{who}, {pod}, lost its volume: {before:?} -> {after:?}");
        for other in pods(3).iter().filter(|other| **other != pod) {
            assert_eq!(after[other], before[other], "{other} is who it was");
        }
    }
    site.space.ok(&["delete", "pods", "-l", "role=jindofs-master", "--force", "--grace-period=0"]);
    site.wait_ready(3);
    site.write(2);
    site.assert_nothing_lost();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn masters_are_added_removed_and_restarted_with_new_settings_while_one_pod_reads_and_names_are_made() {
    let mut site = start("scale", 3);
    let patch = |site: &Site, spec: &str| site.space.ok(&["patch", "jindo", "demo", "--type=merge", "-p", spec]);
    let first = site.wait_ready(3);
    for count in [5, 3] {
        patch(&site, &format!(r#"{{"spec":{{"master":{{"replicas":{count}}}}}}}"#));
        // Whoever of the operators acts is killed while it does.
        ok(&kubectl(&[
            "-n",
            "jindofs-system",
            "delete",
            "pods",
            "-l",
            "app.kubernetes.io/name=jindofs-operator",
            "--force",
        ]));
        site.write(5);
        let now = site.wait_ready(count);
        println!("{count} masters: {now:?}");
        for pod in pods(3) {
            assert_eq!(now[&pod], first[&pod], "{pod} is who it was");
        }
        eventually("each master has a claim, and nobody else", || {
            let claims = site.space.json(&["get", "pvc", "-l", "role=jindofs-master"]);
            (claims["items"].as_array()?.len() == count).then_some(())
        });
    }
    let uid = |site: &Site, pod: &str| site.space.ok(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]);
    let before: Vec<String> = pods(3).iter().map(|pod| uid(&site, pod)).collect();
    patch(&site, r#"{"spec":{"master":{"env":{"RUST_LOG":"info,jindofs=info"}}}}"#);
    eventually("every master is another pod", || {
        site.write(1);
        let now: Vec<String> = pods(3)
            .iter()
            .map(|pod| text(&site.space.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"])))
            .collect();
        now.iter().zip(&before).all(|(now, before)| now != before).then_some(())
    });
    let after = site.wait_ready(3);
    assert_eq!(after, first, "they are who they were");
    site.assert_nothing_lost();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn reading_and_writing_go_on_without_api_server_and_dns_and_after_a_client_was_killed() {
    let mut site = start("outage", 3);
    for service in ["coredns", "apiserver"] {
        ok(&script("control", &[service, "stop"]));
        // The reader goes on meanwhile, and says at the end if it could not.
        crate::support::after(std::time::Duration::from_secs(5));
        ok(&script("control", &[service, "start"]));
        site.write(2);
    }
    let client = site.space.ok(&["get", "pods", "-l", "role=jindofs-fuse", "-o", "name"]).trim().to_owned();
    site.assert_nothing_lost();
    site.space.ok(&["delete", &client, "--force", "--grace-period=0"]);
    eventually("what is opened anew is read", || {
        let read = site.space.kubectl(&["exec", "reader", "--", "ls", "/data/oss/dir"]);
        (text(&read) == "inner\n").then_some(())
    });
    site.wait_bound();
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_node_that_loses_its_power_is_named_and_its_master_starts_elsewhere_once_it_is_given_up() {
    let mut site = start("power", 3);
    let node_of = |site: &Site, pod: &str| site.space.ok(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"]);
    let before = site.wait_ready(3);
    let reader = node_of(&site, "reader");
    let nodes: BTreeMap<String, String> = pods(3).into_iter().map(|pod| (node_of(&site, &pod), pod)).collect();
    assert_eq!(nodes.len(), 3, "each master has a node of its own: {nodes:?}");
    let (node, pod) = nodes.iter().find(|(node, _)| **node != reader).expect("another node");
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
    assert_ne!(node_of(&site, pod), *node);
    site.write(2);
    site.assert_nothing_lost();
    ok(&script("node", &[node, "start"]));
    ok(&kubectl(&["taint", "node", node, "node.kubernetes.io/out-of-service-"]));
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn one_master_on_a_named_claim_becomes_three_and_one_again_though_its_pod_is_lost_on_the_way() {
    let mut site = start("grow", 1);
    site.write(5);
    let patch = |site: &Site, count: usize| {
        let spec = format!(r#"{{"spec":{{"master":{{"replicas":{count}}}}}}}"#);
        site.space.ok(&["patch", "jindo", "demo", "--type=merge", "-p", &spec]);
    };
    patch(&site, 3);
    let label = r"jsonpath={.metadata.labels.jindofs\.io/stateful-set}";
    eventually("the first master stands alone", || {
        let labelled = site.space.kubectl(&["get", "pod", "demo-jindofs-master-0", "-o", label]);
        (labelled.status.success() && labelled.stdout.is_empty()).then_some(())
    });
    site.space.ok(&["delete", "pod", "demo-jindofs-master-0"]);
    site.write(3);
    let claims = |site: &Site| -> BTreeSet<String> {
        let pods = site.space.json(&["get", "pods", "-l", "role=jindofs-master"]);
        let volumes = pods["items"].as_array().into_iter().flatten().flat_map(|pod| pod["spec"]["volumes"].as_array());
        let names = volumes.flatten().filter_map(|one| one["persistentVolumeClaim"]["claimName"].as_str());
        names.map(str::to_owned).collect()
    };
    let own: BTreeSet<String> = pods(3).iter().map(|pod| format!("meta-vol-{pod}")).collect();
    eventually("each master has a claim of its own", || {
        site.write(1);
        (claims(&site) == own).then_some(())
    });
    println!("three masters: {:?}", site.wait_ready(3));
    let superseded = r"jsonpath={.metadata.annotations.jindofs\.io/superseded}";
    assert!(!site.space.ok(&["get", "pvc", "demo-jindo-master-meta", "-o", superseded]).is_empty());
    patch(&site, 1);
    println!("one master: {:?}", site.wait_ready(1));
    assert_eq!(claims(&site), BTreeSet::from(["meta-vol-demo-jindofs-master-0".to_owned()]));
    site.write(1);
    site.assert_nothing_lost();
}
