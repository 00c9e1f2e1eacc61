//! The guide's resources with so many masters, a pod that reads, and a pod that makes names, while a test takes things away.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::site::{KEY, Oss, PVC, SECRET, install};
use super::{Namespace, eventually, text};
use crate::data::content;

/// Reads a file for as long as it lives, and says so whenever it is not what it was.
const READER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: reader }
spec:
  terminationGracePeriodSeconds: 1
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

/// Makes names, tells every pause, and at the end, when the other container tells it to stop, what was lost.
const WRITER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: writer, labels: { jindofs.io/client: demo } }
spec:
  terminationGracePeriodSeconds: 1
  shareProcessNamespace: true
  restartPolicy: Never
  containers:
    - name: writer
      image: IMAGE
      command: [jindoctl, --timeout, "120", --masters, "MASTERS", -o, json, bench, pauses, --tell, "100"]
    - name: stop
      image: registry.openanolis.cn/openanolis/nginx:1.14.1-8.6
"#;

/// Image that the tests run.
pub const IMAGE: &str = "localhost/jindofs:dev";
/// Port of the masters for clients.
const RPC: u16 = 8101;

pub struct Site {
    pub space: Namespace,
    /// Masters as of the last time all were ready.
    masters: Cell<usize>,
    oss: Oss,
}

/// Pods of `count` masters.
pub fn pods(count: usize) -> Vec<String> {
    (0..count).map(|one| format!("demo-jindofs-master-{one}")).collect()
}

/// What lies outside of the mount is kept by the masters alone.
fn resources(oss: &Oss, masters: usize) -> String {
    oss.dataset()
        .replace("path: /\n", "path: /oss\n")
        .replace("  master:\n", &format!("  master:\n    replicas: {masters}\n"))
        .replace("12Gi", "64Mi")
}

/// The secret of the guide.
pub fn create_secret(space: &Namespace) {
    let keys =
        [format!("--from-literal=fs.oss.accessKeyId={KEY}"), format!("--from-literal=fs.oss.accessKeySecret={SECRET}")];
    space.ok(&["create", "secret", "generic", "access-key", &keys[0], &keys[1]]);
}

/// Creates the guide's resources with so many masters, a reader and a writer.
pub fn start(test: &str, masters: usize) -> Site {
    let site = prepare(test, masters);
    site.create();
    site.run();
    site
}

/// Everything that the resources need.
pub fn prepare(test: &str, masters: usize) -> Site {
    install();
    let oss = Oss::start(&[("large", content(3_000_000, 5)), ("dir/inner", b"x".to_vec())]);
    let space = Namespace::new(test);
    create_secret(&space);
    space.create(PVC);
    Site { space, masters: Cell::new(masters), oss }
}

impl Site {
    /// Creates the resources, and does not wait for them.
    pub fn create(&self) {
        self.space.create(&resources(&self.oss, self.masters.get()));
    }

    /// Waits until everything runs; a reader and a writer begin.
    pub fn run(&self) {
        self.wait_bound();
        self.wait_ready(self.masters.get());
        let writer = WRITER.replace("IMAGE", IMAGE).replace("MASTERS", &self.addresses());
        for pod in [READER, &writer] {
            self.space.create(pod);
        }
        self.space.ok(&["wait", "--for=condition=Ready", "pod/reader", "pod/writer", "--timeout=120s"]);
        eventually("the reader reads", || self.space.ok(&["logs", "reader"]).contains("begun").then_some(()));
        eventually("the writer writes", || self.writer_says().contains("writing").then_some(()));
    }

    fn addresses(&self) -> String {
        let host = |pod: &String| format!("{pod}.demo-jindofs-master.{}.svc:{RPC}", self.space.name);
        pods(self.masters.get()).iter().map(host).collect::<Vec<_>>().join(",")
    }

    fn writer_says(&self) -> String {
        self.space.ok(&["logs", "writer", "-c", "writer"])
    }

    /// Names that the writer has made and not removed again.
    fn written(&self) -> Option<u64> {
        let said = self.writer_says();
        let root = said.lines().find_map(|line| line.strip_prefix("writing below "))?;
        let counted = self.jindoctl(&["fs", "count", root, "-o", "json"]);
        serde_json::from_slice::<serde_json::Value>(&counted.stdout).ok()?["files"].as_u64()
    }

    /// Changes the JindoRuntime.
    pub fn patch(&self, spec: &str) {
        self.space.ok(&["patch", "jindo", "demo", "--type=merge", "-p", &format!(r#"{{"spec":{spec}}}"#)]);
    }

    pub fn set_masters(&self, count: usize) {
        self.patch(&format!(r#"{{"master":{{"replicas":{count}}}}}"#));
    }

    /// Runs `jindoctl` in a pod that runs, against all masters.
    pub fn jindoctl(&self, arguments: &[&str]) -> Output {
        let masters = self.addresses();
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

    pub fn status(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.jindoctl(&["cluster", "status", "-o", "json"]).stdout).ok()
    }

    pub fn wait_bound(&self) {
        eventually("the Dataset is Bound", || {
            (self.space.json(&["get", "dataset", "demo"])["status"]["phase"] == "Bound").then_some(())
        });
    }

    /// Ids of the voters by pod, once exactly `count` masters serve and are ready.
    pub fn wait_ready(&self, count: usize) -> BTreeMap<String, String> {
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

    pub fn leader(&self) -> String {
        eventually("somebody leads", || {
            let address = self.status()?["leader"]["address"].as_str()?.to_owned();
            address.split('.').next().map(str::to_owned)
        })
    }

    /// Uids of the pods that are there now, by name.
    pub fn uids(&self, names: &[String]) -> BTreeMap<String, String> {
        let uid = |pod: &String| {
            let found = self.space.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]);
            found.status.success().then(|| (pod.clone(), text(&found)))
        };
        names.iter().filter_map(uid).collect()
    }

    pub fn node_of(&self, pod: &str) -> String {
        self.space.ok(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"])
    }

    /// Claims that the masters' pods mount.
    pub fn claims(&self) -> BTreeSet<String> {
        let pods = self.space.json(&["get", "pods", "-l", "role=jindofs-master"]);
        let volumes = pods["items"].as_array().into_iter().flatten().flat_map(|pod| pod["spec"]["volumes"].as_array());
        let names = volumes.flatten().filter_map(|one| one["persistentVolumeClaim"]["claimName"].as_str());
        names.map(str::to_owned).collect()
    }

    /// The longest time without an acknowledgement that ended after `since`.
    pub fn longest_pause(&self, since: SystemTime) -> Duration {
        let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let pause = |line: &str| {
            let told: serde_json::Value = serde_json::from_str(line).ok()?;
            let ended = u128::from(told["ended_unix_ms"].as_u64()?);
            told["pause_ms"].as_u64().filter(|_| ended >= since)
        };
        Duration::from_millis(self.writer_says().lines().filter_map(pause).max().unwrap_or(0))
    }

    /// Ends the writer and compares: nothing acknowledged is lost, no error was seen, all replicas are the same, and the
    /// reader has read what it should.
    pub fn assert_nothing_lost(&self) {
        // On a slow disk a short test may come here before there is anything that could have been lost.
        eventually("the writer has made some names", || self.written().filter(|written| *written > 100));
        self.space.ok(&["exec", "writer", "-c", "stop", "--", "killall", "-INT", "jindoctl"]);
        let state = r#"jsonpath={.status.containerStatuses[?(@.name=="writer")].state.terminated.exitCode}"#;
        let code = eventually("the writer has looked for everything", || {
            Some(self.space.ok(&["get", "pod", "writer", "-o", state])).filter(|code| !code.is_empty())
        });
        let said = self.writer_says();
        let figures = said.rfind("{\n").and_then(|at| serde_json::from_str::<serde_json::Value>(&said[at..]).ok());
        let figures = figures.unwrap_or_else(|| panic!("the writer has told nothing: {said}"));
        println!("written meanwhile: {figures}");
        assert!(code == "0" && figures["lost"] == 0 && figures["errors"] == 0, "{said}");
        assert!(figures["acknowledged"].as_u64() > Some(100), "it has hardly written: {said}");
        let digest = self.jindoctl(&["cluster", "digest"]);
        assert!(digest.status.success(), "{}", text(&digest));
        let said = self.space.ok(&["logs", "reader"]);
        assert!(said.starts_with("begun") && !said.contains("WRONG"), "the reader has seen something else: {said}");
    }
}

/// Deletes a master's pod, and its claim if that is asked for, and waits until the masters are three again. Returns whether
/// a new member has taken its place.
pub fn delete(site: &Site, pod: &str, options: &[&str], claim: bool) -> bool {
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
