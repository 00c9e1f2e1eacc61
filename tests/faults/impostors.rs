//! Strangers that speak as a member, copies of a member's disk, and a start between two sets of voters.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use jindofs_proto::raft::v1 as wire;
use jindofs_proto::raft::v1::raft_client::RaftClient;
use tonic::transport::Channel;

use crate::support::cluster::{Cluster, PATIENCE, binary, tail};
use crate::support::writers::{create_request, make_dir, names};
use crate::support::{free_port, wait_for};

/// How soon a copy that runs notices the original: two announcements, and what a busy machine adds.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(20);

fn raft(cluster: &Cluster, name: &str) -> String {
    cluster.dev.process(name).expect("a process").raft.expect("a master")
}

fn grpc(cluster: &Cluster, name: &str) -> String {
    cluster.dev.process(name).expect("a process").grpc.expect("a master")
}

async fn peer(cluster: &Cluster, name: &str) -> RaftClient<Channel> {
    RaftClient::connect(format!("http://{}", raft(cluster, name))).await.expect("connected")
}

/// True if `/readyz` at this address answers 200.
fn answers_ready(http: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

fn is_ready(cluster: &Cluster, name: &str) -> bool {
    answers_ready(&cluster.dev.process(name).expect("a process").http)
}

/// Copies a directory as it is, as `cp -a` of a person does.
fn copy_dir(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

/// Copies the directory of a running master, which stands still meanwhile so that the copy is consistent.
fn copy_running(cluster: &Cluster, name: &str, to: &Path) {
    cluster.dev.pause(name).expect("paused");
    copy_dir(&cluster.meta_dir(name), to);
    cluster.dev.resume(name).expect("resumed");
}

/// Starts a master, which must end by itself and name the way out.
fn refused(cluster: &Cluster, name: &str, words: &[&str]) {
    cluster.dev.launch(name).expect("launched");
    let ended = cluster.dev.wait_end(name, PATIENCE);
    let log = cluster.log_of(name);
    let ended = ended.unwrap_or_else(|error| panic!("{name} must refuse to run: {error}\n{}", tail(&log)));
    assert_eq!(ended.code(), Some(1), "{}", tail(&log));
    for word in words.iter().chain(&["Way out"]) {
        assert!(log.contains(word), "expected {word:?} in:\n{}", tail(&log));
    }
}

/// A member as strangers can know it.
struct Victim {
    id: u64,
    cluster_uuid: Vec<u8>,
    incarnation: Vec<u8>,
    raft: String,
    grpc: String,
}

impl Victim {
    fn of(cluster: &Cluster, name: &str) -> Victim {
        let identity = fs::read_to_string(cluster.meta_dir(name).join("IDENTITY")).expect("an identity");
        let line = identity.lines().next().expect("a line");
        let json: serde_json::Value = serde_json::from_str(line).expect("json");
        let bytes = |key: &str| {
            let text = json[key].as_str().expect("a uuid");
            uuid::Uuid::parse_str(text).expect("a uuid").into_bytes().to_vec()
        };
        Victim {
            id: json["member_id"].as_u64().expect("an id"),
            cluster_uuid: bytes("cluster"),
            incarnation: bytes("incarnation"),
            raft: raft(cluster, name),
            grpc: grpc(cluster, name),
        }
    }

    fn announcement(&self, boot: u64, raft_address: &str) -> wire::AnnounceRequest {
        wire::AnnounceRequest {
            cluster_uuid: self.cluster_uuid.clone().into(),
            member_id: self.id,
            incarnation: self.incarnation.clone().into(),
            boot,
            boot_nonce: vec![7; 16].into(),
            last_log_index: u64::MAX,
            raft_address: raft_address.to_owned(),
            grpc_address: self.grpc.clone(),
            ..wire::AnnounceRequest::default()
        }
    }

    fn header(&self, target_id: u64, boot: u64) -> Option<wire::Header> {
        Some(wire::Header {
            cluster_uuid: self.cluster_uuid.clone().into(),
            target_id,
            sender_id: self.id,
            incarnation: self.incarnation.clone().into(),
            boot,
            boot_nonce: vec![7; 16].into(),
        })
    }
}

/// Announces the victim with starts it never had, at its own address, at another master's, and at an address without a
/// process. On the
/// victim's own address a process with the disk answers, unless it is down.
async fn forge_announcements(cluster: &Cluster, victim: &Victim, to: &str) {
    let mut client = peer(cluster, to).await;
    let nowhere = format!("127.0.0.1:{}", free_port());
    for address in [victim.raft.clone(), raft(cluster, to), nowhere] {
        for boot in [0, 1_000, u64::MAX] {
            let forged = client.announce(victim.announcement(boot, &address)).await;
            let welcome =
                forged.as_ref().is_ok_and(|answer| answer.get_ref().verdict() == wire::AnnounceVerdict::Welcome);
            assert!(!welcome, "{to} believes boot {boot} at {address}: {forged:?}");
        }
    }
    let long = wire::AnnounceRequest { boot_nonce: vec![7; 1 << 20].into(), ..victim.announcement(9, &victim.raft) };
    client.announce(long).await.expect_err("a nonce of 1 MiB");
    client.announce(victim.announcement(9, &"h".repeat(1 << 20))).await.expect_err("an address of 1 MiB");
}

/// Sends every kind of Raft message in the victim's name with a start it never had.
async fn forge_messages(cluster: &Cluster, victim: &Victim, to: &str) {
    let mut client = peer(cluster, to).await;
    let status = cluster.dev.status(to).expect("a status");
    let id = status.self_.expect("a member").id;
    let vote = Some(wire::Vote { term: status.term, node_id: victim.id, committed: true });
    for boot in [1_000, u64::MAX] {
        let header = victim.header(id, boot);
        let ask = wire::VoteRequest { header: header.clone(), vote, ..wire::VoteRequest::default() };
        client.vote(ask.clone()).await.expect_err("a vote");
        client.pre_vote(ask).await.expect_err("a pre-vote");
        let ask = wire::ReadIndexRequest { header: header.clone(), vouched_term: status.term };
        client.read_index(ask).await.expect_err("a read index");
        client.vouch(wire::VouchRequest { header: header.clone() }).await.expect_err("a word");
        let ask = wire::TransferRequest { header: header.clone(), from: vote, to: id, last_log_id: None };
        client.transfer_leader(ask).await.expect_err("a transfer");
        let append = wire::AppendRequest { header: header.clone(), vote, ..wire::AppendRequest::default() };
        if let Ok(answers) = client.append(futures::stream::iter([append])).await {
            answers.into_inner().message().await.expect_err("an append");
        }
        let start = wire::SnapshotStart { header, vote, ..wire::SnapshotStart::default() };
        let chunk = wire::SnapshotChunk { chunk: Some(wire::snapshot_chunk::Chunk::Start(start)) };
        client.install_snapshot(futures::stream::iter([chunk])).await.expect_err("a snapshot");
    }
}

async fn survives_forged_starts(masters: usize) {
    let cluster = Cluster::start(masters);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    cluster.wait_whole();
    let (leader, _) = cluster.wait_leader();
    let name = cluster.followers().pop().unwrap_or(leader);
    let victim = Victim::of(&cluster, &name);
    let boot = cluster.dev.status(&name).expect("a status").self_.expect("a member").boot;
    for to in cluster.names() {
        forge_announcements(&cluster, &victim, &to).await;
        forge_messages(&cluster, &victim, &to).await;
    }
    client.create(create_request("/d/while")).await.expect("the cluster serves");
    cluster.dev.kill(&name).expect("killed");
    for to in cluster.names().into_iter().filter(|to| *to != name) {
        forge_announcements(&cluster, &victim, &to).await;
        forge_messages(&cluster, &victim, &to).await;
    }
    cluster.dev.restart(&name).expect("the true member comes back");
    cluster.wait_whole();
    let status = cluster.dev.status(&name).expect("a status").self_.expect("a member");
    assert_eq!((status.id, status.boot), (victim.id, boot + 1));
    client.create(create_request("/d/after")).await.expect("the cluster serves");
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_starts_of_a_member_of_three_are_not_believed_and_it_comes_back() {
    survives_forged_starts(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_starts_of_a_member_of_five_are_not_believed_and_it_comes_back() {
    survives_forged_starts(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_starts_of_a_sole_master_are_not_believed_and_it_comes_back() {
    survives_forged_starts(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_running_masters_disk_is_refused_and_the_original_serves_on() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    for of_leader in [true, false] {
        cluster.wait_whole();
        let (leader, _) = cluster.wait_leader();
        let mut followers = cluster.followers();
        let victim = followers.pop().expect("a follower");
        let original = if of_leader { leader } else { followers.remove(0) };
        let id = cluster.member_id(&original);
        let (meta, aside) = (cluster.meta_dir(&victim), cluster.dir.path().join(format!("aside-{of_leader}")));
        cluster.dev.kill(&victim).expect("killed");
        fs::rename(&meta, &aside).expect("moved");
        copy_running(&cluster, &original, &meta);
        // Each start counts the copy's boot up, beyond the original's.
        for _ in 0..3 {
            refused(&cluster, &victim, &["is a copy", &raft(&cluster, &original), meta.to_str().expect("a path")]);
        }
        client.create(create_request(&format!("/d/{of_leader}"))).await.expect("the others serve");
        wait_for("the original is ready", PATIENCE, || is_ready(&cluster, &original).then_some(()));
        assert_eq!(cluster.member_id(&original), id);
        // Both ways out that the message names.
        fs::remove_dir_all(&meta).expect("removed");
        if of_leader {
            fs::rename(&aside, &meta).expect("moved back")
        } else {
            fs::create_dir(&meta).expect("made")
        }
        cluster.dev.restart(&victim).expect("restarted");
    }
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_copy_took_over_while_it_stood_still_notices_and_ends() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    cluster.wait_whole();
    let [original, place] = &cluster.followers()[..] else { panic!("two followers") };
    let id = cluster.member_id(original);
    cluster.dev.kill(place).expect("killed");
    cluster.dev.wipe_meta(place).expect("wiped");
    let meta = cluster.meta_dir(place);
    fs::remove_dir(&meta).expect("removed");
    // It acknowledges nothing after the copy is made.
    cluster.dev.pause(original).expect("paused");
    copy_dir(&cluster.meta_dir(original), &meta);
    // No process answers at the last address of the member: the one at the new address counts.
    cluster.dev.restart(place).expect("started");
    wait_for("the copy serves in the member's place", PATIENCE, || is_ready(&cluster, place).then_some(()));
    assert_eq!(cluster.member_id(place), id);
    client.create(create_request("/d/with-the-copy")).await.expect("a majority serves");
    cluster.dev.resume(original).expect("resumed");
    let ended = cluster.dev.wait_end(original, NOTICE_TIMEOUT);
    let log = cluster.log_of(original);
    let ended = ended.unwrap_or_else(|error| panic!("two processes run as member {id}: {error}\n{}", tail(&log)));
    assert_eq!(ended.code(), Some(1), "{}", tail(&log));
    assert!(log.contains("must not be used") && log.contains("Way out"), "{}", tail(&log));
    for _ in 0..3 {
        refused(&cluster, original, &["must not be used"]);
    }
    client.create(create_request("/d/after")).await.expect("a majority serves");
    assert_eq!(names(&client, "/d").await.len(), 2);
    assert!(is_ready(&cluster, place));
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_that_swapped_their_disks_serve_as_the_members_their_disks_are() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    cluster.wait_whole();
    let [one, two] = &cluster.followers()[..] else { panic!("two followers") };
    let ids = (cluster.member_id(one), cluster.member_id(two));
    let (dir_one, dir_two, aside) = (cluster.meta_dir(one), cluster.meta_dir(two), cluster.dir.path().join("aside"));
    cluster.dev.kill(one).expect("killed");
    cluster.dev.kill(two).expect("killed");
    for (from, to) in [(&dir_one, &aside), (&dir_two, &dir_one), (&aside, &dir_two)] {
        fs::rename(from, to).expect("moved");
    }
    for name in [one, two] {
        cluster.dev.launch(name).expect("launched");
    }
    wait_for("both serve", PATIENCE, || (is_up(&cluster, one) && is_up(&cluster, two)).then_some(()));
    client.create(create_request("/d/after")).await.expect("the cluster serves");
    cluster.wait_whole();
    assert_eq!((cluster.member_id(two), cluster.member_id(one)), ids);
    cluster.assert_digests_equal().await;
}

fn is_up(cluster: &Cluster, name: &str) -> bool {
    cluster.dev.status(name).is_ok_and(|status| status.self_.is_some_and(|own| own.state == "serving"))
}

/// A second master with the configuration of the sole one, but for its ports. Also where its `/readyz` is.
fn second_master(cluster: &Cluster, meta: &Path) -> (Child, String) {
    let http = free_port();
    let mut command = Command::new(binary("jindofs"));
    command.arg("master").stdout(Stdio::piped()).stderr(Stdio::piped());
    for set in [
        format!("namespace.meta-dir={}", meta.display()),
        format!("namespace.backend.raft.initial-conf={}", raft(cluster, "master-0")),
        "namespace.backend.raft.hostname=127.0.0.1".to_owned(),
        "namespace.backend.raft.fast-elections=true".to_owned(),
        "namespace.bind=127.0.0.1".to_owned(),
        format!("namespace.rpc.port={}", free_port()),
        format!("namespace.backend.raft.port={}", free_port()),
        format!("namespace.http.port={http}"),
    ] {
        command.args(["--set", &set]);
    }
    (command.spawn().expect("started"), format!("127.0.0.1:{http}"))
}

/// Waits until a second master has ended; kills it if it does not.
fn output_of(mut child: Child) -> Output {
    let deadline = std::time::Instant::now() + NOTICE_TIMEOUT;
    let ended = wait_for("the copy ends", NOTICE_TIMEOUT * 2, || match child.try_wait().expect("a status") {
        Some(_) => Some(true),
        None => (std::time::Instant::now() > deadline).then_some(false),
    });
    if !ended {
        child.kill().expect("killed");
    }
    let output = child.wait_with_output().expect("its output");
    assert!(ended, "the copy runs beside the original:\n{}", tail(&text(&output)));
    output
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_sole_master_ends_as_soon_as_the_original_answers() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let (meta, address) = (cluster.dir.path().join("copy"), raft(&cluster, "master-0"));
    copy_running(&cluster, "master-0", &meta);
    let output = output_of(second_master(&cluster, &meta).0);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let refusal = text(&output);
    assert!(refusal.contains("is a copy") && refusal.contains(&address) && refusal.contains("Way out"), "{refusal}");
    client.create(create_request("/d/while")).await.expect("the original serves");
    assert!(is_ready(&cluster, "master-0"));

    // Started while the original is down, it serves, and ends when the original is back.
    cluster.dev.kill("master-0").expect("killed");
    let (copy, http) = second_master(&cluster, &meta);
    wait_for("the copy serves", PATIENCE, || answers_ready(&http).then_some(()));
    cluster.dev.restart("master-0").expect("restarted");
    let output = output_of(copy);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("is a copy"), "{}", text(&output));
    client.create(create_request("/d/after")).await.expect("the original serves");
    assert_eq!(names(&client, "/d").await.len(), 2);
}

/// While voters change from {1, 2, 3} to {1, 2, 4}, two of three are enough in each set; of all four together they are not.
#[tokio::test(flavor = "multi_thread")]
async fn masters_that_all_died_between_two_sets_of_voters_serve_with_a_majority_of_each() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    cluster.wait_whole();
    // Else the next start would apply the founding again, which passes through two sets of voters too.
    cluster.snapshot_and_purge().await;
    let lost = cluster.followers().pop().expect("a follower");
    let stay: Vec<String> = cluster.names().into_iter().filter(|name| *name != lost).collect();
    let each = |point: Option<&str>| {
        for name in &stay {
            cluster.dev.set_env(name, "JINDOFS_FAILPOINTS", point).expect("set");
            // Those that died at the point are down already.
            let _ = cluster.dev.kill(name);
        }
        for name in &stay {
            cluster.dev.restart(name).expect("restarted");
        }
    };
    each(Some("members.joint=kill"));
    cluster.wait_whole();
    for number in 0..20 {
        client.create(create_request(&format!("/d/{number}"))).await.expect("created");
    }
    // Its disk is lost, another one takes its place, and is lost too when the voters are just being changed.
    cluster.dev.kill(&lost).expect("killed");
    cluster.dev.wipe_meta(&lost).expect("wiped");
    cluster.dev.restart(&lost).expect("restarted");
    wait_for("a master dies with two sets of voters", PATIENCE, || {
        stay.iter().any(|name| cluster.log_of(name).contains("failpoint members.joint: kill")).then_some(())
    });
    cluster.dev.kill(&lost).expect("killed");
    cluster.dev.wipe_meta(&lost).expect("wiped");
    each(None);
    wait_for("two of each three serve", PATIENCE, || cluster.leader());
    client.create(create_request("/d/after")).await.expect("the cluster serves");
    assert_eq!(names(&client, "/d").await.len(), 21);
    cluster.dev.restart(&lost).expect("restarted");
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}
