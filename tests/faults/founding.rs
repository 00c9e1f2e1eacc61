//! Exactly one cluster comes out of any start of empty masters, whatever is killed in between.

use std::time::Duration;

use jindofs::client::admin;
use jindofs::error::ErrorKind;
use jindofs::rpc::channel::MasterChannel;

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::wait_for;
use crate::support::writers::{create_request, make_dir};

const UUID: [u8; 16] = [0x42; 16];

fn unfounded(masters: usize) -> Cluster {
    Cluster::start_with(masters, |options| options.provision = false)
}

async fn provision(cluster: &Cluster, name: &str, uuid: [u8; 16]) -> Result<Vec<u64>, jindofs::error::Error> {
    let address = cluster.dev.process(name).expect("a process").grpc.expect("an address");
    let config = jindofs::config::ClientConfig { masters: vec![address.clone()], rpc_timeout: PATIENCE, hard: false };
    let channel = MasterChannel::new(&config);
    admin::provision(&channel, &address, uuid, Duration::from_secs(60)).await.map(|answer| answer.voters)
}

fn assert_all_empty(cluster: &Cluster) {
    for name in cluster.names() {
        if let Ok(status) = cluster.dev.status(&name) {
            assert!(status.cluster_uuid.is_empty(), "{name} belongs to a cluster");
        }
        assert!(!cluster.meta_dir(&name).join("IDENTITY").exists(), "{name} has an identity");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn founding_is_refused_while_a_peer_is_silent_and_nothing_changes() {
    let cluster = unfounded(3);
    cluster.dev.pause("master-2").expect("paused");
    let error = provision(&cluster, "master-0", UUID).await.expect_err("a silent peer");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("must answer first"), "{error}");
    cluster.dev.resume("master-2").expect("resumed");
    assert_all_empty(&cluster);
    assert_eq!(provision(&cluster, "master-0", UUID).await.expect("founded").len(), 3);
    assert_eq!(provision(&cluster, "master-0", UUID).await.expect("a retry is answered").len(), 3);
    let error = provision(&cluster, "master-0", [1; 16]).await.expect_err("another uuid");
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn founding_is_refused_on_another_master_than_the_first() {
    let cluster = unfounded(3);
    let error = provision(&cluster, "master-1", UUID).await.expect_err("not the first");
    assert!(error.message.contains("only the first configured master"), "{error}");
    assert_all_empty(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn founding_is_refused_when_a_peer_has_another_list() {
    let cluster = unfounded(3);
    cluster.dev.kill("master-1").expect("killed");
    let peers = cluster.dev.file().processes.into_iter().filter_map(|one| one.raft);
    let fewer: Vec<String> = peers.take(2).collect();
    cluster.dev.set("master-1", "namespace.backend.raft.initial-conf", &fewer.join(",")).expect("set");
    cluster.dev.restart("master-1").expect("restarted");
    let error = provision(&cluster, "master-0", UUID).await.expect_err("another list");
    assert!(error.message.contains("configured with other masters"), "{error}");
    assert_all_empty(&cluster);
}

#[tokio::test(flavor = "multi_thread")]
async fn founding_is_refused_when_a_peer_is_already_a_member() {
    let cluster = Cluster::start(3);
    cluster.wait_whole();
    // The first disk is gone for good, and its replacement is told to found: it must not.
    cluster.dev.kill("master-0").expect("killed");
    cluster.dev.kill("master-1").expect("killed");
    cluster.dev.wipe_meta("master-0").expect("wiped");
    cluster.dev.restart("master-0").expect("restarted");
    let error = provision(&cluster, "master-0", UUID).await.expect_err("peers are members");
    assert!(matches!(error.kind, ErrorKind::FailedPrecondition | ErrorKind::Unavailable), "{error}");
    cluster.dev.restart("master-1").expect("restarted");
    let error = provision(&cluster, "master-0", UUID).await.expect_err("peers are members");
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    cluster.wait_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_masters_started_together_wait_and_found_nothing_by_themselves() {
    let cluster = unfounded(3);
    for name in cluster.names() {
        cluster.dev.kill(&name).expect("killed");
    }
    for name in cluster.names() {
        cluster.dev.restart(&name).expect("restarted");
    }
    assert_all_empty(&cluster);
    provision(&cluster, "master-0", UUID).await.expect("founded");
    cluster.wait_whole();
    for (name, status) in cluster.statuses() {
        assert_eq!(status.cluster_uuid, UUID[..], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn founder_killed_in_any_gap_finishes_at_its_next_start() {
    for point in ["found.begin", "found.recorded", "found.initialized", "found.proposed", "found.member"] {
        let cluster = Cluster::start_with(3, |options| {
            options.provision = false;
            let env = [("JINDOFS_FAILPOINTS".to_owned(), format!("{point}=kill"))].into();
            options.env.insert("master-0".to_owned(), env);
        });
        provision(&cluster, "master-0", UUID).await.expect_err("the founder dies");
        cluster.dev.wait_end("master-0", PATIENCE).unwrap_or_else(|error| panic!("{point} was not reached: {error}"));
        cluster.dev.set_env("master-0", "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.restart("master-0").expect("restarted");
        // Only before anything was recorded the caller has to ask again; asking again is always right.
        if point != "found.begin" {
            wait_for("the founder is a member", PATIENCE, || (cluster.member_id("master-0") == 1).then_some(()));
        }
        provision(&cluster, "master-0", UUID).await.expect("founded");
        cluster.wait_whole();
        make_dir(&cluster.client(), "/d").await;
        cluster.assert_digests_equal().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_killed_while_it_promises_to_join_what_is_founded_promises_again_at_its_next_start() {
    for point in ["promise.begin", "promise.recorded"] {
        let cluster = Cluster::start_with(3, |options| {
            options.provision = false;
            let env = [("JINDOFS_FAILPOINTS".to_owned(), format!("{point}=kill"))].into();
            options.env.insert("master-1".to_owned(), env);
        });
        provision(&cluster, "master-0", UUID).await.expect_err("a peer dies before it has said that it promises");
        let ended = cluster.dev.wait_end("master-1", PATIENCE);
        ended.unwrap_or_else(|error| panic!("{point} was not reached: {error}"));
        cluster.dev.set_env("master-1", "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.restart("master-1").expect("restarted");
        assert_all_empty(&cluster);
        // Also another cluster may be founded now: nothing was recorded of the first one.
        provision(&cluster, "master-0", [0x43; 16]).await.expect("founded");
        cluster.wait_whole();
        for (name, status) in cluster.statuses() {
            assert_eq!(status.cluster_uuid, [0x43; 16][..], "{point}: {name}");
            assert!(!cluster.meta_dir(&name).join("PROMISE").exists(), "{point}: the promise of {name} is fulfilled");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joiner_and_replacement_killed_in_any_gap_finish_at_their_next_start() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let mut old = cluster.wait_whole();
    let points = ["join.begin", "join.recorded", "join.admitted", "join.numbered", "join.caught-up", "join.member"];
    for point in points {
        let name = cluster.followers().remove(0);
        cluster.dev.kill(&name).expect("killed");
        cluster.dev.wipe_meta(&name).expect("wiped");
        cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", Some(&format!("{point}=kill"))).expect("set");
        cluster.dev.launch(&name).expect("launched");
        let ended = cluster.dev.wait_end(&name, PATIENCE);
        assert!(ended.is_ok(), "{point} was not reached: {}", tail(&cluster.log_of(&name)));
        cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", None).expect("set");
        cluster.dev.restart(&name).expect("restarted");
        let voters = cluster.wait_whole();
        assert_eq!(voters.iter().filter(|id| !old.contains(id)).count(), 1, "{point}: {old:?} -> {voters:?}");
        old = voters;
        client.create(create_request(&format!("/d/{point}"))).await.expect("writes go on");
    }
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}
