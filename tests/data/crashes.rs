//! A client or a leader that dies at any step of a change, and an under-storage that refuses it: what is left is the old
//! state or the new one, here and in the under-storage.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::writes::{names, off, stored, writable};
use super::{Site, content};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, poll, rounds, seed, wait_for, wait_until};

/// Steps of the leader in one [`life`] that can be counted on.
const STEPS: u64 = 20;
/// How long a process that was killed may still be listed as running.
const REAPED: Duration = Duration::from_secs(1);
/// Pause between two looks whether it is.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

fn is_down(site: &Site, process: &str) -> bool {
    site.cluster.dev.process(process).expect("a process").pid.is_none()
}

/// Waits until a process has died by itself.
pub(super) fn wait_down(site: &Site, process: &str) {
    wait_for(&format!("{process} dies at its failpoint"), PATIENCE, || is_down(site, process).then_some(()));
}

/// Sets failpoints of a process that is down.
fn arm(site: &Site, process: &str, points: Option<&str>) {
    site.cluster.dev.set_env(process, "JINDOFS_FAILPOINTS", points).expect("set");
}

/// A directory and a file, made, changed and removed: every call must succeed.
fn life(dir: &Path) {
    let (inside, file, moved) = (dir.join("d"), dir.join("d/f"), dir.join("d/g"));
    std::fs::create_dir(&inside).expect("mkdir");
    std::fs::write(&file, b"first").expect("written");
    std::fs::rename(&file, &moved).expect("moved");
    std::fs::write(&moved, b"second").expect("overwritten");
    std::fs::set_permissions(&moved, Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(names(&inside), ["g"]);
    assert_eq!(std::fs::read(&moved).expect("read"), b"second");
    std::fs::remove_file(&moved).expect("removed");
    std::fs::remove_dir(&inside).expect("removed");
    assert!(names(dir).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_at_any_step_of_a_change_is_a_pause_for_the_mount() {
    let test = "a_leader_that_dies_at_any_step_of_a_change_is_a_pause_for_the_mount";
    if !fuse_works(test) {
        return;
    }
    let mut random = StdRng::seed_from_u64(seed(test));
    let site = writable(3, |_| {}).await;
    for _ in 0..rounds(6) {
        let step = random.random_range(1..=STEPS);
        let victim = site.cluster.followers()[0].clone();
        site.cluster.dev.kill(&victim).expect("killed");
        arm(&site, &victim, Some(&format!("intent.step={step}*kill")));
        site.cluster.dev.launch(&victim).expect("launched");
        site.cluster.wait_whole();
        let id = site.cluster.member_id(&victim).to_string();
        site.ctl_ok(&["cluster", "transfer-leader", &id]);
        live_until_down(&site, &victim, &id).await;
        arm(&site, &victim, None);
        site.cluster.dev.launch(&victim).expect("launched");
        site.cluster.wait_whole();
        assert!(names(&site.local).is_empty(), "nothing is left in the directory");
        let objects = site.bucket.list("").await.expect("listed");
        assert!(objects.iter().all(|object| object.path() == "/"), "nothing is left in the bucket: {objects:?}");
    }
    site.cluster.assert_digests_equal().await;
    site.cluster.assert_no_panic();
}

/// Has lives led until the victim, which is member `id` and leads, has died of its steps.
async fn live_until_down(site: &Site, victim: &str, id: &str) {
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        let mnt = site.mnt.clone();
        off(move || ["local", "s3"].iter().for_each(|storage| life(&mnt.join(storage)))).await;
        if poll(POLL_INTERVAL, REAPED, || is_down(site, victim).then_some(())).is_some() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{victim} has not come to its failpoint; leader: {:?}",
            site.cluster.leader()
        );
        // On a busy machine an election has given the lead to another master before the step was reached: that one has made
        // the rest. The command fails if the victim dies right now.
        let moved = site.ctl(&["cluster", "transfer-leader", id]);
        println!("{victim} is to lead once more: {}", String::from_utf8_lossy(&moved.stderr));
    }
}

/// Kills the client at a point of storing `path`, and mounts again. To cut a file off by its name would store it once more.
///
/// A process of its own writes. What the test itself has open is inherited by every process that any test starts meanwhile;
/// that closes what it has inherited, and each close stores what was written until then: a part of the content.
async fn die_storing(site: &Site, point: &str, path: &str, bytes: &[u8]) {
    site.cluster.dev.kill("fuse-0").expect("killed");
    arm(site, "fuse-0", Some(&format!("{point}=kill")));
    site.cluster.dev.restart("fuse-0").expect("mounted");
    let (at, half) = (site.mnt.join(path), bytes.len() / 2);
    let (first, rest) = (encode(&bytes[..half]), encode(&bytes[half..]));
    let written = off(move || {
        let mut agent = Agent::start();
        agent.call(&json!(["open", "f", at, libc::O_WRONLY | libc::O_CREAT, 0o644])).expect("open");
        agent.call(&json!(["write", "f", 0, first])).expect("staged");
        // As another test may do at any time.
        assert!(Command::new("true").status().expect("true runs").success());
        agent.call(&json!(["write", "f", half, rest])).expect("staged");
        agent.call(&json!(["fsync", "f"]))
    });
    assert!(written.await.is_err(), "the client has died at {point}");
    wait_down(site, "fuse-0");
    arm(site, "fuse-0", None);
    site.cluster.dev.restart("fuse-0").expect("mounted");
}

/// What a file is, for the message of a failure: its length, its first bytes, and how far it is the new content.
fn shape(found: &Option<Vec<u8>>, new: &[u8]) -> String {
    let Some(found) = found else { return "no file".to_owned() };
    let same = found.iter().zip(new).take_while(|(one, other)| one == other).count();
    let first = &found[..found.len().min(16)];
    format!("{} bytes ({first:02x?}...), of which the first {same} are those of the new content", found.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_at_any_step_of_storing_leaves_the_old_file_or_the_new_one() {
    if !fuse_works("a_client_that_dies_at_any_step_of_storing_leaves_the_old_file_or_the_new_one") {
        return;
    }
    let site = writable(1, |_| {}).await;
    // Two parts in the bucket.
    let (old, new) = (content(1000, 1), content(9 << 20, 2));
    let points = ["write.begun", "write.stored"];
    for (storage, own) in [("local", "local.filled"), ("s3", "bucket.part")] {
        for point in points.into_iter().chain([own]) {
            for before in [Some(&old), None] {
                let path = format!("{storage}/{point}-{}", before.is_some());
                if let Some(before) = before {
                    let (at, before) = (site.mnt.join(&path), before.clone());
                    off(move || std::fs::write(at, before)).await.expect("written");
                }
                die_storing(&site, point, &path, &new).await;
                let found = stored(&site, &path).await;
                let after = if point == "write.stored" { Some(&new) } else { before };
                assert!(
                    found.as_ref() == after,
                    "{path}: {} instead of {}",
                    shape(&found, &new),
                    shape(&after.cloned(), &new)
                );
                // What the mount shows is that, once the session of the dead client has ended.
                let name = format!("/{path}");
                wait_until(&format!("{path} is what is stored"), PATIENCE, || {
                    let shown = site.ctl(&["fs", "cat", &name]);
                    shown.status.success().then_some(&shown.stdout) == after
                })
                .await;
                let at = site.mnt.join(&path);
                let next = move || {
                    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(at)?;
                    file.write_all(b"next")?;
                    file.sync_all()
                };
                off(next).await.unwrap_or_else(|error| panic!("{path} can be written again: {error}"));
                assert!(stored(&site, &path).await.as_deref() == Some(&b"next"[..]), "{path} is stored");
            }
        }
    }
    let (mut shown, mut kept) = (site.names("local").await, names(&site.local));
    assert_eq!(shown, kept, "nothing is left beside the files");
    (shown, kept) = (site.names("s3").await, Vec::new());
    for object in site.bucket.list("").await.expect("listed") {
        kept.extend((object.path() != "/").then(|| object.path().to_owned()));
    }
    kept.sort();
    assert_eq!(shown, kept);
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_under_storage_that_does_not_answer_fails_the_sync_and_the_next_one_stores_all() {
    if !fuse_works("an_under_storage_that_does_not_answer_fails_the_sync_and_the_next_one_stores_all") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let at = site.mnt.join("s3/f");
    let file = off(move || {
        std::fs::write(&at, b"before").expect("written");
        let mut file = OpenOptions::new().write(true).open(&at).expect("open");
        file.write_all(b"after!").expect("staged");
        file
    })
    .await;
    site.s3.control.fail_next(u64::MAX);
    let mut file = off(move || {
        // Once more: whatever process was started meanwhile has closed the file, and with that stored it.
        file.write_all_at(b"after!", 0).expect("staged");
        assert!(file.sync_all().is_err(), "it is not stored");
        file
    })
    .await;
    site.s3.control.fail_next(0);
    off(move || {
        file.write_all(b" all").expect("staged");
        file.sync_all().expect("stored");
    })
    .await;
    assert_eq!(stored(&site, "s3/f").await.as_deref(), Some(&b"after! all"[..]));
}
