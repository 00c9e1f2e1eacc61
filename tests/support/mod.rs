//! What the tests share: waiting for conditions, seeds, clusters, clients under fault, a disk that forgets.

pub mod agent;
pub mod cluster;
pub mod disks;
pub mod oss;
pub mod partition;
pub mod powercut;
pub mod s3;
pub mod small_disk;
pub mod writers;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The root of the sources.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until `probe` finds something and returns it; panics with `what` when `deadline` has passed.
#[track_caller]
pub fn wait_for<T>(what: &str, deadline: Duration, probe: impl FnMut() -> Option<T>) -> T {
    let Some(found) = poll(LOOK, deadline, probe) else { panic!("waited {deadline:?} in vain: {what}") };
    found
}

/// What `probe` finds until `deadline` has passed, asked once per `interval`. With [`wait_until`] the one place where tests
/// poll.
pub fn poll<T>(interval: Duration, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let found = probe();
        if found.is_some() || started.elapsed() >= deadline {
            return found;
        }
        std::thread::sleep(interval);
    }
}

/// As [`wait_for`], without holding up the other tasks of the thread.
pub async fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Lets time pass before a fault whose moment is part of the test. To wait for something, wait for it.
pub fn after(delay: Duration) {
    std::thread::sleep(delay);
}

/// A port that no process listens on, and that no other test of this process is given. The range lies above the ports from
/// which the kernel takes those of outgoing connections, and above those of local clusters: neither takes it meanwhile.
pub fn free_port() -> u16 {
    const FIRST: u32 = 61_000;
    const COUNT: u32 = 4_500;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Test programs that run at the same time begin at different ports.
        let offset = std::process::id().wrapping_mul(31).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).expect("a port");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("all ports from {FIRST} on are in use");
}

/// Seed of a randomised test: `JINDOFS_SEED` or a new one. Prints it with the command that replays the test.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("JINDOFS_SEED").ok();
    let given = given.map(|text| text.parse().unwrap_or_else(|_| panic!("JINDOFS_SEED is no number: {text}")));
    let seed = given.unwrap_or_else(rand::random);
    println!("seed {seed}; to replay: JINDOFS_SEED={seed} make test TEST={test}");
    seed
}

/// How many seeds a randomised test runs with, from the one of [`seed`] on: `JINDOFS_SEEDS`, or `usual`.
pub fn seeds(usual: u64) -> u64 {
    let given = std::env::var("JINDOFS_SEEDS").ok();
    given.map_or(usual, |text| text.parse().unwrap_or_else(|_| panic!("JINDOFS_SEEDS is no number: {text}")))
}

/// How often a fault is repeated: `JINDOFS_ROUNDS`, or `usual`.
pub fn rounds(usual: u32) -> u32 {
    std::env::var("JINDOFS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// True if the long forms of tests are asked for, with `LONG=1`.
pub fn long() -> bool {
    std::env::var_os("LONG").is_some_and(|value| value != "0")
}

/// True if FUSE file systems can be mounted here. See [`left_out`].
pub fn fuse_works(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let fuse = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    left_out(test, if root { (!fuse()).then_some("/dev/fuse, which cannot be opened") } else { Some("root") })
}

/// True if nothing is missing. Otherwise says in one line that the test is left out; where `CI` is set that is a failure, as a
/// test nobody runs guards nothing.
pub fn left_out(test: &str, missing: Option<&str>) -> bool {
    let Some(missing) = missing else { return true };
    assert!(std::env::var_os("CI").is_none(), "{test} needs {missing}");
    eprintln!("left out: {test} needs {missing}");
    false
}
