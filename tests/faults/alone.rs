//! Tests that measure times. `make test` runs them one after the other, when all other tests have ended.

use std::time::{Duration, Instant};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::partition::{Cut, partitions_work};
use crate::support::writers::Load;
use crate::support::{long, wait_until};

/// How long a member hears nothing: longer than the longest election timeout of fast elections.
const SILENCE: Duration = Duration::from_millis(800);

/// The hardest partition for terms: the follower receives no message, so its election timer runs out, but its
/// own messages arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_hears_nobody_again_and_again_raises_no_term_and_unseats_no_leader() {
    if !partitions_work("a_follower_that_hears_nobody_again_and_again_raises_no_term_and_unseats_no_leader") {
        return;
    }
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "/load", 2).await;
    load.wait_acknowledged(20, PATIENCE).await;
    let (leader, term) = cluster.wait_leader();
    let follower = cluster.followers().remove(0);
    let raft = cluster.dev.process(&follower).expect("a process").raft.expect("an address");
    let port = raft.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let time = std::env::var("JINDOFS_FLAPPING_S").ok().and_then(|text| text.parse().ok()).unwrap_or(if long() {
        60
    } else {
        20
    });
    let (began, mut flaps) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(time) {
        let cut = Cut::to_port(port);
        let since = Instant::now();
        wait_until("the silence is over", PATIENCE, || since.elapsed() > SILENCE).await;
        drop(cut);
        load.wait_acknowledged(20, PATIENCE).await;
        assert_eq!(cluster.leader(), Some((leader.clone(), term)), "after {flaps} flaps");
        flaps += 1;
    }
    println!("{flaps} flaps in {:?}", began.elapsed());
    let outcome = load.stop("/load").await;
    println!("longest gap {:?}", outcome.longest_gap);
    cluster.wait_whole();
    assert_eq!(cluster.leader(), Some((leader, term)));
    outcome.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_told_to_stop_hands_over_within_half_a_second() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "/load", 2).await;
    load.wait_acknowledged(20, PATIENCE).await;
    let (leader, _) = cluster.wait_leader();
    let status = cluster.dev.term(&leader).expect("ended");
    assert!(status.success(), "{status}");
    load.wait_acknowledged(20, PATIENCE).await;
    let outcome = load.stop("/load").await;
    println!("longest gap {:?}", outcome.longest_gap);
    assert!(outcome.longest_gap < Duration::from_millis(500), "{:?}", outcome.longest_gap);
    cluster.dev.restart(&leader).expect("restarted");
    cluster.wait_whole();
    outcome.assert_on(&cluster.client()).await;
}
