//! Strangers speak to a member, and one answers in its place.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::raft_client::RaftClient;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::wait_for;

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

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_does_not_spin_while_connections_to_a_member_are_closed_at_once() {
    let cluster = Cluster::start(3);
    cluster.wait_leader();
    let follower = cluster.followers().remove(0);
    let address = cluster.dev.process(&follower).expect("a process").raft.expect("an address");
    cluster.dev.kill(&follower).expect("killed");
    let listener = wait_for("its address is free", PATIENCE, || TcpListener::bind(&address).ok());
    let connections = 60;
    let took = tokio::task::block_in_place(|| {
        drop(listener.accept().expect("the leader looks for it"));
        let began = Instant::now();
        for _ in 0..connections {
            drop(listener.accept().expect("the leader tries again"));
        }
        began.elapsed()
    });
    // Replication and heartbeats each pause for a tenth of a second, and others ask who is there.
    assert!(took > Duration::from_millis(1200), "{connections} connections within {took:?}");
    drop(listener);
    cluster.dev.restart(&follower).expect("started");
    cluster.wait_whole();
    cluster.assert_no_panic();
}
