//! Pods that write through the claim of a Dataset.

use super::eventually;
use super::site::{Guide, Oss, install, kill_clients_alone};

/// Waits for what is to be run in it.
const WRITER: &str = r#"
apiVersion: v1
kind: Pod
metadata: { name: writer }
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: writer
      image: localhost/busybox:dev
      command: [sleep, "3600"]
      volumeMounts: [{ mountPath: /data, name: data, mountPropagation: HostToContainer }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: demo } }]
"#;

/// Runs a line in the pod.
fn inside(guide: &Guide, line: &str) -> String {
    guide.ok(&format!("kubectl exec writer -- sh -euc '{line}'"))
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn what_a_pod_writes_is_in_the_bucket_and_is_read_again_after_its_fuse_pod_was_killed() {
    install();
    let oss = Oss::start(&[("seen", b"before".to_vec())]);
    let guide = Guide::new("storing", &oss);
    let yaml = oss.dataset().replace("12Gi", "64Mi").replacen("spec:", "spec:\n  accessModes: [ReadWriteMany]", 1);
    guide.write("dataset", &yaml);
    guide.write("writer", WRITER);
    guide.ok("for file in pvc secret dataset writer; do kubectl create -f $file.yaml; done");
    guide.wait_ready("writer");
    inside(
        &guide,
        "mkdir /data/d && dd if=/dev/urandom of=/data/d/f bs=1M count=20 2> /dev/null && echo more >> /data/seen",
    );
    let sum = inside(&guide, "md5sum < /data/d/f");
    assert_eq!(guide.ok(&format!("md5sum < {}", oss.stored("d/f").display())), sum, "it is in the bucket");
    assert_eq!(std::fs::read(oss.stored("seen")).expect("read"), b"beforemore\n");
    inside(&guide, "mv /data/d/f /data/d/g && rm /data/seen");
    assert!(oss.stored("d/g").exists() && !oss.stored("d/f").exists() && !oss.stored("seen").exists());

    let turn = kill_clients_alone();
    guide.ok("kubectl delete pod -l role=jindofs-fuse --grace-period=0 --force");
    eventually("the file is read, and another one written, through the next client", || {
        let line = "md5sum < /data/d/g && echo after > /data/after";
        let read = guide.run(&format!("kubectl exec writer -- sh -euc '{line}'"));
        (read.status.success() && String::from_utf8_lossy(&read.stdout) == sum).then_some(())
    });
    drop(turn);
    assert_eq!(std::fs::read(oss.stored("after")).expect("stored"), b"after\n");
    guide.ok("kubectl delete -f writer.yaml --timeout=60s");
    guide.ok("kubectl delete -f dataset.yaml -f pvc.yaml -f secret.yaml");
}
