//! The image under what an existing Fluid makes of it: its objects, and what its controllers run in the first master's pod, in
//! the order in which they do.

use std::process::Output;
use std::sync::atomic::{AtomicU16, Ordering};

use super::running::create_secret;
use super::site::{Oss, PVC};
use super::{NODES, Namespace, eventually, kubectl, ok, text};
use crate::data::content;

const OBJECTS: &str = include_str!("../fixtures/fluid/cluster.yaml");
const TOKEN: &str = "{ secret: { name: access-key, items: [{ key: fs.oss.accessKeyId, path: guide/AccessKeyId }, \
                     { key: fs.oss.accessKeySecret, path: guide/AccessKeySecret }] } }";
const MASTER: &str = "demo-jindofs-master-0";

/// Ports of a runtime on the nodes whose network its pods are on. Fluid gives each runtime other ones: with the same, the
/// scheduler would keep the pods of the second runtime away from every node where the first one has a pod.
struct Ports {
    rpc: u16,
    raft: u16,
    worker: u16,
}

impl Ports {
    fn allocate() -> Ports {
        static RUNTIMES: AtomicU16 = AtomicU16::new(0);
        let number = RUNTIMES.fetch_add(1, Ordering::Relaxed);
        Ports { rpc: 15980 + number, raft: 14728 + number, worker: 14909 + number }
    }
}

/// A runtime as Fluid makes it.
struct Runtime {
    space: Namespace,
    oss: Oss,
    masters: usize,
}

impl Runtime {
    fn start(test: &str, masters: usize) -> Runtime {
        let oss = Oss::start(&[("large", content(3_000_000, 5)), ("dir/inner", b"x".to_vec())]);
        let space = Namespace::new(test);
        create_secret(&space);
        space.create(PVC);
        space.create(&objects(&space.name, &oss.endpoint, masters, &Ports::allocate()));
        Runtime { space, oss, masters }
    }

    /// Runs a command in the pod of the first master, as Fluid does.
    fn exec(&self, command: &[&str]) -> Output {
        self.space.kubectl(&[&["exec", MASTER, "-c", "jindofs-master", "--"], command].concat())
    }

    #[track_caller]
    fn said(&self, command: &[&str]) -> String {
        ok(&self.exec(command))
    }

    /// As Fluid asks whether a path is mounted: the third field of a line.
    fn mounted(&self, path: &str) -> bool {
        self.said(&["jindocache", "-mount"]).lines().any(|line| line.split_whitespace().nth(2) == Some(path))
    }

    fn wait_ready(&self) {
        eventually("the first master is ready", || {
            self.exec(&["jindocache", "-report"]).status.success().then_some(())
        });
    }

    /// The identity of the cluster, once so many masters vote.
    fn cluster(&self) -> String {
        eventually("all masters vote", || {
            let status =
                self.exec(&["sh", "-c", "jindoctl --masters $CLIENT_NAMESPACE_RPC_ADDRESS cluster status -o json"]);
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
            let members = status["members"].as_array()?;
            let votes = |one: &&serde_json::Value| ["leader", "voter"].contains(&one["role"].as_str().unwrap_or(""));
            let voters = members.iter().filter(votes).count();
            (voters == self.masters && members.len() == voters).then(|| status["cluster"].to_string())
        })
    }

    /// Everything that Fluid says to a new cluster until it calls it bound.
    fn converse(&self) {
        self.wait_ready();
        assert!(!self.mounted("/"), "nothing is mounted yet");
        self.said(&["jindocache", "-mount", "/", "oss://guide/data"]);
        assert!(self.mounted("/"));
        // With each pass again.
        assert!(self.said(&["jindocache", "-mount", "/", "oss://guide/data"]).contains("Mount point already exists"));
        self.said(&["jindocache", "-refreshCacheSet", "-path", "/cacheset.xml"]);
        assert!(self.said(&["jindocache", "-listCacheSet"]).contains("cacheStrategy"));
        eventually("both workers are counted", || {
            let report = self.said(&["jindocache", "-report"]);
            let figure =
                |label: &str| report.lines().find_map(|line| line.trim().strip_prefix(label).map(str::to_owned));
            let (memory, disk) = (figure("Total MEM Capacity: ")?, figure("Total Disk Capacity: ")?);
            (memory == format!("{}B", 128 << 20) && disk == "0B").then_some(())
        });
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Clients first: their pods take the mounts away.
        let label = format!("fluid.io/f-{}-demo-", self.space.name);
        let _ = kubectl(&["label", "nodes", "--all", &label]);
        let _ = self.space.kubectl(&["wait", "--for=delete", "pod", "-l", "role=jindofs-fuse", "--timeout=60s"]);
    }
}

fn objects(namespace: &str, endpoint: &str, masters: usize, ports: &Ports) -> String {
    let Ports { rpc, raft, worker } = ports;
    let hosts: Vec<String> = (0..masters).map(|one| format!("demo-jindofs-master-{one}.{namespace}")).collect();
    let list = |of: &dyn Fn(&String) -> String| hosts.iter().map(of).collect::<Vec<_>>().join(",");
    let rpc_addresses = list(&|host| format!("{host}:{rpc}"));
    let raft_addresses = list(&|host| format!("{host}:{raft}:0"));
    let service = |one: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: demo-jindofs-master-{one} }}\nspec:\n  clusterIP: None\n  \
             ports: [{{ name: rpc, port: {rpc} }}, {{ name: raft, port: {raft} }}]\n  selector: {{ app: jindofs, role: \
             jindofs-master, statefulset.kubernetes.io/pod-name: demo-jindofs-master-{one} }}"
        )
    };
    let several = masters > 1;
    // Fluid's file names the masters without their namespace.
    let conf =
        format!("namespace.backend.raft.initial-conf = {}", raft_addresses.replace(&format!(".{namespace}"), ""));
    let memory = format!("/dev/shm/{namespace}/demo/jindocache/server");
    let claim = "{ name: meta, persistentVolumeClaim: { claimName: demo-jindo-master-meta } }";
    OBJECTS
        .replace("SERVICES", &(0..masters).map(service).collect::<Vec<_>>().join("\n---\n"))
        .replace("    INITIAL_CONF\n", &if several { format!("    {conf}\n") } else { String::new() })
        .replace(
            "NAMESPACE_BACKEND_RAFT_INITIAL_CONF",
            if several { "NAMESPACE_BACKEND_RAFT_INITIAL_CONF" } else { "NONE" },
        )
        .replace("BACKEND\n", if several { "raft\n" } else { "rocksdb\n" })
        .replace("META_DIR", if several { &memory } else { "/root/jindofsx-meta" })
        .replace("META_VOLUME", if several { "{ name: meta, emptyDir: {} }" } else { claim })
        .replace("RPC_PORT", &rpc.to_string())
        .replace("RAFT_PORT", &raft.to_string())
        .replace("WORKER_PORT", &worker.to_string())
        .replace("RPC_ADDRESSES", &rpc_addresses)
        .replace("RAFT_ADDRESSES", &raft_addresses)
        .replace("FIRST_ADDRESS", rpc_addresses.split(',').next().unwrap_or_default())
        .replace("\"HOSTS\"", &format!("\"{}\"", hosts.join(",")))
        .replace("TOKEN", TOKEN)
        .replace("ENDPOINT", endpoint)
        .replace("replicas: MASTERS", &format!("replicas: {masters}"))
        .replace("/NAMESPACE/", &format!("/{namespace}/"))
        .replace("f-NAMESPACE-demo", &format!("f-{namespace}-demo"))
}

/// A pod that sees the mounts of its node, as the node plugin of Fluid binds them for pods.
fn reader(namespace: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: reader }}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n    - name: reader\n      image: localhost/busybox:dev\n      \
         command: [sleep, '3600']\n      volumeMounts: [{{ name: mounts, mountPath: /mounts, mountPropagation: \
         HostToContainer }}]\n  volumes: [{{ name: mounts, hostPath: {{ path: /runtime-mnt/jindo/{namespace}/demo }} }}]\n"
    )
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn three_masters_of_an_existing_fluid_outlive_the_first_one_with_its_memory() {
    let runtime = Runtime::start("fluid", 3);
    let space = &runtime.space;
    runtime.converse();
    let cluster = runtime.cluster();

    let total = "3000001";
    let counted = runtime.said(&["jindo", "fs", "-count", "jindo:///"]);
    assert_eq!(counted.split_whitespace().nth(2), Some(total), "{counted}");
    assert!(runtime.said(&["jindo", "fs", "-ls", "jindo:///dir"]).contains("inner"));
    let missing = runtime.exec(&["jindo", "fs", "-ls", "jindo:///nothing"]);
    assert!(
        !missing.status.success() && String::from_utf8_lossy(&missing.stdout).contains("No such file or directory")
    );
    // What the job of a DataLoad runs; all of it is in the cache then.
    runtime.said(&["jindocache", "-load", "-data", "-s", "-R", "-replica", "1", "jindo:///"]);
    eventually("the cache holds everything", || {
        runtime.said(&["jindocache", "-report"]).contains(&format!("Used MEM Capacity: {total}B")).then_some(())
    });

    let node = NODES[0];
    ok(&kubectl(&["label", "node", node, &format!("fluid.io/f-{}-demo=true", space.name), "--overwrite"]));
    eventually("a client mounts", || {
        let status = space.json(&["get", "daemonset", "demo-jindofs-fuse"]);
        (status["status"]["numberReady"] == 1).then_some(())
    });
    space.create(&reader(&space.name, node));
    space.ok(&["wait", "--for=condition=Ready", "pod/reader", "--timeout=120s"]);
    let large =
        std::process::Command::new("md5sum").arg(runtime.oss.files.join("large")).output().expect("md5sum runs");
    let large = ok(&large).split(' ').next().map(str::to_owned);
    let read = || space.kubectl(&["exec", "reader", "--", "md5sum", "/mounts/jindofs-fuse/large"]);
    eventually("the file is read byte for byte", || {
        (text(&read()).split(' ').next().map(str::to_owned) == large).then_some(())
    });

    // Its metadata is in memory: it comes back with nothing, and must neither found a second cluster nor be left out.
    space.ok(&["delete", "pod", MASTER, "--grace-period=0", "--force"]);
    assert_eq!(text(&read()).split(' ').next().map(str::to_owned), large, "two masters go on");
    runtime.wait_ready();
    assert_eq!(runtime.cluster(), cluster, "the same cluster");
    assert!(runtime.mounted("/"), "and it knows the mount");
    assert_eq!(text(&read()).split(' ').next().map(str::to_owned), large);
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn one_master_of_an_existing_fluid_comes_back_with_what_its_claim_holds() {
    let runtime = Runtime::start("fluid-one", 1);
    runtime.converse();
    let cluster = runtime.cluster();
    runtime.space.ok(&["delete", "pod", MASTER]);
    runtime.wait_ready();
    assert_eq!(runtime.cluster(), cluster);
    assert!(runtime.mounted("/"), "Fluid need not mount it again");
    assert!(runtime.said(&["jindo", "fs", "-ls", "jindo:///"]).contains("large"));
}
