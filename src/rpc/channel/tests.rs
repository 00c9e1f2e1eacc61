//! Scripted masters that answer Status and nothing else: the channel must find, follow and outlive them.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jindofs_proto::v1::admin_server::{Admin, AdminServer};
use jindofs_proto::v1::*;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::error::{Error, ErrorKind, LeaderHint};
use crate::rpc::status::to_status;

#[derive(Clone)]
enum Answer {
    Leads,
    Hints(String),
    Silent,
    Fails(ErrorKind),
    /// As another service that speaks gRPC.
    Foreign,
}

#[derive(Clone)]
struct Master {
    answer: Arc<Mutex<Answer>>,
    calls: Arc<AtomicU32>,
    address: String,
    /// Its own, so that killing it cuts the connections too.
    process: Arc<Mutex<Option<tokio::runtime::Runtime>>>,
}

impl Master {
    async fn start(answer: Answer) -> Master {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let listener = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await.expect("join").expect("bind");
        let master = Master {
            answer: Arc::new(Mutex::new(answer)),
            calls: Arc::default(),
            address: listener.local_addr().expect("address").to_string(),
            process: Arc::default(),
        };
        let server = tonic::transport::Server::builder().add_service(AdminServer::new(master.clone()));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        *master.process.lock().expect("lock") = Some(runtime);
        master
    }

    fn now(&self, answer: Answer) {
        *self.answer.lock().expect("lock") = answer;
    }

    fn kill(&self) {
        if let Some(runtime) = self.process.lock().expect("lock").take() {
            runtime.shutdown_background();
        }
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // The service holds clones; the test's own is the last but those.
        if Arc::strong_count(&self.process) <= 2 {
            self.kill();
        }
    }
}

#[tonic::async_trait]
impl Admin for Master {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().expect("lock").clone();
        match answer {
            Answer::Leads => Ok(Response::new(StatusResponse { leader_id: 7, ..Default::default() })),
            Answer::Hints(address) => {
                let leader = Some(LeaderHint { id: 1, address });
                Err(to_status(&Error { kind: ErrorKind::NotLeader, message: "follower".into(), leader }))
            }
            Answer::Silent => std::future::pending().await,
            Answer::Fails(kind) => Err(to_status(&Error::new(kind, "scripted"))),
            Answer::Foreign => Err(Status::unimplemented("")),
        }
    }
    async fn provision(&self, _: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn digest(&self, _: Request<DigestRequest>) -> Result<Response<DigestResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn add_members(&self, _: Request<AddMembersRequest>) -> Result<Response<AddMembersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn remove_members(
        &self,
        _: Request<RemoveMembersRequest>,
    ) -> Result<Response<RemoveMembersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn promote_member(
        &self,
        _: Request<PromoteMemberRequest>,
    ) -> Result<Response<PromoteMemberResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn can_restart(&self, _: Request<CanRestartRequest>) -> Result<Response<CanRestartResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn drain_workers(&self, _: Request<DrainWorkersRequest>) -> Result<Response<DrainWorkersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn remove_workers(
        &self,
        _: Request<RemoveWorkersRequest>,
    ) -> Result<Response<RemoveWorkersResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<SnapshotResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn channel(masters: &[&Master], timeout: Duration) -> MasterChannel {
    let masters = masters.iter().map(|master| master.address.clone()).collect();
    MasterChannel::new(&ClientConfig { masters, rpc_timeout: timeout, hard: false })
}

async fn to_leader(channel: &MasterChannel) -> Result<StatusResponse> {
    channel.call_leader("ask", |to| async move { admin(to).status(StatusRequest {}).await }).await
}

async fn to_any(channel: &MasterChannel) -> Result<StatusResponse> {
    channel.call_any("ask", |to| async move { admin(to).status(StatusRequest {}).await }).await
}

const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_hint_is_followed_even_to_a_master_that_was_not_configured() {
    let leader = Master::start(Answer::Leads).await;
    let follower = Master::start(Answer::Hints(leader.address.clone())).await;
    let channel = channel(&[&follower], PATIENT);
    assert_eq!(to_leader(&channel).await.expect("an answer").leader_id, 7);
    assert_eq!(channel.leader(), Some(leader.address.clone()));
    to_leader(&channel).await.expect("an answer");
    assert_eq!(follower.calls(), 1, "the leader is remembered");
}

#[tokio::test]
async fn masters_that_hint_at_each_other_make_no_busy_loop() {
    let first = Master::start(Answer::Leads).await;
    let second = Master::start(Answer::Hints(first.address.clone())).await;
    first.now(Answer::Hints(second.address.clone()));
    let channel = channel(&[&first, &second], Duration::from_millis(500));
    let error = to_leader(&channel).await.expect_err("no leader");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains(&first.address) && error.message.contains(&second.address), "{error}");
    assert!(first.calls() + second.calls() < 120, "{} + {} calls", first.calls(), second.calls());
}

#[tokio::test]
async fn a_new_leader_is_noticed_soon_after_its_election() {
    let old = Master::start(Answer::Leads).await;
    let new = Master::start(Answer::Fails(ErrorKind::Unavailable)).await;
    let channel = channel(&[&old, &new], PATIENT);
    to_leader(&channel).await.expect("an answer");
    old.kill();
    let elected = Arc::new(Mutex::new(None));
    let (seen, master) = (elected.clone(), new.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        *seen.lock().expect("lock") = Some(Instant::now());
        master.now(Answer::Leads);
    });
    let calls: Vec<_> = (0..64).map(|_| to_leader(&channel)).collect();
    for result in futures::future::join_all(calls).await {
        result.expect("every call ends at the new leader");
    }
    let elected = elected.lock().expect("lock").expect("elected");
    assert!(elected.elapsed() < Duration::from_millis(600), "noticed after {:?}", elected.elapsed());
}

#[tokio::test]
async fn reads_are_spread_and_pass_over_a_dead_master() {
    let all =
        [Master::start(Answer::Leads).await, Master::start(Answer::Leads).await, Master::start(Answer::Leads).await];
    let channel = channel(&[&all[0], &all[1], &all[2]], PATIENT);
    for _ in 0..30 {
        to_any(&channel).await.expect("an answer");
    }
    assert!(all.iter().all(|master| master.calls() >= 9), "{:?}", all.each_ref().map(Master::calls));
    all[1].kill();
    for _ in 0..30 {
        to_any(&channel).await.expect("the others answer");
    }
}

#[tokio::test]
async fn a_master_that_hangs_costs_one_attempt_not_the_deadline() {
    let hung = Master::start(Answer::Silent).await;
    let leader = Master::start(Answer::Leads).await;
    hung.now(Answer::Silent);
    let channel = channel(&[&hung, &leader], PATIENT);
    let started = Instant::now();
    for _ in 0..10 {
        to_any(&channel).await.expect("the other one answers");
    }
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_call_ends_by_its_deadline_and_says_whether_a_change_may_have_been_made() {
    let hung = Master::start(Answer::Silent).await;
    let slow = channel(&[&hung], Duration::from_millis(300));
    let error = to_leader(&slow).await.expect_err("no answer");
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("may have been made"), "{error}");

    let nobody = MasterChannel::new(&ClientConfig {
        masters: vec!["127.0.0.1:1".into()],
        rpc_timeout: Duration::from_millis(300),
        hard: false,
    });
    let error = to_leader(&nobody).await.expect_err("nobody is there");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("127.0.0.1:1") && error.message.contains("refused"), "{error}");
    assert!(nobody.failing_since().is_some());
}

#[tokio::test]
async fn an_error_that_is_an_answer_is_returned_at_once() {
    let leader = Master::start(Answer::Fails(ErrorKind::NotFound)).await;
    let channel = channel(&[&leader], PATIENT);
    assert_eq!(to_leader(&channel).await.expect_err("its answer").kind, ErrorKind::NotFound);
    assert_eq!(leader.calls(), 1);
}

#[tokio::test]
async fn an_address_without_port_is_refused_at_once() {
    let channel =
        MasterChannel::new(&ClientConfig { masters: vec!["master-0".into()], rpc_timeout: PATIENT, hard: false });
    assert_eq!(to_leader(&channel).await.expect_err("refused").kind, ErrorKind::InvalidArgument);
}

#[tokio::test]
async fn a_repetition_carries_the_request_it_was_first_sent_with() {
    let leader = Master::start(Answer::Fails(ErrorKind::OutcomeUnknown)).await;
    let channel = channel(&[&leader], PATIENT);
    let (built, master) = (AtomicU64::new(0), leader.clone());
    let answer = channel
        .call_leader("ask", |to| {
            if built.fetch_add(1, Ordering::Relaxed) == 2 {
                master.now(Answer::Leads);
            }
            async move { admin(to).status(StatusRequest {}).await }
        })
        .await;
    answer.expect("answered in the end");
    assert_eq!(leader.calls(), 3);
}

#[tokio::test]
async fn another_service_among_the_masters_is_passed_over_and_named_only_where_there_is_no_master() {
    let (master, other) = (Master::start(Answer::Leads).await, Master::start(Answer::Foreign).await);
    for _ in 0..8 {
        let both = channel(&[&master, &other], PATIENT);
        to_leader(&both).await.expect("an answer");
        to_any(&both).await.expect("an answer");
    }
    assert!(other.calls() > 0, "it was never asked");
    let began = Instant::now();
    let error = to_leader(&channel(&[&other], PATIENT)).await.expect_err("no master");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains(&other.address) && error.message.contains("no master"), "{error}");
    assert!(began.elapsed() < PATIENT / 2, "it was tried again for {:?}", began.elapsed());
}
