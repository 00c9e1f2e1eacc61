//! Masters come and go while clients write: by command, one step cut short by a kill, and the rules that refuse.

use std::process::Output;
use std::time::Duration;

use jindofs_proto::v1::Role;
use rand::{RngExt, SeedableRng};

use crate::support::cluster::{Cluster, PATIENCE};
use crate::support::writers::{Load, make_dir};
use crate::support::{rounds, seed, wait_for};

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn raft(cluster: &Cluster, name: &str) -> String {
    cluster.dev.process(name).expect("a process").raft.expect("a master")
}

/// Runs `jindoctl cluster ...`, which must succeed.
fn ok(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = cluster.jindoctl(&[&["cluster"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

fn refused(cluster: &Cluster, arguments: &[&str], words: &str) {
    let output = cluster.jindoctl(&[&["cluster"], arguments].concat());
    assert!(!output.status.success() && text(&output).contains(words), "{arguments:?}: {}", text(&output));
}

/// Starts two more masters; their names.
fn two_more(cluster: &Cluster) -> Vec<String> {
    (0..2).map(|_| cluster.dev.add_master().expect("one more master")).collect()
}

fn add(cluster: &Cluster, names: &[String]) {
    let addresses: Vec<String> = names.iter().map(|name| raft(cluster, name)).collect();
    let said = ok(cluster, &["add", &addresses[0], &addresses[1]]);
    assert_eq!(said.matches(" votes").count(), 2, "{said}");
}

/// Removes two masters by id; the names that stay.
fn remove(cluster: &Cluster, group: &[String], going: &[String]) -> Vec<String> {
    let ids: Vec<String> = going.iter().map(|name| cluster.member_id(name).to_string()).collect();
    ok(cluster, &["remove", &ids[0], &ids[1]]);
    group.iter().filter(|name| !going.contains(name)).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_added_and_removed_under_load_lose_nothing_and_no_client_sees_an_error() {
    let cluster = Cluster::start(1);
    let load = Load::start(&cluster, "/load", 3).await;
    let mut group = cluster.names();
    for round in 0..rounds(1) {
        for _ in 0..2 {
            let more = two_more(&cluster);
            add(&cluster, &more);
            group.extend(more);
            println!("round {round}: voters {:?}", cluster.wait_voters(&group));
            load.wait_acknowledged(20, PATIENCE).await;
        }
        // The leader goes each time, with one who follows it.
        for _ in 0..2 {
            let (leader, _) = cluster.wait_leader();
            let other = group.iter().find(|name| **name != leader).cloned().expect("a follower");
            group = remove(&cluster, &group, &[leader, other]);
            println!("round {round}: voters {:?}", cluster.wait_voters(&group));
            load.wait_acknowledged(20, PATIENCE).await;
        }
    }
    let outcome = load.stop("/load").await;
    println!("{} operations, {} reads, longest gap {:?}", outcome.operations, outcome.reads, outcome.longest_gap);
    outcome.assert_on(&cluster.client()).await;
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_voters_cut_short_by_the_leaders_death_is_ended_by_the_next_one() {
    let seed = seed("a_change_of_voters_cut_short");
    let mut chance = rand::rngs::StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(3);
    make_dir(&cluster.client(), "/d").await;
    let mut group = cluster.names();
    for round in 0..rounds(3) {
        let more = two_more(&cluster);
        let addresses: Vec<String> = more.iter().map(|name| raft(&cluster, name)).collect();
        ok(&cluster, &["add", "--no-wait", &addresses[0], &addresses[1]]);
        group.extend(more);
        kill_soon(&cluster, &mut chance);
        println!("round {round}: grown to {:?}", cluster.wait_voters(&group));
        let (leader, _) = cluster.wait_leader();
        let going: Vec<String> = group.iter().filter(|name| **name != leader).take(2).cloned().collect();
        let ids: Vec<String> = going.iter().map(|name| cluster.member_id(name).to_string()).collect();
        ok(&cluster, &["remove", "--no-wait", &ids[0], &ids[1]]);
        kill_soon(&cluster, &mut chance);
        group.retain(|name| !going.contains(name));
        println!("round {round}: shrunk to {:?}", cluster.wait_voters(&group));
    }
    make_dir(&cluster.client(), "/d/after").await;
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_that_all_die_between_two_sets_of_voters_end_the_change_when_they_come_back() {
    let cluster = Cluster::start(3);
    cluster.wait_whole();
    // Else the next start would apply the founding again, which passes through two sets of voters too.
    cluster.snapshot_and_purge().await;
    let old = cluster.names();
    let each = |point: Option<&str>| {
        for name in &old {
            cluster.dev.set_env(name, "JINDOFS_FAILPOINTS", point).expect("set");
            // Those that died at the point are down already.
            let _ = cluster.dev.kill(name);
            cluster.dev.restart(name).expect("restarted");
        }
    };
    each(Some("members.joint=kill"));
    cluster.wait_whole();
    let more = two_more(&cluster);
    let addresses: Vec<String> = more.iter().map(|name| raft(&cluster, name)).collect();
    ok(&cluster, &["add", "--no-wait", &addresses[0], &addresses[1]]);
    wait_for("a master dies with two sets of voters", PATIENCE, || {
        old.iter().any(|name| cluster.log_of(name).contains("failpoint members.joint: kill")).then_some(())
    });
    each(None);
    cluster.wait_voters(&cluster.names());
    let ended = |name: &String| cluster.log_of(name).contains("unfinished change of voters goes on");
    wait_for("the next leader ends the change", PATIENCE, || cluster.names().iter().any(ended).then_some(()));
    let settled = || text(&cluster.jindoctl(&["cluster", "can-restart", "1"])).starts_with("yes");
    wait_for("one set of voters is left", PATIENCE, || settled().then_some(()));
    // Two of the old three die: with the new two the fifth is a majority of five, but not of the old three.
    for name in &old[..2] {
        cluster.dev.kill(name).expect("killed");
    }
    make_dir(&cluster.client(), "/d").await;
    old[..2].iter().for_each(|name| cluster.dev.restart(name).expect("restarted"));
    cluster.assert_digests_equal().await;
}

/// Kills the leader somewhere in the change that has begun, and starts it again.
fn kill_soon(cluster: &Cluster, chance: &mut rand::rngs::StdRng) {
    let (leader, _) = cluster.wait_leader();
    let delay = Duration::from_millis(chance.random_range(0..700));
    println!("{leader} is killed after {delay:?}");
    // The moment is the fault that is tested, not a wait for something.
    crate::support::after(delay);
    cluster.dev.kill(&leader).expect("killed");
    cluster.dev.restart(&leader).expect("restarted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_stays_one_until_it_is_promoted_and_an_even_number_waits_for_one_more() {
    let cluster = Cluster::start(1);
    let more = two_more(&cluster);
    let said = ok(&cluster, &["add", "--learner", &raft(&cluster, &more[0])]);
    assert!(said.contains("is a learner"), "{said}");
    refused(&cluster, &["add", &raft(&cluster, &more[0])], "already expected");
    let said = ok(&cluster, &["add", &raft(&cluster, &more[1])]);
    assert!(said.contains("is a learner"), "two voters would survive no loss: {said}");
    ok(&cluster, &["promote", &cluster.member_id(&more[0]).to_string()]);
    cluster.wait_voters(&cluster.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_would_cost_the_quorum_are_refused_and_change_nothing() {
    let cluster = Cluster::start(3);
    let voters = cluster.wait_whole();
    let (leader, _) = cluster.wait_leader();
    let [one, two] = &cluster.followers()[..] else { panic!("two followers") };
    let id = |name: &str| cluster.member_id(name).to_string();
    let (id_one, id_two, id_leader) = (id(one), id(two), id(&leader));
    refused(&cluster, &["remove", &id_one], "2 voters would be left");
    refused(&cluster, &["remove", &id_one, &id_two, &id_leader], "no voter would be left");
    refused(&cluster, &["remove", "4711"], "4711 does not exist");
    refused(&cluster, &["remove", "127.0.0.1:1"], "no master is known or expected at 127.0.0.1:1");
    refused(&cluster, &["add", "nonsense"], "is no host:port");
    refused(&cluster, &["add", "h:1", "h:2", "h:3", "h:4", "h:5"], "8 voters would be expected");
    refused(&cluster, &["promote", "4711"], "4711 does not exist");
    assert_eq!(cluster.wait_whole(), voters);
    assert_eq!(ok(&cluster, &["can-restart", &id_one]), "yes\n");
    cluster.dev.kill(two).expect("killed");
    wait_for("the leader misses it", PATIENCE, || {
        text(&cluster.jindoctl(&["cluster", "can-restart", &id_one]))
            .contains("no: without it 1 of 3 voters")
            .then_some(())
    });
    assert_eq!(ok(&cluster, &["can-restart", &id_two]), "yes\n", "it is down already");
    refused(&cluster, &["remove", &id_one, &id_leader], "no majority of the voters that stay");
    cluster.dev.restart(two).expect("restarted");
    let members = cluster.dev.status(&leader).expect("a status").members;
    assert!(members.iter().all(|member| member.role() != Role::Learner));
    cluster.wait_whole();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_lost_before_it_hears_of_its_admission_is_replaced_also_without_auto_replace() {
    let cluster = Cluster::start_with(3, |options| {
        options.settings = vec![("namespace.backend.raft.auto-replace".to_owned(), "false".to_owned())];
    });
    cluster.wait_whole();
    let more = two_more(&cluster);
    let addresses: Vec<String> = more.iter().map(|name| raft(&cluster, name)).collect();
    cluster.dev.kill(&more[0]).expect("killed");
    cluster.dev.set_env(&more[0], "JINDOFS_FAILPOINTS", Some("join.admitted=kill")).expect("set");
    ok(&cluster, &["add", "--no-wait", &addresses[0], &addresses[1]]);
    cluster.dev.launch(&more[0]).expect("launched");
    cluster.dev.wait_end(&more[0], PATIENCE).expect("it dies before it has stored its member id");
    cluster.dev.wipe_meta(&more[0]).expect("wiped");
    cluster.dev.set_env(&more[0], "JINDOFS_FAILPOINTS", None).expect("set");
    cluster.dev.launch(&more[0]).expect("launched");
    cluster.wait_voters(&cluster.names());
    cluster.assert_no_panic();
}
