//! Listings that take their time while names are made and removed through a mount: what they bring is older than that.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use jindofs::client::namespace::{Namespace, at_path};
use jindofs::error::Result;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::writes::{names, off, stored, writable, writable_twice};
use super::{Site, TTL, content, s3_options, start};
use crate::support::cluster::PATIENCE;
use crate::support::s3::trouble::{Held, Kind};
use crate::support::{fuse_works, rounds, seed, wait_until};

/// How late a listing is.
const LATE: Duration = Duration::from_millis(150);

/// Mounts the bucket at `/always`, where it is asked on every access.
fn mount_always(site: &Site) {
    let options = s3_options(&site.s3, &site.secret);
    let mut arguments = vec!["mount", "add", "/always", "s3://bucket", "--meta-policy", "always"];
    options.iter().for_each(|option| arguments.extend(["-O", option]));
    site.ctl_ok(&arguments);
}

async fn listed(client: &Namespace, path: &str) -> Result<Vec<String>> {
    let entries: Vec<_> = client.list(at_path(path)).try_collect().await?;
    Ok(entries.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()).collect())
}

/// A listing of another client: within one mount the kernel changes no directory while it is read.
fn list(site: &Site, path: &str) -> tokio::task::JoinHandle<Vec<String>> {
    let (client, path) = (site.cluster.client(), path.to_owned());
    tokio::spawn(async move { listed(&client, &path).await.expect("listed") })
}

/// Begins a listing whose answer the store keeps back.
async fn begin_listing(site: &Site, path: &str) -> (Held, tokio::task::JoinHandle<Vec<String>>) {
    let held = site.s3.control.troubles.hold(Kind::List, "d/");
    let listing = list(site, path);
    wait_until("the store has looked at the directory", PATIENCE, || held.count() > 0).await;
    (held, listing)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_stored_moved_or_changed_during_a_slow_listing_survives_it() {
    if !fuse_works("what_is_made_stored_moved_or_changed_during_a_slow_listing_survives_it") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for name in ["changed", "moved", "removed"] {
        site.put(&format!("d/{name}"), b"before").await;
    }
    mount_always(&site);
    // In `/s3` it is the listing that is made once, in `/always` one of many.
    for policy in ["s3", "always"] {
        let dir = site.mnt.join(policy).join("d");
        let made_before = dir.join(format!("{policy}-late"));
        let mut late = off(move || File::create(made_before).expect("made")).await;
        let (held, listing) = begin_listing(&site, &format!("/{policy}/d")).await;
        let at = dir.clone();
        let files = off(move || {
            late.write_all(b"stored during it").and_then(|()| late.sync_all()).expect("stored");
            let new = content(9 << 20, 5);
            std::fs::write(at.join(format!("{policy}-made")), &new).expect("written");
            std::fs::write(at.join("changed"), format!("by {policy}")).expect("written");
            std::fs::rename(at.join("moved"), at.join(format!("{policy}-moved"))).expect("moved");
            std::fs::remove_file(at.join("removed")).expect("removed");
            std::fs::create_dir(at.join(format!("{policy}-dir"))).expect("made");
            vec![
                (format!("{policy}-made"), new),
                (format!("{policy}-late"), b"stored during it".to_vec()),
                ("changed".to_owned(), format!("by {policy}").into_bytes()),
                (format!("{policy}-moved"), b"before".to_vec()),
            ]
        })
        .await;
        drop(held);
        let mut expected: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
        expected.push(format!("{policy}-dir"));
        expected.sort();
        assert_eq!(listing.await.expect("no panic"), expected, "the slow listing itself, {policy}");
        assert_eq!(site.names(&format!("{policy}/d")).await, expected, "{policy}");
        for (name, bytes) in files {
            let path = format!("{policy}/d/{name}");
            assert!(site.read(&path).await.expect("read") == bytes, "{path} through the mount");
            assert!(site.ctl_ok(&["fs", "cat", &format!("/{path}")]) == bytes, "{path} for another client");
            assert!(
                stored(&site, &format!("s3/d/{name}")).await.is_some_and(|found| found == bytes),
                "{path} is stored"
            );
        }
        // For the other policy.
        off(move || std::fs::remove_dir_all(dir)).await.expect("removed");
        for name in ["changed", "moved", "removed"] {
            site.put(&format!("d/{name}"), b"before").await;
        }
    }
    site.cluster.assert_no_panic();
}

/// Names that were removed through the first mount, and what those who look must not see again.
#[derive(Default)]
struct Removed {
    names: Mutex<Vec<(String, Instant)>>,
    stop: AtomicBool,
    looks: AtomicU64,
}

impl Removed {
    fn names(&self) -> Vec<(String, Instant)> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads the directory and looks names up, until told to stop. The mount that removes (`own`) must show no name after its
/// removal has returned; another one none that it has shown to be absent, nor any after the time to live.
fn watch(dir: PathBuf, own: bool, removed: &Arc<Removed>) -> JoinHandle<()> {
    let removed = removed.clone();
    let look = move || {
        let (mut unlisted, mut unfound) = (BTreeSet::new(), BTreeSet::new());
        while !removed.stop.load(Ordering::SeqCst) {
            let gone = removed.names();
            let must_be_gone = |at: Instant| own || at.elapsed() > 2 * TTL;
            let old: Vec<String> =
                gone.iter().filter(|(_, at)| must_be_gone(*at)).map(|(name, _)| name.clone()).collect();
            let shown: BTreeSet<String> = names(&dir).into_iter().collect();
            let back: Vec<_> = old.iter().chain(&unlisted).filter(|name| shown.contains(*name)).collect();
            assert!(back.is_empty(), "{}: listed again: {back:?}", dir.display());
            unlisted.extend(gone.iter().map(|(name, _)| name.clone()).filter(|name| !shown.contains(name)));
            for (name, _) in gone.iter().rev().take(8) {
                let found = std::fs::symlink_metadata(dir.join(name)).is_ok();
                assert!(
                    !(found && (unfound.contains(name) || old.contains(name))),
                    "{}: {name} is back",
                    dir.display()
                );
                if !found {
                    unfound.insert(name.clone());
                }
            }
            removed.looks.fetch_add(1, Ordering::SeqCst);
        }
    };
    std::thread::spawn(look)
}

/// Removes names while listings that still see them are under way.
async fn remove_under_listings(site: &Site, dir: &Path, batch: Vec<String>, removed: &Removed) {
    let began = site.s3.control.lists();
    let listing = list(site, "/always/d");
    wait_until("a listing is under way", PATIENCE, || site.s3.control.lists() > began).await;
    for name in batch {
        let at = dir.join(&name);
        off(move || std::fs::remove_file(at)).await.expect("removed");
        removed.names.lock().unwrap_or_else(PoisonError::into_inner).push((name, Instant::now()));
    }
    listing.await.expect("no panic");
    let shown = list(site, "/always/d").await.expect("no panic");
    let back: Vec<_> = removed.names().into_iter().filter(|(name, _)| shown.contains(name)).collect();
    assert!(back.is_empty(), "a slow listing has brought back {back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_always_a_name_that_was_unlinked_never_returns_however_late_a_listing_comes() {
    let test = "under_always_a_name_that_was_unlinked_never_returns_however_late_a_listing_comes";
    if !fuse_works(test) {
        return;
    }
    let mut random = StdRng::seed_from_u64(seed(test));
    let (site, second) = writable_twice(1, |_| {}).await;
    let mut left: Vec<String> = (0..60).map(|number| format!("f{number:02}")).collect();
    for name in &left {
        site.put(&format!("d/{name}"), name.as_bytes()).await;
    }
    mount_always(&site);
    // What they tell is as old when they are answered. Nothing is held: within a mount nothing is removed during a listing.
    site.s3.control.troubles.delay(Kind::List, LATE);
    let (dir, far) = (site.mnt.join("always/d"), second.join("always/d"));
    let at = far.clone();
    assert_eq!(off(move || names(&at).len()).await, left.len());
    let removed = Arc::new(Removed::default());
    let watchers: Vec<_> = [(&dir, true), (&dir, true), (&far, false), (&far, false)]
        .map(|(dir, own)| watch(dir.clone(), own, &removed))
        .into_iter()
        .collect();
    left.shuffle(&mut random);
    for _ in 0..rounds(8) {
        let batch = left.split_off(left.len().saturating_sub(random.random_range(1..=5)));
        remove_under_listings(&site, &dir, batch, &removed).await;
        let goal = removed.looks.load(Ordering::SeqCst) + 8;
        let looked = || removed.looks.load(Ordering::SeqCst) >= goal || watchers.iter().all(JoinHandle::is_finished);
        wait_until("all have looked", PATIENCE, looked).await;
    }
    let last = Instant::now();
    wait_until("what is cached has ended", PATIENCE, || last.elapsed() > 2 * TTL + Duration::from_millis(500)).await;
    removed.stop.store(true, Ordering::SeqCst);
    for watcher in watchers {
        off(move || watcher.join()).await.expect("no name came back");
    }
    println!("{} looks, {} names removed", removed.looks.load(Ordering::SeqCst), removed.names().len());
    left.sort();
    assert_eq!(site.names("always/d").await, left, "the others are there");
    assert_eq!(off(move || names(&far)).await, left);
    for name in &left {
        assert_eq!(site.read(&format!("always/d/{name}")).await.expect("read"), name.as_bytes());
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_comes_later_than_a_removal_and_a_listing_does_not_bring_the_name_back() {
    let site = start(1, |dev| dev.mounts.clear()).await;
    for name in ["d/a", "d/f"] {
        site.put(name, b"content").await;
    }
    mount_always(&site);
    assert_eq!(list(&site, "/always/d").await.expect("no panic"), ["a", "f"]);
    let troubles = &site.s3.control.troubles;
    let (removing, looking) = (site.cluster.client(), site.cluster.client());
    // It has looked at the file itself, and is about to remove it.
    let delete = troubles.hold(Kind::Delete, "d/f");
    let removed = tokio::spawn(async move { removing.unlink(at_path("/always/d/f")).await });
    wait_until("the store is asked to remove it", PATIENCE, || delete.count() > 0).await;
    let head = troubles.hold(Kind::Head, "d/f");
    let looked = tokio::spawn(async move { looking.lookup(at_path("/always/d/f")).await });
    wait_until("the store has been asked for it", PATIENCE, || head.count() > 0).await;
    drop(delete);
    removed.await.expect("no panic").expect("removed");
    assert_eq!(list(&site, "/always/d").await.expect("no panic"), ["a"]);
    drop(head);
    assert!(looked.await.expect("no panic").is_err(), "it is not there any more");
    // What follows the first page is not asked for anew.
    let rest = site.cluster.client().list_page(at_path("/always/d"), "a".into(), 0).await.expect("listed");
    assert!(rest.entries.is_empty(), "it is back: {:?}", rest.entries);
}
