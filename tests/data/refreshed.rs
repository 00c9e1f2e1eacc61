//! Under-storages that others change, below mounts whose metadata is read once or at intervals.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

use super::writes::writable;
use super::{Site, content, start};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

impl Site {
    /// Names in a directory of the namespace.
    fn listed(&self, path: &str) -> Vec<String> {
        let rows: serde_json::Value =
            serde_json::from_slice(&self.ctl_ok(&["fs", "ls", path, "-o", "json"])).expect("JSON");
        let rows = rows.as_array().expect("an array").iter();
        rows.map(|row| row["name"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// Stores content in the place of what is there, and hears of the outcome.
fn store(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Repeats `attempt` until it gives something; only one attempt may fail, with `ESTALE`.
fn after_one_stale<T>(what: &str, mut attempt: impl FnMut() -> io::Result<Option<T>>) -> T {
    let mut stale = 0;
    wait_for(what, PATIENCE, || match attempt() {
        Ok(done) => done,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{what}: {error}");
            stale += 1;
            assert_eq!(stale, 1, "{what}: ESTALE again");
            None
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn under_once_what_others_overwrite_or_remove_is_seen_after_the_first_read_that_misses_it() {
    if !fuse_works("under_once_what_others_overwrite_or_remove_is_seen_after_the_first_read_that_misses_it") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for key in ["longer", "shorter", "gone", "written"] {
        site.put(key, b"as it was").await;
    }
    assert_eq!(site.names("s3").await, ["gone", "longer", "shorter", "written"]);
    let longer = content(70_000, 3);
    site.put("longer", &longer).await;
    site.put("shorter", b"now").await;
    site.put("written", b"by somebody").await;
    site.bucket.delete("gone").await.expect("removed");
    for (name, expected) in [("longer", &longer[..]), ("shorter", b"now")] {
        let path = site.mnt.join("s3").join(name);
        let read = || Ok(Some(std::fs::read(&path)?).filter(|read| read == expected));
        tokio::task::block_in_place(|| after_one_stale(&format!("{name} is read as it is"), read));
    }
    let gone = site.mnt.join("s3/gone");
    tokio::task::block_in_place(|| {
        after_one_stale("the name is gone", || match std::fs::read(&gone) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Some(())),
            read => read.map(|_| None),
        });
        after_one_stale("the name can be made again", || store(&gone, b"again").map(Some));
        let written = site.mnt.join("s3/written");
        after_one_stale("the name can be overwritten", || store(&written, b"by us").map(Some));
    });
    assert_eq!(site.bucket.read("gone").await.expect("read").to_vec(), b"again");
    assert_eq!(site.bucket.read("written").await.expect("read").to_vec(), b"by us");
    site.bucket.delete("shorter").await.expect("removed");
    let shorter = site.mnt.join("s3/shorter");
    tokio::task::block_in_place(|| {
        after_one_stale("a name that is gone can be overwritten", || store(&shorter, b"new").map(Some));
    });
    assert_eq!(site.bucket.read("shorter").await.expect("read").to_vec(), b"new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_and_the_command_line_take_what_others_have_stored_meanwhile() {
    let site = start(1, |options| options.mounts.clear()).await;
    for key in ["d/over", "d/gone", "d/same", "cat"] {
        site.put(key, b"as it was").await;
    }
    assert_eq!(site.listed("/s3/d"), ["gone", "over", "same"]);
    assert_eq!(site.listed("/s3"), ["cat", "d"]);
    site.put("d/over", b"something else").await;
    site.put("cat", b"something longer").await;
    site.bucket.delete("d/gone").await.expect("removed");
    let loaded: serde_json::Value =
        serde_json::from_slice(&site.ctl_ok(&["load", "/s3/d", "-o", "json"])).expect("JSON");
    assert_eq!((&loaded["state"], &loaded["files_failed"]), (&"done".into(), &0.into()), "{loaded}");
    let bytes = b"something else".len() + b"as it was".len();
    assert_eq!((&loaded["files_done"], &loaded["bytes_done"]), (&2.into(), &bytes.into()), "{loaded}");
    assert_eq!(site.listed("/s3/d"), ["over", "same"]);
    assert_eq!(site.ctl_ok(&["fs", "cat", "/s3/d/over"]), b"something else");
    assert_eq!(site.ctl_ok(&["fs", "cat", "/s3/cat"]), b"something longer");
    site.cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_others_have_removed_leaves_no_file_behind_where_it_was_to_be_copied() {
    let site = start(1, |options| options.mounts.clear()).await;
    site.put("d/gone", b"as it was").await;
    assert_eq!(site.listed("/s3/d"), ["gone"]);
    site.bucket.delete("d/gone").await.expect("removed");
    let to = site.dir.path().join("copy");
    let shown = to.to_str().expect("a path");
    let got = site.ctl(&["fs", "get", "/s3/d/gone", shown]);
    let error = String::from_utf8_lossy(&got.stderr).into_owned();
    assert_eq!(got.status.code(), Some(3), "{error}");
    assert!(error.contains("/s3/d/gone") && error.contains(shown), "{error}");
    assert!(!to.exists(), "an incomplete copy is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_once_new_objects_appear_when_a_path_is_refreshed_or_its_metadata_loaded() {
    let site = start(3, |options| options.mounts.clear()).await;
    site.put("d/deep/old", b"1").await;
    site.put("f", b"1").await;
    assert_eq!((site.listed("/s3"), site.listed("/s3/d/deep")), (vec!["d".into(), "f".into()], vec!["old".into()]));
    for key in ["new", "d/deep/new", "e/other", "f"] {
        site.put(key, b"longer").await;
    }
    site.ctl_ok(&["fs", "refresh", "/s3/d/deep/new"]);
    assert_eq!(site.ctl_ok(&["fs", "cat", "/s3/d/deep/new"]), b"longer", "one name");
    site.put("d/deep/newer", b"1").await;
    site.ctl_ok(&["fs", "refresh", "/s3"]);
    assert_eq!(site.listed("/s3"), ["d", "e", "f", "new"]);
    assert_eq!(site.ctl_ok(&["fs", "cat", "/s3/f"]), b"longer");
    assert_eq!(site.listed("/s3/d/deep"), ["new", "old"], "what is deeper is not read");
    site.ctl_ok(&["fs", "refresh", "-r", "/"]);
    assert_eq!(site.listed("/s3/d/deep"), ["new", "newer", "old"]);
    site.put("d/deep/newest", b"1").await;
    let loaded: serde_json::Value =
        serde_json::from_slice(&site.ctl_ok(&["load", "--metadata", "/s3", "-o", "json"])).expect("JSON");
    assert_eq!(loaded["files_total"], 7, "{loaded}");
    assert_eq!(site.ctl(&["fs", "refresh", "/s3/nothing"]).status.code(), Some(3));
    site.bucket.delete("f").await.expect("removed");
    assert_eq!(site.ctl(&["fs", "refresh", "/s3/f"]).status.code(), Some(3));
    assert_eq!(site.listed("/s3"), ["d", "e", "new"]);
    site.cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_is_read_again_after_the_interval_of_its_mount_and_not_before() {
    let site = start(1, |options| options.mounts.clear()).await;
    site.put("f", b"1").await;
    site.put("sub/f", b"1").await;
    let options = super::s3_options(&site.s3, &site.secret);
    let add = |path: &str, policy: &str, more: &[&str]| {
        let mut add = vec!["mount", "add", path, "s3://bucket", "--meta-policy", policy];
        options.iter().map(String::as_str).chain(more.iter().copied()).for_each(|option| add.extend(["-O", option]));
        site.ctl(&add)
    };
    for (path, policy, more) in [
        ("/second", "1s", &[][..]),
        ("/hour", "1h", &["metaPolicy:/sub=ALWAYS"]),
        ("/once", "once", &["metaPolicy:/sub=1s"]),
    ] {
        let added = add(path, policy, more);
        assert!(added.status.success(), "{path}: {}", String::from_utf8_lossy(&added.stderr));
        assert_eq!(site.listed(path), ["f", "sub"]);
        assert_eq!(site.listed(&format!("{path}/sub")), ["f"]);
    }
    for (policy, more) in [("1 fortnight", &[][..]), ("once", &["metaPolicy:sub=1s"]), ("once", &["metaPolicy:/s=x"])] {
        assert_eq!(add("/wrong", policy, more).status.code(), Some(2), "{policy} {more:?}");
    }
    site.put("new", b"1").await;
    site.put("sub/new", b"1").await;
    let stats = |path: &str| site.ctl(&["fs", "stat", path]).status.code();
    let lists = site.s3.control.lists();
    assert_eq!(site.listed("/hour"), ["f", "sub"]);
    assert_eq!((stats("/hour/f"), stats("/hour/new"), stats("/once/new")), (Some(0), Some(3), Some(3)));
    assert_eq!(site.s3.control.lists(), lists, "nothing is asked before the time");
    assert_eq!(site.listed("/hour/sub"), ["f", "new"], "a path with a policy of its own");
    wait_for("the new name is listed", PATIENCE, || (site.listed("/second") == ["f", "new", "sub"]).then_some(()));
    wait_for("the new name is found", PATIENCE, || (stats("/second/sub/new") == Some(0)).then_some(()));
    wait_for("the new name is listed", PATIENCE, || (site.listed("/once/sub") == ["f", "new"]).then_some(()));
    assert_eq!(site.listed("/once"), ["f", "sub"]);
    site.put("f", b"longer").await;
    let read = || (site.ctl_ok(&["fs", "cat", "/second/f"]) == b"longer").then_some(());
    wait_for("the new content is read", PATIENCE, read);
    let shown: serde_json::Value =
        serde_json::from_slice(&site.ctl_ok(&["mount", "list", "-o", "json"])).expect("JSON");
    let policies: Vec<_> = shown.as_array().expect("rows").iter().map(|row| row["meta_policy"].clone()).collect();
    assert_eq!(policies, ["once", "once", "1s", "1h", "once"], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_others_have_filled_stays_and_shows_what_is_in_it() {
    let site = start(1, |options| options.mounts.clear()).await;
    std::fs::create_dir(site.local.join("d")).expect("made");
    site.put("d/x", b"1").await;
    site.ctl_ok(&["fs", "rm", "/s3/d/x"]);
    for mount in ["/local", "/s3"] {
        assert!(site.listed(&format!("{mount}/d")).is_empty(), "{mount}");
    }
    std::fs::write(site.local.join("d/y"), b"1").expect("written");
    site.put("d/y", b"1").await;
    for mount in ["/local", "/s3"] {
        let directory = format!("{mount}/d");
        let refused = site.ctl(&["fs", "rm", "-r", &directory]);
        assert!(!refused.status.success(), "{mount}");
        assert_eq!(site.listed(&directory), ["y"], "{mount}");
        site.ctl_ok(&["fs", "rm", "-r", &directory]);
        assert_eq!(site.ctl(&["fs", "stat", &directory]).status.code(), Some(3), "{mount}");
    }
    assert!(!site.local.join("d").exists());
    assert!(site.bucket.list_with("").recursive(true).await.expect("listed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_others_lead_elsewhere_leads_there_on_a_mount_that_has_followed_it() {
    if !fuse_works("a_link_that_others_lead_elsewhere_leads_there_on_a_mount_that_has_followed_it") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for name in ["one", "two"] {
        std::fs::write(site.local.join(name), name).expect("written");
    }
    symlink("one", site.local.join("link")).expect("linked");
    let link = site.mnt.join("local/link");
    tokio::task::block_in_place(|| {
        assert_eq!(std::fs::read_link(&link).expect("read").as_os_str(), "one");
        assert_eq!(std::fs::read(&link).expect("followed"), b"one");
    });
    // In one step, as a release is switched over.
    symlink("two", site.local.join("next")).expect("linked");
    std::fs::rename(site.local.join("next"), site.local.join("link")).expect("replaced");
    site.ctl_ok(&["fs", "refresh", "/local"]);
    tokio::task::block_in_place(|| {
        wait_for("the link leads to the other file", PATIENCE, || {
            (std::fs::read_link(&link).ok()?.as_os_str() == "two").then_some(())
        });
        assert_eq!(std::fs::read(&link).expect("followed"), b"two");
    });
    site.cluster.assert_no_panic();
}
