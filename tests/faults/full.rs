//! Disks of masters that are full: what goes on meanwhile, and that everything goes on afterwards without being asked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use jindofs::client::namespace::{Namespace, at_path};
use jindofs::error::{Error, ErrorKind};
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{BatchOp, SymlinkRequest, UnlinkRequest};

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::small_disk::SmallDisk;
use crate::support::writers::{Load, create_request, make_dir, names};
use crate::support::{wait_for, wait_until};

/// Masters whose metadata lies on file systems of their own. The disks go after the cluster.
struct OnSmallDisks {
    cluster: Cluster,
    disks: Vec<SmallDisk>,
    _dir: tempfile::TempDir,
}

fn start(masters: usize, size: &str) -> OnSmallDisks {
    let dir = tempfile::tempdir().expect("tempdir");
    let disks: Vec<SmallDisk> =
        (0..masters).map(|number| SmallDisk::at(&dir.path().join(number.to_string()), size)).collect();
    let cluster = Cluster::start_with(masters, |options| {
        options.meta_dirs = disks.iter().map(|disk| disk.0.join("meta")).enumerate().collect();
    });
    OnSmallDisks { cluster, disks, _dir: dir }
}

impl Drop for OnSmallDisks {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.cluster.names() {
                println!("{name} says:\n{}", tail(&self.cluster.log_of(&name)));
            }
        }
    }
}

impl OnSmallDisks {
    fn disk(&self, name: &str) -> &SmallDisk {
        let number: usize = name.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number");
        &self.disks[number]
    }

    fn pids(&self) -> Vec<Option<u32>> {
        let pid = |name: &String| self.cluster.dev.process(name).expect("a process").pid;
        self.cluster.names().iter().map(pid).collect()
    }

    fn wait_figure(&self, name: &str, metric: &str, is: impl Fn(u64) -> bool) {
        wait_for(&format!("{metric} of {name}"), PATIENCE, || is(self.cluster.metric(name, metric)).then_some(()));
    }
}

/// Links with targets of 4,000 bytes: about 1 MiB of log with each call.
async fn link_a_lot(client: &Namespace, directory: &str, round: usize) -> Result<(), Error> {
    let target = vec![b'x'; 4000];
    let link = |number: usize| SymlinkRequest {
        target: Some(at_path(format!("{directory}/{round}-{number}"))),
        link_target: target.clone().into(),
        ..SymlinkRequest::default()
    };
    let ops = (0..240).map(|number| BatchOp { op: Some(Op::Symlink(link(number))) }).collect();
    client.batch(ops).await?.into_iter().collect::<Result<Vec<_>, _>>().map(|_| ())
}

async fn wait_refused(client: &Namespace, directory: &str, acknowledged: &mut BTreeSet<String>) -> Error {
    let began = Instant::now();
    for number in 0.. {
        let path = format!("{directory}/until-refused-{number}");
        match client.create(create_request(&path)).await {
            Ok(_) => acknowledged.insert(path),
            Err(error) => return error,
        };
        assert!(began.elapsed() < PATIENCE, "creates are not refused although every disk is full");
    }
    unreachable!("the loop has no end");
}

async fn assert_refused_for_want_of_room(client: &Namespace, path: &str) {
    let began = Instant::now();
    let error = client.create(create_request(path)).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    // A leader that was just elected learns within two seconds that the others are full too.
    assert!(began.elapsed() < Duration::from_secs(15), "clients are not held up: {:?}", began.elapsed());
}

async fn full_disks_refuse_writes_and_nothing_else(masters: usize) {
    let on = start(masters, "120m");
    let cluster = &on.cluster;
    let client = cluster.client();
    make_dir(&client, "/d").await;
    make_dir(&client, "/large").await;
    let mut acknowledged = BTreeSet::new();
    for number in 0..100 {
        let path = format!("/d/{number}");
        client.create(create_request(&path)).await.expect("acknowledged");
        acknowledged.insert(path);
    }
    // The log has rolled, and needs a new segment soon.
    for round in 0..20 {
        link_a_lot(&client, "/large", round).await.expect("acknowledged");
    }
    for name in cluster.names() {
        on.wait_figure(&name, "jindofs_master_ballast_bytes", |bytes| bytes >= 5 << 20);
    }
    let pids = on.pids();
    // A flush of the state is under way, and finds no room.
    link_a_lot(&client, "/large", 20).await.expect("acknowledged");
    for disk in &on.disks {
        disk.fill_but(0);
    }
    let error = wait_refused(&client, "/d", &mut acknowledged).await;
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    for said in ["of master ", " free)", "a reserve of", "remove files"] {
        assert!(error.message.contains(said), "{said:?} in: {error}");
    }
    let began = Instant::now();
    let told = cluster.jindoctl(&["fs", "mkdir", "/d/refused"]);
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.code() == Some(1) && said.contains("has room on its disk"), "{:?}: {said}", told.status);
    assert!(began.elapsed() < Duration::from_secs(5), "it fails at once: {:?}", began.elapsed());

    // Reads from every master, removals, sessions.
    for name in cluster.names() {
        assert_eq!(names(&cluster.client_of(&name), "/d").await, acknowledged, "{name}");
        on.wait_figure(&name, "jindofs_master_disk_full", |full| full == 1);
    }
    for number in 0..20 {
        let path = format!("/d/{number}");
        client.unlink(at_path(&path)).await.expect("removals go on");
        acknowledged.remove(&path);
    }
    let other = cluster.client();
    let ops = vec![
        BatchOp { op: Some(Op::Unlink(UnlinkRequest { target: Some(at_path("/d/20")), ..UnlinkRequest::default() })) },
        BatchOp { op: Some(Op::Create(create_request("/d/in-a-batch"))) },
    ];
    let done = other.batch(ops).await.expect("a batch of which a part can be done");
    assert!(done[0].is_ok(), "{:?}", done[0]);
    assert_eq!(done[1].as_ref().expect_err("refused").kind, ErrorKind::NoSpace);
    acknowledged.remove("/d/20");
    for name in cluster.names() {
        assert_eq!(cluster.metric(&name, "jindofs_master_disk_full"), 1, "{name} answers");
    }
    assert_eq!(on.pids(), pids, "every process lives");

    for name in cluster.names() {
        cluster.dev.kill(&name).expect("killed");
    }
    for name in cluster.names() {
        cluster.dev.launch(&name).expect("launched");
    }
    cluster.wait_whole();
    for name in cluster.names() {
        assert_eq!(names(&cluster.client_of(&name), "/d").await, acknowledged, "{name}, started on a full disk");
    }
    assert_refused_for_want_of_room(&client, "/d/refused").await;
    client.unlink(at_path("/d/21")).await.expect("removals go on");
    acknowledged.remove("/d/21");

    let pids = on.pids();
    for disk in &on.disks {
        disk.make_room();
    }
    let began = Instant::now();
    while let Err(error) = client.create(create_request("/d/with-room")).await {
        assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
        assert!(began.elapsed() < PATIENCE, "writes go on by themselves");
    }
    acknowledged.insert("/d/with-room".to_owned());
    assert_eq!(names(&client, "/d").await, acknowledged);
    for name in cluster.names() {
        on.wait_figure(&name, "jindofs_master_ballast_bytes", |bytes| bytes >= 5 << 20);
    }
    assert_eq!(on.pids(), pids, "no restart is needed");
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_masters_with_full_disks_refuse_writes_start_again_and_go_on_with_room() {
    full_disks_refuse_writes_and_nothing_else(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_master_with_a_full_disk_refuses_writes_starts_again_and_goes_on_with_room() {
    full_disks_refuse_writes_and_nothing_else(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_full_follower_harms_nobody_and_catches_up_with_room() {
    let on = start(3, "200m");
    let cluster = &on.cluster;
    let follower = cluster.followers().remove(0);
    let pids = on.pids();
    on.disk(&follower).fill_but(0);
    on.wait_figure(&follower, "jindofs_master_disk_full", |full| full == 1);
    let client = cluster.client();
    make_dir(&client, "/large").await;
    // More than the rest of its segment and its ballast take.
    for round in 0..40 {
        link_a_lot(&client, "/large", round).await.expect("a quorum has room");
    }
    on.wait_figure(&follower, "jindofs_master_disk_waits", |waits| waits > 0);
    let load = Load::start(cluster, "/load", 2).await;
    load.wait_acknowledged(50, PATIENCE).await;
    on.disk(&follower).make_room();
    on.wait_figure(&follower, "jindofs_master_disk_waits", |waits| waits == 0);
    load.wait_acknowledged(50, PATIENCE).await;
    load.stop("/load").await.assert_on(&client).await;
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    assert_eq!(on.pids(), pids, "nothing was restarted:\n{}", tail(&cluster.log_of(&follower)));
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_leader_hands_over_and_no_client_is_told() {
    let on = start(3, "120m");
    let cluster = &on.cluster;
    // Its writers fail with the first error they see.
    let load = Load::start(cluster, "/load", 2).await;
    load.wait_acknowledged(50, PATIENCE).await;
    let (leader, _) = cluster.wait_leader();
    let pids = on.pids();
    on.disk(&leader).fill_but(0);
    let moved = || cluster.leader().is_some_and(|(now, _)| now != leader);
    wait_until("another master leads", PATIENCE, moved).await;
    load.wait_acknowledged(50, PATIENCE).await;
    on.disk(&leader).make_room();
    on.wait_figure(&leader, "jindofs_master_disk_full", |full| full == 0);
    load.wait_acknowledged(50, PATIENCE).await;
    load.stop("/load").await.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
    assert_eq!(on.pids(), pids, "nothing was restarted");
    cluster.assert_no_panic();
}

/// The usual settings let the log grow to more than such a disk has.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_small_disk_is_compacted_before_it_is_full() {
    let on = start(1, "140m");
    let client = on.cluster.client();
    make_dir(&client, "/large").await;
    let began = Instant::now();
    for round in 0..160 {
        // It may be written faster than it is compacted: then writes are refused for a moment.
        while let Err(error) = link_a_lot(&client, "/large", 0).await {
            assert_eq!(error.kind, ErrorKind::NoSpace, "round {round}: {error}");
            assert!(began.elapsed() < PATIENCE * 2, "round {round}: the log is not compacted");
        }
        client.rmdir(at_path("/large"), true).await.expect("removed");
        make_dir(&client, "/large").await;
    }
    let snapshot = on.cluster.metric("master-0", "jindofs_master_snapshot_index");
    assert!(snapshot > 0, "{}", tail(&on.cluster.log_of("master-0")));
    on.cluster.assert_no_panic();
}

/// A disk on which a sync hangs bounds what its member takes in.
#[tokio::test(flavor = "multi_thread")]
async fn a_hung_sync_bounds_the_memory_of_what_waits() {
    let cluster = Cluster::start(3);
    let follower = cluster.followers().remove(0);
    cluster.dev.kill(&follower).expect("killed");
    cluster.dev.set_env(&follower, "JINDOFS_FAILPOINTS", Some("wal.sync=25+sleep(600000)")).expect("set");
    cluster.dev.restart(&follower).expect("restarted");
    let client = cluster.client();
    make_dir(&client, "/large").await;
    link_a_lot(&client, "/large", 0).await.expect("acknowledged");
    let before = resident(&cluster, &follower);
    for round in 1..240 {
        link_a_lot(&client, "/large", round).await.expect("acknowledged by the others");
    }
    let after = resident(&cluster, &follower);
    println!("resident before {} MiB, after {} MiB", before >> 20, after >> 20);
    assert!(after < before + (170 << 20), "more than 230 MB were sent to it");
    cluster.dev.kill(&follower).expect("killed");
    cluster.dev.set_env(&follower, "JINDOFS_FAILPOINTS", None).expect("set");
    cluster.dev.restart(&follower).expect("restarted");
    let (leader, _) = cluster.wait_leader();
    let applied = |name: &str| cluster.dev.status(name).ok().and_then(|one| one.self_).map_or(0, |own| own.applied);
    let wanted = applied(&leader);
    wait_for("it has caught up", PATIENCE * 4, || (applied(&follower) >= wanted).then_some(()));
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

fn resident(cluster: &Cluster, name: &str) -> u64 {
    let pid = cluster.dev.process(name).expect("a process").pid.expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}
