//! Writers that meet on two mounts: whose content is stored, who is told, and what each of them sees afterwards.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::writes::{errno, off, stored, writable_twice};
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_the_first_to_close_wins_and_the_other_is_told() {
    if !fuse_works("of_two_writers_the_first_to_close_wins_and_the_other_is_told") {
        return;
    }
    let (site, second) = writable_twice(1, |_| {}).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let (one, two) = (site.mnt.join(&path), second.join(&path));
        off(move || {
            std::fs::write(&one, b"before").expect("written");
            let open = |path: &PathBuf| OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(path);
            let first = open(&one).expect("open");
            let late = wait_for("the other mount sees it", PATIENCE, || open(&two).ok());
            first.write_all_at(b"first!", 0).expect("written");
            // Refused already if a process that was started meanwhile has closed the first, and with that stored it.
            let staged = late.write_all_at(b"second", 0);
            first.sync_all().expect("the first is stored");
            assert_eq!(errno(staged.and_then(|()| late.sync_all())), libc::ESTALE);
        })
        .await;
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"first!"[..]));
    }
}

/// A writer that has `two` open as `w` and has not closed it, while another content was stored through `one`.
fn overtaken(one: &Path, two: &Path) -> Agent {
    std::fs::write(one, b"before").expect("written");
    let mut late = Agent::start();
    late.call(&json!(["open", "w", two, libc::O_RDWR, 0])).expect("open");
    late.call(&json!(["write", "w", 0, encode(b"second")])).expect("written");
    std::fs::write(one, b"first!").expect("stored");
    late
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_mode_does_not_make_a_writer_that_comes_second_the_first() {
    if !fuse_works("a_change_of_mode_does_not_make_a_writer_that_comes_second_the_first") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let (one, two) = (site.mnt.join(&path), second.join(&path));
        off(move || {
            let mut late = overtaken(&one, &two);
            std::fs::set_permissions(&two, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            let refused = late.call(&json!(["close", "w"])).expect_err("it comes second");
            assert_eq!(refused.errno, libc::ESTALE);
        })
        .await;
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"first!"[..]), "of the same length");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_writer_that_came_second_has_given_up_is_seen_by_nobody_of_its_mount() {
    if !fuse_works("what_a_writer_that_came_second_has_given_up_is_seen_by_nobody_of_its_mount") {
        return;
    }
    let (site, second) = writable_twice(1, |dev| dev.settings.push(("fuse.attr-ttl".into(), "0s".into()))).await;
    for storage in ["local", "s3"] {
        let path = format!("{storage}/f");
        let (one, two) = (site.mnt.join(&path), second.join(&path));
        off(move || {
            let mut late = overtaken(&one, &two);
            // Opened for what is there by now, and shown what waits to be stored.
            late.call(&json!(["open", "r", two, libc::O_RDONLY, 0])).expect("open");
            late.call(&json!(["read", "r"])).expect("read");
            late.call(&json!(["write", "w", 0, encode(b"SECOND")])).expect("written");
            assert_eq!(late.call(&json!(["close", "w"])).expect_err("it comes second").errno, libc::ESTALE);
            late.call(&json!(["close", "r"])).expect("it has only read");
            wait_for("what is there is seen", PATIENCE, || (std::fs::read(&two).ok()? == b"first!").then_some(()));
        })
        .await;
        assert_eq!(stored(&site, &path).await.as_deref(), Some(&b"first!"[..]));
    }
    site.cluster.assert_no_panic();
}
