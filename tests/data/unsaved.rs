//! A client that is told to end: what is not stored is named and makes it fail, and what was closed is recorded.

use serde_json::json;

use super::writes::{off, writable};
use crate::support::agent::{Agent, encode};
use crate::support::fuse_works;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_with_unsaved_files_names_them_and_fails() {
    if !fuse_works("a_client_that_ends_with_unsaved_files_names_them_and_fails") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let mnt = site.mnt.clone();
    let held = off(move || {
        std::fs::create_dir(mnt.join("local/d")).expect("made");
        std::fs::write(mnt.join("local/saved"), b"old").expect("written");
        std::fs::write(mnt.join("local/closed"), b"stored").expect("written");
        let mut agent = Agent::start();
        let files = [("d/new file", libc::O_CREAT, "never stored"), ("saved", libc::O_APPEND, " and more")];
        for (name, flags, said) in files.into_iter().chain([("synced", libc::O_CREAT, "stored")]) {
            let path = mnt.join("local").join(name);
            agent.call(&json!(["open", name, path, libc::O_WRONLY | flags, 0o644])).expect("open");
            agent.call(&json!(["write", name, 0, encode(said.as_bytes())])).expect("staged");
        }
        agent.call(&json!(["fsync", "synced"])).expect("stored");
        agent
    })
    .await;
    let ended = site.cluster.dev.term("fuse-0").expect("ended");
    let log = site.cluster.log_of("fuse-0");
    assert_eq!(ended.code(), Some(1), "{log}");
    for name in ["/local/d/new file", "/local/saved"] {
        assert!(log.contains(&format!("{name:?}")), "{name} is named: {log}");
    }
    for name in ["/local/closed", "/local/synced"] {
        assert!(!log.contains(&format!("{name:?}")), "{name} is stored: {log}");
    }
    drop(held);
    assert_eq!(std::fs::read(site.local.join("saved")).expect("read"), b"old");
    site.cluster.dev.restart("fuse-0").expect("mounted again");
    assert!(site.cluster.dev.term("fuse-0").expect("ended").success(), "nothing is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_were_closed_before_their_client_ends_are_known_to_the_masters_when_it_has_ended() {
    if !fuse_works("files_that_were_closed_before_their_client_ends_are_known_to_the_masters_when_it_has_ended") {
        return;
    }
    let site = writable(1, |_| {}).await;
    for round in 0..3 {
        let mnt = site.mnt.clone();
        off(move || {
            for number in 0..200 {
                std::fs::write(mnt.join(format!("local/{round}-{number}")), b"content").expect("written");
            }
        })
        .await;
        assert!(site.cluster.dev.term("fuse-0").expect("ended").success());
        for number in [0, 150, 190, 198, 199] {
            let path = format!("/local/{round}-{number}");
            assert_eq!(site.ctl_ok(&["fs", "cat", &path]), b"content", "{path}");
        }
        site.cluster.dev.restart("fuse-0").expect("mounted again");
    }
}
