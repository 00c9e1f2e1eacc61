//! Read-only mounts that a master tells of changes: what others change is seen long before it would expire by its age.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jindofs::dev::DevOptions;

use super::Site;
use super::writes::{names, off, writable_twice};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

/// Age at which names and attributes expire: longer than any wait of these tests.
const TTL: &str = "60s";
/// Longest wait for a change to be seen.
const SOON: Duration = Duration::from_secs(10);
const SUBSCRIBERS: &str = "jindofs_master_invalidation_subscribers";

/// A site with a mount that cannot be written, at `site.mnt`, and one that can, whose place is returned.
async fn pair(masters: usize, change: impl FnOnce(&mut DevOptions) + Send) -> (Site, PathBuf) {
    let (site, writer) = writable_twice(masters, |dev| {
        dev.settings.push(("fuse.attr-ttl".into(), TTL.into()));
        change(dev);
    })
    .await;
    let dev = &site.cluster.dev;
    dev.term("fuse-0").expect("ended");
    dev.set("fuse-0", "fuse.writable", "false").expect("set");
    dev.restart("fuse-0").expect("mounted");
    let refused = File::create(site.mnt.join("local/refused")).expect_err("it cannot be written");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    tokio::task::block_in_place(|| wait_subscribed(&site, &site.cluster.names()));
    (site, writer)
}

/// Waits until the mount subscribes to one of `masters`; which one that is.
fn wait_subscribed(site: &Site, masters: &[String]) -> String {
    wait_for("the mount subscribes", PATIENCE, || {
        masters.iter().find(|name| site.cluster.metric(name, SUBSCRIBERS) == 1).cloned()
    })
}

/// Waits until `look` finds something in much less time than what is cached may live.
async fn see<T: Send + 'static>(what: &str, look: impl FnMut() -> Option<T> + Send + 'static) -> T {
    let what = what.to_owned();
    off(move || wait_for(&what, SOON, look)).await
}

/// Waits until a file has this content and this length.
async fn see_content(path: &Path, content: &[u8]) {
    let (path, content) = (path.to_owned(), content.to_owned());
    let what = format!("{} has its new content", path.display());
    see(&what, move || {
        let length = std::fs::metadata(&path).ok()?.len();
        (length == content.len() as u64 && std::fs::read(&path).ok()? == content).then_some(())
    })
    .await;
}

fn is_absent(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

async fn see_absent(path: PathBuf) {
    see(&format!("{} is gone", path.display()), move || is_absent(&path).then_some(())).await;
}

/// Stores a file through the mount that can be written.
async fn store(path: PathBuf, content: &'static [u8]) {
    off(move || {
        let mut file = File::create(path).expect("made");
        file.write_all(content).expect("written");
        file.sync_all().expect("stored");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_others_replace_append_to_or_change_is_seen_so_at_once() {
    if !fuse_works("a_file_that_others_replace_append_to_or_change_is_seen_so_at_once") {
        return;
    }
    let (site, writer) = pair(1, |_| {}).await;
    for mount in ["local", "s3"] {
        let (ours, theirs) = (site.mnt.join(mount).join("f"), writer.join(mount).join("f"));
        store(theirs.clone(), b"as it was").await;
        see_content(&ours, b"as it was").await;
        store(theirs.clone(), b"something longer").await;
        see_content(&ours, b"something longer").await;

        let reader = ours.clone();
        let mut reader = off(move || File::open(reader).expect("opened")).await;
        let at = theirs.clone();
        off(move || {
            let mut file = OpenOptions::new().append(true).open(at).expect("opened");
            file.write_all(b", and more").expect("written");
            file.sync_all().expect("stored");
        })
        .await;
        see_content(&ours, b"something longer, and more").await;
        let mut read = Vec::new();
        see("an open file goes on with what was appended", move || {
            reader.read_to_end(&mut read).expect("read");
            (read == b"something longer, and more").then_some(())
        })
        .await;

        // A reader keeps the version that it has opened, so the name leads to another node of the kernel.
        let kept = ours.clone();
        let kept = off(move || File::open(kept).expect("opened")).await;
        let file = site.dir.path().join("file");
        std::fs::write(&file, b"by the command line").expect("written");
        site.ctl_ok(&["fs", "put", &file.display().to_string(), &format!("/{mount}/f")]);
        see_content(&ours, b"by the command line").await;
        drop(kept);
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_others_make_move_replace_or_remove_are_seen_so_at_once() {
    if !fuse_works("names_that_others_make_move_replace_or_remove_are_seen_so_at_once") {
        return;
    }
    let (site, writer) = pair(1, |_| {}).await;
    let (ours, theirs) = (site.mnt.join("local/d"), writer.join("local/d"));
    let made = theirs.clone();
    off(move || std::fs::create_dir(made).expect("made")).await;
    store(theirs.join("old"), b"old").await;
    see_content(&ours.join("old"), b"old").await;
    // Listed and looked up before: absent as far as anything cached can say.
    let dir = ours.clone();
    let absent = move || {
        assert_eq!(names(&dir), ["old"]);
        (0..10).all(|_| is_absent(&dir.join("new")))
    };
    assert!(off(absent).await);

    store(theirs.join("new"), b"new").await;
    see_content(&ours.join("new"), b"new").await;
    let dir = ours.clone();
    see("both are listed", move || (names(&dir) == ["new", "old"]).then_some(())).await;

    let (from, to) = (theirs.join("old"), theirs.join("moved"));
    off(move || std::fs::rename(from, to).expect("moved")).await;
    // The look at the new name makes the mount forget the old one, which the kernel still knows.
    see_content(&ours.join("moved"), b"old").await;
    see_absent(ours.join("old")).await;
    site.ctl_ok(&["fs", "mv", "/local/d/new", "/local/d/moved"]);
    see_content(&ours.join("moved"), b"new").await;
    see_absent(ours.join("new")).await;

    site.ctl_ok(&["fs", "rm", "/local/d/moved"]);
    see_absent(ours.join("moved")).await;
    let dir = ours.clone();
    see("nothing is listed", move || names(&dir).is_empty().then_some(())).await;
    let gone = theirs.clone();
    off(move || std::fs::remove_dir(gone).expect("removed")).await;
    see_absent(ours).await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_in_the_under_storage_is_seen_once_a_refresh_has_found_it() {
    if !fuse_works("what_others_change_in_the_under_storage_is_seen_once_a_refresh_has_found_it") {
        return;
    }
    let (site, _) = pair(1, |_| {}).await;
    site.put("d/f", b"as it was").await;
    let ours = site.mnt.join("s3/d");
    see_content(&ours.join("f"), b"as it was").await;
    assert_eq!(site.names("s3/d").await, ["f"]);
    site.put("d/f", b"something longer").await;
    site.put("d/new", b"new").await;
    site.ctl_ok(&["fs", "refresh", "/s3/d"]);
    see_content(&ours.join("f"), b"something longer").await;
    see_content(&ours.join("new"), b"new").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_others_lead_elsewhere_is_seen_so_once_a_refresh_has_found_it() {
    if !fuse_works("a_link_that_others_lead_elsewhere_is_seen_so_once_a_refresh_has_found_it") {
        return;
    }
    let (site, _) = pair(1, |_| {}).await;
    let (link, ours) = (site.local.join("link"), site.mnt.join("local/link"));
    for target in ["one", "two", "one"] {
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).expect("linked");
        site.ctl_ok(&["fs", "refresh", "/local"]);
        let ours = ours.clone();
        see(&format!("the link leads to {target}"), move || {
            (std::fs::read_link(&ours).ok()?.as_os_str() == target).then_some(())
        })
        .await;
    }
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_master_is_killed_is_told_by_another_one_and_has_missed_nothing() {
    if !fuse_works("a_mount_whose_master_is_killed_is_told_by_another_one_and_has_missed_nothing") {
        return;
    }
    let (site, writer) = pair(3, |_| {}).await;
    let mut masters = site.cluster.names();
    let first = tokio::task::block_in_place(|| wait_subscribed(&site, &masters));
    for name in ["changed", "changed-meanwhile"] {
        store(writer.join("local").join(name), b"as it was").await;
        see_content(&site.mnt.join("local").join(name), b"as it was").await;
    }
    site.cluster.dev.kill(&first).expect("killed");
    masters.retain(|name| *name != first);
    // Whether it comes before or after the mount has another master, it is seen.
    store(writer.join("local/changed-meanwhile"), b"something longer").await;
    see_content(&site.mnt.join("local/changed-meanwhile"), b"something longer").await;
    tokio::task::block_in_place(|| wait_subscribed(&site, &masters));
    store(writer.join("local/changed"), b"something longer").await;
    see_content(&site.mnt.join("local/changed"), b"something longer").await;
    site.cluster.dev.restart(&first).expect("started");
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_whose_master_stands_still_asks_another_one() {
    if !fuse_works("a_mount_whose_master_stands_still_asks_another_one") {
        return;
    }
    let (site, writer) = pair(3, |_| {}).await;
    let mut masters = site.cluster.names();
    let first = tokio::task::block_in_place(|| wait_subscribed(&site, &masters));
    store(writer.join("local/f"), b"as it was").await;
    see_content(&site.mnt.join("local/f"), b"as it was").await;
    site.cluster.dev.pause(&first).expect("stopped");
    masters.retain(|name| *name != first);
    // No stream tells of this change: the mount has one master that stands still, and asks no other one yet.
    store(writer.join("local/f"), b"something longer").await;
    tokio::task::block_in_place(|| wait_subscribed(&site, &masters));
    see_content(&site.mnt.join("local/f"), b"something longer").await;
    store(writer.join("local/f"), b"something longer than that").await;
    see_content(&site.mnt.join("local/f"), b"something longer than that").await;
    site.cluster.dev.resume(&first).expect("goes on");
    site.cluster.assert_no_panic();
}

/// Threads that use every cached name and attribute all the time, until they are dropped: also when a test fails.
struct Readers {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Readers {
    fn start(count: usize, paths: &[PathBuf]) -> Readers {
        let stop = Arc::new(AtomicBool::new(false));
        let read = |_| {
            let (stop, paths) = (stop.clone(), paths.to_vec());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for path in &paths {
                        let _ = std::fs::symlink_metadata(path);
                    }
                    let _ = std::fs::read_dir(paths[0].parent().expect("a directory")).map(Iterator::count);
                }
            })
        };
        let threads = (0..count).map(read).collect();
        Readers { stop, threads }
    }

    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        std::mem::take(&mut self.threads).into_iter().for_each(|thread| thread.join().expect("no panic"));
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_is_read_while_others_change_it_never_keeps_what_was_overtaken() {
    if !fuse_works("a_mount_that_is_read_while_others_change_it_never_keeps_what_was_overtaken") {
        return;
    }
    let (site, writer) = pair(3, |_| {}).await;
    let places = ["counted", "moving-0", "moving-1", "flickering"];
    let [counted, moving, moved, flickering] = places.map(|name| site.mnt.join("local").join(name));
    let theirs = writer.join("local");
    for name in ["counted", "moving-0"] {
        store(theirs.join(name), b"0").await;
        see_content(&site.mnt.join("local").join(name), b"0").await;
    }
    let readers = Readers::start(4, &[counted.clone(), moving.clone(), moved.clone(), flickering.clone()]);
    for round in 1..25_usize {
        // Each has another length: a length that was overtaken would be kept for a minute.
        let (at, content) = (theirs.join("counted"), vec![b'x'; round * 7]);
        off(move || std::fs::write(at, content).expect("stored")).await;
        let at = counted.clone();
        see("the newest length is shown", move || {
            (std::fs::metadata(&at).ok()?.len() == round as u64 * 7).then_some(())
        })
        .await;

        let [from, to] = [round - 1, round].map(|at| format!("moving-{}", at % 2));
        let (old, new) = (site.mnt.join("local").join(&from), site.mnt.join("local").join(&to));
        let (from, to) = (theirs.join(from), theirs.join(to));
        off(move || std::fs::rename(from, to).expect("moved")).await;
        see_content(&new, b"0").await;
        see_absent(old).await;

        store(theirs.join("flickering"), b"here").await;
        see_content(&flickering, b"here").await;
        let at = theirs.join("flickering");
        off(move || std::fs::remove_file(at).expect("removed")).await;
        see_absent(flickering.clone()).await;
    }
    readers.end();
    site.cluster.assert_no_panic();
}
