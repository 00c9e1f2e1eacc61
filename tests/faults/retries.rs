//! A mutation happens once, however often it is sent.

use jindofs::rpc::status::from_status;
use jindofs_proto::v1::namespace_client::NamespaceClient;
use jindofs_proto::v1::{
    BatchOp, BatchRequest, BatchResponse, MkdirRequest, MutationResponse, OpId, OpenSessionRequest, RenameRequest,
    UnlinkRequest, batch_op,
};
use tonic::transport::Channel;

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::wait_for;
use crate::support::writers::create_request;
use jindofs::client::namespace::at_path;

const CLIENT: [u8; 16] = [9; 16];

fn op(seq: u64) -> Option<OpId> {
    Some(OpId { client_id: CLIENT.to_vec().into(), seq, acked_below: 1 })
}

async fn leader(cluster: &Cluster) -> NamespaceClient<Channel> {
    let (name, _) = cluster.wait_leader();
    let address = cluster.dev.process(&name).expect("a process").grpc.expect("an address");
    NamespaceClient::connect(format!("http://{address}")).await.expect("connected")
}

/// The five mutations with fixed numbers.
async fn send_all(cluster: &Cluster) -> (Vec<Result<MutationResponse, String>>, Result<BatchResponse, String>) {
    let mut client = leader(cluster).await;
    let text = |status: tonic::Status| format!("{:?}", from_status(&status).kind);
    let mut create = create_request("/file");
    create.op = op(1);
    let mkdir = MkdirRequest { op: op(2), target: Some(at_path("/dir")), mode: 0o755, ..MkdirRequest::default() };
    let rename = RenameRequest {
        op: op(3),
        from: Some(at_path("/file")),
        to: Some(at_path("/dir/file")),
        ..RenameRequest::default()
    };
    let unlink = UnlinkRequest { op: op(4), target: Some(at_path("/dir/file")) };
    let two = ["/x", "/x"].map(|path| BatchOp { op: Some(batch_op::Op::Create(create_request(path))) });
    let batch = BatchRequest { op: op(5), ops: two.to_vec() };
    let answers = vec![
        client.create(create).await.map(tonic::Response::into_inner).map_err(text),
        client.mkdir(mkdir).await.map(tonic::Response::into_inner).map_err(text),
        client.rename(rename).await.map(tonic::Response::into_inner).map_err(text),
        client.unlink(unlink).await.map(tonic::Response::into_inner).map_err(text),
    ];
    (answers, client.batch(batch).await.map(tonic::Response::into_inner).map_err(text))
}

#[tokio::test(flavor = "multi_thread")]
async fn retried_mutations_get_their_first_outcome_across_leaders_and_snapshots() {
    let cluster = Cluster::start(3);
    let (name, _) = cluster.wait_leader();
    // The leader commits, but its answers never arrive.
    cluster.dev.kill(&name).expect("killed");
    cluster.dev.restart(&name).expect("restarted");
    for member in cluster.names() {
        cluster.dev.kill(&member).expect("killed");
        cluster.dev.set_env(&member, "JINDOFS_FAILPOINTS", Some("propose.reply=skip")).expect("set");
    }
    for member in cluster.names() {
        cluster.dev.restart(&member).expect("restarted");
    }
    let mut client = leader(&cluster).await;
    let open = OpenSessionRequest { client_id: CLIENT.to_vec().into(), description: "test".into() };
    client.open_session(open).await.expect_err("the answer is dropped");
    let (lost, lost_batch) = send_all(&cluster).await;
    assert!(lost.iter().all(|answer| answer.as_ref().is_err_and(|kind| kind == "OutcomeUnknown")), "{lost:?}");
    assert!(lost_batch.is_err());

    // Another leader answers the retries.
    for member in cluster.names() {
        cluster.dev.kill(&member).expect("killed");
        cluster.dev.set_env(&member, "JINDOFS_FAILPOINTS", None).expect("set");
    }
    for member in cluster.names() {
        cluster.dev.restart(&member).expect("restarted");
    }
    let (first, batch) = send_all(&cluster).await;
    assert!(first.iter().all(Result::is_ok), "{first:?}");
    let outcomes = batch.clone().expect("a batch").results;
    assert!(matches!(outcomes[0].result, Some(jindofs_proto::v1::batch_result::Result::Ok(_))), "{outcomes:?}");
    assert!(matches!(outcomes[1].result, Some(jindofs_proto::v1::batch_result::Result::Error(_))), "{outcomes:?}");

    // And a leader that has everything from a snapshot.
    cluster.snapshot_and_purge().await;
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    cluster.dev.wipe_meta(&name).expect("wiped");
    cluster.dev.restart(&name).expect("restarted");
    cluster.wait_whole();
    let id = cluster.member_id(&name);
    let channel = cluster.client().channel().clone();
    jindofs::client::admin::transfer_leader(&channel, id).await.expect("handed over");
    wait_for("the new member leads", PATIENCE, || cluster.leader().filter(|(leader, _)| *leader == name));
    assert_eq!(send_all(&cluster).await, (first, batch));
    cluster.assert_digests_equal().await;
}
