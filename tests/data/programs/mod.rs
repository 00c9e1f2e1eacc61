//! Programs that people run, on real mounts: what they do on a local disk they do here, on one mount and on two, and what an
//! object store cannot hold is refused in their own words.
//!
//! What a program does is a script beside this file. It works in a directory of its own, that it also has through another
//! mount, and fails with everything it has said.

mod files;
mod install;
mod packages;
mod repository;
mod science;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use self::install::Program;
use super::writes::{off, writable_twice};
use crate::support::{fuse_works, left_out, long, wait_for};

const PRELUDE: &str = include_str!("prelude.sh");
/// What a script may take on a busy machine, in seconds, together with those that run beside it.
const DEADLINE: u64 = 240;
/// The same for one that installs thousands of files.
const LONG_DEADLINE: u64 = 600;
/// After its deadline a script is killed. It is gone when this has passed, unless the mount keeps it.
const KILLED: Duration = Duration::from_secs(20);
const STORAGES: [&str; 2] = ["local", "s3"];

/// Which mounts a script has its directory through.
#[derive(Debug, Clone, Copy)]
enum Mounts {
    One,
    Two,
}

/// A script to be run.
struct Job {
    name: String,
    storage: &'static str,
    mounts: Mounts,
    command: Command,
    deadline: u64,
}

/// A script that runs.
struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    deadline: Duration,
}

impl Job {
    fn new(name: &str, storage: &'static str, mounts: Mounts, program: &[&str]) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", "exec timeout --kill-after=5 \"$DEADLINE\" \"$@\"", "sh"]).args(program);
        let name = format!("{name}-{storage}-{mounts:?}").to_lowercase();
        Job { name, storage, mounts, command, deadline: DEADLINE }
    }

    /// A script for the shell.
    fn shell(name: &str, storage: &'static str, mounts: Mounts, script: &str) -> Job {
        Job::new(name, storage, mounts, &["sh", "-eux", "-c", &format!("{PRELUDE}{script}")])
    }

    /// A script for this Python.
    fn python(python: &Path, name: &str, storage: &'static str, mounts: Mounts, script: &str) -> Job {
        Job::new(name, storage, mounts, &[&python.display().to_string(), "-c", script])
    }

    fn within(mut self, deadline: u64) -> Job {
        self.deadline = deadline;
        self
    }

    fn env(mut self, key: &str, value: &str) -> Job {
        self.command.env(key, value);
        self.name = format!("{}-{value}", self.name);
        self
    }

    fn start(mut self, site: &Path, mounts: &[PathBuf; 2]) -> Running {
        let [here, there] = mounts.each_ref().map(|mount| mount.join(self.storage).join(&self.name));
        let there = match self.mounts {
            Mounts::One => &here,
            Mounts::Two => &there,
        };
        let scratch = site.join("scratch").join(&self.name);
        for made in [&scratch, &here] {
            std::fs::create_dir_all(made).expect("mkdir");
        }
        let log = site.join(format!("{}.log", self.name));
        let said = File::create(&log).expect("made");
        let command = self.command.current_dir(&scratch).env("DEADLINE", self.deadline.to_string());
        command
            .env("STORAGE", self.storage)
            .env("HERE", &here)
            .env("THERE", there)
            .env("SCRATCH", &scratch)
            .env("HOME", &scratch);
        // What programs say is compared, and it must not depend on who runs the tests.
        command.env("LC_ALL", "C").env("LANGUAGE", "C").stdin(Stdio::null());
        let child = command.stdout(said.try_clone().expect("cloned")).stderr(said).spawn().expect("timeout");
        let deadline = Duration::from_secs(self.deadline) + KILLED;
        Running { name: self.name, child, log, deadline }
    }
}

impl Running {
    /// What went wrong, if anything did.
    fn end(mut self) -> Option<String> {
        let name = self.name;
        let ended = wait_for(&format!("{name} ends"), self.deadline, || self.child.try_wait().expect("waited for"));
        let said = || String::from_utf8_lossy(&std::fs::read(&self.log).expect("its log")).into_owned();
        (!ended.success()).then(|| format!("{name}: {ended}, 124 is its deadline:\n{}", said()))
    }
}

/// True if this can be tested here: programs that are missing are installed.
fn can_run(test: &str, programs: &[Program]) -> bool {
    fuse_works(test) && left_out(test, install::missing(programs).as_deref())
}

/// As [`can_run`], for what is tested with `LONG=1` only.
fn can_run_long(test: &str, programs: &[Program]) -> bool {
    if !long() {
        println!("left out: {test} needs LONG=1");
        return false;
    }
    can_run(test, programs)
}

/// A script for each storage, on one mount and on two.
fn everywhere(job: impl Fn(&'static str, Mounts) -> Job) -> Vec<Job> {
    let places = STORAGES.into_iter().flat_map(|storage| [Mounts::One, Mounts::Two].map(|mounts| (storage, mounts)));
    places.map(|(storage, mounts)| job(storage, mounts)).collect()
}

/// Runs scripts together: they mostly wait for the masters. All that failed are told.
async fn run(jobs: Vec<Job>) {
    let (site, second) = writable_twice(1, |_| {}).await;
    let (dir, mounts) = (site.dir.path().to_owned(), [site.mnt.clone(), second]);
    let failed = off(move || {
        let running: Vec<Running> = jobs.into_iter().map(|job| job.start(&dir, &mounts)).collect();
        running.into_iter().filter_map(Running::end).collect::<Vec<String>>()
    })
    .await;
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    site.cluster.assert_no_panic();
}
