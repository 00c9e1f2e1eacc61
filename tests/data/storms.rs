//! Object stores that answer late, and others who change an object at the very step at which we are: the outcome is the old
//! file, the new one, or theirs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jindofs::client::namespace::at_path;
use jindofs::error::ErrorKind;
use serde_json::json;

use super::oss::mount_oss;
use super::writes::{names, off, writable};
use super::{Site, content};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::oss::OssServer;
use crate::support::s3::trouble::Kind;
use crate::support::{fuse_works, wait_for};

/// How late an answer is. Shorter than the client of a store waits before it asks again.
const LATE: Duration = Duration::from_secs(2);
/// Both stores, and what stands before the keys of each.
const STORES: [(&str, &str); 2] = [("s3", ""), ("oss", "data/")];
const FOREIGN: &[u8] = b"of somebody else";

/// A cluster with the bucket mounted twice: as S3, and below a prefix as OSS.
async fn stores() -> (Site, OssServer) {
    let site = writable(1, |_| {}).await;
    let oss = mount_oss(&site).await;
    (site, oss)
}

async fn object(site: &Site, key: &str) -> Option<Vec<u8>> {
    site.bucket.read(key).await.ok().map(|bytes| bytes.to_vec())
}

/// Waits until the mount shows this content.
async fn shows(site: &Site, path: &str, bytes: &[u8]) {
    let (at, bytes, what) = (site.mnt.join(path), bytes.to_vec(), format!("{path} shows what is stored"));
    let shown = move || std::fs::read(&at).is_ok_and(|found| found == bytes).then_some(());
    off(move || wait_for(&what, PATIENCE, shown)).await;
}

/// What needs each kind of request of a store, step by step.
fn every_request(dir: &Path) {
    let (small, large) = (content(1000, 1), content(9 << 20, 2));
    std::fs::write(dir.join("small"), &small).expect("stored in one request");
    std::fs::write(dir.join("large"), &large).expect("stored in parts");
    std::fs::write(dir.join("large"), &small).expect("overwritten");
    std::fs::rename(dir.join("small"), dir.join("moved")).expect("copied and removed");
    std::fs::rename(dir.join("large"), dir.join("moved")).expect("replaced");
    assert_eq!(names(dir), ["moved"]);
    assert!(std::fs::read(dir.join("moved")).expect("read") == small);
    std::fs::remove_file(dir.join("moved")).expect("removed");
    assert!(names(dir).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_takes_seconds_for_each_change_is_late_and_holds_up_nobody_else() {
    if !fuse_works("a_store_that_takes_seconds_for_each_change_is_late_and_holds_up_nobody_else") {
        return;
    }
    let (site, _oss) = stores().await;
    let cached = content(5000, 7);
    site.put("cached", &cached).await;
    assert!(site.read("s3/cached").await.expect("read") == cached);
    for (storage, _) in STORES {
        let dir = site.mnt.join(storage).join("late");
        off(move || std::fs::create_dir(dir)).await.expect("made");
    }
    for kind in [Kind::Put, Kind::Part, Kind::Complete, Kind::Copy, Kind::Delete] {
        site.s3.control.troubles.delay(kind, LATE);
    }
    let done = Arc::new(AtomicBool::new(false));
    let (others, stop, bytes) = (site.mnt.clone(), done.clone(), cached.clone());
    // More changes than a session keeps answers for, while one that waits for the store is older than all of them.
    let others = std::thread::spawn(move || {
        let (mut rounds, mut slowest) = (0_u32, Duration::ZERO);
        while !stop.load(Ordering::SeqCst) {
            let began = Instant::now();
            let at = others.join("local/other");
            std::fs::write(&at, &bytes).expect("written elsewhere");
            std::fs::remove_file(&at).expect("removed elsewhere");
            assert!(std::fs::read(others.join("s3/cached")).expect("read") == bytes, "beside it");
            assert!(names(&others.join("s3")).contains(&"late".to_owned()));
            (rounds, slowest) = (rounds + 1, slowest.max(began.elapsed()));
        }
        (rounds, slowest)
    });
    let began = Instant::now();
    let slow = STORES.map(|(storage, _)| {
        let dir = site.mnt.join(storage).join("late");
        std::thread::spawn(move || every_request(&dir))
    });
    for thread in slow {
        off(move || thread.join()).await.expect("late, and good");
    }
    // A put, two overwrites, two copies with their removals, and a removal, one after the other.
    assert!(began.elapsed() > 8 * LATE, "the store was not slow: {:?}", began.elapsed());
    done.store(true, Ordering::SeqCst);
    let (rounds, slowest) = off(move || others.join()).await.expect("no error elsewhere");
    println!("{rounds} rounds elsewhere, the slowest took {slowest:?}");
    assert!(rounds > 100 && slowest < LATE, "{rounds} rounds, the slowest took {slowest:?}");
    site.cluster.assert_no_panic();
}

/// Stores content under a path through the mount, while somebody else does it too at this step. An [`Agent`] writes: a process
/// that another test starts would inherit what the test has open, and store a part of the content when it closes that.
async fn interrupted(site: &Site, path: &str, bytes: Vec<u8>) {
    let at = site.mnt.join(path);
    let told = off(move || {
        let mut agent = Agent::start();
        agent.call(&json!(["open", "f", at, libc::O_WRONLY | libc::O_CREAT, 0o644])).expect("open");
        agent.call(&json!(["write", "f", 0, encode(&bytes)])).expect("staged");
        let first = agent.call(&json!(["fsync", "f"]));
        // What is staged is still there, and is told again.
        let again = agent.call(&json!(["write", "f", 0, encode(b"again")]));
        let again = again.and_then(|_| agent.call(&json!(["fsync", "f"])));
        [first, again].map(|told| told.map(drop).map_err(|refusal| Some(refusal.errno)))
    })
    .await;
    assert_eq!(told, [Err(Some(libc::ESTALE)); 2], "{path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_overtaken_by_somebody_else_at_any_step_of_storing_is_told_and_theirs_stays() {
    if !fuse_works("whoever_is_overtaken_by_somebody_else_at_any_step_of_storing_is_told_and_theirs_stays") {
        return;
    }
    let (site, _oss) = stores().await;
    let (small, large) = (content(1000, 3), content(9 << 20, 4));
    let points = [(Kind::Put, &small), (Kind::Part, &large), (Kind::Complete, &large)];
    for (storage, prefix) in STORES {
        for (kind, bytes) in points {
            for before in [true, false] {
                // OSS knows no condition for what is overwritten: it is looked at before, while parts may be on their way.
                if storage == "oss" && before {
                    continue;
                }
                let name = format!("{kind:?}-{before}");
                let (path, key) = (format!("{storage}/{name}"), format!("{prefix}{name}"));
                if before {
                    let at = site.mnt.join(&path);
                    off(move || std::fs::write(at, b"old")).await.expect("written");
                }
                site.s3.control.troubles.interfere(kind, &key, FOREIGN);
                interrupted(&site, &path, bytes.clone()).await;
                assert!(!site.s3.control.troubles.is_pending(), "{path}: nobody has interfered");
                assert_eq!(object(&site, &key).await.as_deref(), Some(FOREIGN), "{path}: theirs stays");
                shows(&site, &path, FOREIGN).await;
                let at = site.mnt.join(&path);
                off(move || std::fs::write(at, b"next")).await.expect("it can be written again");
                assert_eq!(object(&site, &key).await.as_deref(), Some(&b"next"[..]), "{path}");
            }
        }
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_else_changes_while_it_is_moved_or_removed_is_not_lost() {
    if !fuse_works("a_file_that_somebody_else_changes_while_it_is_moved_or_removed_is_not_lost") {
        return;
    }
    let (site, _oss) = stores().await;
    let client = site.cluster.client();
    for (storage, prefix) in STORES {
        let dir = site.mnt.join(storage);
        let at = dir.clone();
        let all = ["copied", "again", "left", "removed"];
        off(move || all.map(|name| std::fs::write(at.join(name), name).expect("written"))).await;
        let interfere = |kind, name| site.s3.control.troubles.interfere(kind, &format!("{prefix}{name}"), FOREIGN);
        let stays = async |name: &str| object(&site, &format!("{prefix}{name}")).await;
        let named = |name: &str| at_path(format!("/{storage}/{name}"));

        interfere(Kind::Copy, "copied");
        let told = client.rename(named("copied"), named("target"), false).await.map_err(|error| error.kind);
        assert_eq!(told.map(drop), Err(ErrorKind::Stale), "{storage}: the source is another file");
        assert_eq!(stays("copied").await.as_deref(), Some(FOREIGN), "{storage}");
        assert_eq!(stays("target").await, None, "{storage}: half a move is none");
        shows(&site, &format!("{storage}/copied"), FOREIGN).await;

        // The kernel tries again what was told to be stale, and finds what is there now.
        interfere(Kind::Copy, "again");
        let at = dir.clone();
        off(move || std::fs::rename(at.join("again"), at.join("moved-again"))).await.expect("theirs is moved");
        assert_eq!((stays("again").await, stays("moved-again").await.as_deref()), (None, Some(FOREIGN)), "{storage}");

        // The delete of OSS knows no condition.
        if storage == "s3" {
            interfere(Kind::Delete, "left");
            let at = dir.clone();
            off(move || std::fs::rename(at.join("left"), at.join("moved"))).await.expect("it is moved");
            assert_eq!(stays("moved").await.as_deref(), Some(&b"left"[..]));
            assert_eq!(stays("left").await.as_deref(), Some(FOREIGN), "what came in its place is not removed");

            interfere(Kind::Delete, "removed");
            let told = client.unlink(named("removed")).await.map_err(|error| error.kind);
            assert_eq!(told, Err(ErrorKind::Stale));
            assert_eq!(stays("removed").await.as_deref(), Some(FOREIGN));
            shows(&site, "s3/removed", FOREIGN).await;
            let at = dir.join("removed");
            off(move || std::fs::remove_file(at)).await.expect("what is there now is removed");
            assert_eq!(stays("removed").await, None);
        }
        assert!(!site.s3.control.troubles.is_pending());
    }
    site.cluster.assert_no_panic();
}
