//! Bytes of a master's data change on its disk. They reach no other master, and the disk is repaired from a sound one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use jindofs::client::namespace::at_path;
use jindofs::error::ErrorKind;

use super::grown::{self, INSTALL_POINTS, assert_whole};
use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::wait_for;
use crate::support::writers::{create_request, make_dir};

const REPAIRED: &str = "this disk's data is sound again";

const SCRUBBED: &[(&str, &str)] =
    &[("namespace.backend.scrub-interval", "200ms"), ("namespace.backend.scrub-bytes-per-second", "1GiB")];

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for item in fs::read_dir(dir).expect("list").map(|item| item.expect("item").path()) {
        if item.is_dir() {
            found.extend(files(&item, suffix));
        } else if item.to_string_lossy().ends_with(suffix) {
            found.push(item);
        }
    }
    found
}

/// Flips one bit in the middle of the biggest file with this suffix.
fn flip(dir: &Path, suffix: &str) -> PathBuf {
    let size = |path: &PathBuf| fs::metadata(path).expect("metadata").len();
    let path = files(dir, suffix).into_iter().max_by_key(size).expect("a file");
    let mut data = fs::read(&path).expect("read");
    let middle = data.len() / 2;
    data[middle] ^= 0x10;
    // In place: the file keeps its inode, as rot does.
    let mut file = fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.write_all(&data).expect("written");
    path
}

/// Flips a bit of a table of a running master's state, and waits until the master has seen it. Compaction may delete the file
/// just then, with the damage or without: then another one is damaged.
fn rot(cluster: &Cluster, name: &str) {
    let state = cluster.meta_dir(name).join("state");
    let seen = || cluster.log_of(name).contains("holds damaged data");
    loop {
        let path = flip(&state, ".sst");
        let is_seen = || if seen() { Some(true) } else { (!path.exists()).then_some(false) };
        if wait_for(&format!("the damage of {} is seen", path.display()), PATIENCE, is_seen) {
            return;
        }
    }
}

fn wait_repaired(cluster: &Cluster, name: &str) {
    let repaired = || cluster.log_of(name).contains(REPAIRED).then_some(());
    wait_for(&format!("{name} is repaired"), PATIENCE, repaired);
}

fn replace(cluster: &Cluster, name: &str) {
    cluster.dev.kill(name).expect("killed");
    cluster.dev.wipe_meta(name).expect("wiped");
    cluster.dev.restart(name).expect("restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn rot_in_a_leaders_table_reaches_no_new_follower_and_the_leader_is_repaired() {
    let cluster = grown::start(3, &[]).await;
    let (leader, _) = cluster.wait_leader();
    let followers = cluster.followers();
    flip(&cluster.meta_dir(&leader).join("snapshots"), ".sst");
    // The leader has to send its snapshot: that is when it finds the damage, unless the state shares the table.
    replace(&cluster, &followers[0]);
    wait_repaired(&cluster, &leader);
    assert_whole(&cluster).await;
    replace(&cluster, &followers[1]);
    assert_whole(&cluster).await;
    replace(&cluster, &leader);
    assert_whole(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scrub_finds_rot_in_data_that_is_not_read_and_another_member_leads() {
    let cluster = grown::start(3, SCRUBBED).await;
    let (leader, term) = cluster.wait_leader();
    rot(&cluster, &leader);
    wait_repaired(&cluster, &leader);
    let (_, now) = cluster.wait_leader();
    assert!(now > term, "leadership was not handed over");
    assert_eq!(cluster.metric(&leader, "jindofs_master_repairs"), 1);
    assert_eq!(cluster.metric(&leader, "jindofs_master_damaged"), 0);
    assert_whole(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_beside_a_sound_state_is_sealed_anew() {
    let cluster = grown::start(3, SCRUBBED).await;
    for (number, part) in ["SNAPSHOT", "CURRENT"].into_iter().enumerate() {
        let name = cluster.followers()[number % 2].clone();
        let before = cluster.log_of(&name).matches(REPAIRED).count();
        flip(&cluster.meta_dir(&name).join("snapshots"), part);
        let repaired = || (cluster.log_of(&name).matches(REPAIRED).count() > before).then_some(());
        wait_for(&format!("{part} of {name} is sealed anew"), PATIENCE, repaired);
        assert_eq!(cluster.metric(&name, "jindofs_master_repairs"), 0, "the state was sound");
    }
    assert_whole(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_read_any_more_is_sealed_anew() {
    let cluster = grown::start(3, SCRUBBED).await;
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", Some("snapshot.verify=error")).expect("set");
    cluster.dev.restart(&name).expect("restarted");
    cluster.wait_whole();
    flip(&cluster.meta_dir(&name).join("snapshots"), "CURRENT");
    let repaired = || cluster.log_of(&name).contains(REPAIRED).then_some(());
    wait_for("another snapshot is sealed", PATIENCE, repaired);
    assert_whole(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_is_set_aside_at_the_next_start_and_the_state_serves() {
    let cluster = grown::start(3, &[]).await;
    let name = cluster.followers().remove(0);
    let id = cluster.member_id(&name);
    cluster.dev.kill(&name).expect("killed");
    let snapshots = cluster.meta_dir(&name).join("snapshots");
    flip(&snapshots, "SNAPSHOT");
    cluster.dev.restart(&name).expect("restarted");
    assert_whole(&cluster).await;
    assert_eq!(cluster.member_id(&name), id);
    assert_eq!(files(&snapshots, "SNAPSHOT").len(), 2, "the damaged one is kept, and another one is sealed");
    assert!(cluster.log_of(&name).contains("set aside"), "{}", tail(&cluster.log_of(&name)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_changes_on_the_wire_is_sent_again_and_condemns_no_disk() {
    let cluster = grown::start(3, &[]).await;
    let leader = grown::lead_with_failpoints(&cluster, "snapshot.wire=2*error");
    let name = cluster.followers().remove(0);
    replace(&cluster, &name);
    assert_whole(&cluster).await;
    assert!(cluster.log_of(&name).contains("arrived damaged"), "{}", tail(&cluster.log_of(&name)));
    assert!(!cluster.log_of(&leader).contains("holds damaged data"), "{}", tail(&cluster.log_of(&leader)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_master_seals_no_rot_refuses_changes_says_so_and_answers_reads_of_intact_ranges() {
    let cluster = grown::start(1, SCRUBBED).await;
    let name = cluster.names().remove(0);
    let client = cluster.client();
    make_dir(&client, "/intact").await;
    rot(&cluster, &name);
    wait_for("the status says so", PATIENCE, || {
        let state = cluster.dev.status(&name).ok()?.self_?.state;
        state.starts_with("damaged: ").then_some(())
    });
    assert_eq!(cluster.metric(&name, "jindofs_master_damaged"), 1);
    let channel = client.channel().clone();
    let address = cluster.dev.masters().remove(0);
    let sealed = jindofs::client::admin::snapshot(&channel, &address, true, PATIENCE).await;
    let error = sealed.expect_err("damaged data must not be sealed").to_string();
    assert!(error.contains("damaged"), "{error}");
    let error = client.create(create_request("/intact/later")).await.expect_err("it could not be stored for sure");
    assert!(error.kind == ErrorKind::Corrupted && error.message.contains("Way out"), "{error}");
    client.lookup(at_path("/intact")).await.expect("what is intact can be read");
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_is_rebuilt_from_the_own_snapshot_killed_at_any_point() {
    let cluster = grown::start(3, &[]).await;
    let name = cluster.followers().remove(0);
    let id = cluster.member_id(&name);
    for point in INSTALL_POINTS {
        cluster.dev.kill(&name).expect("killed");
        fs::remove_dir_all(cluster.meta_dir(&name).join("state")).expect("removed");
        cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", Some(&format!("{point}=kill"))).expect("set");
        cluster.dev.launch(&name).expect("launched");
        cluster.dev.wait_end(&name, PATIENCE).unwrap_or_else(|error| panic!("{point} is not reached: {error}"));
        cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.restart(&name).expect("restarted");
        cluster.wait_whole();
        assert_eq!(cluster.member_id(&name), id, "{point}: the same member");
    }
    assert_whole(&cluster).await;
}
