//! Clients under fault: what was acknowledged, what was read, and whether it fits together.
//!
//! Two checks run together. *Registers*: each file's `mtime` is a register with one writer and rising values; a read,
//! from any master, must not be older than the last value acknowledged before it began, nor newer than the last one whose
//! write had begun when it ended. With one writer per register and rising values that is linearizability. *Names*: every
//! created name is acknowledged once and must be there at the end, every removed one must be gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use jindofs::client::namespace::{Namespace, at_path};
use jindofs_proto::v1::{CreateRequest, MkdirRequest, SetAttrRequest};
use tokio::task::JoinHandle;

use super::cluster::Cluster;

/// What one writer has done.
#[derive(Debug, Default)]
pub struct Written {
    pub present: BTreeSet<String>,
    pub absent: BTreeSet<String>,
    pub longest_gap: Duration,
    pub operations: u64,
}

/// Load that runs until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Written>>,
    readers: Vec<JoinHandle<u64>>,
    acknowledged: Arc<AtomicU64>,
}

struct Register {
    path: String,
    begun: AtomicI64,
    acknowledged: AtomicI64,
}

/// The outcome of a load.
pub struct Outcome {
    pub longest_gap: Duration,
    pub operations: u64,
    pub reads: u64,
    directory: String,
    present: BTreeSet<String>,
    absent: BTreeSet<String>,
}

pub async fn make_dir(client: &Namespace, path: &str) {
    let target = Some(at_path(path));
    client.mkdir(MkdirRequest { target, mode: 0o755, parents: true, ..MkdirRequest::default() }).await.expect("mkdir");
}

pub fn create_request(path: &str) -> CreateRequest {
    CreateRequest { target: Some(at_path(path)), mode: 0o644, exclusive: true, ..CreateRequest::default() }
}

impl Load {
    /// Starts `writers` writers and a reader on each master.
    pub async fn start(cluster: &Cluster, directory: &str, writers: usize) -> Load {
        let setup = cluster.client();
        make_dir(&setup, directory).await;
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut registers = Vec::new();
        for number in 0..writers {
            let path = format!("{directory}/register-{number}");
            setup.create(create_request(&path)).await.expect("create a register");
            set(&setup, &path, 1).await;
            let (begun, acknowledged) = (AtomicI64::new(1), AtomicI64::new(1));
            registers.push(Arc::new(Register { path, begun, acknowledged }));
        }
        let all = Arc::new(registers);
        let mut tasks = Vec::new();
        for number in 0..writers {
            let (client, stop, register) = (cluster.client(), stop.clone(), all[number].clone());
            let prefix = format!("{directory}/{number}");
            tasks.push(tokio::spawn(write(client, prefix, register, stop, acknowledged.clone())));
        }
        let mut readers = Vec::new();
        for name in cluster.names() {
            readers.push(tokio::spawn(read(cluster.client_of(&name), all.clone(), stop.clone())));
        }
        Load { stop, writers: tasks, readers, acknowledged }
    }

    /// Waits until `count` more operations were acknowledged.
    pub async fn wait_acknowledged(&self, count: u64, patience: Duration) {
        let want = self.acknowledged.load(Ordering::SeqCst) + count;
        let reached = || self.acknowledged.load(Ordering::SeqCst) >= want;
        super::wait_until("writes go on", patience, reached).await;
    }

    pub async fn stop(self, directory: &str) -> Outcome {
        self.stop.store(true, Ordering::SeqCst);
        let mut outcome = Outcome {
            longest_gap: Duration::ZERO,
            operations: 0,
            reads: 0,
            directory: directory.to_owned(),
            present: BTreeSet::new(),
            absent: BTreeSet::new(),
        };
        for writer in self.writers {
            let written = writer.await.expect("no writer saw an error");
            outcome.longest_gap = outcome.longest_gap.max(written.longest_gap);
            outcome.operations += written.operations;
            outcome.present.extend(written.present);
            outcome.absent.extend(written.absent);
        }
        for reader in self.readers {
            outcome.reads += reader.await.expect("no reader saw a stale value");
        }
        outcome
    }
}

impl Outcome {
    /// C2 and C4: what was acknowledged is there, what was removed is gone, nothing else has appeared.
    pub async fn assert_on(&self, client: &Namespace) {
        let found = names(client, &self.directory).await;
        for path in &self.present {
            assert!(found.contains(path), "an acknowledged create is lost: {path}");
        }
        for path in &self.absent {
            assert!(!found.contains(path), "an acknowledged delete came back: {path}");
        }
        let expected = |path: &&String| !self.present.contains(*path) && !path.contains("/register-");
        let strangers: Vec<&String> = found.iter().filter(expected).collect();
        assert!(strangers.is_empty(), "names nobody was told of: {strangers:?}");
    }
}

/// Full paths of everything in a directory.
pub async fn names(client: &Namespace, directory: &str) -> BTreeSet<String> {
    let mut entries = std::pin::pin!(client.list(at_path(directory)));
    let mut found = BTreeSet::new();
    while let Some(entry) = entries.next().await {
        let name = entry.expect("a listing").name;
        let path = format!("{directory}/{}", String::from_utf8_lossy(&name));
        assert!(found.insert(path.clone()), "listed twice: {path}");
    }
    found
}

async fn set(client: &Namespace, path: &str, value: i64) {
    let request = SetAttrRequest { target: Some(at_path(path)), mtime_ns: Some(value), ..SetAttrRequest::default() };
    client.set_attr(request).await.expect("an acknowledged write of a register");
}

/// Every error is a failure: within the time clients retry, no fault of a minority may be seen.
async fn write(
    client: Namespace,
    prefix: String,
    register: Arc<Register>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Written {
    let mut written = Written::default();
    let mut number = 0_i64;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let began = Instant::now();
        let path = format!("{prefix}-{number}");
        client.create(create_request(&path)).await.unwrap_or_else(|error| panic!("create {path}: {error}"));
        written.present.insert(path.clone());
        match number % 4 {
            0 => {
                client.unlink(at_path(&path)).await.unwrap_or_else(|error| panic!("unlink {path}: {error}"));
                written.present.remove(&path);
                written.absent.insert(path);
            }
            1 => {
                let to = format!("{path}-moved");
                let moved = client.rename(at_path(&path), at_path(&to), true).await;
                moved.unwrap_or_else(|error| panic!("rename {path}: {error}"));
                written.present.remove(&path);
                written.absent.insert(path);
                written.present.insert(to);
            }
            _ => {
                register.begun.store(number + 1, Ordering::SeqCst);
                set(&client, &register.path, number + 1).await;
                register.acknowledged.store(number + 1, Ordering::SeqCst);
            }
        }
        written.operations += 2;
        acknowledged.fetch_add(2, Ordering::SeqCst);
        written.longest_gap = written.longest_gap.max(began.elapsed());
    }
    written
}

/// Reads registers from one master. That it cannot answer now and then is allowed, an old answer is not.
async fn read(client: Namespace, registers: Arc<Vec<Arc<Register>>>, stop: Arc<AtomicBool>) -> u64 {
    let mut reads = 0;
    while !stop.load(Ordering::SeqCst) {
        let register = &registers[rand::random_range(0..registers.len())];
        let oldest = register.acknowledged.load(Ordering::SeqCst);
        let answer = tokio::time::timeout(Duration::from_secs(2), client.lookup(at_path(&register.path))).await;
        let newest = register.begun.load(Ordering::SeqCst);
        if let Ok(Ok(attr)) = answer {
            let value = attr.mtime_ns;
            assert!((oldest..=newest).contains(&value), "{}: read {value}, must be {oldest}..={newest}", register.path);
            reads += 1;
        }
    }
    reads
}
