//! Writers while leaders die: what a close that was good has stored is there, and one that failed has said why.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;

use super::writes::{off, stored, writable};
use super::{Site, content};
use crate::support::agent::{Agent, Refusal};
use crate::support::cluster::PATIENCE;
use crate::support::{fuse_works, long, wait_until};

/// Files of one directory.
const TOGETHER: u32 = 500;
/// How many look at what a writer has left, at once: in ten minutes it writes tens of thousands of files.
const READERS: usize = 8;

/// How long writers write, and how often a leader is killed: longer with `LONG=1`.
fn times() -> (Duration, Duration) {
    let [whole, between] = if long() { [600, 60] } else { [60, 20] };
    (Duration::from_secs(whole), Duration::from_secs(between))
}

fn bytes_of(salt: u32, number: u32) -> Vec<u8> {
    content(1000 + (number as usize % 7) * 3000, salt * 1_000_000 + number)
}

fn path_of(salt: u32, number: u32) -> String {
    format!("w{salt}-{}/f{number}", number / TOGETHER)
}

/// How far a writer is, and whether it is to go on.
#[derive(Default)]
struct Progress {
    closed: AtomicU64,
    stop: AtomicBool,
}

/// What a writer has done.
#[derive(Default)]
struct Written {
    /// Numbers of files whose close was good.
    good: Vec<u32>,
    failed: Vec<(u32, Refusal)>,
    slowest: Duration,
}

/// Writes one file after another until it is told to stop.
fn write_until(dir: &Path, salt: u32, progress: &Progress) -> Written {
    let (mut agent, mut written) = (Agent::start(), Written::default());
    for number in 0.. {
        if progress.stop.load(Ordering::SeqCst) {
            break;
        }
        let (at, bytes, started) = (dir.join(path_of(salt, number)), bytes_of(salt, number), Instant::now());
        if number % TOGETHER == 0 {
            agent.call(&json!(["mkdir", at.parent(), 0o755])).expect("a directory");
        }
        match agent.put(&at, &[&bytes]) {
            Ok(_) => written.good.push(number),
            Err(refusal) => written.failed.push((number, refusal)),
        }
        written.slowest = written.slowest.max(started.elapsed());
        progress.closed.fetch_add(1, Ordering::SeqCst);
    }
    written
}

/// A writer at work.
struct Writer {
    storage: &'static str,
    salt: u32,
    progress: Arc<Progress>,
    thread: JoinHandle<Written>,
}

impl Writer {
    fn start(site: &Site, storage: &'static str, salt: u32) -> Writer {
        let (dir, progress) = (site.mnt.join(storage), Arc::new(Progress::default()));
        let theirs = progress.clone();
        let thread = std::thread::spawn(move || write_until(&dir, salt, &theirs));
        Writer { storage, salt, progress, thread }
    }

    async fn more(&self, files: u64) {
        let goal = self.progress.closed.load(Ordering::SeqCst) + files;
        let what = format!("{files} more files below {}", self.storage);
        let reached = || self.progress.closed.load(Ordering::SeqCst) >= goal || self.thread.is_finished();
        wait_until(&what, PATIENCE, reached).await;
    }

    /// Waits for its end, and looks at every file.
    async fn check(self, site: &Site) {
        let Writer { storage, salt, thread, .. } = self;
        let Written { good, failed, slowest } = off(move || thread.join().expect("no panic")).await;
        println!("{storage}: {} files, {} failed, the slowest took {slowest:?}", good.len(), failed.len());
        for (number, refusal) in &failed {
            println!("{storage}/{}: {refusal:?}: {}", path_of(salt, *number), why(site, refusal));
        }
        assert!(failed.is_empty(), "a leader that is killed is a pause, no error");
        assert!(good.len() > 100, "{} files only", good.len());
        let files: Vec<(String, Vec<u8>)> =
            good.into_iter().map(|number| (path_of(salt, number), bytes_of(salt, number))).collect();
        let below = |path: &str| format!("{storage}/{path}");
        let kept = futures::stream::iter(&files).map(async |(path, bytes)| {
            assert!(stored(site, &below(path)).await.as_ref() == Some(bytes), "{} in the under-storage", below(path));
        });
        kept.buffer_unordered(READERS).collect::<()>().await;
        let dir = site.mnt.join(storage);
        off(move || {
            std::thread::scope(|scope| {
                for mine in files.chunks(files.len().div_ceil(READERS)) {
                    let dir = &dir;
                    scope.spawn(move || {
                        let mut reader = Agent::start();
                        for (path, bytes) in mine {
                            let seen = reader.get(&dir.join(path));
                            assert!(seen.as_ref() == Ok(bytes), "{storage}/{path} through the mount");
                        }
                    });
                }
            });
        })
        .await;
    }
}

/// What the log of the mount says of a file that could not be stored: the kind of error, and the error.
fn why(site: &Site, refusal: &Refusal) -> String {
    let inode = refusal.inode.map(|inode| format!("inode={inode} kind="));
    let said = site.cluster.log_of("fuse-0");
    let mut lines = said.lines().filter(|line| inode.as_ref().is_some_and(|inode| line.contains(inode)));
    let found = lines.find_map(|line| line.split_once("kind=").map(|(_, why)| why.to_owned()));
    found.unwrap_or_else(|| panic!("{refusal:?}: the log does not say why"))
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_go_on_over_killed_leaders_and_every_good_close_is_there_with_its_bytes() {
    if !fuse_works("writers_go_on_over_killed_leaders_and_every_good_close_is_there_with_its_bytes") {
        return;
    }
    let site = writable(3, |_| {}).await;
    let writers = [("local", 1), ("s3", 2), ("local", 3)].map(|(storage, salt)| Writer::start(&site, storage, salt));
    let (started, (whole, between)) = (Instant::now(), times());
    let (mut kills, mut next) = (0, between / 2);
    while next < whole {
        wait_until("it is time for the next kill", whole, || started.elapsed() >= next).await;
        let (leader, _) = site.cluster.wait_leader();
        site.cluster.dev.kill(&leader).expect("killed");
        kills += 1;
        site.cluster.wait_leader();
        for writer in &writers {
            writer.more(10).await;
        }
        site.cluster.dev.launch(&leader).expect("launched");
        site.cluster.wait_whole();
        next += between;
    }
    wait_until("the time is over", whole, || started.elapsed() >= whole).await;
    println!("{kills} leaders were killed within {whole:?}");
    writers.iter().for_each(|writer| writer.progress.stop.store(true, Ordering::SeqCst));
    futures::future::join_all(writers.map(|writer| writer.check(&site))).await;
    site.cluster.assert_digests_equal().await;
    site.cluster.assert_no_panic();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_could_not_store_fails_with_an_errno_and_the_log_of_the_mount_says_why() {
    if !fuse_works("a_close_that_could_not_store_fails_with_an_errno_and_the_log_of_the_mount_says_why") {
        return;
    }
    let site = writable(1, |_| {}).await;
    let put = async |agent: Agent, at: PathBuf| {
        let mut agent = agent;
        off(move || (agent.put(&at, &[b"bytes"]), agent)).await
    };
    let (done, agent) = put(Agent::start(), site.mnt.join("s3/f")).await;
    done.expect("written");
    site.s3.control.fail_next(u64::MAX);
    let (refused, mut agent) = put(agent, site.mnt.join("s3/f")).await;
    site.s3.control.fail_next(0);
    let refusal = refused.expect_err("not stored");
    assert_eq!((refusal.errno, refusal.at.as_str()), (libc::EIO, "close"));
    println!("EIO: {}", why(&site, &refusal));

    let (at, file) = (site.mnt.join("local/f"), site.dir.path().join("file"));
    std::fs::write(&file, b"of another client").expect("written");
    site.ctl_ok(&["fs", "put", &file.display().to_string(), "/local/f"]);
    let (held, mut agent) = off(move || {
        agent.call(&json!(["open", 0, at, libc::O_WRONLY, 0])).expect("open");
        agent.call(&json!(["write", 0, 0, "AAAA"])).expect("staged");
        (agent.call(&json!(["fstat", 0])).expect("stat"), agent)
    })
    .await;
    site.ctl_ok(&["fs", "put", &file.display().to_string(), "/local/f"]);
    let mut refusal = off(move || agent.call(&json!(["close", 0])).expect_err("not stored")).await;
    assert_eq!(refusal.errno, libc::ESTALE);
    refusal.inode = held["inode"].as_u64();
    assert!(why(&site, &refusal).starts_with("Stale"), "{}", why(&site, &refusal));
    site.cluster.assert_no_panic();
}
