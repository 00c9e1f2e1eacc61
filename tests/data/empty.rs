//! Files that are made or cut off and not written yet: one close of several stores nothing, the last one and `fsync` do.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Instant, UNIX_EPOCH};

use jindofs::client::namespace::at_path;
use serde_json::json;

use super::writes::{off, stored, wait_stored, writable, writable_twice};
use super::{Site, content};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::fuse_works;
use crate::support::small_disk::SmallDisk;

/// Requests that fail: more than one attempt to store something, and to look what became of it, makes.
const REFUSALS: u64 = 7;

/// Runs a shell as people do, in `dir`.
fn shell(dir: &Path, script: &str) -> Output {
    Command::new("sh").args(["-c", script]).current_dir(dir).output().expect("sh runs")
}

/// An agent that has a file open as `f`, made or cut off, and has closed a copy of that, as a shell does before its command
/// writes anything.
fn redirect(path: &Path) -> Agent {
    let mut agent = Agent::start();
    agent.call(&json!(["open", "f", path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644])).expect("open");
    agent.call(&json!(["close_copy", "f"])).expect("nothing is stored yet");
    agent
}

/// Requests of one kind that the object store has seen.
fn requests(site: &Site, kind: &str) -> u64 {
    site.s3.control.requests().get(kind).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_has_not_written_yet_leaves_the_old_file_though_the_client_is_killed() {
    if !fuse_works("a_command_that_has_not_written_yet_leaves_the_old_file_though_the_client_is_killed") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let at = site.mnt.join(&path);
        let agent = off(move || {
            fs::write(&at, b"old").expect("written");
            let agent = redirect(&at);
            assert_eq!(fs::metadata(&at).expect("stat").len(), 0, "on this mount it is empty");
            agent
        })
        .await;
        assert_eq!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]), b"old", "{path}: for others it is the old one");
        site.cluster.dev.kill("fuse-0").expect("killed");
        drop(agent);
        site.cluster.dev.restart("fuse-0").expect("mounted again");
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"old"[..]), "{path}");
        assert_eq!(site.read(&path).await.expect("read"), b"old");
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_output_has_no_room_leaves_the_old_file() {
    if !fuse_works("a_command_whose_output_has_no_room_leaves_the_old_file") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let disk = SmallDisk::at(&site.dir.path().join("small"), "16m");
    let root = disk.0.join("data");
    fs::create_dir(&root).expect("made");
    site.ctl_ok(&["mount", "add", "/small", &format!("local://{}", root.display())]);
    let (old, input) = (content(100_000, 1), site.dir.path().join("input"));
    fs::write(&input, content(4 << 20, 2)).expect("written");
    let (at, before) = (site.mnt.join("small"), old.clone());
    off(move || fs::write(at.join("old"), before)).await.expect("written");
    disk.fill_but(1 << 20);
    let at = site.mnt.join("small");
    let command = format!("cat {} > old", input.display());
    let ended = off(move || shell(&at, &command)).await;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!ended.status.success() && said.contains("No space left on device"), "{said}");
    assert!(fs::read(root.join("old")).expect("read") == old, "the old file is whole");
    assert!(site.ctl_ok(&["fs", "cat", "/small/old"]) == old);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_a_shell_makes_or_overwrites_costs_an_object_store_one_put() {
    if !fuse_works("a_file_that_a_shell_makes_or_overwrites_costs_an_object_store_one_put") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let _oss = super::oss::mount_oss(&site).await;
    for (storage, key) in [("s3", "f"), ("oss", "data/f")] {
        for (what, heads) in [("made", 0), ("overwritten", u64::from(storage == "oss"))] {
            let at = site.mnt.join(storage);
            off({
                let at = at.clone();
                move || fs::read_dir(at).expect("listed").count()
            })
            .await;
            let before = site.s3.control.requests();
            let ended = off(move || shell(&at, &format!("echo {what} > f"))).await;
            assert!(ended.status.success(), "{ended:?}");
            let after = site.s3.control.requests();
            let asked = |kind| after.get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);
            assert_eq!((asked("PUT"), asked("HEAD"), asked("LIST")), (1, heads, 0), "{storage}, {what}: {after:?}");
            let bytes = site.bucket.read(key).await.expect("stored").to_vec();
            assert_eq!(bytes, format!("{what}\n").as_bytes());
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_never_written_is_stored_by_fsync_or_its_last_close_and_a_name_is_there_from_the_first() {
    let test = "a_file_that_is_never_written_is_stored_by_fsync_or_its_last_close_and_a_name_is_there_from_the_first";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |_| {}).await;
    for storage in ["local", "s3"] {
        for is_new in [true, false] {
            for syncs in [true, false] {
                let path = format!("{storage}/{is_new}-{syncs}");
                let (at, shown) = (site.mnt.join(&path), format!("/{path}"));
                let mut agent = off(move || {
                    if !is_new {
                        fs::write(&at, b"old").expect("written");
                    }
                    redirect(&at)
                })
                .await;
                let before = (!is_new).then_some(&b"old"[..]);
                assert_eq!(stored(&site, &path).await.as_deref(), before, "{path}: nothing is stored yet");
                let seen = site.cluster.client().lookup(at_path(&shown)).await.expect("the name is there for others");
                assert_eq!(seen.size, before.map_or(0, |old| old.len() as u64), "{path}");
                let at = site.mnt.join(&path);
                // What is cut off has its time on this mount only.
                let time = off(move || fs::metadata(at).and_then(|shown| shown.modified())).await.expect("a time");
                let verb = if syncs { "fsync" } else { "close" };
                off(move || {
                    agent.call(&json!([verb, "f"])).expect("done");
                    agent
                })
                .await;
                wait_stored(&site, &path, b"").await;
                let (client, mut after, started) = (site.cluster.client(), seen.clone(), Instant::now());
                while after.version_token == seen.version_token {
                    assert!(started.elapsed() < PATIENCE, "{path}: the masters do not know that it is stored");
                    after = client.lookup(at_path(&shown)).await.expect("it is there");
                }
                assert_eq!(after.size, 0, "{path}");
                let before = if is_new {
                    (seen.mtime_ns, seen.ctime_ns)
                } else {
                    let time = time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
                    let time = i64::try_from(time).expect("before 2262");
                    (time, time)
                };
                assert_eq!((after.mtime_ns, after.ctime_ns), before, "{path}: storing it has changed its times");
            }
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_after_a_copy_was_closed_is_stored_by_its_close_for_both_of_two_mounts() {
    if !fuse_works("what_is_written_after_a_copy_was_closed_is_stored_by_its_close_for_both_of_two_mounts") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    for storage in ["local", "s3"] {
        let (one, two, path) =
            (site.mnt.join(storage).join("f"), second.join(storage).join("f"), format!("{storage}/f"));
        for round in ["made", "overwritten"] {
            let (at, other) = (one.clone(), two.clone());
            off(move || {
                let mut agent = redirect(&at);
                agent.call(&json!(["write", "f", 0, encode(round.as_bytes())])).expect("written");
                agent.call(&json!(["close", "f"])).expect("stored");
                assert_eq!(fs::read(&other).expect("read"), round.as_bytes());
            })
            .await;
            assert_eq!(stored(&site, &path).await.as_deref(), Some(round.as_bytes()));
        }
        let (one, two) = (site.mnt.join(storage), second.join(storage));
        off(move || {
            for number in 0..20 {
                let (name, moved) = (format!("e{number}"), format!("moved{number}"));
                fs::write(one.join(&name), b"").expect("made");
                fs::rename(two.join(name), two.join(moved)).expect("its last close has stored it, or does");
            }
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_never_written_is_stored_though_the_store_fails_for_a_while_when_it_is_closed() {
    let test = "a_file_that_is_never_written_is_stored_though_the_store_fails_for_a_while_when_it_is_closed";
    if !fuse_works(test) {
        return;
    }
    let site = writable(1, |_| {}).await;
    let at = site.mnt.join("s3/f");
    let mut agent = off(move || redirect(&at)).await;
    let before = requests(&site, "PUT");
    site.s3.control.fail_next(REFUSALS);
    off(move || agent.call(&json!(["close", "f"])).map(drop)).await.expect("nobody is told");
    wait_stored(&site, "s3/f", b"").await;
    assert_eq!(site.s3.control.refused(), REFUSALS);
    assert!(requests(&site, "PUT") > before + 1, "it was tried again");
    site.ctl_ok(&["fs", "stat", "/s3/f"]);
    site.cluster.assert_no_panic();
}
