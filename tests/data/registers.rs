//! C1 over the content of files: written whole through one mount, read whole through another, while leaders and workers die.
//!
//! A register is a file with one writer and rising values. What is read must be one value and a whole one, not older than the
//! last whose close had returned before the file was opened, nor newer than the last whose writing had begun when it was read.
//! With one writer and rising values that is linearizability. A pair is a value that is written as `a` and moved over `b`: a
//! register of two names, of which `b` is always there, and `a` never older than what `b` has shown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::json;

use super::Site;
use super::writes::{off, writable_twice};
use crate::support::agent::{Agent, Refusal};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, rounds, wait_until};

/// A file with one writer, and how far it is.
struct Register {
    path: String,
    /// Written as another file, and moved here.
    moved_from: Option<String>,
    begun: AtomicU64,
    acknowledged: AtomicU64,
    reads: AtomicU64,
}

impl Register {
    fn new(path: &str, moved_from: Option<&str>) -> Arc<Register> {
        let (begun, acknowledged, reads) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let moved_from = moved_from.map(str::to_owned);
        Arc::new(Register { path: path.to_owned(), moved_from, begun, acknowledged, reads })
    }

    fn write(&self, agent: &mut Agent, mount: &Path) {
        let value = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let (bytes, at) = (bytes_of(value), mount.join(&self.path));
        // In pieces, so that a part of it could be seen.
        let pieces: Vec<&[u8]> = bytes.chunks(bytes.len() / 3 + 1).collect();
        let written = match &self.moved_from {
            None => agent.put(&at, &pieces).map(drop),
            Some(from) => {
                let from = mount.join(from);
                agent.put(&from, &pieces).and_then(|_| agent.call(&json!(["rename", from, at])).map(drop))
            }
        };
        written.unwrap_or_else(|refusal| panic!("{}: value {value}: {refusal:?}", self.path));
        self.acknowledged.store(value, Ordering::SeqCst);
    }

    /// Reads and judges; false if the content was replaced while it was read, which is told by `ESTALE`.
    fn read(&self, agent: &mut Agent, mount: &Path) -> bool {
        let oldest = self.acknowledged.load(Ordering::SeqCst);
        let Some(value) = get(agent, &mount.join(&self.path)) else { return false };
        let newest = self.begun.load(Ordering::SeqCst);
        let value = value.unwrap_or_else(|why| panic!("{}: must hold {oldest}..={newest}: {why}", self.path));
        assert!((oldest..=newest).contains(&value), "{}: read {value}, must be {oldest}..={newest}", self.path);
        if let Some(from) = &self.moved_from {
            // One that is just made is seen by everybody, as an empty one.
            let before = get(agent, &mount.join(from)).and_then(Result::ok);
            assert!(before.is_none_or(|before| before > value), "{from} is {before:?} after {} was {value}", self.path);
        }
        self.reads.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// A value as the content of a file: many times the same word, as often as the value says.
fn bytes_of(value: u64) -> Vec<u8> {
    let words = 1 + usize::try_from(value).expect("small") * 7919 % 20_000;
    value.to_le_bytes().repeat(words)
}

/// The value of a file; `None` if another content was stored while it was read.
fn get(agent: &mut Agent, at: &Path) -> Option<Result<u64, String>> {
    match agent.get(at) {
        Ok(bytes) => Some(value_of(&bytes)),
        Err(Refusal { errno: libc::ESTALE, .. }) => None,
        Err(refusal) => Some(Err(format!("{refusal:?}"))),
    }
}

fn value_of(bytes: &[u8]) -> Result<u64, String> {
    let value = bytes.first_chunk().map(|word| u64::from_le_bytes(*word));
    match value {
        Some(value) if bytes == bytes_of(value) => Ok(value),
        _ => Err(format!("{} bytes, of which the first are of {value:?}: no whole value", bytes.len())),
    }
}

/// Writers of one mount and readers of another, until they are stopped.
struct Load {
    registers: Vec<Arc<Register>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Load {
    async fn start(registers: Vec<Arc<Register>>, mount: PathBuf, other: PathBuf) -> Load {
        let (all, at) = (registers.clone(), mount.clone());
        off(move || all.iter().for_each(|one| one.write(&mut Agent::start(), &at))).await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for register in &registers {
            let (theirs, at, ends) = (register.clone(), mount.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                let mut agent = Agent::start();
                while !ends.load(Ordering::SeqCst) {
                    theirs.write(&mut agent, &at);
                }
                0
            }));
            let (theirs, at, ends) = (register.clone(), other.clone(), stop.clone());
            threads.push(std::thread::spawn(move || {
                let (mut agent, mut replaced) = (Agent::start(), 0);
                while !ends.load(Ordering::SeqCst) {
                    replaced += u64::from(!theirs.read(&mut agent, &at));
                }
                replaced
            }));
        }
        Load { registers, stop, threads }
    }

    /// Waits until every register was written and read this often.
    async fn more(&self, count: u64) {
        let now = |one: &Register| (one.acknowledged.load(Ordering::SeqCst), one.reads.load(Ordering::SeqCst));
        for (register, (written, read)) in self.registers.iter().map(|one| (one, now(one))) {
            wait_until(&format!("{} is written and read", register.path), PATIENCE, || {
                let (writes, reads) = now(register);
                writes >= written + count && reads >= read + count || self.threads.iter().any(JoinHandle::is_finished)
            })
            .await;
        }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        let replaced = off(move || {
            let ended: Vec<u64> =
                self.threads.into_iter().map(|one| one.join().expect("nobody saw an error")).collect();
            ended.into_iter().sum::<u64>()
        })
        .await;
        for one in &self.registers {
            let (written, read) = (one.acknowledged.load(Ordering::SeqCst), one.reads.load(Ordering::SeqCst));
            println!("{}: {written} values, {read} reads", one.path);
        }
        println!("{replaced} reads were told that the content was replaced meanwhile");
    }
}

async fn kill_leaders_and_workers(site: &Site, load: &Load) {
    for round in 0..rounds(3) {
        load.more(10).await;
        let (leader, _) = site.cluster.wait_leader();
        let worker = format!("worker-{}", round % 2);
        site.cluster.dev.kill(&leader).expect("killed");
        load.more(5).await;
        site.cluster.dev.kill(&worker).expect("killed");
        load.more(5).await;
        site.cluster.dev.launch(&leader).expect("launched");
        site.cluster.dev.launch(&worker).expect("launched");
        site.cluster.wait_whole();
    }
    load.more(10).await;
}

async fn under_fire(registers: Vec<Arc<Register>>) {
    let (site, second) = writable_twice(3, |dev| {
        dev.settings.push(("fuse.attr-ttl".into(), "0s".into()));
        // What was seen before may not serve while a new leader is elected, as it does where that is allowed.
        dev.settings.push(("fuse.offline-max-staleness".into(), "0s".into()));
    })
    .await;
    let load = Load::start(registers, site.mnt.clone(), second).await;
    kill_leaders_and_workers(&site, &load).await;
    load.stop().await;
    site.cluster.assert_digests_equal().await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_content_of_a_file_is_a_register_while_leaders_and_workers_are_killed() {
    if fuse_works("the_content_of_a_file_is_a_register_while_leaders_and_workers_are_killed") {
        under_fire(["local/r", "s3/r"].map(|path| Register::new(path, None)).into()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_moved_over_another_is_under_one_name_at_every_moment_while_leaders_are_killed() {
    if fuse_works("a_value_that_is_moved_over_another_is_under_one_name_at_every_moment_while_leaders_are_killed") {
        let pairs = [("local/b", "local/a"), ("s3/b", "s3/a")];
        under_fire(pairs.map(|(path, from)| Register::new(path, Some(from))).into()).await;
    }
}
