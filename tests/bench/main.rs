//! The benchmark of the house: masters against etcd, failover, a million inodes, the mount against native files.
//!
//! `bench [PART]... [--seconds S] [--rounds N]` with the parts `meta`, `failover`, `inodes`, `store`, `fuse`,
//! `writes` (all of them if none is named). Every ratio is taken side by side in one run; figures are medians over the rounds, with their spread.

mod etcd;
mod failover;
mod fuse;
mod inodes;
mod meta;
mod store;
mod table;
mod writes;

#[allow(unreachable_pub, reason = "shared with the tests")]
#[path = "../support/s3_client.rs"]
mod s3_client;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, ValueEnum};
use jindofs::dev::{DevCluster, DevOptions};

use table::Table;

/// What may go wrong here ends the run.
type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[derive(Debug, Parser)]
struct Arguments {
    /// What to measure; everything if nothing is named.
    parts: Vec<Part>,
    /// Seconds of one measurement of an operation.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Repetitions; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Kills of a leader.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Inodes of the part `store`.
    #[arg(long, default_value_t = 2_000_000)]
    inodes: u64,
    /// Directory for the data of the clusters; a temporary one of its own is made below it.
    #[arg(long, default_value = "/tmp")]
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Creates and stats against etcd's puts.
    Meta,
    /// Write gap when the leader is killed, and when it hands over.
    Failover,
    /// 1,000,000 inodes against 100,000, after all masters were killed.
    Inodes,
    /// A state store of `--inodes` inodes with a cache that fits this machine against one with the smallest.
    Store,
    /// Files read through the mount against native ones.
    Fuse,
    /// Files written through the mount against etcd, S3 and native ones.
    Writes,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Outcome<()> {
    tokio::spawn(async {
        if tokio::signal::ctrl_c().await.is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let dir = tempfile::Builder::new().prefix("jindofs-bench-").tempdir_in(&arguments.dir)?;
    let mut table = Table::default();
    if wanted(Part::Meta) {
        meta::run(&arguments, &dir.path().join("meta"), &mut table).await?;
    }
    if wanted(Part::Failover) {
        failover::run(&arguments, &dir.path().join("failover"), &mut table).await?;
    }
    if wanted(Part::Inodes) {
        inodes::run(&arguments, &dir.path().join("inodes"), &mut table).await?;
    }
    if wanted(Part::Store) {
        store::run(&arguments, &dir.path().join("store"), &mut table)?;
    }
    if wanted(Part::Fuse) {
        fuse::run(&arguments, &dir.path().join("fuse"), &mut table)?;
    }
    if wanted(Part::Writes) {
        writes::run(&arguments, &dir.path().join("writes"), &mut table).await?;
    }
    table.print();
    Ok(())
}

/// A binary of this build.
fn binary(name: &str) -> Outcome<PathBuf> {
    let own = std::env::current_exe()?;
    let release = own.parent().and_then(Path::parent).ok_or("not in a build directory")?;
    let path = release.join(name);
    if path.exists() { Ok(path) } else { Err(format!("{} is not built: make build", path.display()).into()) }
}

fn cluster(dir: &Path, change: impl FnOnce(&mut DevOptions)) -> Outcome<DevCluster> {
    let mut options = DevOptions::new(dir);
    options.binary = Some(binary("jindofs")?);
    options.masters = 3;
    change(&mut options);
    Ok(DevCluster::start(options)?)
}

/// Names of the masters.
fn masters(cluster: &DevCluster) -> Vec<String> {
    let all = cluster.file().processes.into_iter().filter(|process| process.role == "master");
    all.map(|process| process.name).collect()
}

/// Runs `jindoctl` and returns what it printed.
fn jindoctl(cluster: &DevCluster, arguments: &[&str]) -> Outcome<Vec<u8>> {
    let masters = cluster.masters().join(",");
    let output = Command::new(binary("jindoctl")?).args(["--masters", &masters]).args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("jindoctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}

/// One line about what is going on.
fn say(what: &str) {
    eprintln!("-- {what}");
}

/// Whether to go on: after Ctrl-C clusters and mounts are taken down in order.
fn go_on() -> Outcome<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}
