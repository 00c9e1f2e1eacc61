//! Runs seeds, each twice, in processes of their own.
//!
//! `SIMULATION_SEED` runs one seed, and `SIMULATION_LOG=info` shows what happens in it; `SIMULATION_SECONDS`,
//! `SIMULATION_FIRST` and `SIMULATION_THREADS` say how long, from which seed, and on how many threads seeds are run.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::run;
use crate::runtime::planted::PlantedFault;
use crate::runtime::simulated;

/// How long seeds are run where everything is tested, and where nothing else is asked for.
const SECONDS_IN_CI: u64 = 180;
const SECONDS: u64 = 30;
/// Longest time of one run: the clock of this machine, not a simulated one.
const RUN_TIMEOUT: Duration = Duration::from_secs(120);
const ONE_RUN: &str = "master::raft::simulation::seeds::one_run";

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where the disks of a run lie: in memory.
fn root(seed: u64) -> PathBuf {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    base.join(format!("jindofs-simulation-{}-{seed}-{run}", std::process::id()))
}

fn run_once(seed: u64, fault: Option<PlantedFault>) -> Result<String, String> {
    run_apart(ONE_RUN, seed, fault)
}

/// A run of one seed by a test that calls [`run_here`], in a process of its own: its last line, or all it said.
pub(super) fn run_apart(test: &str, seed: u64, fault: Option<PlantedFault>) -> Result<String, String> {
    let root = root(seed);
    std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    command.current_dir(&root).env("SIMULATION_SEED", seed.to_string());
    command.env("SIMULATION_FAULT", fault.map_or_else(String::new, |fault| format!("{fault:?}")));
    // Addresses must be the same in each run.
    unsafe {
        command.pre_exec(|| {
            libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
            Ok(())
        });
    }
    let begun = Instant::now();
    let output = root.join("output");
    let file = std::fs::File::create(&output).map_err(|error| error.to_string())?;
    let errors = file.try_clone().map_err(|error| error.to_string())?;
    let mut child = command.stdout(file).stderr(errors).spawn().map_err(|error| error.to_string())?;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if begun.elapsed() > RUN_TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let said = std::fs::read(&output).unwrap_or_default();
    let said = String::from_utf8_lossy(&said).into_owned();
    let _ = std::fs::remove_dir_all(&root);
    let result = said.lines().find_map(|line| line.split_once("run: ").map(|(_, run)| run.to_owned()));
    match (status, result) {
        (None, _) => Err(format!("the run has not ended within {RUN_TIMEOUT:?}")),
        (Some(status), Some(result)) if status.success() => Ok(result),
        _ => Err(said),
    }
}

fn run_twice(seed: u64) -> Result<String, String> {
    let (first, second) = (run_once(seed, None)?, run_once(seed, None)?);
    if first == second { Ok(first) } else { Err(format!("two runs differ:\n{first}\n{second}")) }
}

#[test]
fn simulated_masters_keep_what_they_acknowledge() {
    let usual = if std::env::var_os("CI").is_some() { SECONDS_IN_CI } else { SECONDS };
    let seconds = setting("SIMULATION_SECONDS").unwrap_or(usual);
    let first = setting("SIMULATION_FIRST").unwrap_or(1);
    let most = setting("SIMULATION_COUNT").unwrap_or(u64::MAX);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    // A run mostly waits for its threads to take turns.
    let threads = setting("SIMULATION_THREADS").unwrap_or(cores * 4);
    let begun = Instant::now();
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begun.elapsed() < Duration::from_secs(seconds) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - first >= most {
                        return;
                    }
                    if let Err(why) = run_twice(seed) {
                        println!("seed {seed} fails:\n{why}");
                        failed.lock().expect("lock").push((seed, reason(&why)));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (done, failed) = (done.load(Ordering::Relaxed), failed.into_inner().expect("lock"));
    println!("{done} seeds from {first} on, each twice, in {:?}", begun.elapsed());
    let failed = failed.into_iter().map(|(seed, why)| format!("`make simulate SIMULATION_SEED={seed}`: {why}"));
    let failed: Vec<String> = failed.collect();
    assert!(failed.is_empty(), "{} of {done} seeds fail:\n{}", failed.len(), failed.join("\n"));
}

/// The line that says most of why a run has failed.
fn reason(said: &str) -> String {
    let mut lines = said.lines().skip_while(|line| !line.contains("panicked at")).skip(1);
    let first = lines.next().or_else(|| said.lines().next()).unwrap_or("it said nothing");
    first.trim().to_owned()
}

/// Finds a seed for each fault that is put back.
#[test]
#[ignore = "takes long: it shows which faults the simulation finds, and with which seed"]
fn planted_faults_are_found() {
    let only = std::env::var("SIMULATION_FAULT").unwrap_or_default();
    let most = setting("SIMULATION_COUNT").unwrap_or(200);
    let first = setting("SIMULATION_FIRST").unwrap_or(1);
    let mut missed = Vec::new();
    for fault in PlantedFault::ALL.into_iter().filter(|fault| only.is_empty() || format!("{fault:?}") == only) {
        let found = (first..first + most).find_map(|seed| {
            let why = run_once(seed, Some(fault)).err()?;
            // It must be the fault that makes the run fail.
            run_once(seed, None).is_ok().then_some((seed, why))
        });
        match found {
            Some((seed, why)) => println!("{fault:?}: seed {seed}, {}", reason(&why)),
            None => missed.push(fault),
        }
    }
    assert!(missed.is_empty(), "{missed:?} are not found in {most} seeds");
}

#[test]
#[ignore = "one run of one seed, for the test above and for people"]
fn one_run() -> ExitCode {
    run_here(|seed| {
        let report = run::run(seed, None);
        format!(
            "hash {:016x} events {} acknowledged {} applied {} simulated {} ms; {}",
            report.hash,
            report.events,
            report.acknowledged,
            report.applied,
            report.simulated_ns / 1_000_000,
            report.actions
        )
    })
}

/// Runs the seed that the environment names, with the fault that it names, on a thread of its own. Ends the process when it
/// has succeeded.
pub(super) fn run_here(run: impl FnOnce(u64) -> String + Send + 'static) -> ExitCode {
    let seed = setting("SIMULATION_SEED").unwrap_or(1);
    let alone = std::env::current_dir().is_ok_and(|dir| dir.to_string_lossy().contains("jindofs-simulation"));
    let root = root(seed);
    if !alone {
        std::fs::create_dir_all(&root).expect("mkdir");
        std::env::set_current_dir(&root).expect("chdir");
    }
    if let Ok(filter) = std::env::var("SIMULATION_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let runner = std::thread::spawn(move || {
        let name = std::env::var("SIMULATION_FAULT").unwrap_or_default();
        simulated::plant(PlantedFault::ALL.into_iter().find(|fault| format!("{fault:?}") == name));
        println!("\nrun: seed {seed} {}", run(seed));
        // What still runs needs no orderly end; values of this thread would be dropped in one.
        std::io::stdout().flush().expect("written");
        unsafe { libc::_exit(0) };
    });
    let failed = runner.join().is_err();
    if !alone {
        let _ = std::fs::remove_dir_all(&root);
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
