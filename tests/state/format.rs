//! The disk format of a release stays readable: a metadata directory of format 4 is kept here and opened by every later
//! release. `JINDOFS_WRITE_FIXTURE=format-N make test TEST=of_format_4` writes a new one for a new format. One of format 3
//! is kept to show that it is refused by number.

use std::path::{Path, PathBuf};
use std::process::Command;

use jindofs::client::namespace::at_path;
use jindofs::error::{Error, ErrorKind};
use jindofs::rpc::status::{from_detail, from_status};
use jindofs_proto::v1::namespace_client::NamespaceClient;
use jindofs_proto::v1::{
    BatchOp, BatchRequest, FileType, OpId, OpenSessionRequest, SetAttrRequest, SymlinkRequest, UnlinkRequest, batch_op,
    batch_result,
};
use tonic::transport::Channel;

use crate::support::ROOT;
use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::writers::{create_request, make_dir, names};

fn fixture(name: &str) -> PathBuf {
    Path::new(ROOT).join("tests/fixtures").join(format!("{name}.tar.gz"))
}

fn tar(arguments: &[&str], archive: &Path, dir: &Path) {
    let mut command = Command::new("tar");
    command.args(arguments).arg("-f").arg(archive).arg("-C").arg(dir);
    if arguments.contains(&"-c") {
        command.arg(".");
    }
    assert!(command.status().expect("tar runs").success());
}

/// A client that repeats its operations after the fixture was opened.
const CLIENT: [u8; 16] = [9; 16];

async fn raw(cluster: &Cluster) -> NamespaceClient<Channel> {
    let (name, _) = cluster.wait_leader();
    let address = cluster.dev.process(&name).expect("a process").grpc.expect("an address");
    NamespaceClient::connect(format!("http://{address}")).await.expect("connected")
}

/// Removes what is not there, by itself and in a batch: always the same two operations, which are refused.
async fn refused(client: &mut NamespaceClient<Channel>) -> [Error; 2] {
    let op = |seq| Some(OpId { client_id: CLIENT.to_vec().into(), seq, acked_below: 1 });
    let unlink = |op| UnlinkRequest { op, target: Some(at_path("/dir/missing")) };
    let alone = from_status(&client.unlink(unlink(op(1))).await.expect_err("refused"));
    let ops = vec![BatchOp { op: Some(batch_op::Op::Unlink(unlink(None))) }];
    let mut batch = client.batch(BatchRequest { op: op(2), ops }).await.expect("answered").into_inner();
    let Some(batch_result::Result::Error(detail)) = batch.results.remove(0).result else { panic!("it was removed") };
    [alone, from_detail(&detail)]
}

/// What the fixture holds: names, a rename, a link, attributes, refusals, a snapshot, and log entries behind it.
async fn write(cluster: &Cluster) {
    let client = cluster.client();
    make_dir(&client, "/dir/deep").await;
    for number in 0..100 {
        client.create(create_request(&format!("/dir/{number}"))).await.expect("created");
    }
    let mut raw = raw(cluster).await;
    let open = OpenSessionRequest { client_id: CLIENT.to_vec().into(), description: "a test".into() };
    raw.open_session(open).await.expect("opened");
    assert!(refused(&mut raw).await.iter().all(|error| error.kind == ErrorKind::NotFound));
    cluster.snapshot_and_purge().await;
    client.rename(at_path("/dir/99"), at_path("/dir/deep/moved"), true).await.expect("renamed");
    let link = SymlinkRequest {
        target: Some(at_path("/dir/link")),
        link_target: b"deep/moved".to_vec().into(),
        ..SymlinkRequest::default()
    };
    client.symlink(link).await.expect("linked");
    let attr = SetAttrRequest {
        target: Some(at_path("/dir/0")),
        mode: Some(0o600),
        mtime_ns: Some(1_700_000_000_123_456_789),
        ..SetAttrRequest::default()
    };
    client.set_attr(attr).await.expect("changed");
    client.unlink(at_path("/dir/1")).await.expect("unlinked");
    client.session().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_directory_of_format_4_is_opened_and_holds_what_it_held() {
    let cluster = Cluster::start(1);
    let dir = cluster.meta_dir("master-0");
    if let Ok(name) = std::env::var("JINDOFS_WRITE_FIXTURE") {
        write(&cluster).await;
        cluster.dev.term("master-0").expect("stopped");
        tar(&["-c", "-z", "--exclude=LOCK"], &fixture(&name), &dir);
        return;
    }
    cluster.dev.kill("master-0").expect("killed");
    cluster.dev.wipe_meta("master-0").expect("wiped");
    tar(&["-x", "-z"], &fixture("format-4"), &dir);
    cluster.dev.launch("master-0").expect("launched");
    let client = cluster.client();
    let found = names(&client, "/dir").await;
    assert_eq!(found.len(), 100, "98 files, a directory and a link");
    assert!(!found.contains("/dir/1") && !found.contains("/dir/99"));
    let moved = client.lookup(at_path("/dir/deep/moved")).await.expect("the moved file");
    assert_eq!(moved.r#type(), FileType::File);
    let link = client.lookup(at_path("/dir/link")).await.expect("the link");
    assert_eq!((link.r#type(), &link.symlink_target[..]), (FileType::Symlink, &b"deep/moved"[..]));
    let changed = client.lookup(at_path("/dir/0")).await.expect("the changed file");
    assert_eq!((changed.mode & 0o7777, changed.mtime_ns), (0o600, 1_700_000_000_123_456_789));
    // It is there now, and the operations that were refused before are not executed.
    client.create(create_request("/dir/missing")).await.expect("it also writes");
    for error in refused(&mut raw(&cluster).await).await {
        assert!(error.kind == ErrorKind::NotFound && error.message.contains("\"missing\""), "{error}");
    }
    client.lookup(at_path("/dir/missing")).await.expect("it is still there");
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_directory_of_format_3_is_refused_by_number_and_left_as_it_is() {
    let cluster = Cluster::start(1);
    let dir = cluster.meta_dir("master-0");
    cluster.dev.kill("master-0").expect("killed");
    cluster.dev.wipe_meta("master-0").expect("wiped");
    tar(&["-x", "-z"], &fixture("format-3"), &dir);
    let identity = std::fs::read(dir.join("IDENTITY")).expect("read");
    cluster.dev.launch("master-0").expect("launched");
    assert_eq!(cluster.dev.wait_end("master-0", PATIENCE).expect("it refuses to run").code(), Some(1));
    let log = cluster.log_of("master-0");
    assert!(log.contains("format is 3, this release reads 4") && log.contains("Way out"), "{}", tail(&log));
    assert_eq!(std::fs::read(dir.join("IDENTITY")).expect("read"), identity);
}
