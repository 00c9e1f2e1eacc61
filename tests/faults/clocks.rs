//! Masters whose wall clocks are wrong: the majority outvotes one, and no wrong time is for ever.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::wait_for;
use crate::support::writers::create_request;

/// Seconds from now to about 2099.
const TO_2099: i64 = 73 * 365 * 86_400;
const SECOND: i64 = 1_000_000_000;

fn offset_file(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.dir.path().join(format!("clock-offset-of-{name}"))
}

/// Makes the clock of a master wrong by so many seconds.
fn set_clock(cluster: &Cluster, name: &str, offset_s: i64) {
    std::fs::write(offset_file(cluster, name), offset_s.to_string()).expect("written");
}

/// A cluster whose clocks can be set.
fn cluster(masters: usize) -> Cluster {
    let cluster = Cluster::start(masters);
    let names = cluster.names();
    for name in &names {
        cluster.dev.kill(name).expect("killed");
        let path = offset_file(&cluster, name).display().to_string();
        cluster.dev.set_env(name, "JINDOFS_CLOCK_OFFSET_FILE", Some(&path)).expect("set");
    }
    for name in &names {
        cluster.dev.launch(name).expect("launched");
    }
    cluster.wait_whole();
    cluster
}

/// How many seconds ahead of the true time a new file was made.
async fn ahead_s(cluster: &Cluster, path: &str) -> i64 {
    let attr = cluster.client().create(create_request(path)).await.expect("created");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_nanos();
    (attr.mtime_ns - i64::try_from(now).expect("before 2262")) / SECOND
}

fn assert_right(ahead_s: i64, when: &str) {
    assert!(ahead_s.abs() < 60, "{when}: a new file is {ahead_s} s ahead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_clock_is_wrong_hands_over_and_stamps_with_the_median_meanwhile() {
    let cluster = cluster(3);
    assert_right(ahead_s(&cluster, "/before").await, "all clocks are right");
    let (leader, term) = cluster.wait_leader();
    set_clock(&cluster, &leader, TO_2099);
    assert_right(ahead_s(&cluster, "/at-once").await, "right after the step");
    let (next, _) = wait_for("another leads", PATIENCE, || cluster.leader().filter(|(_, now)| *now > term));
    assert_ne!(next, leader);
    assert_right(ahead_s(&cluster, "/after").await, "another leads");
    let log = cluster.log_of(&leader);
    assert!(log.contains("it hands leadership over"), "{}", crate::support::cluster::tail(&log));
    // It may follow, and vote; asked to lead it does not stay leader.
    let id = cluster.member_id(&leader);
    let channel = cluster.client().channel().clone();
    let (_, term) = cluster.wait_leader();
    jindofs::client::admin::transfer_leader(&channel, id).await.expect("handed over");
    assert_right(ahead_s(&cluster, "/led-by-it").await, "led by a master with a wrong clock");
    wait_for("a master with a right clock leads", PATIENCE, || {
        cluster.leader().filter(|(name, now)| *now > term + 1 && *name != leader)
    });
    // Set right, it may lead.
    set_clock(&cluster, &leader, 0);
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_master_holds_a_step_of_its_clock_back_and_no_wrong_time_outlives_it() {
    let cluster = cluster(1);
    assert_right(ahead_s(&cluster, "/before").await, "the clock is right");
    set_clock(&cluster, "master-0", TO_2099);
    assert_right(ahead_s(&cluster, "/step").await, "right after the step");
    assert!(cluster.log_of("master-0").contains("stamps go on without the step"));
    set_clock(&cluster, "master-0", 0);
    assert_right(ahead_s(&cluster, "/corrected").await, "the clock was set right");
    // A master that starts in 2099 cannot know better, and says so.
    let restart = |offset_s: i64| {
        cluster.dev.kill("master-0").expect("killed");
        set_clock(&cluster, "master-0", offset_s);
        cluster.dev.restart("master-0").expect("restarted");
    };
    restart(TO_2099);
    assert!(ahead_s(&cluster, "/in-2099").await > TO_2099 / 2);
    wait_for("a warning", PATIENCE, || {
        cluster.log_of("master-0").contains("nothing was recorded for long").then_some(())
    });
    restart(0);
    assert_right(ahead_s(&cluster, "/afterwards").await, "the clock is right again");
    wait_for("a warning", Duration::from_secs(10), || {
        cluster.log_of("master-0").contains("lies behind the recorded time").then_some(())
    });
}
