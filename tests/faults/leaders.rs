//! The leader dies, stalls or leaves; majorities come and go.

use std::time::{Duration, Instant};

use jindofs::error::ErrorKind;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::writers::{Load, create_request, make_dir, names};
use crate::support::{free_port, rounds, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn leader_killed_under_load_loses_nothing_and_no_client_sees_an_error() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "/load", 4).await;
    let rounds = rounds(20);
    for round in 0..rounds {
        load.wait_acknowledged(20, PATIENCE).await;
        let (leader, term) = cluster.wait_leader();
        cluster.dev.kill(&leader).expect("killed");
        let killed = Instant::now();
        let (next, _) = wait_for("another leader", PATIENCE, || cluster.leader().filter(|(_, now)| *now > term));
        println!("round {round}: {leader} -> {next} after {:?}", killed.elapsed());
        cluster.dev.restart(&leader).expect("restarted");
    }
    load.wait_acknowledged(20, PATIENCE).await;
    let outcome = load.stop("/load").await;
    println!("{} operations, {} reads, longest gap {:?}", outcome.operations, outcome.reads, outcome.longest_gap);
    cluster.wait_whole();
    outcome.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_leader_never_answers_a_stale_read_when_it_wakes() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "/load", 2).await;
    load.wait_acknowledged(20, PATIENCE).await;
    let (leader, term) = cluster.wait_leader();
    cluster.dev.pause(&leader).expect("paused");
    wait_for("another leader", PATIENCE, || cluster.leader().filter(|(_, now)| *now > term));
    load.wait_acknowledged(200, PATIENCE).await;
    cluster.dev.resume(&leader).expect("resumed");
    load.wait_acknowledged(200, PATIENCE).await;
    wait_for("the old leader follows", PATIENCE, || {
        let status = cluster.dev.status(&leader).ok()?;
        (status.term > term && !status.quorum).then_some(())
    });
    let outcome = load.stop("/load").await;
    assert!(outcome.reads > 0);
    cluster.wait_whole();
    outcome.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_writes_are_refused_and_one_restart_heals() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let followers = cluster.followers();
    for name in &followers {
        cluster.dev.kill(name).expect("killed");
    }
    let impatient = cluster.client_waiting(Duration::from_secs(3));
    let began = Instant::now();
    let error = impatient.create(create_request("/d/refused")).await.expect_err("no quorum");
    assert!(matches!(error.kind, ErrorKind::Timeout | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    cluster.dev.restart(&followers[0]).expect("restarted");
    client.create(create_request("/d/after")).await.expect("a majority serves again");
    cluster.dev.restart(&followers[1]).expect("restarted");
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_masters_killed_at_once_under_load_lose_nothing_acknowledged() {
    let cluster = Cluster::start(3);
    let load = Load::start(&cluster, "/load", 4).await;
    for _ in 0..3 {
        load.wait_acknowledged(100, PATIENCE).await;
        for name in cluster.names() {
            cluster.dev.kill(&name).expect("killed");
        }
        for name in cluster.names() {
            cluster.dev.restart(&name).expect("restarted");
        }
    }
    load.wait_acknowledged(20, PATIENCE).await;
    let outcome = load.stop("/load").await;
    cluster.wait_whole();
    outcome.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
}

/// Stops these masters, and starts them with other ports that they alone are told of; returns a client that knows only those.
fn moved(cluster: &Cluster, names: &[String]) -> jindofs::client::namespace::Namespace {
    let ports: Vec<[u16; 3]> = names.iter().map(|_| [free_port(), free_port(), free_port()]).collect();
    let addresses = |which: usize| ports.iter().map(move |ports| format!("127.0.0.1:{}", ports[which]));
    let stay = cluster.names().into_iter().filter(|name| !names.contains(name));
    let stay = stay.map(|name| cluster.dev.process(&name).expect("a process").raft.expect("an address"));
    let peers = addresses(1).chain(stay).collect::<Vec<_>>().join(",");
    for name in names {
        cluster.dev.kill(name).expect("killed");
    }
    for (name, ports) in names.iter().zip(&ports) {
        let keys = ["namespace.rpc.port", "namespace.backend.raft.port", "namespace.http.port"];
        for (key, port) in keys.iter().zip(ports) {
            cluster.dev.set(name, key, &port.to_string()).expect("set");
        }
        cluster.dev.set(name, "namespace.backend.raft.initial-conf", &peers).expect("set");
        cluster.dev.launch(name).expect("launched");
    }
    let masters = addresses(0).collect();
    let config = jindofs::config::ClientConfig { masters, rpc_timeout: PATIENCE, hard: false };
    jindofs::client::namespace::Namespace::new(&config)
}

/// A cluster of which some masters, or all, have moved serves what it did before.
async fn serves_after_a_move(cluster: Cluster, names_of: impl FnOnce(&Cluster) -> Vec<String>) {
    let client = cluster.client();
    make_dir(&client, "/a/b").await;
    client.create(create_request("/a/b/file")).await.expect("created");
    let moved = moved(&cluster, &names_of(&cluster));
    assert!(names(&moved, "/a/b").await.contains("/a/b/file"));
    moved.create(create_request("/a/b/later")).await.expect("it also writes");
}

#[tokio::test(flavor = "multi_thread")]
async fn sole_master_moved_to_another_port_serves_the_same_tree() {
    serves_after_a_move(Cluster::start(1), Cluster::names).await;
}

/// Nobody knows where anybody is but by what each is told when it starts.
#[tokio::test(flavor = "multi_thread")]
async fn three_masters_that_all_moved_to_other_ports_elect_a_leader_and_serve_the_same_tree() {
    serves_after_a_move(Cluster::start(3), Cluster::names).await;
}

/// The leader has nobody left where it knows them, and needs one of them to record where they are now.
#[tokio::test(flavor = "multi_thread")]
async fn both_followers_moved_to_other_ports_at_once_follow_again() {
    serves_after_a_move(Cluster::start(3), Cluster::followers).await;
}

/// A leader sends an entry before its own disk has it. Killed together with the followers that stored it, it must not
/// resume its term and give the same log id to something else.
#[tokio::test(flavor = "multi_thread")]
async fn leader_slower_than_its_followers_killed_with_them_loses_nothing_acknowledged() {
    let cluster = Cluster::start_with(3, |options| {
        let slow = [("JINDOFS_FAILPOINTS".to_owned(), "wal.write=120+sleep(400)".to_owned())].into();
        options.env.insert("master-0".to_owned(), slow);
    });
    assert_eq!(cluster.wait_leader().0, "master-0");
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let mut acknowledged = 0;
    // Fast until the leader's disk slows down; from then on it is the followers that make a quorum.
    for number in 0..130 {
        client.create(create_request(&format!("/d/{number}"))).await.expect("created");
        acknowledged += 1;
    }
    for name in cluster.names() {
        cluster.dev.kill(&name).expect("killed");
    }
    cluster.dev.set_env("master-0", "JINDOFS_FAILPOINTS", None).expect("set");
    for name in cluster.names() {
        cluster.dev.launch(&name).expect("launched");
    }
    cluster.wait_whole();
    client.create(create_request("/d/after")).await.expect("created");
    assert_eq!(names(&client, "/d").await.len(), acknowledged + 1);
    cluster.assert_digests_equal().await;
}
