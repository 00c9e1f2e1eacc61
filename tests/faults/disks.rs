//! Disks of masters vanish, come back old, break or are tampered with.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use super::grown::INSTALL_POINTS;
use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::disks::copy_dir;
use crate::support::writers::{Load, create_request, make_dir};
use crate::support::{rounds, seed, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn wiped_masters_come_back_as_new_members_by_snapshot_without_being_called() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "/load", 2).await;
    let mut ids: BTreeSet<u64> = cluster.wait_whole().into_iter().collect();
    let wipes = rounds(10);
    for round in 0..wipes {
        load.wait_acknowledged(20, PATIENCE).await;
        cluster.snapshot_and_purge().await;
        let (leader, _) = cluster.wait_leader();
        // Followers and leaders in turn.
        let name = if round % 2 == 0 { cluster.followers().remove(0) } else { leader };
        let began = Instant::now();
        cluster.dev.kill(&name).expect("killed");
        cluster.dev.wipe_meta(&name).expect("wiped");
        cluster.dev.restart(&name).expect("restarted");
        cluster.wait_whole();
        let id = cluster.member_id(&name);
        println!("round {round}: {name} is member {id} after {:?}", began.elapsed());
        assert!(ids.insert(id), "member id {id} was used before");
        let log = cluster.log_of(&name);
        assert!(!log.contains("panicked"), "{}", tail(&log));
    }
    assert_eq!(ids.len(), 3 + wipes as usize);
    let outcome = load.stop("/load").await;
    outcome.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_of_a_snapshot_install_the_next_start_completes_it() {
    let seed = seed("killed_at_any_point_of_a_snapshot_install");
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    for number in 0..200 {
        client.create(create_request(&format!("/d/{number}"))).await.expect("created");
    }
    cluster.snapshot_and_purge().await;
    let name = cluster.followers().remove(0);
    let fixed: Vec<&str> = ["snapshot.received"].into_iter().chain(INSTALL_POINTS).collect();
    let points = rounds(20);
    for round in 0..points {
        let drawn = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(round));
        let point = match fixed.get(round as usize) {
            Some(point) => format!("{point}=kill"),
            None => format!("snapshot.chunk={}*kill", 1 + drawn % 5),
        };
        cluster.dev.kill(&name).expect("killed");
        cluster.dev.wipe_meta(&name).expect("wiped");
        cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", Some(&point)).expect("set");
        cluster.dev.launch(&name).expect("launched");
        let ended = cluster.dev.wait_end(&name, PATIENCE);
        assert!(ended.is_ok(), "round {round}: {point} was not reached: {}", tail(&cluster.log_of(&name)));
        cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.restart(&name).expect("restarted");
        cluster.wait_whole();
    }
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

/// The install has replaced the state, but not yet the member's own snapshot, and the log in between is nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn killed_before_an_install_has_sealed_its_own_snapshot_a_member_can_bring_others_up() {
    let nothing_held = ("namespace.backend.keep-log-for-learners-bytes".to_owned(), "0".to_owned());
    let cluster = Cluster::start_with(3, |options| options.settings = vec![nothing_held]);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    cluster.snapshot_and_purge().await;
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    for number in 0..50 {
        client.create(create_request(&format!("/d/{number}"))).await.expect("created");
    }
    let others: Vec<String> = cluster.names().into_iter().filter(|other| *other != name).collect();
    cluster.snapshot_and_purge_on(&others).await;
    cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", Some("install.pointed=kill")).expect("set");
    cluster.dev.launch(&name).expect("launched");
    cluster.dev.wait_end(&name, PATIENCE).expect("killed while it installs");
    cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", None).expect("set");
    cluster.dev.restart(&name).expect("restarted");
    cluster.wait_whole();
    cluster.transfer_leader(&name);
    cluster.dev.kill(&others[0]).expect("killed");
    cluster.dev.wipe_meta(&others[0]).expect("wiped");
    cluster.dev.restart(&others[0]).expect("restarted");
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_a_disk_is_refused_and_never_votes() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    let copy = cluster.dir.path().join("copy");
    copy_dir(&cluster.meta_dir(&name), &copy);
    cluster.dev.restart(&name).expect("restarted");
    cluster.wait_whole();
    let (leader, term) = cluster.wait_leader();
    cluster.dev.kill(&leader).expect("killed");
    wait_for("another leader", PATIENCE, || cluster.leader().filter(|(_, now)| *now > term));
    cluster.dev.restart(&leader).expect("restarted");
    for batch in 0..100 {
        let ops = (0..100).map(|number| batch_create(&format!("/d/{batch}-{number}"))).collect();
        for result in client.batch(ops).await.expect("a batch") {
            result.expect("created");
        }
    }
    cluster.wait_whole();
    cluster.dev.kill(&name).expect("killed");
    let dir = cluster.meta_dir(&name);
    let newest = cluster.dir.path().join("newest");
    fs::rename(&dir, &newest).expect("moved");
    copy_dir(&copy, &dir);
    cluster.dev.launch(&name).expect("launched");
    let ended = cluster.dev.wait_end(&name, PATIENCE).expect("it refuses to run");
    assert_eq!(ended.code(), Some(1));
    let log = cluster.log_of(&name);
    assert!(log.contains("old copy") && log.contains("Way out"), "{}", tail(&log));
    client.create(create_request("/d/still-serving")).await.expect("the others serve");
    // Each start counts the boot of the copy up, as a pod does that is restarted in a loop.
    for _ in 0..5 {
        refused(&cluster, &name, "at an earlier start");
    }

    // The way out that the message names.
    fs::remove_dir_all(&dir).expect("removed");
    fs::create_dir(&dir).expect("made");
    cluster.dev.restart(&name).expect("restarted");
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
}

fn batch_create(path: &str) -> jindofs_proto::v1::BatchOp {
    jindofs_proto::v1::BatchOp { op: Some(jindofs_proto::v1::batch_op::Op::Create(create_request(path))) }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_disk_is_refused_with_the_reason() {
    let cluster = Cluster::start(3);
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    let dir = cluster.meta_dir(&name);
    let aside = cluster.dir.path().join("aside");
    fs::create_dir(&aside).expect("made");

    for part in ["wal", "state"] {
        fs::rename(dir.join(part), aside.join(part)).expect("moved");
    }
    refused(&cluster, &name, "its Raft log is gone");
    for part in ["wal", "state"] {
        fs::rename(aside.join(part), dir.join(part)).expect("moved back");
    }

    fs::rename(dir.join("IDENTITY"), aside.join("IDENTITY")).expect("moved");
    refused(&cluster, &name, "no IDENTITY file");
    let whole = fs::read(aside.join("IDENTITY")).expect("read");
    fs::write(dir.join("IDENTITY"), &whole[..whole.len() / 2]).expect("written");
    refused(&cluster, &name, "IDENTITY file is damaged");
    fs::write(dir.join("IDENTITY"), &whole).expect("written");
    cluster.dev.restart(&name).expect("the whole disk is good");
    cluster.wait_whole();
}

fn refused(cluster: &Cluster, name: &str, why: &str) {
    cluster.dev.launch(name).expect("launched");
    let ended = cluster.dev.wait_end(name, PATIENCE).expect("it refuses to run");
    assert!(!ended.success());
    let log = cluster.log_of(name);
    assert!(log.contains(why) && log.contains("Way out"), "expected {why:?} in:\n{}", tail(&log));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_in_the_middle_of_the_log_is_refused_never_a_shorter_log() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    for number in 0..300 {
        client.create(create_request(&format!("/d/{number}"))).await.expect("created");
    }
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    let wal = cluster.meta_dir(&name).join("wal");
    let path = fs::read_dir(&wal).expect("list").map(|item| item.expect("item").path()).max().expect("a segment");
    let mut data = fs::read(&path).expect("read");
    let used = data.iter().rposition(|byte| *byte != 0).expect("content");
    // Inside the payload of a frame in the middle: names are written as they are.
    let middle = (used / 2..used).find(|at| data[*at..].starts_with(b"/d/")).expect("a name in the log");
    data[middle] ^= 0x40;
    fs::write(&path, data).expect("written");
    refused(&cluster, &name, "the raft log is damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn eio_from_the_log_ends_the_process_without_an_acknowledgement() {
    let cluster = Cluster::start(3);
    for point in ["wal.write=40*error", "wal.sync=40*error"] {
        cluster.wait_whole();
        let (leader, _) = cluster.wait_leader();
        cluster.dev.kill(&leader).expect("killed");
        cluster.dev.set_env(&leader, "JINDOFS_FAILPOINTS", Some(point)).expect("set");
        cluster.dev.restart(&leader).expect("restarted");
        let load = Load::start(&cluster, &format!("/{}", point.len()), 2).await;
        let ended = cluster.dev.wait_end(&leader, PATIENCE).expect("it ends by itself");
        assert_eq!(ended.code(), Some(70), "{}", tail(&cluster.log_of(&leader)));
        load.wait_acknowledged(20, PATIENCE).await;
        cluster.dev.set_env(&leader, "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.restart(&leader).expect("restarted");
        let outcome = load.stop(&format!("/{}", point.len())).await;
        cluster.wait_whole();
        outcome.assert_on(&cluster.client()).await;
    }
    cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lost_disks_of_three_are_not_replaced() {
    let cluster = Cluster::start(3);
    let followers = cluster.followers();
    for name in &followers {
        cluster.dev.kill(name).expect("killed");
        cluster.dev.wipe_meta(name).expect("wiped");
    }
    for name in &followers {
        cluster.dev.restart(name).expect("restarted");
    }
    let impatient = cluster.client_waiting(Duration::from_secs(4));
    impatient.create(create_request("/lost")).await.expect_err("one disk of three is no quorum");
    for name in &followers {
        assert_eq!(cluster.member_id(name), 0, "{name} must not become a member");
    }
}
