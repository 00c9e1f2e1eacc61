//! Snapshots on their way to a member: slow, interrupted, declined.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jindofs::client::admin;
use jindofs_proto::raft::v1::raft_client::RaftClient;
use jindofs_proto::raft::v1::snapshot_answer::Answer;
use jindofs_proto::raft::v1::snapshot_chunk::Chunk;
use jindofs_proto::raft::v1::{
    Header, ProbeRequest, SnapshotChunk, SnapshotData, SnapshotEnd, SnapshotManifest, SnapshotStart, Vote,
};
use prost::Message;

use super::grown::{self, assert_whole};
use crate::support::cluster::PATIENCE;
use crate::support::wait_for;
use crate::support::writers::Load;

/// Bytes before the message in a `SNAPSHOT` file: magic, format, checksum.
const MANIFEST_HEADER: usize = 16;

fn snapshot_dirs(meta_dir: &Path) -> Vec<String> {
    let items = fs::read_dir(meta_dir.join("snapshots")).expect("list");
    let mut names: Vec<String> =
        items.map(|item| item.expect("item").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_transfer_makes_a_voter_although_writers_and_snapshots_go_on() {
    let settings = [
        ("namespace.backend.raft.snapshot-log-size", "256KiB"),
        ("namespace.backend.raft.keep-log-size", "64KiB"),
        ("namespace.backend.snapshot-send-bytes-per-second", "100KiB"),
    ];
    let cluster = grown::start(3, &settings).await;
    let load = Load::start(&cluster, "/load", 4).await;
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    cluster.dev.wipe_meta(&name).expect("wiped");
    // Snapshots with a purge of everything behind them, as often as they can be built.
    let stop = Arc::new(AtomicBool::new(false));
    let built = {
        let (stop, channel) = (stop.clone(), cluster.client().channel().clone());
        let sound = cluster.names().into_iter().filter(|other| *other != name);
        let masters: Vec<String> =
            sound.map(|name| cluster.dev.process(&name).expect("a process").grpc.expect("an address")).collect();
        tokio::spawn(async move {
            let mut built = 0;
            while !stop.load(Ordering::SeqCst) {
                for address in &masters {
                    built += usize::from(admin::snapshot(&channel, address, true, PATIENCE).await.is_ok());
                }
            }
            built
        })
    };
    cluster.dev.restart(&name).expect("restarted");
    cluster.wait_whole();
    stop.store(true, Ordering::SeqCst);
    let built = built.await.expect("the snapshots");
    let outcome = load.stop("/load").await;
    let sent: usize = cluster.names().iter().map(|name| cluster.log_of(name).matches("snapshot sent").count()).sum();
    println!("{built} snapshots were built, {sent} sent, {} operations meanwhile", outcome.operations);
    assert!(built >= 3, "the snapshots did not go on");
    assert!(sent <= 2, "the learner was sent {sent} snapshots: the log behind them was purged");
    outcome.assert_on(&cluster.client()).await;
    assert_whole(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_goes_on_where_the_receivers_death_has_cut_it() {
    let cluster = grown::start(3, &[]).await;
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    cluster.dev.wipe_meta(&name).expect("wiped");
    cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", Some("snapshot.chunk=5*kill")).expect("set");
    cluster.dev.launch(&name).expect("launched");
    cluster.dev.wait_end(&name, PATIENCE).expect("it dies at the fifth chunk");
    let left = snapshot_dirs(&cluster.meta_dir(&name));
    assert!(left.len() == 1 && left[0].starts_with("incoming-"), "{left:?}");
    cluster.dev.set_env(&name, "JINDOFS_FAILPOINTS", None).expect("set");
    cluster.dev.restart(&name).expect("restarted");
    assert_whole(&cluster).await;
    assert!(cluster.metric(&name, "jindofs_master_snapshot_reused_bytes") > 0, "everything was sent again");
    assert!(snapshot_dirs(&cluster.meta_dir(&name)).iter().all(|dir| !dir.starts_with("incoming-")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_whose_sender_dies_is_ended_by_the_next_leader() {
    let cluster = grown::start(3, &[]).await;
    let leader = grown::lead_with_failpoints(&cluster, "snapshot.send=3*kill");
    let name = cluster.followers().remove(0);
    cluster.dev.kill(&name).expect("killed");
    cluster.dev.wipe_meta(&name).expect("wiped");
    cluster.dev.launch(&name).expect("launched");
    cluster.dev.wait_end(&leader, PATIENCE).expect("the sender dies");
    cluster.dev.set_env(&leader, "JINDOFS_FAILPOINTS", None).expect("set");
    cluster.dev.restart(&leader).expect("restarted");
    assert_whole(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_declined_leaves_nothing() {
    let cluster = grown::start(3, &[]).await;
    let (leader, _) = cluster.wait_leader();
    let name = cluster.followers().remove(0);
    let before = snapshot_dirs(&cluster.meta_dir(&name));
    // The leader's own snapshot, from a leader of a term long past: sound, and to be declined.
    let source = cluster.meta_dir(&leader).join("snapshots").join(&snapshot_dirs(&cluster.meta_dir(&leader))[0]);
    let manifest = fs::read(source.join("SNAPSHOT")).expect("a manifest");
    let mut manifest = SnapshotManifest::decode(&manifest[MANIFEST_HEADER..]).expect("decoded");
    let of_the_past = manifest.last_log_id.expect("an id");
    for forged in [false, true] {
        let raft = cluster.dev.process(&name).expect("a process").raft.expect("an address");
        let mut client = RaftClient::connect(format!("http://{raft}")).await.expect("connected");
        let request = ProbeRequest { nonce: vec![7; 16].into(), ..ProbeRequest::default() };
        let probe = client.probe(request).await.expect("probed").into_inner();
        let header = Header {
            cluster_uuid: probe.cluster_uuid,
            target_id: probe.member_id,
            sender_id: 4711,
            incarnation: vec![9; 16].into(),
            boot: 1,
            boot_nonce: vec![9; 16].into(),
        };
        if forged {
            // An entry of a leader later than the sender: openraft asserts that there is none.
            manifest.last_log_id.as_mut().expect("an id").term = u64::MAX;
        }
        let vote = Some(Vote { term: of_the_past.term, node_id: of_the_past.node_id, committed: true });
        let start = SnapshotStart { header: Some(header), vote, manifest: Some(manifest.clone()) };
        match (forged, send(&mut client, start, &source).await) {
            (false, Ok(Some(Answer::Installed(_)))) | (true, Err(_)) => {}
            (_, answer) => panic!("{answer:?}"),
        }
        let left = || (snapshot_dirs(&cluster.meta_dir(&name)) == before).then_some(());
        wait_for("nothing of it is left", PATIENCE, left);
    }
    assert_whole(&cluster).await;
}

/// Sends what the receiver wants of the snapshot in `source`; its last answer.
async fn send(
    client: &mut RaftClient<tonic::transport::Channel>,
    start: SnapshotStart,
    source: &Path,
) -> Result<Option<Answer>, tonic::Status> {
    let (out, chunks) = tokio::sync::mpsc::channel(64);
    let chunk = |chunk: Chunk| SnapshotChunk { chunk: Some(chunk) };
    out.send(chunk(Chunk::Start(start))).await.expect("queued");
    let stream = tokio_stream::wrappers::ReceiverStream::new(chunks);
    let mut answers = client.install_snapshot(stream).await?.into_inner();
    let Some(Answer::Wanted(wanted)) = answers.message().await?.and_then(|answer| answer.answer) else {
        panic!("the first answer names files");
    };
    for file in wanted.files {
        let data = fs::read(source.join(&file.file)).expect("read");
        let data =
            SnapshotData { file: file.file, offset: file.offset, data: data[file.offset as usize..].to_vec().into() };
        out.send(chunk(Chunk::Data(data))).await.expect("sent");
    }
    out.send(chunk(Chunk::End(SnapshotEnd {}))).await.expect("sent");
    let waited = tokio::time::timeout(Duration::from_secs(30), answers.message()).await;
    waited.expect("an answer in time").map(|answer| answer.and_then(|answer| answer.answer))
}

#[test]
fn a_checkpoint_is_looked_at_without_being_changed() {
    use jindofs::master::store::{Store, StoreOptions};
    let dir = tempfile::tempdir().expect("tempdir");
    let store = Store::open(&dir.path().join("state"), &StoreOptions::default()).expect("opened");
    let copy = dir.path().join("copy");
    store.checkpoint(&copy).expect("a checkpoint");
    let listing = || {
        let mut found: Vec<_> = fs::read_dir(&copy)
            .expect("list")
            .map(|item| item.expect("item"))
            .map(|item| (item.file_name(), fs::read(item.path()).expect("read")))
            .collect();
        found.sort();
        found
    };
    let before = listing();
    let looked = Store::open_read_only(&copy).expect("opened");
    looked.verify().expect("sound");
    drop(looked);
    assert!(listing() == before, "the checkpoint has changed");
    fs::remove_file(copy.join("CURRENT")).expect("removed");
    Store::open_read_only(&copy).expect_err("it is not created anew");
}
