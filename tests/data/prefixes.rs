//! Directories of object stores: prefixes without markers stay until they are removed themselves.

use std::path::Path;
use std::process::Command;

use super::Site;
use super::writes::writable;
use crate::support::fuse_works;

/// A site whose bucket is at `/always`, read on every access.
async fn always() -> Site {
    let site = writable(1, |_| {}).await;
    let options = super::s3_options(&site.s3, &site.secret);
    let mut add = vec!["mount", "add", "/always", "s3://bucket", "--meta-policy", "always"];
    options.iter().for_each(|option| add.extend(["-O", option]));
    site.ctl_ok(&add);
    site
}

/// Runs a program that must succeed, off the threads that serve S3.
async fn run(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("runs");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn trees_of_prefixes_without_markers_are_removed_by_rm_and_find() {
    if !fuse_works("trees_of_prefixes_without_markers_are_removed_by_rm_and_find") {
        return;
    }
    let site = always().await;
    for tree in ["rm", "find", "parallel"] {
        for key in ["a/b/c/one", "a/b/two", "a/three", "d/four", "five", "a/b/c/six"] {
            site.put(&format!("{tree}/{key}"), b"content").await;
        }
    }
    site.put("kept", b"content").await;
    let mount = site.mnt.join("always");
    run("rm", &["-r", text(&mount.join("rm"))]).await;
    run("find", &[text(&mount.join("find")), "-delete"]).await;
    let parallel = mount.join("parallel");
    let both = format!(
        "find {0} -type f -print0 | xargs -0 -P 4 -n 1 rm && find {0} -depth -print0 | xargs -0 -n 1 rmdir",
        text(&parallel)
    );
    run("sh", &["-c", &both]).await;
    assert_eq!(site.names("always").await, ["kept"]);
    let left = site.bucket.list_with("").recursive(true).await.expect("listed");
    let left: Vec<_> = left.iter().map(opendal::Entry::path).collect();
    assert_eq!(left, ["kept"], "no marker is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_outlives_its_last_entry_until_it_is_removed_itself() {
    if !fuse_works("a_directory_outlives_its_last_entry_until_it_is_removed_itself") {
        return;
    }
    let site = always().await;
    for key in ["removed/only", "moved/only", "parent/child/only"] {
        site.put(key, b"content").await;
    }
    let mount = site.mnt.join("always");
    // Asked of the masters, which ask the bucket: the kernel would go on with what it has seen.
    let inode = |path: &str| -> String {
        let found = site.ctl_ok(&["fs", "stat", &format!("/always/{path}"), "-o", "json"]);
        let found: serde_json::Value = serde_json::from_slice(&found).expect("JSON");
        found["inode"].as_str().expect("a number").to_owned()
    };
    tokio::task::block_in_place(|| {
        let before = ["removed", "moved", "parent"].map(inode);
        std::fs::remove_file(mount.join("removed/only")).expect("removed");
        std::fs::rename(mount.join("moved/only"), mount.join("elsewhere")).expect("moved");
        std::fs::remove_file(mount.join("parent/child/only")).expect("removed");
        std::fs::remove_dir(mount.join("parent/child")).expect("removed");
        assert_eq!(["removed", "moved", "parent"].map(inode), before);
        for directory in ["removed", "moved", "parent"] {
            assert_eq!(std::fs::read_dir(mount.join(directory)).expect("listed").count(), 0, "{directory}");
            std::fs::write(mount.join(directory).join("new"), b"x").expect("it still is a directory");
            std::fs::remove_file(mount.join(directory).join("new")).expect("removed");
            std::fs::remove_dir(mount.join(directory)).expect("removed");
            assert!(!mount.join(directory).exists());
        }
    });
    assert_eq!(site.names("always").await, ["elsewhere"]);
}
