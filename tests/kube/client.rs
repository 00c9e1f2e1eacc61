//! FUSE pods and node plugins that are killed while a pod reads: its open file goes on, and so do new opens.

use super::site::{Guide, Oss, install, kill_clients_alone, script};
use super::{eventually, kubectl, ok};
use crate::data::content;
use crate::support::rounds;

/// Reads one open file from its beginning to its end, slowly, and opens others anew all the while.
const READER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: reader }
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: held
      image: localhost/busybox:dev
      command: [sh, -c]
      args:
        - |
          exec 3< /data/large
          {
            while [ ! -e /tmp/stop ]; do
              dd bs=16k count=1 <&3 2> /tmp/error || echo "WRONG held $(cat /tmp/error)" >&2
              sleep 0.04
            done
            cat <&3 || echo "WRONG held, the rest" >&2
          } | md5sum > /tmp/sum
          echo "held $(cat /tmp/sum)"
          sleep 3600
      volumeMounts: [{ mountPath: /data, name: data, mountPropagation: HostToContainer }]
    - name: anew
      image: localhost/busybox:dev
      command: [sh, -c]
      args:
        - |
          want=$(md5sum < /data/small) && echo "begun $want"
          while :; do
            now=$(md5sum < /data/small) && [ "$now" = "$want" ] && ls /data/dir > /dev/null || echo "WRONG anew $(date) $now"
            sleep 0.1
          done
      volumeMounts: [{ mountPath: /data, name: data, mountPropagation: HostToContainer }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: demo } }]
"#;

/// The pod of a label on a node: name and uid.
fn pod(namespace: &str, label: &str, node: &str) -> Option<(String, String)> {
    let field = format!("spec.nodeName={node}");
    let found = ok(&kubectl(&["-n", namespace, "get", "pods", "-l", label, "--field-selector", &field, "-o", "json"]));
    let found: serde_json::Value = serde_json::from_str(&found).expect("JSON");
    let alive = found["items"].as_array()?.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null())?;
    let of = |field: &str| alive["metadata"][field].as_str().map(str::to_owned);
    Some((of("name")?, of("uid")?))
}

/// Labels and command lines.
const FUSE: [&str; 2] = ["role=jindofs-fuse", "[a-z/]*jindofs fuse"];
const PLUGIN: [&str; 2] = ["app.kubernetes.io/name=jindofs-csi", "[a-z/]*jindofs-operator csi-node"];

/// SIGKILL to the processes of a node whose command lines begin like these, in the pods with these uids, all at once.
fn kill(node: &str, pods: &[(&str, &str)]) {
    let find = |(command, uid): &(&str, &str)| {
        let listed = format!("ps -eo pid,args | grep -E '^ *[0-9]+ ({command})' | awk '{{print $1}}'");
        format!("$(for pid in $({listed}); do if grep -q {uid} /proc/$pid/cgroup; then echo $pid; fi; done)")
    };
    let found: Vec<String> = pods.iter().map(find).collect();
    ok(&script("node", &[node, "exec", "sh", "-c", &format!("kill -9 {}", found.join(" "))]));
}

/// Deletes the pod without waiting for anything: the next one needs no back-off of a container that was restarted often.
fn replace(namespace: &str, name: &str) {
    ok(&kubectl(&["-n", namespace, "delete", "pod", name, "--grace-period=0", "--force", "--wait=false"]));
}

/// Kills a process with its pod, and waits until the pod that follows says so in its log.
fn kill_and_wait(node: &str, namespace: &str, [label, command]: [&str; 2], says: &str) {
    let (name, uid) = eventually("a pod", || pod(namespace, label, node));
    kill(node, &[(command, &uid)]);
    replace(namespace, &name);
    let next = eventually("the next pod", || pod(namespace, label, node).filter(|(_, next)| *next != uid));
    eventually(&format!("it says: {says}"), || {
        let log = kubectl(&["-n", namespace, "logs", &next.0]);
        String::from_utf8_lossy(&log.stdout).contains(says).then_some(())
    });
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_killed_fuse_pod_or_node_plugin_is_a_pause_and_both_at_once_end_open_files_only() {
    let _turn = kill_clients_alone();
    install();
    let large = content(64 << 20, 3);
    let oss = Oss::start(&[("large", large), ("small", content(50_000, 4)), ("dir/inner", b"x".to_vec())]);
    let guide = Guide::new("client", &oss);
    guide.write("dataset", &oss.dataset().replace("12Gi", "256Mi"));
    guide.write("reader", READER);
    guide.ok("for file in pvc secret dataset reader; do kubectl create -f $file.yaml; done");
    guide.wait_ready("reader");
    let said = || guide.ok("kubectl logs reader --all-containers");
    eventually("the reader reads", || said().contains("begun").then_some(()));
    let node = guide.ok("kubectl get pod reader -o jsonpath={.spec.nodeName}");

    for round in 0..rounds(20) {
        if round % 4 == 1 {
            kill_and_wait(&node, "jindofs-system", PLUGIN, "holds the mount of a client");
        }
        kill_and_wait(&node, &guide.namespace, FUSE, "goes on with the mount");
    }
    guide.ok("kubectl exec reader -c held -- touch /tmp/stop");
    let sum = eventually("the open file was read to its end", || {
        let log = guide.ok("kubectl logs reader -c held");
        log.lines().find_map(|line| line.strip_prefix("held ").map(str::to_owned))
    });
    let stored = guide.ok(&format!("md5sum {}", oss.files.join("large").display()));
    assert_eq!(sum.split(' ').next(), stored.split(' ').next(), "byte for byte");
    assert!(!said().contains("WRONG"), "{}", said());

    // Nobody is left who could hold the mount: files that are open are lost, new opens go on, and the pod is told.
    let small = guide.ok(&format!("md5sum {}", oss.files.join("small").display()));
    for times in 1..=2 {
        let both = [("jindofs-system", PLUGIN), (guide.namespace.as_str(), FUSE)];
        let uids = both.map(|(namespace, [label, _])| eventually("a pod", || pod(namespace, label, &node)).1);
        kill(&node, &[(PLUGIN[1], &uids[0]), (FUSE[1], &uids[1])]);
        eventually("the pod is told", || {
            let told = "kubectl get events --field-selector reason=MountReplaced -o json";
            let told: serde_json::Value = serde_json::from_str(&guide.ok(told)).ok()?;
            let about = |one: &&serde_json::Value| one["involvedObject"]["name"] == "reader";
            let events: Vec<_> = told["items"].as_array()?.iter().filter(about).collect();
            assert!(events.iter().all(|one| one["message"].to_string().contains("HostToContainer")), "{events:?}");
            (events.len() == times).then_some(())
        });
        eventually("new opens go on", || {
            let read = guide.run("kubectl exec reader -c anew -- md5sum /data/small");
            let read = String::from_utf8_lossy(&read.stdout).into_owned();
            (read.split(' ').next() == small.split(' ').next()).then_some(())
        });
    }
    guide.ok("kubectl delete -f reader.yaml --timeout=60s");
    guide.ok("kubectl delete -f dataset.yaml -f pvc.yaml -f secret.yaml");
    let name = &guide.namespace;
    let left = format!("grep -E 'runtime-mnt/jindo/{name}/|/{name}-demo/' /proc/self/mountinfo || true");
    eventually("no mount is left on the node", || {
        script("node", &[&node, "exec", "sh", "-c", &left]).stdout.is_empty().then_some(())
    });
}
