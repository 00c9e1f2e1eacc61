//! The node plugin is killed, and away for a while: pods that read go on, and a pod that starts meanwhile waits for it.

use super::running::create_secret;
use super::site::{Oss, PVC, install, kill_clients_alone};
use super::{Namespace, eventually, kubectl, ok, text};
use crate::data::content;

/// Reads on and on from a file that it has opened once, opens the file anew each time, and says when something is not as it was.
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
          want=$(md5sum < /data/large)
          exec 3< /data/large
          echo "begun $want"
          while [ ! -e /tmp/finish ]; do
            dd bs=4096 count=1 <&3 2> /dev/null >> /tmp/copy || echo "WRONG open file $(date)"
            [ "$(md5sum < /data/large)" = "$want" ] && ls /data/dir > /dev/null || echo "WRONG new open $(date)"
            sleep 0.2
          done
          cat <&3 >> /tmp/copy
          [ "$(md5sum < /tmp/copy)" = "$want" ] && echo "read to the end"
          while :; do sleep 60; done
      volumeMounts: [{ mountPath: /data, name: data }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: demo } }]
"#;

/// Lists the files once it can, on the node of the reader.
fn late(node: &str) -> String {
    let pod =
        READER.replace("name: reader }", "name: late }").replace("spec:\n", &format!("spec:\n  nodeName: {node}\n"));
    let begin = pod.find("          want=").expect("the script");
    let end = pod.find("      volumeMounts").expect("its end");
    format!("{}          ls /data && while :; do sleep 60; done\n{}", &pod[..begin], &pod[end..])
}

fn system(arguments: &[&str]) -> String {
    ok(&kubectl(&[&["-n", "jindofs-system"], arguments].concat()))
}

/// Name of the plugin's pod on a node, if it is ready.
fn ready_on(node: &str) -> Option<String> {
    let pods = system(&["get", "pods", "-l", "app.kubernetes.io/name=jindofs-csi", "-o", "json"]);
    let pods: serde_json::Value = serde_json::from_str(&pods).expect("JSON");
    let here = |pod: &&serde_json::Value| {
        pod["spec"]["nodeName"] == node
            && pod["metadata"]["deletionTimestamp"].is_null()
            && pod["status"]["containerStatuses"][0]["ready"] == true
    };
    pods["items"].as_array()?.iter().find(here)?["metadata"]["name"].as_str().map(str::to_owned)
}

/// No node has the plugin, for as long as this value lives.
struct Away;

impl Away {
    fn go() -> Away {
        Away::select(r#""nowhere""#);
        Away
    }

    fn select(node: &str) {
        let patch =
            format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"kubernetes.io/hostname":{node}}}}}}}}}}}"#);
        system(&["patch", "daemonset", "jindofs-csi", "--type=merge", "-p", &patch]);
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        Away::select("null");
    }
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn pods_that_read_go_on_while_the_plugin_is_killed_and_a_pod_that_starts_while_it_is_away_waits_for_it() {
    let _turn = kill_clients_alone();
    install();
    let oss = Oss::start(&[("large", content(3_000_000, 7)), ("dir/inner", b"x".to_vec())]);
    let space = Namespace::new("plugin");
    create_secret(&space);
    for yaml in [PVC, &oss.dataset().replace("12Gi", "64Mi"), READER] {
        space.create(yaml);
    }
    eventually("the reader reads", || text(&space.kubectl(&["logs", "reader"])).starts_with("begun").then_some(()));
    let node = space.ok(&["get", "pod", "reader", "-o", "jsonpath={.spec.nodeName}"]);
    for _ in 0..3 {
        let before = ready_on(&node).expect("the plugin of the node");
        system(&["delete", "pod", &before, "--force", "--grace-period=0"]);
        eventually("another plugin has taken its place", || ready_on(&node).filter(|pod| *pod != before));
    }
    let away = Away::go();
    eventually("no plugin is there", || {
        system(&["get", "pods", "-l", "app.kubernetes.io/name=jindofs-csi", "-o", "name"]).is_empty().then_some(())
    });
    space.create(&late(&node));
    let waits = eventually("the kubelet says what it waits for", || {
        let events = space.ok(&["get", "events", "--field-selector", "involvedObject.name=late", "-o", "json"]);
        let events: serde_json::Value = serde_json::from_str(&events).expect("JSON");
        let failed = events["items"].as_array()?.iter().find(|event| event["reason"] == "FailedMount")?;
        failed["message"].as_str().map(str::to_owned)
    });
    assert!(waits.contains("fuse.csi.fluid.io"), "{waits}");
    assert_eq!(space.ok(&["get", "pod", "late", "-o", "jsonpath={.status.phase}"]), "Pending");
    drop(away);
    space.ok(&["wait", "--for=condition=Ready", "pod/late", "--timeout=120s"]);
    eventually("it lists the files", || (space.ok(&["logs", "late"]) == "dir\nlarge\n").then_some(()));
    space.ok(&["exec", "reader", "--", "touch", "/tmp/finish"]);
    let said = eventually("the reader has come to the end", || {
        Some(space.ok(&["logs", "reader"])).filter(|said| said.contains("read to the end") || said.contains("WRONG"))
    });
    assert!(!said.contains("WRONG"), "{said}");
}
