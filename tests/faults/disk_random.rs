//! Random faults of disks while writers run: parts vanish, old copies come back, bits flip, masters die and stand still.
//!
//! Whatever happens, each master either refuses its disk and says why, or serves everything that was acknowledged. What
//! is refused is put right as an operator would: by the parts that were taken away, or by an empty disk while the others
//! are whole. At the end every acknowledged name is there, no deleted one has come back, no reader has seen an old value,
//! and the replicas are equal. The one fault left out is a consistent older copy of a whole disk that no peer can
//! contradict, as nothing in it shows its age.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jindofs::client::admin;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::support::cluster::{Cluster, PATIENCE, tail};
use crate::support::disks::{Part, copy, copy_dir, remove};
use crate::support::writers::Load;
use crate::support::{after, seed, seeds, wait_for};

const TEST: &str = "random_faults_of_disks_lose_no_acknowledged_name_and_make_no_second_history";
/// Runs with seeds of their own.
const SEEDS: u64 = 5;
const SEEDS_LONG: u64 = 200;
/// Runs at the same time, beside other tests and alone: they mostly wait.
const THREADS: usize = 2;
const THREADS_LONG: usize = 6;
/// Faults in one run.
const STEPS: u32 = 6;

/// How a disk is damaged while its master is down.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Missing,
    Empty,
    /// A part of a copy that was taken of any master before.
    Copied,
    Flipped,
}

/// What a master does with a disk that may be damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    Refuses,
    Serves,
    /// It has served, and then it could not read its disk.
    FoundDamaged,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Kill,
    KillAll,
    Pause,
    Snapshot,
    /// A copy of the disk of a master is taken while it is down.
    Copy,
    /// The whole disk of one master is replaced by an older copy of it.
    OldDisk,
    /// Some parts of one disk.
    Parts(Damage),
    /// The same part of two disks, or of all.
    PartOfMost(Damage),
}

const STEP_KINDS: [Step; 16] = [
    Step::Kill,
    Step::KillAll,
    Step::Pause,
    Step::Snapshot,
    Step::Copy,
    Step::Copy,
    Step::OldDisk,
    Step::Parts(Damage::Missing),
    Step::Parts(Damage::Empty),
    Step::Parts(Damage::Copied),
    Step::Parts(Damage::Copied),
    Step::Parts(Damage::Flipped),
    Step::Parts(Damage::Flipped),
    Step::PartOfMost(Damage::Missing),
    Step::PartOfMost(Damage::Empty),
    Step::PartOfMost(Damage::Copied),
];

struct Run {
    seed: u64,
    random: StdRng,
    cluster: Cluster,
    /// Copies of disks: of which master, and where.
    copies: Vec<(String, PathBuf)>,
}

#[test]
fn random_faults_of_disks_lose_no_acknowledged_name_and_make_no_second_history() {
    let first = seed(TEST);
    let long = std::env::var_os("LONG").is_some_and(|value| value != "0" && !value.is_empty());
    let (usual, threads) = if long { (SEEDS_LONG, THREADS_LONG) } else { (SEEDS, THREADS) };
    let seeds = seeds(usual);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let runtime = runtime.expect("a runtime");
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= seeds {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    println!("run {number}: JINDOFS_SEED={seed} JINDOFS_SEEDS=1 make test TEST={TEST}");
                    runtime.block_on(async { Run::start(seed).go().await });
                }
            });
        }
    });
}

impl Run {
    fn start(seed: u64) -> Run {
        let random = StdRng::seed_from_u64(seed);
        Run { seed, random, cluster: Cluster::start(3), copies: Vec::new() }
    }

    async fn go(mut self) {
        self.cluster.wait_whole();
        let load = Load::start(&self.cluster, "/load", 2).await;
        self.cluster.snapshot_and_purge().await;
        for number in 0..STEPS {
            load.wait_acknowledged(10, PATIENCE).await;
            let step = *STEP_KINDS.choose(&mut self.random).expect("a step");
            println!("seed {}, step {number}: {step:?}", self.seed);
            self.take(step).await;
        }
        load.wait_acknowledged(10, PATIENCE).await;
        self.cluster.wait_whole();
        let outcome = load.stop("/load").await;
        for name in self.cluster.names() {
            outcome.assert_on(&self.cluster.client_of(&name)).await;
        }
        self.cluster.assert_digests_equal().await;
        self.cluster.assert_no_panic();
    }

    async fn take(&mut self, step: Step) {
        let names = self.cluster.names();
        let name = names.choose(&mut self.random).expect("a master").clone();
        match step {
            Step::Kill => self.restart(&[name]),
            Step::KillAll => self.restart(&names),
            Step::Pause => {
                self.cluster.dev.pause(&name).expect("paused");
                after(Duration::from_millis(self.random.random_range(50..1500)));
                self.cluster.dev.resume(&name).expect("resumed");
            }
            Step::Snapshot => {
                self.cluster.wait_whole();
                self.cluster.snapshot_and_purge().await;
            }
            Step::Copy => {
                self.cluster.dev.kill(&name).expect("killed");
                self.copy_disk(&name);
                self.cluster.dev.launch(&name).expect("launched");
            }
            Step::OldDisk => self.put_old_disk(name).await,
            Step::Parts(damage) => {
                let count = self.random.random_range(1..Part::ALL.len());
                let mut parts: Vec<Part> = Part::ALL.sample(&mut self.random, count).copied().collect();
                if matches!(damage, Damage::Flipped) {
                    parts.truncate(1);
                }
                self.damage(&[name], &parts, damage).await;
            }
            Step::PartOfMost(damage) => {
                let part = *Part::ALL.choose(&mut self.random).expect("a part");
                let count = self.random.random_range(2..=names.len());
                let victims: Vec<String> = names.sample(&mut self.random, count).cloned().collect();
                self.damage(&victims, &[part], damage).await;
            }
        }
    }

    fn restart(&self, names: &[String]) {
        for name in names {
            self.cluster.dev.kill(name).expect("killed");
        }
        for name in names {
            self.cluster.dev.launch(name).expect("launched");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cluster.dir.path().join(name)
    }

    fn copy_disk(&mut self, name: &str) {
        let copy = self.path(&format!("copy-{}", self.copies.len()));
        copy_dir(&self.cluster.meta_dir(name), &copy);
        self.copies.push((name.to_owned(), copy));
    }

    /// The older copy of a disk is refused, as the peers know of later starts.
    async fn put_old_disk(&mut self, name: String) {
        let Some((_, old)) = self.copies.iter().rfind(|(of, _)| *of == name).cloned() else { return };
        self.cluster.wait_whole();
        self.cluster.dev.kill(&name).expect("killed");
        let (meta, aside) = (self.cluster.meta_dir(&name), self.aside(&name));
        fs::create_dir(&aside).expect("made");
        for item in fs::read_dir(&meta).expect("list") {
            let item = item.expect("item");
            fs::rename(item.path(), aside.join(item.file_name())).expect("moved");
        }
        copy_dir(&old, &meta);
        self.start_damaged(&[name]).await;
    }

    /// Damages the disks of some masters while they are down, and puts right what is refused.
    async fn damage(&mut self, victims: &[String], parts: &[Part], damage: Damage) {
        self.cluster.wait_whole();
        println!("seed {}: {damage:?} {parts:?} of {victims:?}", self.seed);
        for name in victims {
            self.cluster.dev.kill(name).expect("killed");
            // What was whole last: it is put back, or thrown away.
            let (meta, aside) = (self.cluster.meta_dir(name), self.aside(name));
            copy_dir(&meta, &aside);
            for part in parts.iter().filter(|part| part.below(&meta).exists()) {
                match damage {
                    Damage::Flipped => self.flip_bits(part.below(&meta)),
                    Damage::Missing => remove(&part.below(&meta)),
                    Damage::Empty => {
                        remove(&part.below(&meta));
                        part.make_empty(&meta);
                    }
                    Damage::Copied => {
                        let Some((_, copied)) = self.copies.choose(&mut self.random) else { continue };
                        if part.below(copied).exists() {
                            remove(&part.below(&meta));
                            copy(&part.below(copied), &part.below(&meta));
                        }
                    }
                }
            }
        }
        self.start_damaged(victims).await;
    }

    fn aside(&self, name: &str) -> PathBuf {
        self.path(&format!("aside-{name}"))
    }

    /// Flips one bit in each of one to three places of a file, or of files below a directory.
    fn flip_bits(&mut self, path: PathBuf) {
        let mut files = Vec::new();
        collect_files(path, &mut files);
        for _ in 0..self.random.random_range(1..=3) {
            let Some(file) = files.choose(&mut self.random) else { return };
            let mut content = fs::read(file).expect("read");
            let Some(last) = content.iter().rposition(|byte| *byte != 0) else { continue };
            let (at, bit) = (self.random.random_range(0..=last), self.random.random_range(0..8));
            content[at] ^= 1 << bit;
            println!("seed {}: bit {bit} of byte {at} in {}", self.seed, file.display());
            fs::write(file, content).expect("written");
        }
    }

    /// Starts masters with doubtful disks. A disk that is refused gets its newest parts back, or, while the others are
    /// whole, makes room for an empty one; so does one that is found damaged while it serves.
    async fn start_damaged(&mut self, victims: &[String]) {
        let logged: Vec<usize> = victims.iter().map(|name| self.cluster.log_of(name).len()).collect();
        for name in victims {
            self.cluster.dev.launch(name).expect("launched");
        }
        let reactions = self.wait_reactions(victims, &logged).await;
        println!("seed {}: {reactions:?}", self.seed);
        let down = reactions.iter().filter(|reaction| **reaction != Reaction::Serves).count();
        let minority = down * 2 < self.cluster.names().len();
        for (name, reaction) in victims.iter().zip(reactions) {
            let put_back = reaction == Reaction::Refuses && (!minority || self.random.random_bool(0.5));
            match reaction {
                Reaction::Serves => continue,
                // Its newest copy is older than what it has acknowledged since.
                Reaction::FoundDamaged if !minority => {}
                Reaction::FoundDamaged | Reaction::Refuses => self.cluster.dev.wipe_meta(name).expect("wiped"),
            }
            if put_back {
                copy_dir(&self.aside(name), &self.cluster.meta_dir(name));
            }
            self.cluster.dev.launch(name).expect("launched");
        }
        self.cluster.wait_whole();
        for name in victims {
            remove(&self.aside(name));
        }
    }

    /// Waits until each of these masters has refused its disk, with a reason, or serves; the disks of those that serve are
    /// read. One that can judge its disk only with the help of others is not waited for while most have refused.
    async fn wait_reactions(&self, victims: &[String], logged: &[usize]) -> Vec<Reaction> {
        let dev = &self.cluster.dev;
        let is_down = |name: &String| dev.process(name).expect("a process").pid.is_none();
        let mut served = BTreeSet::new();
        wait_for(&format!("seed {}: each refuses its disk or serves", self.seed), PATIENCE, || {
            let own = |name: &String| dev.status(name).ok().and_then(|status| status.self_);
            let serves = |name: &&String| own(name).is_some_and(|own| own.state == "serving");
            served.extend(victims.iter().filter(serves).cloned());
            let hopeless = victims.iter().filter(|name| is_down(name)).count() * 2 > self.cluster.names().len();
            (hopeless || victims.iter().all(|name| is_down(name) || served.contains(name))).then_some(())
        });
        let mut reactions = Vec::new();
        for (name, logged) in victims.iter().zip(logged) {
            let reads_well = !is_down(name) && served.contains(name) && self.reads_well(name).await;
            if !reads_well {
                // It may be ending by itself at this very moment.
                let _ = dev.kill(name);
                self.assert_says_why(name, *logged);
            }
            reactions.push(match (reads_well, served.contains(name)) {
                (true, _) => Reaction::Serves,
                (false, true) => Reaction::FoundDamaged,
                (false, false) => Reaction::Refuses,
            });
        }
        reactions
    }

    /// A master that has ended by itself has said why.
    fn assert_says_why(&self, name: &str, logged: usize) {
        let ended = self.cluster.dev.wait_end(name, PATIENCE).expect("it has ended");
        let log = self.cluster.log_of(name)[logged..].to_owned();
        let says_why = ["Way out", "fatal: ", "error: "].iter().any(|text| log.contains(text));
        let was_killed = ended.code().is_none();
        assert!(was_killed || says_why && ended.code() != Some(0), "{name}, {ended}:\n{}", tail(&log));
    }

    /// Reads every row of a master, as its scrub would. Reports false if it has found damage, or has ended by it.
    async fn reads_well(&self, name: &str) -> bool {
        let channel = self.cluster.client_of(name).channel().clone();
        let address = self.cluster.dev.process(name).expect("a process").grpc.expect("an address");
        let digest = admin::digest(&channel, &address, 0, Duration::from_secs(10)).await;
        if let Err(error) = &digest {
            println!("seed {}: {name} cannot be read: {error}", self.seed);
        }
        digest.is_ok() && admin::snapshot(&channel, &address, true, Duration::from_secs(10)).await.is_ok()
    }
}

fn collect_files(path: PathBuf, found: &mut Vec<PathBuf>) {
    if !path.is_dir() {
        return found.push(path);
    }
    for item in fs::read_dir(path).expect("list") {
        collect_files(item.expect("item").path(), found);
    }
}
