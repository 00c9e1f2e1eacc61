//! Metadata that comes from the under-storage: loaded once, or on every access.

use super::start;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_loaded_once_and_the_under_storage_is_not_asked_again() {
    let site = start(3, |options| options.mounts.clear()).await;
    for number in 0..2500 {
        std::fs::write(site.local.join(format!("f{number}")), b"").expect("written");
    }
    site.put("one", b"1").await;
    let count = |path: &str| -> usize {
        let listed: serde_json::Value =
            serde_json::from_slice(&site.ctl_ok(&["fs", "ls", path, "-o", "json"])).expect("JSON");
        listed.as_array().expect("an array").len()
    };
    assert_eq!(count("/local"), 2500);
    assert_eq!(count("/s3"), 1);
    let lists = site.s3.control.lists();
    std::fs::write(site.local.join("later"), b"").expect("written");
    site.put("later", b"2").await;
    assert_eq!((count("/local"), count("/s3")), (2500, 1), "ONCE is once");
    assert_eq!(site.s3.control.lists(), lists);
    let (leader, _) = site.cluster.wait_leader();
    site.cluster.dev.kill(&leader).expect("killed");
    assert_eq!((count("/local"), count("/s3")), (2500, 1), "the next leader knows it from the log");
    assert_eq!(site.s3.control.lists(), lists);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_always_names_that_come_and_go_in_the_under_storage_are_seen_at_once() {
    let site = start(1, |options| options.mounts.clear()).await;
    let uri = format!("local://{}", site.local.display());
    site.ctl_ok(&["mount", "add", "/always", &uri, "--meta-policy", "always"]);
    let names = || -> Vec<String> {
        let listed = site.ctl_ok(&["fs", "ls", "/always", "-o", "json"]);
        let listed: serde_json::Value = serde_json::from_slice(&listed).expect("JSON");
        let rows = listed.as_array().expect("an array").iter();
        rows.map(|row| row["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert!(names().is_empty());
    std::fs::write(site.local.join("a"), b"1").expect("written");
    std::fs::write(site.local.join("b"), b"1").expect("written");
    assert_eq!(names(), ["a", "b"]);
    std::fs::remove_file(site.local.join("a")).expect("removed");
    std::fs::write(site.local.join("b"), b"longer").expect("written");
    assert_eq!(site.ctl(&["fs", "stat", "/always/a"]).status.code(), Some(3));
    assert_eq!(names(), ["b"]);
    assert_eq!(site.ctl_ok(&["fs", "cat", "/always/b"]), b"longer");
    std::fs::write(site.local.join("c"), b"new").expect("written");
    assert_eq!(site.ctl_ok(&["fs", "cat", "/always/c"]), b"new", "asked for by name, never listed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_beside_a_directory_of_its_name_is_left_out_and_the_rest_is_listed() {
    let site = start(1, |options| options.mounts.clear()).await;
    site.put("a/b", b"below").await;
    site.put("z", b"last").await;
    site.s3.control.add_ghost("a");
    site.s3.control.add_ghost("w//x");
    let listed = site.ctl_ok(&["fs", "ls", "/s3", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed).expect("JSON");
    let names: Vec<_> = listed.as_array().expect("an array").iter().map(|row| (&row["name"], &row["type"])).collect();
    assert!(
        names.contains(&(&"a".into(), &"directory".into())) && names.contains(&(&"z".into(), &"file".into())),
        "{names:?}"
    );
    assert_eq!(site.ctl_ok(&["fs", "cat", "/s3/a/b"]), b"below");
    let log = site.cluster.log_of("master-0");
    assert!(log.contains("no path can express"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_come_and_go_while_the_cluster_runs() {
    let site = start(3, |options| options.mounts.clear()).await;
    std::fs::write(site.local.join("f"), b"content").expect("written");
    let uri = format!("local://{}", site.local.display());
    site.ctl_ok(&["mount", "add", "/more/deep", &uri]);
    assert_eq!(site.ctl_ok(&["fs", "cat", "/more/deep/f"]), b"content");
    let again = site.ctl(&["mount", "add", "/more/deep/below", &uri]);
    assert!(!again.status.success(), "a mount inside a mount");
    site.ctl_ok(&["mount", "remove", "/more/deep"]);
    assert_eq!(site.ctl(&["fs", "stat", "/more/deep/f"]).status.code(), Some(3));
    assert_eq!(std::fs::read(site.local.join("f")).expect("read"), b"content", "the under-storage is not touched");
    site.ctl_ok(&["mount", "add", "/more/deep", &uri]);
    wait_for("the file is back", super::PATIENCE, || {
        (site.ctl(&["fs", "cat", "/more/deep/f"]).stdout == b"content").then_some(())
    });
    site.cluster.assert_digests_equal().await;
}
