//! Mistakes in settings and options: told before anything is done, by the name of what is wrong.

use std::process::Stdio;

use super::{SoleMaster, Store, ctl, errors, program, run, secret_in};
use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::s3::ACCESS_KEY;
use crate::support::wait_for;

#[test]
fn quotas_in_which_nothing_can_be_kept_are_refused_by_name() {
    let worker = ["check-config", "--role", "worker", "--set", "storage.namespace.rpc.address=m:1"];
    let fuse = ["check-config", "--role", "fuse", "--set", "fs.jindocache.namespace.rpc.address=m:1"];
    let dirs = ["--set", "storage.data-dirs=/a,/b"];
    let mount = ["--set", "fuse.mount=/mnt", "--set", "fuse.writable=true"];
    for (base, more, set) in [
        (&worker, &dirs[..], "storage.data-dirs.capacities=0"),
        (&worker, &dirs[..], "storage.data-dirs.capacities=10g,1"),
        (&worker, &dirs[..], "storage.data-dirs.capacities=4095k"),
        (&worker, &[], "storage.ram.cache.size=1"),
        (&fuse, &mount[..], "fuse.staging.size=1"),
    ] {
        let output = run("jindofs", &[&base[..], more, &["--set", set]].concat());
        let said = errors(&output);
        let key = set.split('=').next().unwrap_or_default();
        assert_eq!(output.status.code(), Some(2), "{set}: {said}");
        assert!(said.contains(key) && said.contains("less than a block"), "{set}: {said}");
    }
}

#[test]
fn a_local_cluster_that_makes_no_sense_is_refused_before_anything_is_started() {
    let temp = tempfile::tempdir().expect("tempdir");
    let data = temp.path().join("data");
    for (arguments, word) in [
        (&["--masters", "2"][..], "--masters 2: choose 1, 3, 5 or 7"),
        (&["--masters", "4", "--detach"], "--masters 4: choose 1, 3, 5 or 7"),
        (&["--masters", "9"], "--masters 9: choose 1, 3, 5 or 7"),
        (&["--workers", "1", "--worker-quota", "1"], "--worker-quota"),
        (&["--workers", "1", "--worker-quota", "0", "--detach"], "--worker-quota"),
    ] {
        let output = program("jindofs", &[&["dev"], arguments].concat()).arg("--data-dir").arg(&data).output();
        let output = output.expect("runs");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(word), "{arguments:?}: {}", errors(&output));
        assert!(!data.exists(), "{arguments:?}: something was started");
    }
}

#[test]
fn an_even_number_of_masters_is_not_founded_and_the_setting_is_named() {
    let peers = |own: &str| vec!["--initial-conf".to_owned(), format!("{own},127.0.0.1:1")];
    let master = SoleMaster::start_with("127.0.0.1", Stdio::null(), peers);
    let said = wait_for("it answers", PATIENCE, || {
        let output = master.provision();
        assert!(!output.status.success(), "it was founded");
        Some(errors(&output)).filter(|said| said.contains("not founded"))
    });
    assert!(said.contains("namespace.backend.raft.initial-conf lists 2"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_an_under_storage_that_cannot_be_right_are_refused_by_name_and_secrets_never_shown() {
    let (cluster, store) = (Cluster::start(1), Store::start().await);
    let empty = store.dir.path().join("empty");
    std::fs::write(&empty, " \n").expect("written");
    let good = store.options();
    let (endpoint, id, secret) = (good[0].as_str(), good[1].as_str(), good[2].as_str());
    let empty = secret_in(&empty);
    let named = endpoint.replace("http://", "http://id:hunter2@");
    let bare = "fs.s3.endpoint=id:hunter2@host".to_owned();
    let cases: [(&str, &[&str], i32, &str); 9] = [
        ("s3://bucket", &[endpoint, id, &empty], 1, "fs.s3.accessKeySecret"),
        ("s3://bucket", &[endpoint, id, secret, "fs.s3.region="], 2, "fs.s3.region"),
        ("s3://bucket", &[endpoint, id, secret, "fs.s3.virtualHostStyle=true"], 2, "fs.s3.virtualHostStyle"),
        ("s3://bucket", &[endpoint, id, secret, "fs.s3.virtualHostStyle=yes"], 2, "fs.s3.virtualHostStyle"),
        ("s3://bucket", &[&named, id, secret], 2, "fs.s3.endpoint"),
        ("s3://bucket", &[&bare, id, secret], 2, "fs.s3.endpoint"),
        ("s3://id:hunter2@bucket", &[endpoint], 2, "credentials"),
        ("oss://bucket", &["fs.oss.endpoint=127.0.0.1:9000"], 2, "fs.oss.addressingStyle"),
        ("s3://bucket", &[endpoint, id, "fs.s3.accessKeySecret=file:key"], 2, "absolute"),
    ];
    for (uri, options, code, word) in cases {
        let mut arguments = vec!["mount", "add", "/new", uri];
        options.iter().for_each(|option| arguments.extend(["-O", option]));
        let output = ctl(&cluster, &arguments).await;
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(code), "{uri} {options:?}: {said}");
        assert!(said.contains(word) && !said.contains("hunter2"), "{uri} {options:?}: {said}");
    }
    let log = cluster.log_of("master-0");
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_differs_from_that_of_the_storage_is_named_as_the_reason() {
    let (cluster, store) = (Cluster::start(1), Store::start().await);
    store.s3.control.refuse_with(s3s::S3ErrorCode::RequestTimeTooSkewed);
    let mut arguments = vec!["mount", "add", "/new", "s3://bucket"];
    let options = store.options();
    options.iter().for_each(|option| arguments.extend(["-O", option]));
    let output = ctl(&cluster, &arguments).await;
    let said = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("clock") && !said.contains("access key"), "{said}");
    store.s3.control.refuse_with(s3s::S3ErrorCode::AccessDenied);
    let said = errors(&ctl(&cluster, &arguments).await);
    assert!(said.contains("has no right") && !said.contains(ACCESS_KEY), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_shows_times_for_people_and_numbers_for_programs() {
    let (cluster, store) = (Cluster::start(1), Store::start().await);
    store.bucket.write("f", "x").await.expect("stored");
    store.mount(&cluster.client()).await;
    let table = ctl(&cluster, &["fs", "ls", "/s3"]).await;
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    let json = ctl(&cluster, &["fs", "ls", "/s3", "-o", "json"]).await;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("json");
    let ns = json[0]["mtime"].as_i64().expect("nanoseconds");
    assert!(table.contains("UTC") && !table.contains(&ns.to_string()), "{table}");
    let year = 1970 + ns / 1_000_000_000 / 31_556_952;
    assert!(table.contains(&format!(" {year}-")), "{table}");
}
