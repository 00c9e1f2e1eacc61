//! Clients that hang or are gone: nobody else waits for them, and what they held can be taken away.

use std::time::{Duration, Instant};

use futures::future::{Either, join3, select};
use jindofs_proto::csi::node_client::NodeClient;
use jindofs_proto::csi::{NodeGetVolumeStatsRequest, VolumeCondition};
use tonic::Code;
use tonic::transport::Channel;

use super::{Site, mounts_below};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, wait_for};

/// Longest time that anything may take while a client hangs.
const SOON: Duration = Duration::from_secs(3);

async fn condition(node: &NodeClient<Channel>, request: NodeGetVolumeStatsRequest) -> VolumeCondition {
    let began = Instant::now();
    let told = node.clone().node_get_volume_stats(request).await.expect("told").into_inner();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(!told.usage.is_empty(), "the kubelet drops an answer without figures");
    told.volume_condition.expect("a condition")
}

/// Stops a client; once this returns, none of its threads answers any more.
fn pause(site: &Site, name: &str) {
    site.cluster.dev.pause(name).expect("paused");
    let tasks = format!("/proc/{}/task", site.cluster.dev.process(name).expect("a process").pid.expect("it runs"));
    wait_for("every thread has stopped", PATIENCE, || {
        let mut threads = std::fs::read_dir(&tasks).ok()?.flatten();
        let stopped = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "))
        };
        threads.all(stopped).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_is_reported_within_three_seconds_and_holds_up_nobody_else() {
    if !fuse_works("a_client_that_hangs_is_reported_within_three_seconds_and_holds_up_nobody_else") {
        return;
    }
    let site = Site::start(2);
    let mut node = site.client().await;
    for client in [0, 1] {
        for pod in ["one", "two"] {
            let request = site.publish(client, &format!("{pod}-{client}"));
            node.node_publish_volume(request).await.expect("published");
        }
    }
    pause(&site, "fuse-0");
    for _ in 0..2 {
        let (first, again, other) = join3(
            condition(&node, site.stats(0, "one-0")),
            condition(&node, site.stats(0, "one-0")),
            condition(&node, site.stats(1, "one-1")),
        )
        .await;
        for hanging in [first, again] {
            assert!(hanging.abnormal && hanging.message.contains("does not answer"), "{hanging:?}");
        }
        assert!(!other.abnormal, "{other:?}");
    }
    let began = Instant::now();
    node.node_unpublish_volume(site.unpublish(0, "one-0")).await.expect("taken from a client that hangs");
    node.node_unpublish_volume(site.unpublish(1, "one-1")).await.expect("unpublished");
    node.node_publish_volume(site.publish(1, "one-1")).await.expect("published");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(!site.target("one-0").exists());

    // A volume of the client that hangs waits for it; meanwhile its target is taken.
    let (mut waiting, mut refused) = (node.clone(), node.clone());
    let calls = [site.publish(0, "one-0"), site.publish(0, "one-0")];
    let [first, second] = calls;
    let (first, second) = (waiting.node_publish_volume(first), refused.node_publish_volume(second));
    let (answered, waiting) = match select(Box::pin(first), Box::pin(second)).await {
        Either::Left((answered, waiting)) => (answered, Either::Left(waiting)),
        Either::Right((answered, waiting)) => (answered, Either::Right(waiting)),
    };
    assert_eq!(answered.expect_err("one call at a time").code(), Code::Aborted);
    site.cluster.dev.resume("fuse-0").expect("resumed");
    waiting.await.expect("published once the client answers");
    for pod in ["one-0", "two-0"] {
        assert!(!condition(&node, site.stats(0, pod)).await.abnormal);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_client_showed_can_be_taken_away_and_is_shown_again_once_it_is_back() {
    if !fuse_works("what_a_dead_client_showed_can_be_taken_away_and_is_shown_again_once_it_is_back") {
        return;
    }
    let mut site = Site::start(1);
    std::fs::write(site.local.join("file"), b"content").expect("written");
    let mut node = site.client().await;
    for pod in ["leaves", "stays", "sleeps"] {
        node.node_publish_volume(site.publish(0, pod)).await.expect("published");
    }
    site.cluster.dev.kill("fuse-0").expect("killed");
    let dead = condition(&node, site.stats(0, "leaves")).await;
    assert!(dead.abnormal && dead.message.contains("is gone"), "{dead:?}");
    node.node_unpublish_volume(site.unpublish(0, "leaves")).await.expect("unpublished");
    assert!(!site.target("leaves").exists());
    // A pod that starts meanwhile waits; of the others one is bound by a plugin that was away when its client died.
    let request = site.publish(0, "comes");
    let mut caller = node.clone();
    let waiting = tokio::spawn(async move { caller.node_publish_volume(request).await });
    site.cluster.dev.restart("fuse-0").expect("mounted again");
    waiting.await.expect("no panic").expect("published");
    let read = |site: &Site, pod: &str| std::fs::read(site.target(pod).join("local/file")).ok();
    let shown = |site: &Site, pod: &str| {
        wait_for("the file is there again", PATIENCE, || read(site, pod).filter(|read| read == b"content"));
    };
    for pod in ["stays", "sleeps", "comes"] {
        shown(&site, pod);
    }
    site.cluster.dev.kill("fuse-0").expect("killed");
    site.restart_plugin();
    site.cluster.dev.restart("fuse-0").expect("mounted again");
    for pod in ["stays", "sleeps", "comes"] {
        shown(&site, pod);
        assert!(mounts_below(&site.target(pod)).len() > 1, "bound on top of what is dead");
    }
    let mut node = site.client().await;
    for pod in ["stays", "sleeps", "comes"] {
        node.node_unpublish_volume(site.unpublish(0, pod)).await.expect("unpublished");
    }
    site.assert_nothing_published();
}
