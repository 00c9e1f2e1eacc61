//! Bad under-storage and bad mount points: told clearly, and nothing is changed.

use std::process::Command;

use super::start;
use crate::support::cluster::binary;
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn an_under_storage_that_cannot_be_read_is_refused_before_it_is_mounted() {
    let site = start(1, |options| options.mounts.clear()).await;
    let wrong = site.dir.path().join("wrong");
    std::fs::write(&wrong, "wrong").expect("written");
    let before = site.ctl_ok(&["mount", "list", "-o", "json"]);
    let good = super::s3_options(&site.s3, &site.secret);
    let key = |value: String| format!("fs.s3.accessKeySecret={value}");
    let (endpoint, id, secret) = (good[0].as_str(), good[1].as_str(), good[2].as_str());
    let (inline, foreign) = (key("hunter2".into()), key(format!("file:{}", wrong.display())));
    let missing = key("file:/does/not/exist".into());
    let cases: [(&str, &[&str], i32, &str); 10] = [
        ("gopher://x/y", &[], 2, "not supported"),
        ("local://relative", &[], 2, "absolute"),
        ("local:///does/not/exist", &[], 3, "/does/not/exist"),
        ("s3://bucket", &["fs.s3.endpoint=http://127.0.0.1:1", id, secret], 1, "endpoint"),
        ("s3://no-such-bucket", &[endpoint, id, secret], 3, "bucket"),
        ("s3://bucket", &[endpoint, id, &foreign], 1, "check access key"),
        ("s3://bucket", &[endpoint, id, &inline], 2, "file:PATH"),
        ("s3://bucket", &[endpoint, id, &missing], 1, "/does/not/exist"),
        ("s3://bucket", &["fs.s3.end-point=x"], 2, "fs.s3.endpoint"),
        ("s3://bucket", &["nonsense"], 2, "KEY=VALUE"),
    ];
    for (uri, options, code, word) in cases {
        let mut arguments = vec!["mount", "add", "/new", uri];
        options.iter().for_each(|option| arguments.extend(["-O", option]));
        let output = site.ctl(&arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{uri} {options:?}: {text}");
        assert!(text.contains(word) && !text.contains("hunter2"), "{uri} {options:?}: {text}");
    }
    assert_eq!(site.ctl_ok(&["mount", "list", "-o", "json"]), before, "nothing was mounted");
    assert_eq!(site.ctl(&["fs", "stat", "/new"]).status.code(), Some(3), "and no directory was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_point_that_cannot_be_used_is_refused() {
    if !fuse_works("a_mount_point_that_cannot_be_used_is_refused") {
        return;
    }
    let site = start(1, |_| {}).await;
    std::fs::write(site.local.join("f"), b"content").expect("written");
    let file = site.dir.path().join("file");
    std::fs::write(&file, b"").expect("written");
    let masters = site.cluster.dev.masters().join(",");
    let mount = |at: &std::path::Path| {
        let at = at.display().to_string();
        let arguments = ["fuse", "--masters", &masters, "--mount", &at, "--set", "fuse.http.port=1"];
        Command::new(binary("jindofs")).args(arguments).output().expect("runs")
    };
    for (at, word) in [
        (file.as_path(), "not a directory"),
        (&site.mnt, "mounted already"),
        (&site.dir.path().join("no"), "make the directory"),
    ] {
        let output = mount(at);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(word), "{}: {text}", at.display());
    }
    assert_eq!(site.read("local/f").await.expect("the mount that was there is untouched"), b"content");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_cluster_is_refused() {
    let site = start(1, |options| options.mounts.clear()).await;
    let other = start(1, |options| options.mounts.clear()).await;
    let name = "worker-0";
    site.cluster.dev.kill(name).expect("killed");
    site.cluster.dev.set(name, "storage.namespace.rpc.address", &other.cluster.dev.masters().join(",")).expect("set");
    site.cluster.dev.launch(name).expect("launched");
    let ended = site.cluster.dev.wait_end(name, super::PATIENCE).expect("it ends by itself");
    assert!(!ended.success());
    let log = site.cluster.log_of(name);
    assert!(log.contains("belongs to cluster"), "{log}");
}
