//! What a client has staged and not stored when it leaves its mount to the next one.

use std::fs;

use serde_json::json;

use super::Node;
use crate::support::agent::{Agent, encode};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

/// An agent that has each file open as its name, made or cut off.
fn open_all(node: &Node, names: &[&str]) -> Agent {
    let mut agent = Agent::start();
    for name in names {
        let path = node.mnt.join("local").join(name);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        agent.call(&json!(["open", name, path, flags, 0o644])).expect("open");
    }
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_client_had_not_stored_is_never_mixed_with_what_is_written_after_it() {
    if !fuse_works("what_a_killed_client_had_not_stored_is_never_mixed_with_what_is_written_after_it") {
        return;
    }
    let node = Node::start_as(120, true).await;
    node.publish().await;
    let local = &node.site.local;
    for name in ["cut", "written", "stored"] {
        node.store(name, b"the old content");
    }
    let mut agent = open_all(&node, &["cut", "written", "stored"]);
    for name in ["written", "stored"] {
        agent.call(&json!(["write", name, 0, encode(b"one")])).expect("staged");
    }
    agent.call(&json!(["fsync", "stored"])).expect("stored");
    node.kill_client();
    node.start_client();
    for name in ["cut", "written"] {
        let refused = agent.call(&json!(["write", name, 3, encode(b" two")]));
        assert_eq!(refused.expect_err("what was before it is lost").errno, libc::ESTALE, "{name}");
        // Whoever opens it anew is not kept from it by the handle that is left.
        assert_eq!(fs::read(local.join(name)).expect("read"), b"the old content", "{name}");
        let mut other = open_all(&node, &[name]);
        other.call(&json!(["write", name, 0, encode(b"another")])).expect("staged");
        other.call(&json!(["close", name])).expect("stored");
        assert_eq!(fs::read(local.join(name)).expect("read"), b"another", "{name}");
    }
    agent.call(&json!(["write", "stored", 3, encode(b" two")])).expect("it goes on from what was stored");
    agent.call(&json!(["close", "stored"])).expect("stored");
    assert_eq!(fs::read(local.join("stored")).expect("read"), b"one two");
    drop(agent);
    node.unpublish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_its_mount_stores_files_that_were_never_written_and_names_those_that_were() {
    if !fuse_works("a_client_that_leaves_its_mount_stores_files_that_were_never_written_and_names_those_that_were") {
        return;
    }
    let node = Node::start_as(120, true).await;
    node.publish().await;
    let local = &node.site.local;
    for name in ["cut", "written"] {
        node.store(name, b"old");
    }
    let mut agent = open_all(&node, &["cut", "made", "written"]);
    agent.call(&json!(["write", "written", 0, encode(b"new")])).expect("staged");
    let ended = node.site.cluster.dev.term("fuse-0").expect("ended");
    let log = node.site.cluster.log_of("fuse-0");
    assert_eq!(ended.code(), Some(1), "{log}");
    let is_named =
        |name: &str| log.lines().any(|line| line.contains("are lost") && line.contains(&format!("/local/{name}")));
    assert!(is_named("written") && !is_named("cut") && !is_named("made"), "{log}");
    for name in ["cut", "made"] {
        assert_eq!(fs::read(local.join(name)).expect("stored"), b"", "{name}");
    }
    assert_eq!(fs::read(local.join("written")).expect("read"), b"old");
    node.start_client();
    agent.call(&json!(["write", "made", 0, encode(b"later")])).expect("it goes on");
    agent.call(&json!(["close", "made"])).expect("stored");
    wait_for("it is stored", PATIENCE, || (fs::read(local.join("made")).ok()? == b"later").then_some(()));
    drop(agent);
    node.unpublish().await;
}
