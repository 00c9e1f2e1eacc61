//! Masters that stand still for longer than every timeout, and go on: time that no master watched counts for no client, no
//! worker and no member. A client that stands still alone loses its session all the same.

use std::time::{Duration, Instant};

use jindofs::client::namespace::at_path;
use jindofs::error::ErrorKind;
use jindofs::rpc::status::from_status;
use jindofs_proto::v1::namespace_client::NamespaceClient;
use jindofs_proto::v1::{
    CreateRequest, GetLockRequest, Lock, LockType, MkdirRequest, OpId, OpenSessionRequest, SetLockRequest, WorkerState,
};
use tonic::transport::Channel;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::writers::create_request;
use crate::support::{wait_for, wait_until};

const CLIENT: [u8; 16] = [7; 16];
const TTL: Duration = Duration::from_secs(3);

/// A client that never renews its session by itself: what keeps its session alive is what the masters count.
struct SilentClient {
    inode: u64,
}

fn op(seq: u64) -> Option<OpId> {
    Some(OpId { client_id: CLIENT.to_vec().into(), seq, acked_below: seq })
}

fn whole_file(client_id: &[u8]) -> Lock {
    let mut lock = Lock { start: 0, end: i64::MAX as u64, owner: 1, ..Lock::default() };
    lock.set_type(LockType::Exclusive);
    lock.client_id = client_id.to_vec().into();
    lock
}

fn cluster(masters: usize, workers: usize) -> Cluster {
    Cluster::start_with(masters, |options| {
        options.workers = workers;
        options.settings.push(("namespace.session.ttl".into(), format!("{}s", TTL.as_secs())));
        options.settings.push(("namespace.worker.timeout".into(), "2s".into()));
    })
}

async fn leader(cluster: &Cluster) -> NamespaceClient<Channel> {
    let (name, _) = cluster.wait_leader();
    let address = cluster.dev.process(&name).expect("a process").grpc.expect("an address");
    NamespaceClient::connect(format!("http://{address}")).await.expect("connected")
}

impl SilentClient {
    /// Opens a session, creates a file and locks it.
    async fn start(cluster: &Cluster) -> SilentClient {
        let mut client = leader(cluster).await;
        let open = OpenSessionRequest { client_id: CLIENT.to_vec().into(), description: "silent".into() };
        client.open_session(open).await.expect("opened");
        let create =
            CreateRequest { op: op(1), target: Some(at_path("/locked")), mode: 0o644, ..CreateRequest::default() };
        let made = client.create(create).await.expect("created").into_inner();
        let inode = made.attr.expect("attributes").inode;
        let lock = SetLockRequest { op: op(2), inode, lock: Some(whole_file(&CLIENT)) };
        assert_eq!(client.set_lock(lock).await.expect("locked").into_inner().holder, None);
        SilentClient { inode }
    }

    /// Whether the file is locked for others. Does not renew the session.
    async fn is_locked(&self, cluster: &Cluster) -> bool {
        let asked = GetLockRequest { inode: self.inode, lock: Some(whole_file(&[8; 16])) };
        let holder = leader(cluster).await.get_lock(asked).await.expect("asked").into_inner().holder;
        holder.is_some_and(|holder| holder.client_id == CLIENT[..])
    }

    /// What becomes of a mutation with the next number.
    async fn mutate(&self, cluster: &Cluster) -> Result<(), ErrorKind> {
        let mkdir = MkdirRequest { op: op(3), target: Some(at_path("/after")), mode: 0o755, ..MkdirRequest::default() };
        leader(cluster).await.mkdir(mkdir).await.map(drop).map_err(|status| from_status(&status).kind)
    }

    async fn assert_lives(&self, cluster: &Cluster, why: &str) {
        // A leader that has just been elected, or lost again, is no answer. The same number: it is executed once.
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.mutate(cluster).await {
                Err(ErrorKind::NotLeader | ErrorKind::Unavailable | ErrorKind::OutcomeUnknown)
                    if Instant::now() < deadline => {}
                outcome => {
                    assert_eq!(outcome, Ok(()), "{why}: the session lives");
                    break;
                }
            }
        }
        assert!(self.is_locked(cluster).await, "{why}: the lock is held");
    }
}

/// Lets the masters that run watch for this time.
async fn let_pass(time: Duration, why: &str) {
    let from = Instant::now();
    wait_until(why, PATIENCE, || from.elapsed() > time).await;
}

/// Stops these masters for longer than a session lives, and lets them go on.
async fn stand_still(cluster: &Cluster, names: &[String]) {
    for name in names {
        cluster.dev.pause(name).expect("paused");
    }
    let_pass(TTL + Duration::from_millis(500), "the masters stand still").await;
    for name in names {
        cluster.dev.resume(name).expect("resumed");
    }
}

async fn assert_nothing_expires_while_all_masters_stand_still(masters: usize) {
    let cluster = cluster(masters, 1);
    let before = cluster.wait_whole();
    let renewing = cluster.client();
    renewing.create(create_request("/renewing")).await.expect("created");
    let (session, client) = (renewing.session().id().await, SilentClient::start(&cluster).await);
    stand_still(&cluster, &cluster.names()).await;
    // Longer than the masters take to look for sessions and workers that are silent, shorter than a session lives.
    let_pass(TTL * 2 / 5, "the masters look at the sessions").await;
    client.assert_lives(&cluster, "all masters stood still").await;
    assert_eq!(cluster.wait_whole(), before, "no member was replaced");
    renewing.create(create_request("/renewing-still")).await.expect("created");
    assert!(session.is_some());
    assert_eq!(renewing.session().id().await, session, "a client that runs keeps its session");
    for name in cluster.names() {
        assert!(!cluster.log_of(&name).contains("their sessions expire"), "{name} has expired a session");
    }
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_master_that_stood_still_longer_than_sessions_live_expires_none() {
    assert_nothing_expires_while_all_masters_stand_still(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_masters_that_stood_still_longer_than_sessions_live_expire_none() {
    assert_nothing_expires_while_all_masters_stand_still(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_masters_that_stood_still_longer_than_sessions_live_expire_none() {
    assert_nothing_expires_while_all_masters_stand_still(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_followers_stood_still_expires_no_session_when_they_wake() {
    let cluster = cluster(3, 0);
    let before = cluster.wait_whole();
    let client = SilentClient::start(&cluster).await;
    stand_still(&cluster, &cluster.followers()).await;
    // What a leader without a quorum has proposed is committed before this is.
    client.assert_lives(&cluster, "without a quorum no client could renew").await;
    assert_eq!(cluster.wait_whole(), before);
    cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_alone_gives_up_no_member_no_worker_and_no_session() {
    let cluster = cluster(3, 1);
    let before = cluster.wait_whole();
    // Its session is for the new leader to end, which watches all the time.
    SilentClient::start(&cluster).await;
    let (leader, term) = cluster.wait_leader();
    cluster.dev.pause(&leader).expect("paused");
    wait_for("another leader", PATIENCE, || cluster.leader().filter(|(_, now)| *now > term));
    let_pass(TTL, "the old leader stands still").await;
    cluster.dev.resume(&leader).expect("resumed");
    wait_for("the old leader follows", PATIENCE, || {
        let status = cluster.dev.status(&leader).ok()?;
        (status.term > term && !status.quorum).then_some(())
    });
    assert_eq!(cluster.wait_whole(), before, "no member was replaced");
    assert!(!cluster.log_of(&leader).contains("their sessions expire"), "the old leader has expired a session");
    let workers = worker_states(&cluster, &leader).await;
    assert_eq!(workers, [WorkerState::Live], "the old leader has not heard the worker for longer than its timeout");
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_count_as_alive_right_after_all_masters_stood_still() {
    let cluster = cluster(1, 1);
    assert_eq!(worker_states(&cluster, "master-0").await, [WorkerState::Live]);
    // The worker stands still a little longer: its heartbeats cannot help.
    cluster.dev.pause("worker-0").expect("paused");
    stand_still(&cluster, &cluster.names()).await;
    assert_eq!(worker_states(&cluster, "master-0").await, [WorkerState::Live], "nothing was watched");
    let mut states = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while states != [WorkerState::Lost] {
        assert!(Instant::now() < deadline, "a worker that is gone must be noticed, it is {states:?}");
        let_pass(TTL / 10, "the master watches").await;
        states = worker_states(&cluster, "master-0").await;
    }
    cluster.dev.resume("worker-0").expect("resumed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stands_still_alone_loses_its_session_and_its_lock() {
    let cluster = cluster(1, 0);
    let client = SilentClient::start(&cluster).await;
    let deadline = Instant::now() + PATIENCE;
    while client.is_locked(&cluster).await {
        assert!(Instant::now() < deadline, "the lock of a client that is gone must end");
        let_pass(TTL / 10, "the master watches").await;
    }
    assert_eq!(client.mutate(&cluster).await, Err(ErrorKind::SessionExpired));
}

async fn worker_states(cluster: &Cluster, master: &str) -> Vec<WorkerState> {
    use jindofs_proto::v1::WorkersRequest;
    use jindofs_proto::v1::block_client::BlockClient;
    let address = cluster.dev.process(master).expect("a process").grpc.expect("an address");
    let mut client = BlockClient::connect(format!("http://{address}")).await.expect("connected");
    let answer = client.workers(WorkersRequest::default()).await.expect("listed").into_inner();
    answer.workers.iter().map(jindofs_proto::v1::WorkerInfo::state).collect()
}
