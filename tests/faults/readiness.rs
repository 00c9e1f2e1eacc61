//! What the leader knows of its replicas: which of them are current while clients write, and how far each one's own disk
//! holds the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jindofs::client::admin;

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::wait_until;
use crate::support::writers::{create_request, make_dir, names};

/// Clients that create names as fast as they can.
struct Crowd {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Crowd {
    async fn start(cluster: &Cluster, directory: &str, clients: usize) -> Crowd {
        make_dir(&cluster.client(), directory).await;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for client in 0..clients {
            let (namespace, stop, acknowledged) = (cluster.client(), stop.clone(), acknowledged.clone());
            let directory = directory.to_owned();
            tasks.push(tokio::spawn(async move {
                let mut made = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let path = format!("{directory}/{client}-{}", made.len());
                    namespace.create(create_request(&path)).await.unwrap_or_else(|error| panic!("{path}: {error}"));
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                    made.push(path);
                }
                made
            }));
        }
        Crowd { stop, acknowledged, tasks }
    }

    async fn wait_acknowledged(&self, count: u64) {
        let want = self.acknowledged.load(Ordering::SeqCst) + count;
        // Thousands of names, on a machine that is busy with other tests.
        wait_until("clients go on", PATIENCE * 3, || self.acknowledged.load(Ordering::SeqCst) >= want).await;
    }

    /// Every name that was acknowledged.
    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        let mut made = Vec::new();
        for task in self.tasks {
            made.extend(task.await.expect("no client saw an error"));
        }
        made
    }
}

/// Asks `questions` times whether the followers may be restarted, each in turn; how often the answer was no, and why.
async fn refusals(cluster: &Cluster, followers: &[u64], questions: usize) -> Vec<String> {
    let channel = cluster.client().channel().clone();
    let mut refused = Vec::new();
    for question in 0..questions {
        let id = followers[question % followers.len()];
        refused.extend(admin::must_not_restart(&channel, id).await.expect("an answer"));
        tokio::task::yield_now().await;
    }
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn can_restart_says_yes_in_a_busy_cluster_and_no_soon_after_a_follower_stops_or_dies() {
    let cluster = Cluster::start(3);
    cluster.wait_whole();
    let (leader, term) = cluster.wait_leader();
    let [one, two] = &cluster.followers()[..] else { panic!("two followers") };
    let ids = [cluster.member_id(one), cluster.member_id(two)];
    let crowd = Crowd::start(&cluster, "/d", 48).await;
    crowd.wait_acknowledged(1_000).await;
    let refused = refusals(&cluster, &ids, 120).await;
    println!("{} of 120 answers are no: {refused:?}", refused.len());
    assert_eq!(cluster.leader(), Some((leader, term)), "the questions were all answered by one leader");
    assert!(refused.len() <= 3, "{refused:?}");

    let channel = cluster.client().channel().clone();
    let answers = async |want: bool| {
        let limit = if want { PATIENCE } else { Duration::from_secs(5) };
        let asked = Instant::now();
        while admin::must_not_restart(&channel, ids[0]).await.expect("an answer").is_none() != want {
            assert!(asked.elapsed() < limit, "the answer is not {want} after {limit:?}");
        }
        println!("the answer is {want} after {:?}", asked.elapsed());
    };
    cluster.dev.pause(two).expect("paused");
    answers(false).await;
    cluster.dev.resume(two).expect("resumed");
    answers(true).await;
    cluster.dev.kill(two).expect("killed");
    answers(false).await;
    cluster.dev.restart(two).expect("restarted");
    answers(true).await;
    crowd.stop().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_with_a_slow_disk_that_dies_comes_back_by_itself_and_is_no_old_copy() {
    let cluster = Cluster::start(3);
    cluster.wait_whole();
    let slow = cluster.followers().remove(0);
    cluster.dev.kill(&slow).expect("killed");
    // Fast until it leads: a candidate whose own vote takes that long is not elected. One sync is so long that the others
    // commit several times the distance of two watermarks meanwhile; what waits for it is lost when the process dies.
    cluster.dev.set_env(&slow, "JINDOFS_FAILPOINTS", Some("wal.sync=100+sleep(10000)")).expect("set");
    cluster.dev.restart(&slow).expect("restarted");
    cluster.wait_whole();
    let id = cluster.member_id(&slow);
    let channel = cluster.client().channel().clone();
    assert_eq!(admin::transfer_leader(&channel, id).await.expect("handed over"), id);
    let crowd = Crowd::start(&cluster, "/d", 32).await;
    crowd.wait_acknowledged(4_000).await;
    // Clients went on because another one leads now.
    assert!(cluster.log_of(&slow).contains("does not sync its log"), "{}", tail(&cluster.log_of(&slow)));
    cluster.dev.kill(&slow).expect("killed");
    cluster.dev.set_env(&slow, "JINDOFS_FAILPOINTS", None).expect("set");
    let restarted = cluster.dev.restart(&slow);
    assert!(restarted.is_ok(), "{restarted:?}: {}", tail(&cluster.log_of(&slow)));
    crowd.wait_acknowledged(100).await;
    let made = crowd.stop().await;
    cluster.wait_whole();
    assert_eq!(cluster.member_id(&slow), id, "it is the same member");
    let found = names(&cluster.client(), "/d").await;
    let missing: Vec<&String> = made.iter().filter(|path| !found.contains(*path)).collect();
    assert!(missing.is_empty(), "acknowledged names are lost: {missing:?}");
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}
