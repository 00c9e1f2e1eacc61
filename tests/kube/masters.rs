//! Three masters with a volume each, rendered by the operator, while Kubernetes does to their pods what it does.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use super::{GUIDE, Namespace, eventually, text};
use crate::support::cluster::binary;

const MASTERS: [&str; 3] = ["demo-jindofs-master-0", "demo-jindofs-master-1", "demo-jindofs-master-2"];

struct Site {
    space: Namespace,
    written: BTreeSet<String>,
}

/// Starts three masters and founds the cluster.
fn start(test: &str) -> Site {
    let space = Namespace::new(test);
    space.ok(&[
        "create",
        "secret",
        "generic",
        "access-key",
        "--from-literal=fs.oss.accessKeyId=a",
        "--from-literal=fs.oss.accessKeySecret=b",
    ]);
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("dataset.yaml");
    let resources = GUIDE.replace("  master:\n", "  master:\n    replicas: 3\n").replace("12Gi", "64Mi");
    std::fs::write(&file, resources).expect("written");
    let mut render = Command::new(binary("jindofs").with_file_name("jindofs-operator"));
    let rendered = render.args(["render", "--namespace", &space.name]).arg(&file).output().expect("it runs");
    let applied = space.feed(&["apply"], &super::ok(&rendered));
    assert!(applied.status.success(), "{}", text(&applied));
    eventually("every master runs", || {
        let pods = space.json(&["get", "pods", "-l", "role=jindofs-master"]);
        let started = |pod: &&serde_json::Value| pod["status"]["containerStatuses"][0]["started"] == true;
        (pods["items"].as_array()?.iter().filter(started).count() == MASTERS.len()).then_some(())
    });
    let site = Site { space, written: BTreeSet::new() };
    let uuid = uuid::Uuid::new_v4().to_string();
    eventually("the cluster is founded", || {
        site.jindoctl(&["cluster", "provision", &uuid]).status.success().then_some(())
    });
    site.wait_ready();
    site
}

impl Site {
    /// Runs `jindoctl` in a pod that runs, against all masters.
    fn jindoctl(&self, arguments: &[&str]) -> Output {
        let host = |pod: &str| format!("{pod}.demo-jindofs-master.{}.svc:8101", self.space.name);
        let masters = MASTERS.map(host).join(",");
        let mut last = None;
        for pod in MASTERS {
            let output =
                self.space.kubectl(&[&["exec", pod, "--", "jindoctl", "--masters", &masters], arguments].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            // A pod that is away: another one can ask. 137 and 143 are the signals its container ended with.
            let ran = output.status.success() || said.contains("command terminated with exit code");
            let away = !ran || matches!(output.status.code(), Some(137 | 143));
            if !away {
                return output;
            }
            last = Some(output);
        }
        last.expect("three pods were tried")
    }

    fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.jindoctl(&["cluster", "status", "-o", "json"]).stdout).ok()
    }

    /// Ids of the voters by pod, once all three serve and are ready.
    fn wait_ready(&self) -> std::collections::BTreeMap<String, String> {
        eventually("three masters are ready voters", || {
            let pods = self.space.json(&["get", "pods", "-l", "role=jindofs-master"]);
            let ready = |pod: &&serde_json::Value| {
                pod["status"]["containerStatuses"][0]["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null()
            };
            if pods["items"].as_array()?.iter().filter(ready).count() != MASTERS.len() {
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
            let voters: std::collections::BTreeMap<String, String> =
                voters.map(|member| (pod(member), member["id"].as_str().unwrap_or("").to_owned())).collect();
            (status["quorum"] == true && voters.len() == MASTERS.len()).then_some(voters)
        })
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
    }
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn masters_whose_pods_and_volumes_are_deleted_lose_nothing_and_come_back_by_themselves() {
    let mut site = start("masters");
    site.write(3);
    let leader = site.leader();
    site.space.ok(&["delete", "pod", &leader, "--wait=false"]);
    site.write(5);
    let before = site.wait_ready();
    println!("the leader's pod was deleted: {before:?}");
    for who in ["a follower", "the leader"] {
        let leader = site.leader();
        let pod = if who == "the leader" {
            leader
        } else {
            MASTERS.iter().find(|pod| **pod != leader).expect("a follower").to_string()
        };
        let before = site.wait_ready();
        site.space.ok(&["delete", "pvc", &format!("meta-vol-{pod}"), "--wait=false"]);
        site.space.ok(&["delete", "pod", &pod, "--wait=false"]);
        site.write(5);
        let after = eventually("a new member has taken its place", || {
            let after = site.wait_ready();
            (after[&pod] != before[&pod]).then_some(after)
        });
        println!("{who}, {pod}, lost its volume: {before:?} -> {after:?}");
        for other in MASTERS.iter().filter(|other| **other != pod) {
            assert_eq!(after[*other], before[*other], "{other} is who it was");
        }
    }
    site.space.ok(&["delete", "pods", "-l", "role=jindofs-master", "--force", "--grace-period=0"]);
    site.wait_ready();
    site.write(2);
    site.assert_nothing_lost();
}
