//! What a mount serves while no master answers, and for how long.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::writes::{errno, off, writable_twice};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for, wait_until};

const STALENESS: Duration = Duration::from_secs(15);

/// What `look` finds at both mounts, which are asked at the same time: an answer may take as long as masters are waited for.
async fn both<T: Send + 'static>(mounts: &[PathBuf; 2], look: fn(&Path) -> T) -> [T; 2] {
    let [one, two] = mounts.clone();
    let (one, two) = tokio::join!(off(move || look(&one)), off(move || look(&two)));
    [one, two]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_serves_without_masters_until_it_is_too_old_and_then_fails_until_they_are_back() {
    if !fuse_works("what_was_seen_serves_without_masters_until_it_is_too_old_and_then_fails_until_they_are_back") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| {
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        dev.settings.push(set("fuse.attr-ttl", "0s"));
        dev.settings.push(set("fuse.offline-max-staleness", &format!("{}s", STALENESS.as_secs())));
        dev.settings.push(set("fs.jindocache.rpc.timeout", "3s"));
    })
    .await;
    // One mount that can be written, which asks a master for each open, and one that cannot.
    site.cluster.dev.term("fuse-1").expect("ended");
    site.cluster.dev.set("fuse-1", "fuse.writable", "false").expect("set");
    site.cluster.dev.restart("fuse-1").expect("mounted");
    let mounts = [site.mnt.clone(), second];
    for name in ["seen", "unseen"] {
        std::fs::write(site.local.join(name), b"content").expect("written");
    }
    let read = |mnt: &Path| std::fs::read(mnt.join("local/seen")).expect("read");
    // Nothing that serves later is older than this.
    let seen = Instant::now();
    assert_eq!(both(&mounts, read).await, [b"content"; 2]);
    let master = site.cluster.names()[0].clone();
    site.cluster.dev.kill(&master).expect("killed");
    assert_eq!(both(&mounts, read).await, [b"content"; 2], "still read");
    assert!(seen.elapsed() < STALENESS, "this machine is too slow to tell");
    let never_seen = |mnt: &Path| errno(std::fs::read(mnt.join("local/unseen")));
    assert_eq!(both(&mounts, never_seen).await, [libc::EIO; 2], "nobody knows it");

    wait_until("what was seen is too old", PATIENCE, || seen.elapsed() > STALENESS + PATIENCE / 10).await;
    let too_old = |mnt: &Path| {
        let (path, asked) = (mnt.join("local/seen"), Instant::now());
        let told = [errno(std::fs::metadata(&path)), errno(std::fs::read(&path))];
        (told, asked.elapsed())
    };
    for (told, waited) in both(&mounts, too_old).await {
        assert_eq!(told, [libc::EIO; 2]);
        assert!(waited < PATIENCE, "each waits for the masters once, and not for {waited:?}");
    }
    site.cluster.dev.launch(&master).expect("launched");
    let again = |mnt: &Path| {
        ["local/seen", "local/unseen"]
            .map(|name| wait_for("it is read again", PATIENCE, || std::fs::read(mnt.join(name)).ok()))
    };
    assert_eq!(both(&mounts, again).await, [[b"content"; 2]; 2]);
    site.cluster.assert_no_panic();
}
