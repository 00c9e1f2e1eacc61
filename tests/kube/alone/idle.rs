//! What an operator costs that has nothing to do.

use std::io::{Read, Seek, SeekFrom};

use super::begin;
use super::verbs::{OPERATOR, audit_log};
use crate::data::content;
use crate::kube::site::{Guide, Oss, script};
use crate::kube::{NODES, eventually, ok};

/// Bytes of the end of the log that are looked at: more than what is logged meanwhile.
const TAIL: i64 = 8 << 20;
/// Seconds without a request.
const QUIET: u32 = 20;
/// KiB of memory of an operator.
const MEMORY_MAX: u64 = 64 << 10;

/// Requests of the operator since then, beside watches and its lease.
fn asked_since(log: &std::path::Path, since: &str) -> Vec<String> {
    let mut file = std::fs::File::open(log).expect("the audit log");
    let length = i64::try_from(file.metadata().expect("a size").len()).expect("no such size");
    file.seek(SeekFrom::End(-TAIL.min(length))).expect("sought");
    let mut text = Vec::new();
    file.read_to_end(&mut text).expect("read");
    let text = String::from_utf8_lossy(&text);
    let asked = |line: &str| {
        // The first line is cut, the last one may be half written.
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours = event["user"]["username"] == OPERATOR && event["requestReceivedTimestamp"].as_str()? >= since;
        let counts = event["verb"] != "watch" && event["objectRef"]["resource"] != "leases";
        (ours && counts).then(|| format!("{} {}", event["verb"], event["requestURI"]))
    };
    text.lines().filter_map(asked).collect()
}

/// KiB of memory of every operator that runs.
fn memory() -> Vec<u64> {
    let look = "ps -eo rss,args | grep -E '[0-9] ([a-z/]*)jindofs-operator controller' || true";
    let of = |node: &&str| ok(&script("node", &[node, "exec", "sh", "-c", look]));
    let all: String = NODES.iter().map(of).collect();
    all.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

#[test]
#[ignore = "needs a Kubernetes cluster: make kube-test"]
fn an_operator_that_has_nothing_to_do_asks_nothing_of_the_api_server_and_needs_little_memory() {
    begin();
    let Some(log) = audit_log() else {
        eprintln!("left out: requests of an idle operator, as a cluster of others keeps no audit log for us");
        return;
    };
    let oss = Oss::start(&[("large", content(3_000_000, 1))]);
    let guide = Guide::new("idle", &oss);
    guide.write("dataset", &oss.dataset().replace("12Gi", "64Mi"));
    guide.ok("for file in pvc secret dataset pod; do kubectl create -f $file.yaml; done");
    guide.bound();
    guide.wait_ready("nginx");
    let mut last = Vec::new();
    eventually(&format!("nothing is asked for {QUIET} s"), || {
        let since = guide.ok(&format!("date -u -d '-{QUIET} seconds' +%Y-%m-%dT%H:%M:%S"));
        let asked = asked_since(&log, since.trim());
        if asked != last {
            println!("asked lately: {asked:?}");
            last.clone_from(&asked);
        }
        asked.is_empty().then_some(())
    });
    let memory = memory();
    println!("memory of the operators: {memory:?} KiB");
    assert!(!memory.is_empty() && memory.iter().all(|one| *one < MEMORY_MAX), "{memory:?}");
    guide.ok("kubectl delete -f pod.yaml -f dataset.yaml -f pvc.yaml -f secret.yaml");
}
