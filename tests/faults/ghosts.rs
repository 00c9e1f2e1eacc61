//! Replacements that die before they vote, replacements that overlap, and removals in the middle of one: at the end there
//! is the wished number of living voters, and until then the status shows every member that counts.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::wait_for;
use crate::support::writers::make_dir;

/// A disk that is admitted and dies at once, and one that dies when it has caught up: neither has ever voted.
const DEATHS: [&str; 2] = ["join.numbered=kill", "join.caught-up=kill"];

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn raft(cluster: &Cluster, name: &str) -> String {
    cluster.dev.process(name).expect("a process").raft.expect("a master")
}

/// What `jindoctl cluster status` says.
fn status(cluster: &Cluster) -> Value {
    let output = cluster.jindoctl(&["cluster", "status", "-o", "json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output)))
}

fn row(status: &Value, id: u64) -> Option<&Value> {
    let id = Value::from(id.to_string());
    status["members"].as_array().expect("members").iter().find(|one| one["id"] == id)
}

/// Ids of the voters; none while they are being changed.
fn voters(status: &Value) -> Vec<u64> {
    let [set] = &status["voter_sets"].as_array().expect("voter sets")[..] else { return Vec::new() };
    let ids = set.as_array().expect("ids").iter();
    ids.map(|id| id.as_str().expect("an id").parse().expect("a number")).collect()
}

fn can_restart(cluster: &Cluster, name: &str) -> String {
    text(&cluster.jindoctl(&["cluster", "can-restart", &cluster.member_id(name).to_string()]))
}

/// Loses the disk of a master that is down, and lets it join until it dies at `point`; the id that its new disk got.
fn die_while_joining(cluster: &Cluster, name: &str, point: &str) -> u64 {
    cluster.dev.wipe_meta(name).expect("wiped");
    cluster.dev.set_env(name, "JINDOFS_FAILPOINTS", Some(point)).expect("set");
    cluster.dev.launch(name).expect("launched");
    let ended = cluster.dev.wait_end(name, PATIENCE);
    assert!(ended.is_ok(), "{point} was not reached: {}", tail(&cluster.log_of(name)));
    cluster.dev.set_env(name, "JINDOFS_FAILPOINTS", None).expect("set");
    let address = raft(cluster, name);
    wait_for("the status lists the disk that died", PATIENCE, || {
        let status = status(cluster);
        let rows = status["members"].as_array().expect("members").iter();
        let silent = rows.filter(|one| one["raft_address"] == *address && one["role"] == "learner");
        silent.filter_map(|one| one["id"].as_str()?.parse().ok()).max()
    })
}

fn start_with_new_disk(cluster: &Cluster, name: &str) {
    cluster.dev.wipe_meta(name).expect("wiped");
    cluster.dev.restart(name).expect("restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn replacements_that_die_one_after_another_leave_no_ghost_and_the_next_one_votes() {
    let cluster = Cluster::start(3);
    make_dir(&cluster.client(), "/d").await;
    let first = cluster.wait_whole();
    cluster.snapshot_and_purge().await;
    let [lost, other] = &cluster.followers()[..] else { panic!("two followers") };
    let id = cluster.member_id(lost);
    cluster.dev.kill(lost).expect("killed");
    for point in DEATHS {
        let ghost = die_while_joining(&cluster, lost, point);
        let seen = wait_for("the leader misses the disk that died", PATIENCE, || {
            let seen = status(&cluster);
            let silent = row(&seen, ghost).is_some_and(|one| one["heard"] == false);
            (silent && seen["tolerated_losses"] == 0).then_some(seen)
        });
        let (voter, learner) = (row(&seen, id).expect("the lost voter counts"), row(&seen, ghost).expect("the ghost"));
        assert_eq!((&voter["role"], &voter["state"]), (&"voter".into(), &"no answer".into()), "{seen}");
        assert_eq!((&learner["role"], &learner["replaces"]), (&"learner".into(), &id.to_string().into()), "{seen}");
        assert_eq!(voters(&seen), first);
        let table = text(&cluster.jindoctl(&["cluster", "status"]));
        assert!(table.contains("tolerates 0 more losses") && table.contains(&format!("replaces {id}")), "{table}");
        assert!(can_restart(&cluster, other).starts_with("no: without it 1 of 3"), "{}", can_restart(&cluster, other));
    }
    start_with_new_disk(&cluster, lost);
    let now = cluster.wait_whole();
    assert!(!now.contains(&id) && now.len() == 3, "{now:?}");
    wait_for("one more loss is tolerated", PATIENCE, || (status(&cluster)["tolerated_losses"] == 1).then_some(()));
    assert_eq!(status(&cluster)["members"].as_array().map(Vec::len), Some(3));
    for name in [lost, other] {
        wait_for("it may be restarted", PATIENCE, || can_restart(&cluster, name).starts_with("yes").then_some(()));
    }
    // The next loss is replaced as the first one was.
    cluster.dev.kill(other).expect("killed");
    start_with_new_disk(&cluster, other);
    cluster.wait_whole();
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_replacement_under_way_keeps_the_voter_and_removing_the_voter_is_refused() {
    let cluster = Cluster::start(3);
    let first = cluster.wait_whole();
    let lost = cluster.followers().remove(0);
    let (id, address) = (cluster.member_id(&lost).to_string(), raft(&cluster, &lost));
    cluster.dev.kill(&lost).expect("killed");
    let ghost = die_while_joining(&cluster, &lost, DEATHS[0]).to_string();
    for named in [&id, &address] {
        let refused = cluster.jindoctl(&["cluster", "remove", named]);
        assert!(!refused.status.success() && text(&refused).contains("2 voters would be left"), "{}", text(&refused));
    }
    // Repeated it changes nothing: not when it is under way, and not when it is done.
    for arguments in [&["cluster", "remove", "--no-wait", &ghost][..], &["cluster", "remove", &ghost][..]] {
        let removed = cluster.jindoctl(arguments);
        assert!(removed.status.success() && text(&removed).contains(&address), "{}", text(&removed));
    }
    let seen = status(&cluster);
    assert_eq!(voters(&seen), first, "the voter that was to be replaced still counts");
    assert!(row(&seen, ghost.parse().expect("an id")).is_none(), "{seen}");
    assert!(cluster.jindoctl(&["cluster", "remove", &ghost]).status.success());
    start_with_new_disk(&cluster, &lost);
    let now = cluster.wait_whole();
    assert!(now.len() == 3 && now != first, "{now:?}");
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_that_is_silent_does_not_keep_the_next_lost_disk_of_five_waiting() {
    let cluster = Cluster::start(5);
    cluster.wait_whole();
    let [one, two] = &cluster.followers()[..2] else { panic!("two followers") };
    cluster.dev.kill(one).expect("killed");
    die_while_joining(&cluster, one, DEATHS[0]);
    wait_for("one more loss is tolerated", PATIENCE, || (status(&cluster)["tolerated_losses"] == 1).then_some(()));
    cluster.dev.kill(two).expect("killed");
    start_with_new_disk(&cluster, two);
    wait_for("the second lost disk is replaced", PATIENCE, || {
        let id = cluster.member_id(two);
        (id != 0 && voters(&status(&cluster)).contains(&id)).then_some(())
    });
    start_with_new_disk(&cluster, one);
    cluster.wait_whole();
    wait_for("two losses are tolerated", PATIENCE, || (status(&cluster)["tolerated_losses"] == 2).then_some(()));
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_of_a_sole_master_that_loses_its_disk_is_replaced_and_leaves_no_ghost() {
    let cluster = Cluster::start(1);
    let learner = cluster.dev.add_master().expect("one more master");
    let added = cluster.jindoctl(&["cluster", "add", "--learner", &raft(&cluster, &learner)]);
    assert!(added.status.success(), "{}", text(&added));
    let old = wait_for("it knows its id", PATIENCE, || Some(cluster.member_id(&learner)).filter(|id| *id != 0));
    let listed = |id: u64| row(&status(&cluster), id).is_some_and(|one| one["stays_learner"] == true);
    assert!(listed(old));
    cluster.dev.kill(&learner).expect("killed");
    die_while_joining(&cluster, &learner, DEATHS[0]);
    start_with_new_disk(&cluster, &learner);
    wait_for("the learner is replaced and the old ones are gone", PATIENCE, || {
        let id = cluster.member_id(&learner);
        let count = status(&cluster)["members"].as_array().map(Vec::len);
        (id > old && listed(id) && count == Some(2)).then_some(())
    });
    let seen = status(&cluster);
    assert_eq!((voters(&seen), &seen["tolerated_losses"]), (vec![1], &0.into()));
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_waits_for_a_joining_master_is_listed_and_never_leaves_two_voters() {
    let cluster = Cluster::start(3);
    let first = cluster.wait_whole();
    let going = cluster.followers().remove(0);
    let id = cluster.member_id(&going);
    let fresh = cluster.dev.add_master().expect("one more master");
    let address = raft(&cluster, &fresh);
    cluster.dev.kill(&fresh).expect("killed");
    let added = cluster.jindoctl(&["cluster", "add", "--no-wait", &address]);
    assert!(added.status.success(), "{}", text(&added));
    assert_eq!(status(&cluster)["awaited"], serde_json::json!([address]));
    die_while_joining(&cluster, &fresh, DEATHS[0]);
    let removed = cluster.jindoctl(&["cluster", "remove", "--no-wait", &id.to_string()]);
    assert!(removed.status.success(), "{}", text(&removed));
    let seen = status(&cluster);
    assert_eq!(row(&seen, id).expect("it is listed")["leaving"], true, "{seen}");
    // Time passes in which the leader could do the wrong thing.
    crate::support::after(Duration::from_secs(1));
    assert_eq!(voters(&status(&cluster)), first, "it votes until another one does");
    start_with_new_disk(&cluster, &fresh);
    let stay: Vec<String> = cluster.names().into_iter().filter(|name| *name != going).collect();
    cluster.wait_voters(&stay);
    cluster.assert_no_panic();
}
