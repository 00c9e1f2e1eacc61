//! The network lets go of a member again and again, and strangers speak to it.

use std::time::{Duration, Instant};

use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::raft_client::RaftClient;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::partition::{Cut, partitions_work};
use crate::support::wait_until;
use crate::support::writers::Load;

/// How long a member hears nothing: longer than the longest election timeout of fast elections.
const SILENCE: Duration = Duration::from_millis(800);

/// The hardest partition for terms: the follower hears nobody, so its election timer runs out, but everybody hears it.
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
    let time = std::env::var("JINDOFS_FLAPPING_S").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
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
async fn raft_messages_of_another_cluster_or_to_another_member_are_refused_and_change_nothing() {
    let cluster = Cluster::start(3);
    let (leader, term) = cluster.wait_leader();
    let follower = cluster.followers().remove(0);
    let status = cluster.dev.status(&follower).expect("a status");
    let own = status.self_.expect("a member");
    let sender = status.members.iter().find(|member| member.id != own.id).expect("another").id;
    let raft = cluster.dev.process(&follower).expect("a process").raft.expect("an address");
    let mut client = RaftClient::connect(format!("http://{raft}")).await.expect("connected");
    let vote = Some(wire::Vote { term: term + 100, node_id: sender, committed: false });
    let header = |cluster_uuid: &[u8], target_id| {
        let uuid = cluster_uuid.to_vec().into();
        Some(wire::Header { cluster_uuid: uuid, target_id, sender_id: sender, ..wire::Header::default() })
    };
    for header in [header(&[9; 16], own.id), header(&status.cluster_uuid, own.id + 1000), None] {
        let asked = wire::VoteRequest { header, vote, ..wire::VoteRequest::default() };
        let refused = client.vote(asked.clone()).await.expect_err("refused");
        println!("{}", refused.message());
        client.pre_vote(asked.clone()).await.expect_err("refused");
        let read = wire::ReadIndexRequest { header: asked.header, vouched_term: term };
        client.read_index(read).await.expect_err("refused");
    }
    let append = wire::AppendRequest { header: header(&[9; 16], own.id), vote, ..wire::AppendRequest::default() };
    let answers = client.append(futures::stream::iter([append])).await;
    let refused = match answers {
        Err(status) => status,
        Ok(answers) => answers.into_inner().message().await.expect_err("refused"),
    };
    assert!(refused.message().contains("cluster"), "{refused}");
    assert_eq!(cluster.leader(), Some((leader, term)));
    assert_eq!(cluster.dev.status(&follower).expect("a status").term, term);
}
