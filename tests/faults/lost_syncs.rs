//! An fsync fails once, the process ends and is started again, and later the power is cut.
//!
//! After the failure the kernel takes the pages for clean: the new process reads what it wrote before, a further fsync
//! succeeds, and yet the disk has nothing of it. Whatever a master acknowledges on the strength of such pages must be
//! on its disk all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use jindofs::client::admin;
use jindofs::client::namespace::Namespace;
use jindofs_proto::v1::{BatchOp, batch_op};

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::disks::OnForgetfulDisks;
use crate::support::powercut::{SyncFault, Which};
use crate::support::writers::{create_request, make_dir, names};
use crate::support::{fuse_works, wait_for};

/// Files created as one entry of the log, which is longer than any sector that its neighbours may save.
const BATCH: usize = 100;
/// How a process ends whose disk has failed.
const DISK_FAILED: i32 = 70;

/// Creates files in `/d` by one log entry; their names once they are acknowledged.
async fn create_batch(client: &Namespace, prefix: &str) -> BTreeSet<String> {
    let paths: BTreeSet<String> = (0..BATCH).map(|number| format!("/d/{prefix}-{number}")).collect();
    let ops = paths.iter().map(|path| BatchOp { op: Some(batch_op::Op::Create(create_request(path))) });
    for result in client.batch(ops.collect()).await.expect("a batch") {
        result.expect("created");
    }
    paths
}

/// Waits until a process has ended as one does whose disk fails.
fn wait_disk_failed(cluster: &Cluster, name: &str) {
    let ended = cluster.dev.wait_end(name, PATIENCE).expect("it ends by itself");
    assert_eq!(ended.code(), Some(DISK_FAILED), "{}", tail(&cluster.log_of(name)));
}

fn number_of(name: &str) -> usize {
    name.strip_prefix("master-").and_then(|number| number.parse().ok()).expect("the name of a master")
}

fn cut(on: &OnForgetfulDisks, name: &str) {
    on.cut(&BTreeSet::from([number_of(name)]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn follower_whose_log_sync_failed_has_on_disk_what_it_acknowledges_after_its_restart() {
    if !fuse_works("follower_whose_log_sync_failed") {
        return;
    }
    let on = OnForgetfulDisks::start(3, &[]);
    let cluster = &on.cluster;
    cluster.wait_whole();
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let (leader, _) = cluster.wait_leader();
    let [victim, other]: [String; 2] = cluster.followers().try_into().expect("two followers");

    // From here on the leader needs the victim for every acknowledgement.
    cluster.dev.kill(&other).expect("killed");
    let mut acknowledged = create_batch(&client, "before").await;
    let fault = on.disk(&victim).fail_syncs("meta/wal/*.wal", Which::Nth(1));
    let pending = tokio::spawn(async move { create_batch(&client, "pending").await });
    wait_disk_failed(cluster, &victim);
    assert_eq!(fault.hits(), 1);
    cluster.dev.launch(&victim).expect("launched");
    acknowledged.extend(pending.await.expect("acknowledged by the leader and the restarted follower"));

    cluster.dev.kill(&leader).expect("killed");
    cut(&on, &victim);
    for name in [&victim, &other] {
        cluster.dev.launch(name).expect("launched");
    }
    cluster.wait_leader();
    assert_eq!(names(&cluster.client(), "/d").await, acknowledged);
    cluster.dev.launch(&leader).expect("launched");
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn sole_master_whose_log_sync_failed_has_on_disk_what_it_acknowledges_after_its_restart() {
    if !fuse_works("sole_master_whose_log_sync_failed") {
        return;
    }
    let on = OnForgetfulDisks::start(1, &[]);
    let (cluster, name) = (&on.cluster, "master-0");
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let mut acknowledged = create_batch(&client, "before").await;
    for round in 0..3 {
        on.disk(name).fail_syncs("meta/wal/*.wal", Which::Nth(1));
        let writer = cluster.client();
        let pending = tokio::spawn(async move { create_batch(&writer, &format!("pending-{round}")).await });
        wait_disk_failed(cluster, name);
        cluster.dev.launch(name).expect("launched");
        acknowledged.extend(pending.await.expect("acknowledged after the restart"));
        cut(&on, name);
        cluster.dev.launch(name).expect("launched");
        cluster.wait_leader();
        assert_eq!(names(&client, "/d").await, acknowledged, "round {round}");
    }
    cluster.assert_no_panic();
}

/// True if this master is a serving member.
fn serves(cluster: &Cluster, name: &str) -> bool {
    let status = cluster.dev.status(name).ok().and_then(|status| status.self_);
    status.is_some_and(|own| own.state == "serving")
}

/// Starts a master while a fault is on. If it ends by itself it is started again, with the fault off.
fn start_through(on: &OnForgetfulDisks, name: &str, fault: &SyncFault) {
    let cluster = &on.cluster;
    cluster.dev.launch(name).expect("launched");
    let is_down = || cluster.dev.process(name).expect("a process").pid.is_none();
    wait_for("it ends by itself or serves", PATIENCE, || (is_down() || serves(cluster, name)).then_some(()));
    fault.set_on(false);
    wait_whole_again(cluster, name);
}

/// Waits until every master serves; starts this one again if it has ended by itself, as often as that happens.
fn wait_whole_again(cluster: &Cluster, name: &str) {
    wait_for(&format!("{name} serves"), PATIENCE, || {
        if cluster.dev.process(name).expect("a process").pid.is_none() {
            let ended = cluster.dev.wait_end(name, PATIENCE).expect("it has ended");
            assert!(ended.code().is_some_and(|code| code > 0), "{ended}: {}", tail(&cluster.log_of(name)));
            cluster.dev.launch(name).expect("launched");
        }
        serves(cluster, name).then_some(())
    });
    cluster.wait_whole();
}

/// Writes, cuts the power of a member, and expects it back as the same member with everything.
async fn survives_a_power_cut(on: &OnForgetfulDisks, name: &str, what: &str) {
    let (cluster, client) = (&on.cluster, on.cluster.client());
    let id = cluster.member_id(name);
    let created = create_batch(&client, &what.replace(['/', ' '], "_")).await;
    cut(on, name);
    cluster.dev.launch(name).expect("launched");
    cluster.wait_whole();
    assert_eq!(cluster.member_id(name), id, "{what}");
    let found = names(&cluster.client_of(name), "/d").await;
    assert!(found.is_superset(&created), "{what}: an acknowledged name is lost");
}

/// A cluster with some content, and a follower of it.
async fn cluster_and_victim() -> (OnForgetfulDisks, String) {
    let on = OnForgetfulDisks::start(3, &[]);
    on.cluster.wait_whole();
    make_dir(&on.cluster.client(), "/d").await;
    create_batch(&on.cluster.client(), "first").await;
    let victim = on.cluster.followers().remove(0);
    (on, victim)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_at_a_start_costs_neither_the_member_nor_a_name() {
    if !fuse_works("a_sync_that_fails_at_a_start") {
        return;
    }
    let (on, victim) = cluster_and_victim().await;
    for (pattern, nth) in [
        ("meta/IDENTITY.tmp", 1),
        ("meta/IDENTITY.tmp", 2),
        ("meta", 1),
        ("meta", 2),
        ("meta", 3),
        ("meta/wal/*.wal", 1),
        ("meta/state/*/MANIFEST-*", 1),
        ("meta/state/*", 1),
    ] {
        let what = format!("{pattern} {nth}");
        on.cluster.dev.kill(&victim).expect("killed");
        let fault = on.disk(&victim).fail_syncs(pattern, Which::Nth(nth));
        start_through(&on, &victim, &fault);
        println!("{what}: {} hits", fault.hits());
        survives_a_power_cut(&on, &victim, &what).await;
    }
    on.cluster.assert_digests_equal().await;
    on.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_while_a_snapshot_is_built_costs_neither_the_member_nor_a_name() {
    if !fuse_works("a_sync_that_fails_while_a_snapshot_is_built") {
        return;
    }
    let (on, victim) = cluster_and_victim().await;
    let cluster = &on.cluster;
    let address = cluster.dev.process(&victim).expect("a process").grpc.expect("an address");
    for pattern in ["meta/state/*/*.sst", "meta/snapshots/*/SNAPSHOT", "meta/snapshots/*", "meta/snapshots"] {
        create_batch(&cluster.client(), &format!("built-{}", pattern.len())).await;
        let fault = on.disk(&victim).fail_syncs(pattern, Which::Nth(1));
        let channel = cluster.client().channel().clone();
        let built = admin::snapshot(&channel, &address, true, Duration::from_secs(5)).await;
        println!("{pattern}: {} hits, snapshot {:?}", fault.hits(), built.map_err(|error| error.message));
        assert_eq!(fault.hits(), 1, "{pattern}");
        wait_whole_again(cluster, &victim);
        // The log behind it goes: from here on the snapshot, or the state, is what the member has.
        admin::snapshot(&channel, &address, true, PATIENCE).await.expect("a snapshot");
        survives_a_power_cut(&on, &victim, pattern).await;
    }
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_fails_while_a_snapshot_is_installed_costs_neither_the_member_nor_a_name() {
    if !fuse_works("a_sync_that_fails_while_a_snapshot_is_installed") {
        return;
    }
    let (on, victim) = cluster_and_victim().await;
    let cluster = &on.cluster;
    for (pattern, nth) in [
        ("meta/snapshots/incoming-*/*.sst", 1),
        ("meta/state", 2),
        ("meta/state", 3),
        ("meta/state/CURRENT.tmp", 2),
        ("meta/state/*/MANIFEST-*", 2),
    ] {
        cluster.snapshot_and_purge().await;
        cluster.dev.kill(&victim).expect("killed");
        cluster.dev.wipe_meta(&victim).expect("wiped");
        let fault = on.disk(&victim).fail_syncs(pattern, Which::Nth(nth));
        let what = format!("{pattern} {nth}");
        start_through(&on, &victim, &fault);
        println!("{what}: {} hits", fault.hits());
        survives_a_power_cut(&on, &victim, &what).await;
    }
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_transfer_was_interrupted_is_on_disk_once_it_is_installed() {
    if !fuse_works("a_snapshot_whose_transfer_was_interrupted") {
        return;
    }
    let (on, victim) = cluster_and_victim().await;
    let cluster = &on.cluster;
    // Killed when the next file begins, the last one is written and not synced.
    for chunk in [2, 4] {
        cluster.snapshot_and_purge().await;
        cluster.dev.kill(&victim).expect("killed");
        cluster.dev.wipe_meta(&victim).expect("wiped");
        let point = format!("snapshot.chunk={chunk}*kill");
        cluster.dev.set_env(&victim, "JINDOFS_FAILPOINTS", Some(&point)).expect("set");
        cluster.dev.launch(&victim).expect("launched");
        let ended = cluster.dev.wait_end(&victim, PATIENCE);
        assert!(ended.is_ok(), "{point} was not reached: {}", tail(&cluster.log_of(&victim)));
        cluster.dev.set_env(&victim, "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.launch(&victim).expect("launched");
        cluster.wait_whole();
        survives_a_power_cut(&on, &victim, &point).await;
    }
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}
