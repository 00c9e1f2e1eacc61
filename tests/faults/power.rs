//! Power cuts: what was not made durable is gone, not only the process. Masters keep their metadata on a file system of
//! ours that drops unsynced writes, or tears them.

use std::collections::BTreeSet;

use crate::support::cluster::PATIENCE;
use crate::support::disks::OnForgetfulDisks;
use crate::support::writers::{Load, create_request, make_dir, names};
use crate::support::{fuse_works, rounds, seed};

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_of_one_two_and_all_masters_lose_nothing_acknowledged() {
    if !fuse_works("power_cuts_of_one_two_and_all_masters") {
        return;
    }
    let seed = seed("power_cuts_of_one_two_and_all_masters");
    let on = OnForgetfulDisks::start(3, &[]);
    let load = Load::start(&on.cluster, "/load", 3).await;
    for round in 0..rounds(6) {
        load.wait_acknowledged(30, PATIENCE).await;
        let count = 1 + round as usize % 3;
        let first = (seed as usize).wrapping_add(round as usize) % 3;
        let masters: BTreeSet<usize> = (0..count).map(|step| (first + step) % 3).collect();
        println!("round {round}: power cut of masters {masters:?}");
        on.cut(&masters, seed.wrapping_add(u64::from(round)));
        on.restart(&masters);
        on.cluster.wait_whole();
    }
    load.wait_acknowledged(30, PATIENCE).await;
    let outcome = load.stop("/load").await;
    on.cluster.wait_whole();
    outcome.assert_on(&on.cluster.client()).await;
    on.cluster.assert_digests_equal().await;
    on.cluster.assert_no_panic();
}

/// The test above must be able to fail: without fsync of the log, acknowledged writes do not survive.
#[tokio::test(flavor = "multi_thread")]
async fn without_fsync_a_power_cut_of_all_masters_loses_acknowledged_writes() {
    if !fuse_works("without_fsync_a_power_cut") {
        return;
    }
    let on = OnForgetfulDisks::start(3, &[("JINDOFS_FAILPOINTS", "wal.sync=skip")]);
    let client = on.cluster.client();
    make_dir(&client, "/d").await;
    for number in 0..50 {
        client.create(create_request(&format!("/d/{number}"))).await.expect("acknowledged");
    }
    let all = BTreeSet::from([0, 1, 2]);
    on.cut(&all, 0);
    on.restart(&all);
    // Either the disks are refused, or they come back without what was acknowledged.
    let impatient = on.cluster.client_waiting(std::time::Duration::from_secs(8));
    if impatient.lookup(jindofs::client::namespace::at_path("/d")).await.is_ok() {
        assert!(names(&impatient, "/d").await.len() < 50, "fsync seems to make no difference");
    }
}
