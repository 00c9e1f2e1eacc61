//! One part of a disk is missing, empty, older, of another member or of another cluster: on one master, on most, on all.
//!
//! A master either refuses such a disk and says how to go on, or it comes back as the member it was with everything that
//! was acknowledged. It never serves less, and never votes with a log that is not the one it wrote last.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use jindofs::client::namespace::Namespace;

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::disks::{Part, copy, copy_dir, remove};
use crate::support::wait_for;
use crate::support::writers::{create_request, make_dir, names};

/// What happens to a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Missing,
    Empty,
    Older,
    AnotherMembers,
    AnotherClusters,
}

const FAULTS: [Fault; 5] = [Fault::Missing, Fault::Empty, Fault::Older, Fault::AnotherMembers, Fault::AnotherClusters];

/// What a master does with its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// It ends with exit code 1 and says how to go on.
    Refuses,
    /// It serves as the member it was.
    ComesBack,
}

/// State and snapshots are rebuilt from the log and from each other. Identity and log are what a member has promised;
/// nothing replaces them, and no part of another disk is taken for its own.
fn expected(part: Part, fault: Fault) -> Reaction {
    match (part, fault) {
        (Part::State | Part::Snapshots, Fault::Missing | Fault::Empty | Fault::Older) => Reaction::ComesBack,
        _ => Reaction::Refuses,
    }
}

/// A cluster with a past, and copies of disks that do not fit it any more.
struct Bench {
    cluster: Cluster,
    client: Namespace,
    acknowledged: BTreeSet<String>,
}

/// A cluster of which every master is down, with content, a snapshot and a purged log; the content is in `/d`.
async fn used_cluster(masters: usize) -> Bench {
    let cluster = Cluster::start(masters);
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let mut bench = Bench { cluster, client, acknowledged: BTreeSet::new() };
    bench.use_and_kill("founded").await;
    bench
}

impl Bench {
    /// Every master has started three times since its older copy was taken, and has a newer snapshot and more log.
    async fn prepare(masters: usize) -> Bench {
        let mut bench = used_cluster(masters).await;
        bench.copy_disks("older");
        for life in ["second", "third"] {
            bench.launch(&bench.cluster.names());
            bench.use_and_kill(life).await;
        }
        bench.copy_disks("newest");
        let foreign = used_cluster(1).await;
        copy_dir(&foreign.cluster.meta_dir("master-0"), &bench.path("foreign"));
        fs::create_dir(bench.path("aside")).expect("mkdir");
        bench.launch(&bench.cluster.names());
        bench.assert_serves_everything("whole disks").await;
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.dir.path().join(name)
    }

    fn copy_disks(&self, to: &str) {
        for name in self.cluster.names() {
            copy_dir(&self.cluster.meta_dir(&name), &self.path(to).join(&name));
        }
    }

    fn launch(&self, names: &[String]) {
        for name in names {
            self.cluster.dev.launch(name).expect("launched");
        }
    }

    fn kill(&self, names: &[String]) {
        for name in names.iter().filter(|name| self.cluster.dev.process(name).expect("a process").pid.is_some()) {
            self.cluster.dev.kill(name).expect("killed");
        }
    }

    async fn create(&mut self, name: String) {
        let path = format!("/d/{name}");
        self.client.create(create_request(&path)).await.expect("created");
        self.acknowledged.insert(path);
    }

    /// Names before and after a snapshot behind which the log is purged; then every master is killed.
    async fn use_and_kill(&mut self, life: &str) {
        self.cluster.wait_whole();
        for number in 0..20 {
            self.create(format!("{life}-before-{number}")).await;
        }
        self.cluster.wait_whole();
        self.cluster.snapshot_and_purge().await;
        for number in 0..5 {
            self.create(format!("{life}-after-{number}")).await;
        }
        self.kill(&self.cluster.names());
    }

    /// Moves a part of a master that is down aside, and puts what the fault leaves in its place.
    fn damage(&self, name: &str, part: Part, fault: Fault) {
        let meta = self.cluster.meta_dir(name);
        let place = part.below(&meta);
        fs::rename(&place, self.path("aside").join(name)).expect("moved aside");
        let donor = |dir: PathBuf| copy(&part.below(&dir), &place);
        let names = self.cluster.names();
        let next = names.iter().cycle().skip_while(|one| *one != name).nth(1).expect("another master");
        match fault {
            Fault::Missing => {}
            Fault::Empty => part.make_empty(&meta),
            Fault::Older => donor(self.path("older").join(name)),
            Fault::AnotherMembers => donor(self.path("newest").join(next)),
            Fault::AnotherClusters => donor(self.path("foreign")),
        }
    }

    fn restore(&self, name: &str, part: Part) {
        let place = part.below(&self.cluster.meta_dir(name));
        remove(&place);
        fs::rename(self.path("aside").join(name), place).expect("moved back");
    }

    /// Starts masters and waits until each has refused its disk or serves.
    fn reactions(&self, victims: &[String], what: &str) -> Vec<Reaction> {
        let logged: Vec<usize> = victims.iter().map(|name| self.cluster.log_of(name).len()).collect();
        self.launch(victims);
        let reaction = |name: &String, logged: usize| {
            if self.cluster.dev.process(name).expect("a process").pid.is_none() {
                let ended = self.cluster.dev.wait_end(name, PATIENCE).expect("it has ended");
                let log = self.cluster.log_of(name)[logged..].to_owned();
                let says_why = ended.code() == Some(1) && log.contains("Way out") && !log.contains("panicked");
                assert!(says_why, "{what}: {name} has ended with {ended}:\n{}", tail(&log));
                return Some(Reaction::Refuses);
            }
            let own = self.cluster.dev.status(name).ok()?.self_?;
            (own.state == "serving").then_some(Reaction::ComesBack)
        };
        wait_for(&format!("{what}: each has refused its disk or serves"), PATIENCE, || {
            victims.iter().zip(&logged).map(|(name, logged)| reaction(name, *logged)).collect()
        })
    }

    /// Every master serves every name, and one more.
    async fn assert_serves_everything(&mut self, what: &str) {
        self.cluster.wait_whole();
        self.create(format!("served-{}", self.acknowledged.len())).await;
        for name in self.cluster.names() {
            let found = names(&self.cluster.client_of(&name), "/d").await;
            assert_eq!(found, self.acknowledged, "{what}: {name} serves other names than were acknowledged");
        }
    }

    /// Tries one fault on masters of which those that were not tried before are up.
    async fn try_fault(&mut self, victims: &[String], part: Part, fault: Fault) {
        let what = format!("{part:?} {fault:?} on {victims:?}");
        let ids: Vec<u64> = victims.iter().map(|name| self.cluster.member_id(name)).collect();
        self.kill(victims);
        victims.iter().for_each(|name| self.damage(name, part, fault));
        let reactions = self.reactions(victims, &what);
        println!("{what}: {reactions:?}");
        let expected = expected(part, fault);
        assert_eq!(reactions, vec![expected; victims.len()], "{what}");
        if expected == Reaction::Refuses {
            self.assert_refused(victims, &what).await;
            victims.iter().for_each(|name| self.restore(name, part));
            return;
        }
        self.assert_serves_everything(&what).await;
        for (name, id) in victims.iter().zip(ids) {
            assert_eq!(self.cluster.member_id(name), id, "{what}: {name} is another member");
            remove(&self.path("aside").join(name));
        }
    }

    /// A majority that is left serves everything; a minority serves nothing.
    async fn assert_refused(&mut self, victims: &[String], what: &str) {
        let count = self.cluster.names().len();
        if (count - victims.len()) * 2 > count {
            self.create(format!("without-{}", self.acknowledged.len())).await;
            assert_eq!(names(&self.client, "/d").await, self.acknowledged, "{what}");
        } else {
            let quorum = || self.cluster.statuses().values().any(|status| status.quorum);
            wait_for(&format!("{what}: a minority has no quorum"), PATIENCE, || (!quorum()).then_some(()));
        }
    }
}

/// Tries every fault on the last `count` of `masters` masters. Refused starts must leave the rest of a disk as it is: the
/// same masters are tried again and again, and serve in the end.
async fn every_fault_on(masters: usize, count: usize) {
    let mut bench = Bench::prepare(masters).await;
    let mut victims = bench.cluster.followers();
    victims.truncate(count);
    if victims.len() < count {
        victims = bench.cluster.names();
    }
    for reaction in [Reaction::ComesBack, Reaction::Refuses] {
        for (part, fault) in Part::ALL.into_iter().flat_map(|part| FAULTS.map(|fault| (part, fault))) {
            let possible = masters > 1 || fault != Fault::AnotherMembers;
            if possible && expected(part, fault) == reaction {
                bench.try_fault(&victims, part, fault).await;
            }
        }
    }
    bench.launch(&victims);
    bench.assert_serves_everything("every part is back").await;
    bench.cluster.assert_digests_equal().await;
    bench.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_one_disk_that_does_not_fit_is_refused_or_rebuilt() {
    every_fault_on(3, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_two_disks_that_does_not_fit_is_refused_or_rebuilt() {
    every_fault_on(3, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_all_disks_that_does_not_fit_is_refused_or_rebuilt() {
    every_fault_on(3, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_the_sole_masters_disk_that_does_not_fit_is_refused_or_rebuilt() {
    every_fault_on(1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_without_its_log_is_refused_where_its_vote_would_lose_acknowledged_names() {
    let cluster = Cluster::start(3);
    cluster.wait_whole();
    let client = cluster.client();
    make_dir(&client, "/d").await;
    let victim = cluster.followers().remove(0);
    cluster.dev.term(&victim).expect("ended cleanly");
    cluster.dev.restart(&victim).expect("restarted");
    cluster.wait_whole();
    let (leader, _) = cluster.wait_leader();
    let other = cluster.names().into_iter().find(|name| *name != leader && *name != victim).expect("a third master");
    cluster.dev.kill(&other).expect("killed");
    for number in 0..30 {
        make_dir(&client, &format!("/d/{number}")).await;
    }
    for name in [&leader, &victim] {
        cluster.dev.kill(name).expect("killed");
    }
    fs::remove_dir_all(Part::Wal.below(&cluster.meta_dir(&victim))).expect("removed");

    // Neither of these two has the names, and together they are a majority.
    let logged = cluster.log_of(&victim).len();
    for name in [&other, &victim] {
        cluster.dev.launch(name).expect("launched");
    }
    let ended = wait_for("the victim ends, or leads astray", PATIENCE, || {
        if let Some((leader, term)) = cluster.leader() {
            panic!("{leader} leads in term {term} without any of the acknowledged names");
        }
        let down = cluster.dev.process(&victim).expect("a process").pid.is_none();
        down.then(|| cluster.dev.wait_end(&victim, PATIENCE).expect("it has ended"))
    });
    let log = cluster.log_of(&victim)[logged..].to_owned();
    assert!(ended.code() == Some(1) && log.contains("Way out"), "{ended}:\n{}", tail(&log));

    cluster.dev.launch(&leader).expect("launched");
    cluster.wait_leader();
    for name in [&leader, &other] {
        assert_eq!(names(&cluster.client_of(name), "/d").await.len(), 30, "{name}");
    }
    // The way out that the message names.
    cluster.dev.wipe_meta(&victim).expect("wiped");
    cluster.dev.launch(&victim).expect("launched");
    cluster.wait_whole();
    assert_eq!(names(&cluster.client_of(&victim), "/d").await.len(), 30);
    cluster.assert_digests_equal().await;
    cluster.assert_no_panic();
}

/// The snapshot that a lost state is rebuilt from outlives every crash in between: the log behind it is purged.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_point_while_a_lost_state_is_rebuilt_the_next_start_completes_it() {
    let mut bench = used_cluster(1).await;
    let name = "master-0";
    for point in [
        "install.begin=kill",
        "install.renamed=kill",
        "install.opened=kill",
        "install.pointed=kill",
        "snapshot.checkpoint=kill",
        "snapshot.sealed=kill",
        "install.done=kill",
    ] {
        remove(&Part::State.below(&bench.cluster.meta_dir(name)));
        let dev = &bench.cluster.dev;
        dev.set_env(name, "JINDOFS_FAILPOINTS", Some(point)).expect("set");
        dev.launch(name).expect("launched");
        let ended = dev.wait_end(name, PATIENCE);
        assert!(ended.is_ok(), "{point} was not reached: {}", tail(&bench.cluster.log_of(name)));
        dev.set_env(name, "JINDOFS_FAILPOINTS", None).expect("set");
        dev.launch(name).expect("launched");
        bench.assert_serves_everything(point).await;
        bench.cluster.snapshot_and_purge().await;
        bench.kill(&bench.cluster.names());
    }
    bench.cluster.assert_no_panic();
}
