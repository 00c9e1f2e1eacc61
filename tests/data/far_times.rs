//! Times of files that no clock of today shows.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::oss::mount_oss;
use super::start;
use crate::support::fuse_works;

/// Seconds from the epoch to the beginning of these years.
const YEAR_1960: u64 = 315_619_200;
const YEAR_2300: u64 = 10_413_792_000;

fn set_times(dir: &Path) {
    let file = |name: &str| File::options().write(true).open(dir.join(name)).expect("opened");
    file("future").set_modified(UNIX_EPOCH + Duration::from_secs(YEAR_2300)).expect("set");
    file("past").set_modified(UNIX_EPOCH - Duration::from_secs(YEAR_1960)).expect("set");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_the_year_2300_and_of_1960_are_listed_and_read() {
    if !fuse_works("files_of_the_year_2300_and_of_1960_are_listed_and_read") {
        return;
    }
    let site = start(1, |_| {}).await;
    for name in ["future", "past", "today"] {
        std::fs::write(site.local.join(name), b"content").expect("written");
        site.put(name, b"content").await;
    }
    set_times(&site.local);
    set_times(&site.dir.path().join("s3/bucket"));
    for mount in ["local", "s3"] {
        assert_eq!(site.names(mount).await, ["future", "past", "today"], "{mount}");
        for name in ["future", "past", "today"] {
            assert_eq!(site.read(&format!("{mount}/{name}")).await.expect("read"), b"content", "{mount} {name}");
        }
        let mtime = |name: &str| std::fs::metadata(site.mnt.join(mount).join(name)).expect("a file").mtime();
        let (future, past) = tokio::task::block_in_place(|| (mtime("future"), mtime("past")));
        assert_eq!(past, -i64::try_from(YEAR_1960).expect("seconds"), "{mount}");
        assert_eq!(future, i64::MAX / 1_000_000_000, "{mount}: the last time that can be told");
    }
    std::fs::write(site.local.join("future"), b"another").expect("written");
    let future = File::options().write(true).open(site.local.join("future")).expect("opened");
    future.set_modified(UNIX_EPOCH + Duration::from_secs(YEAR_2300 + 1)).expect("set");
    site.ctl_ok(&["fs", "ls", "/local"]);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_of_an_oss_bucket_from_the_year_2300_and_from_1960_are_listed_and_read() {
    let site = start(1, |options| options.mounts.clear()).await;
    for name in ["future", "past", "today"] {
        site.put(&format!("data/{name}"), b"content").await;
    }
    set_times(&site.dir.path().join("s3/bucket/data"));
    let _oss = mount_oss(&site).await;
    let rows: serde_json::Value =
        serde_json::from_slice(&site.ctl_ok(&["fs", "ls", "/oss", "-o", "json"])).expect("JSON");
    let row = |name: &str| rows.as_array().expect("an array").iter().find(|row| row["name"] == name);
    let mtime = |name: &str| row(name).expect("a row")["mtime"].as_i64().expect("a time");
    assert_eq!(mtime("past"), -i64::try_from(YEAR_1960).expect("seconds") * 1_000_000_000);
    assert_eq!(mtime("future"), i64::MAX, "the last time that can be told");
    let listed = String::from_utf8(site.ctl_ok(&["fs", "ls", "/oss"])).expect("text");
    for name in ["future", "past", "today"] {
        assert!(listed.contains(name), "{name}: {listed}");
        assert_eq!(site.ctl_ok(&["fs", "cat", &format!("/oss/{name}")]), b"content", "{name}");
        site.ctl_ok(&["fs", "stat", &format!("/oss/{name}")]);
    }
    site.cluster.assert_no_panic();
}
