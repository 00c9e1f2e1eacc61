//! Workers that come and go while pods read.

use super::eventually;
use super::site::{Guide, Oss, install};
use crate::data::content;

/// Reads and compares without end, past the page cache, and says after each round how many it has made, or what was wrong.
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
          all() { for one in /data/*; do dd if=$one iflag=direct bs=1M 2> /tmp/said || cat /tmp/said >&2; done | md5sum; }
          want=$(cat /data/* | md5sum)
          n=0
          while :; do
            now=$(all)
            n=$((n + 1))
            [ "$now" = "$want" ] && echo "round $n" || echo "WRONG $n $(date) $now"
            sleep 0.1
          done
      volumeMounts: [{ mountPath: /data, name: data }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: demo } }]
"#;

/// Rounds the reader has made; each saw the right bytes.
fn rounds(guide: &Guide) -> usize {
    let said = guide.ok("kubectl logs reader");
    assert!(!said.contains("WRONG"), "{said}");
    said.lines().filter(|line| line.starts_with("round")).count()
}

fn reads_on(guide: &Guide) {
    let before = rounds(guide);
    eventually("the reader goes on", || (rounds(guide) >= before + 5).then_some(()));
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn a_worker_that_is_scaled_in_is_drained_first_and_its_readers_see_no_error() {
    install();
    let names: Vec<String> = (0..12).map(|number| format!("f{number}")).collect();
    let files: Vec<(&str, Vec<u8>)> =
        names.iter().enumerate().map(|(number, name)| (name.as_str(), content(500_000, number as u32))).collect();
    let oss = Oss::start(&files);
    let guide = Guide::new("scale-in", &oss);
    guide.write("dataset", &oss.dataset().replace("12Gi", "64Mi"));
    guide.write("reader", READER);
    guide.ok("for file in pvc secret dataset; do kubectl create -f $file.yaml; done");
    eventually("both workers are counted", || Some(guide.bound()).filter(|row| row[3] == "128.00MiB"));
    guide.ok("kubectl create -f reader.yaml");
    guide.wait_ready("reader");
    eventually("all is cached", || Some(guide.bound()).filter(|row| row[4] == "100.0%"));
    reads_on(&guide);

    guide.ok("kubectl scale jindoruntime demo --replicas=1");
    eventually("the last worker is gone, and the first one stays", || {
        let pods = guide.ok("kubectl get pods -l role=jindofs-worker,release=demo -o name");
        (pods == "pod/demo-jindofs-worker-0\n").then_some(())
    });
    let events = guide.ok("kubectl get events");
    assert!(events.contains("WorkersDrained"), "{events}");
    // What it took over is in the worker's next report.
    eventually("half of the room is left, and everything is on the worker that stays", || {
        Some(guide.bound()).filter(|row| row[3] == "64.00MiB" && row[4] == "100.0%")
    });
    reads_on(&guide);

    guide.ok("kubectl scale jindoruntime demo --replicas=2");
    eventually("both workers are counted again", || Some(guide.bound()).filter(|row| row[3] == "128.00MiB"));
    reads_on(&guide);
    guide.ok("kubectl delete -f reader.yaml -f dataset.yaml -f pvc.yaml -f secret.yaml");
}
