//! Loads: what is said of them while they run and when they end.

use std::io::Read;
use std::process::Stdio;

use super::{Store, ctl, errors, program};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::s3::trouble::Kind;
use crate::support::{wait_for, wait_until};

async fn start() -> (Cluster, Store) {
    let cluster = Cluster::start_with(1, |options| {
        options.workers = 1;
        options.worker_quota = 64 << 20;
    });
    let store = Store::start().await;
    for name in ["d/a", "d/b"] {
        store.bucket.write(name, vec![7_u8; 100]).await.expect("stored");
    }
    store.mount(&cluster.client()).await;
    (cluster, store)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_interrupted_says_that_its_job_goes_on_and_how_to_see_and_end_it() {
    let (cluster, store) = start().await;
    let held = store.s3.control.troubles.hold(Kind::List, "d/");
    let masters = cluster.dev.masters().join(",");
    let mut load = program("jindoctl", &["--masters", &masters, "load", "/s3"]);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    wait_until("the job lists the bucket", PATIENCE, || held.count() > 0).await;
    let pid = rustix::process::Pid::from_child(&load);
    // It catches signals once its job is on record, which is before the job lists anything, but not long before.
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", load.id())).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0").to_owned();
        u64::from_str_radix(&mask, 16).is_ok_and(|mask| mask & 2 != 0)
    };
    wait_until("it waits for signals", PATIENCE, caught).await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    let ended = tokio::task::spawn_blocking(move || load.wait_with_output()).await.expect("no panic").expect("ended");
    let said = errors(&ended);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    let id = said.split("jindoctl job get ").nth(1).and_then(|rest| rest.split('`').next()).expect("an id").to_owned();
    assert!(said.contains(&format!("jindoctl job cancel {id}")), "{said}");

    let listed = ctl(&cluster, &["job", "list"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("/s3") && listed.contains("running"), "{listed}");
    let cancelled = ctl(&cluster, &["job", "cancel", &id]).await;
    assert!(cancelled.status.success(), "{}", errors(&cancelled));
    let got = ctl(&cluster, &["job", "get", &id, "-o", "json"]).await;
    let got: serde_json::Value = serde_json::from_slice(&got.stdout).expect("json");
    assert_eq!((&got["state"], &got["path"]), (&"cancelled".into(), &"/s3".into()));
    assert_eq!(ctl(&cluster, &["job", "get", "999"]).await.status.code(), Some(3));
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_load_says_how_to_see_it_and_ends_by_itself() {
    let (cluster, _store) = start().await;
    let output = ctl(&cluster, &["load", "/s3", "--detach", "-o", "json"]).await;
    assert!(output.status.success() && errors(&output).contains("jindoctl job get"), "{}", errors(&output));
    let job: serde_json::Value = serde_json::from_slice(&output.stdout).expect("json");
    let id = job["id"].as_str().expect("an id").to_owned();
    wait_for("it is done", PATIENCE, || {
        let got = cluster.jindoctl(&["job", "get", &id, "-o", "json"]);
        let got: serde_json::Value = serde_json::from_slice(&got.stdout).ok()?;
        (got["state"] == "done" && got["files_done"] == 2).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_fails_names_paths_of_the_namespace() {
    let (cluster, store) = start().await;
    // What is listed before needs no listing of the job, which reads the content only.
    for path in ["/s3", "/s3/d"] {
        assert!(ctl(&cluster, &["fs", "ls", path]).await.status.success());
    }
    store.s3.control.refuse_with(s3s::S3ErrorCode::AccessDenied);
    let output = ctl(&cluster, &["load", "/s3"]).await;
    let mut said = String::new();
    (&output.stdout[..]).read_to_string(&mut said).expect("text");
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(["/s3/d/a", "/s3/d/b"].iter().any(|path| said.contains(path)) && !said.contains("inode"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_of_more_than_the_cache_holds_says_so() {
    let (cluster, store) = start().await;
    for number in 0..3 {
        store.bucket.write(&format!("big/{number}"), vec![number; 24 << 20]).await.expect("stored");
    }
    let output = ctl(&cluster, &["load", "/s3/big"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("larger than the cache"), "{said}");
}
