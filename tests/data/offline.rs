//! What a mount serves while no master answers, and for how long.

use std::time::{Duration, Instant};

use super::start;
use super::writes::{errno, off};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for, wait_until};

const STALENESS: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn what_was_seen_serves_without_masters_until_it_is_too_old_and_then_fails_until_they_are_back() {
    if !fuse_works("what_was_seen_serves_without_masters_until_it_is_too_old_and_then_fails_until_they_are_back") {
        return;
    }
    let site = start(1, |dev| {
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        dev.settings.push(set("fuse.attr-ttl", "0s"));
        dev.settings.push(set("fuse.offline-max-staleness", &format!("{}s", STALENESS.as_secs())));
        dev.settings.push(set("fs.jindocache.rpc.timeout", "3s"));
    })
    .await;
    for name in ["seen", "unseen"] {
        std::fs::write(site.local.join(name), b"content").expect("written");
    }
    assert_eq!(site.read("local/seen").await.expect("read"), b"content");
    let (seen, master) = (Instant::now(), site.cluster.names()[0].clone());
    site.cluster.dev.kill(&master).expect("killed");
    assert_eq!(site.read("local/seen").await.expect("still read"), b"content");
    assert!(seen.elapsed() < STALENESS, "this machine is too slow to tell");
    let never_seen = site.read("local/unseen").await.expect_err("nobody knows it");
    assert_eq!(never_seen.raw_os_error(), Some(libc::EIO));
    wait_until("what was seen is too old", PATIENCE, || seen.elapsed() > STALENESS).await;
    let path = site.mnt.join("local/seen");
    let (stat, asked) = off(move || {
        let asked = Instant::now();
        (errno(std::fs::metadata(path)), asked.elapsed())
    })
    .await;
    assert_eq!(stat, libc::EIO, "after {asked:?}");
    assert_eq!(site.read("local/seen").await.expect_err("too old").raw_os_error(), Some(libc::EIO));
    site.cluster.dev.launch(&master).expect("launched");
    for name in ["local/seen", "local/unseen"] {
        let path = site.mnt.join(name);
        let read = move || wait_for("it is read again", PATIENCE, || std::fs::read(&path).ok());
        assert_eq!(off(read).await, b"content");
    }
    site.cluster.assert_no_panic();
}
