//! Hosts and addresses: right, or refused by name.

use std::net::TcpListener;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{SoleMaster, ctl, errors, run};
use crate::support::cluster::Cluster;
use crate::support::{free_port, left_out};

#[test]
fn a_host_that_is_none_is_refused_with_its_setting_before_anything_starts() {
    for (role, key, required) in [
        ("master", "namespace.backend.raft.hostname", "namespace.meta-dir=/m"),
        ("master", "namespace.bind", "namespace.meta-dir=/m"),
        ("worker", "storage.address", "storage.namespace.rpc.address=m:1"),
        ("worker", "storage.bind", "storage.namespace.rpc.address=m:1"),
        ("fuse", "fuse.bind", "fuse.mount=/mnt"),
    ] {
        let check = |value: &str| {
            let set = format!("{key}={value}");
            let sets = ["--set", required, "--set", "storage.data-dirs=/c", "--set", "storage.data-dirs.capacities=1g"];
            let sets = if role == "worker" { &sets[..] } else { &sets[..2] };
            let more = ["--set", "fs.jindocache.namespace.rpc.address=m:1"];
            let more = if role == "fuse" { &more[..] } else { &[] };
            run("jindofs", &[&["check-config", "--role", role, "--set", &set], sets, more].concat())
        };
        for bad in ["my host", "http://h", "u@h", "h/x", "fe80::1%eth0", "10.0.0.256"] {
            let output = check(bad);
            let said = errors(&output);
            assert_eq!(output.status.code(), Some(2), "{key}={bad}: {said}");
            assert!(said.contains(key), "{key}={bad}: {said}");
        }
        for good in ["::1", "[::1]", "10.0.0.1", "node-1.example.org"] {
            let output = check(good);
            assert!(output.status.success(), "{key}={good}: {}", errors(&output));
        }
    }
}

#[test]
fn a_master_at_a_bare_ipv6_address_is_founded_and_answers() {
    let missing = TcpListener::bind("[::1]:0").is_err().then_some("IPv6");
    if !left_out("a_master_at_a_bare_ipv6_address_is_founded_and_answers", missing) {
        return;
    }
    let master = SoleMaster::start("::1", Stdio::null());
    master.found();
    let status = run("jindoctl", &["--masters", &master.address, "cluster", "status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("json");
    assert_eq!(status["members"][0]["raft_address"], master.raft_address);
    assert_eq!(status["leader"]["address"], master.address);
}

#[test]
fn what_is_no_address_of_a_master_is_a_usage_error_at_once() {
    for (bad, word) in [
        ("http://127.0.0.1:8101", "without http://"),
        ("127.0.0.1", "port is missing"),
        ("::1", "brackets"),
        ("127.0.0.1:8101,a b:8101", "blank"),
        ("a:8101,a:8101", "listed twice"),
        ("127.0.0.1:0", "1 to 65535"),
        ("", "no master is given"),
    ] {
        for command in [&["fs", "ls", "/"][..], &["cluster", "status"], &["report"]] {
            let began = Instant::now();
            let output = run("jindoctl", &[&["--masters", bad], command].concat());
            let said = errors(&output);
            assert_eq!(output.status.code(), Some(2), "{bad:?}: {said}");
            assert!(said.contains(word) && said.contains(bad.split(',').next_back().unwrap_or("")), "{bad:?}: {said}");
            assert!(began.elapsed() < Duration::from_secs(5), "{bad:?} took {:?}", began.elapsed());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_among_those_of_the_masters_spoils_nothing_and_is_named_where_it_matters() {
    let cluster = Cluster::start_with(1, |options| options.workers = 1);
    let master = cluster.dev.process("master-0").expect("a master");
    let worker = cluster.dev.process("worker-0").expect("a worker");
    let right = master.grpc.expect("an address");
    let wrong = [
        master.raft.expect("an address"),
        master.http,
        worker.grpc.expect("an address"),
        "no-such-host.invalid:8101".to_owned(),
        format!("127.0.0.1:{}", free_port()),
    ];
    for wrong in &wrong {
        let both = format!("{wrong},{right}");
        // Which address is asked first is left to chance.
        for _ in 0..4 {
            for command in [&["fs", "ls", "/"][..], &["fs", "mkdir", "-p", "/d"], &["report"]] {
                let output = run("jindoctl", &[&["--masters", &both], command].concat());
                assert!(output.status.success(), "{wrong} {command:?}: {}", errors(&output));
            }
        }
        for command in [&["cluster", "digest"][..], &["cluster", "snapshot"]] {
            let output = run("jindoctl", &[&["--masters", &both], command].concat());
            assert_eq!(output.status.code(), Some(5), "{wrong} {command:?}: {}", errors(&output));
            assert!(!output.stdout.is_empty() && errors(&output).contains(wrong), "{wrong}: {}", errors(&output));
        }
        let status = run("jindoctl", &["--masters", &both, "cluster", "status"]);
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.status.success() && text.contains(&format!("unreachable: {wrong}")), "{wrong}: {text}");
        let alone = run("jindoctl", &["--masters", wrong, "--timeout", "2", "fs", "ls", "/"]);
        assert!(!alone.status.success() && errors(&alone).contains(wrong), "{wrong}: {}", errors(&alone));
    }
    cluster.dev.kill("master-0").expect("killed");
    let output = ctl(&cluster, &["--timeout", "1", "fs", "ls", "/"]).await;
    assert_eq!(output.status.code(), Some(4), "{}", errors(&output));
}
