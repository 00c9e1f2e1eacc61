//! Clusters whose data lies in table files, with an empty log before it.

use jindofs_proto::v1::{BatchOp, batch_op};

use crate::support::cluster::Cluster;
use crate::support::writers::{create_request, make_dir, names};

const FILES: usize = 6_000;

/// Points at which the installation of a snapshot, from its first step to its last, can be cut.
pub const INSTALL_POINTS: [&str; 7] = [
    "install.begin",
    "install.renamed",
    "install.opened",
    "install.pointed",
    "snapshot.checkpoint",
    "snapshot.sealed",
    "install.done",
];

/// Starts masters with these settings and makes files.
pub async fn start(masters: usize, settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start_with(masters, |options| {
        options.settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    });
    let client = cluster.client();
    make_dir(&client, "/d").await;
    for batch in 0..FILES / 200 {
        let create = |number: usize| BatchOp {
            op: Some(batch_op::Op::Create(create_request(&format!("/d/a-name-of-some-length-{batch}-{number}")))),
        };
        for result in client.batch((0..200).map(create).collect()).await.expect("a batch") {
            result.expect("created");
        }
    }
    cluster.snapshot_and_purge().await;
    cluster
}

/// Restarts the leader with these failpoints and makes it lead again; its name.
pub fn lead_with_failpoints(cluster: &Cluster, points: &str) -> String {
    let (leader, _) = cluster.wait_leader();
    cluster.dev.kill(&leader).expect("killed");
    cluster.dev.set_env(&leader, "JINDOFS_FAILPOINTS", Some(points)).expect("set");
    cluster.dev.restart(&leader).expect("restarted");
    cluster.wait_whole();
    cluster.transfer_leader(&leader);
    leader
}

/// Every file is there, at every master the same.
pub async fn assert_whole(cluster: &Cluster) {
    cluster.wait_whole();
    assert_eq!(names(&cluster.client(), "/d").await.len(), FILES);
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}
