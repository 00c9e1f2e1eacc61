//! Whether a restart and the memory of a master depend on how much the namespace holds.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use jindofs::client::namespace::{Namespace, at_entry, at_path};
use jindofs::config::ClientConfig;
use jindofs::dev::DevCluster;
use jindofs_proto::v1::{BatchOp, CreateRequest, MkdirRequest, batch_op};

use super::table::{Bar, Table, median};
use super::{Arguments, Outcome, cluster, go_on, masters, say};

const BATCH: u64 = 1000;
const FILLERS: u64 = 4;
const PER_DIRECTORY: u64 = 10_000;

/// What one size costs.
struct Cost {
    /// Seconds from the start of the processes to an answered stat and an acknowledged create, per restart.
    restart: Vec<f64>,
    /// Largest resident memory of a master, MB, after each restart.
    memory: Vec<f64>,
}

pub(crate) async fn run(arguments: &Arguments, dir: &Path, table: &mut Table) -> Outcome<()> {
    let small = cost(arguments, &dir.join("small"), 100_000).await?;
    let large = cost(arguments, &dir.join("large"), 1_000_000).await?;
    table.ratio("restart, 1,000,000 / 100,000 inodes", &large.restart, &small.restart, "s", Bar::AtMost(1.3));
    table.figure("restart, 1,000,000 inodes", &large.restart, "s", median(&large.restart), Bar::AtMost(3.0));
    table.ratio("memory, 1,000,000 / 100,000 inodes", &large.memory, &small.memory, "MB", Bar::AtMost(1.3));
    let worst = large.memory.iter().copied().fold(0.0, f64::max);
    table.figure("memory of a master, 1,000,000 inodes", &large.memory, "MB", worst, Bar::AtMost(600.0));
    Ok(())
}

async fn cost(arguments: &Arguments, dir: &Path, inodes: u64) -> Outcome<Cost> {
    say(&format!("{inodes} inodes"));
    let cluster = cluster(dir, |_| {})?;
    let config = ClientConfig { masters: cluster.masters(), rpc_timeout: Duration::from_secs(60), hard: false };
    let began = Instant::now();
    try_join_all((0..FILLERS).map(|filler| fill(&config, filler, inodes / FILLERS))).await?;
    say(&format!("created after {:.1} s", began.elapsed().as_secs_f64()));
    let masters = masters(&cluster);
    go_on()?;
    let mut cost = Cost { restart: Vec::new(), memory: Vec::new() };
    for round in 0..arguments.rounds {
        go_on()?;
        for name in &masters {
            cluster.kill(name)?;
        }
        let began = Instant::now();
        for name in &masters {
            cluster.launch(name)?;
        }
        let client = Namespace::new(&config);
        let filler = rand::random_range(0..FILLERS);
        let number = rand::random_range(0..inodes / FILLERS);
        client.lookup(at_path(path_of(filler, number))).await?;
        let target = Some(at_path(format!("/after-{round}")));
        client.create(CreateRequest { target, mode: 0o644, ..CreateRequest::default() }).await?;
        cost.restart.push(began.elapsed().as_secs_f64());
        for _ in 0..2000 {
            let number = rand::random_range(0..inodes / FILLERS);
            client.lookup(at_path(path_of(filler, number))).await?;
        }
        let resident: Vec<f64> = masters.iter().map(|name| memory(&cluster, name)).collect::<Outcome<_>>()?;
        cost.memory.push(resident.into_iter().fold(0.0, f64::max));
    }
    Ok(cost)
}

fn path_of(filler: u64, number: u64) -> String {
    format!("/{filler}-{}/f{number:08}", number / PER_DIRECTORY)
}

async fn fill(config: &ClientConfig, filler: u64, count: u64) -> Outcome<()> {
    let client = Namespace::new(config);
    let (mut directory, mut ops) = (0, Vec::new());
    for number in 0..count {
        if number % PER_DIRECTORY == 0 {
            let target = Some(at_path(format!("/{filler}-{}", number / PER_DIRECTORY)));
            directory = client.mkdir(MkdirRequest { target, mode: 0o755, ..MkdirRequest::default() }).await?.inode;
        }
        let target = Some(at_entry(directory, format!("f{number:08}")));
        let request = CreateRequest { target, mode: 0o644, exclusive: true, ..CreateRequest::default() };
        ops.push(BatchOp { op: Some(batch_op::Op::Create(request)) });
        if ops.len() as u64 == BATCH || number + 1 == count || (number + 1) % PER_DIRECTORY == 0 {
            for result in client.batch(std::mem::take(&mut ops)).await? {
                result?;
            }
        }
    }
    Ok(())
}

/// Resident memory of a master, MB.
fn memory(cluster: &DevCluster, name: &str) -> Outcome<f64> {
    resident_mb(cluster.process(name)?.pid.ok_or("not running")?)
}

/// Resident memory of a process, MB.
pub(crate) fn resident_mb(pid: u32) -> Outcome<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}
