//! Readers while masters, workers or the under-storage are gone.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jindofs::client::namespace::at_path;

use super::{BLOCK, Site, content, start};
use crate::support::cluster::PATIENCE;
use crate::support::writers::create_request;
use crate::support::{fuse_works, wait_for, wait_until};

/// Reads files of a mount over and over, past the page cache; any error or wrong byte is a failure.
pub(super) struct Readers {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(files: Vec<(PathBuf, Vec<u8>)>) -> Readers {
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let read = |(path, expected): (PathBuf, Vec<u8>)| {
            let (stop, reads) = (stop.clone(), reads.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    // Drops what the kernel holds of it, so that the next read is ours to answer.
                    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
                    let mut bytes = vec![0; expected.len()];
                    file.read_exact_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    assert!(bytes == expected, "{} has other bytes", path.display());
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        let threads = files.into_iter().map(read).collect();
        Readers { stop, reads, threads }
    }

    /// Waits until `count` more reads were made.
    pub(super) async fn wait(&self, count: u64) {
        let want = self.reads.load(Ordering::SeqCst) + count;
        wait_until("readers go on", PATIENCE, || {
            self.reads.load(Ordering::SeqCst) >= want || self.threads.iter().any(|thread| thread.is_finished())
        })
        .await;
    }

    pub(super) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("no reader saw an error");
        }
        self.reads.load(Ordering::SeqCst)
    }
}

/// Files on S3, known to the mount and cached by the workers, but never read through the mount.
pub(super) async fn cached_files(site: &Site, count: u32) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for number in 0..count {
        let bytes = content(BLOCK / 2 + 1000 * number as usize, number);
        site.put(&format!("d/f{number}"), &bytes).await;
        files.push((site.mnt.join(format!("s3/d/f{number}")), bytes));
    }
    site.ctl_ok(&["load", "/s3/d"]);
    assert_eq!(site.names("s3/d").await.len(), count as usize);
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_masters_down_for_a_minute_cached_files_open_and_read_and_all_heals_untouched() {
    if !fuse_works("with_all_masters_down_for_a_minute_cached_files_open_and_read_and_all_heals_untouched") {
        return;
    }
    let site = start(3, |_| {}).await;
    let files = cached_files(&site, 4).await;
    let gets = site.s3.control.gets();
    let masters = site.cluster.names();
    for master in &masters {
        site.cluster.dev.kill(master).expect("killed");
    }
    let readers = Readers::start(files);
    let down = Instant::now();
    let outage =
        Duration::from_secs(std::env::var("JINDOFS_OUTAGE_S").ok().and_then(|text| text.parse().ok()).unwrap_or(60));
    while down.elapsed() < outage {
        readers.wait(4).await;
    }
    assert_eq!(site.s3.control.gets(), gets, "from the workers, not from the page cache nor the under-storage");
    for master in &masters {
        site.cluster.dev.launch(master).expect("launched");
    }
    site.cluster.wait_whole();
    readers.wait(8).await;
    println!("{} reads", readers.stop());
    // Of a directory that nobody has looked at: one that was listed once would not be listed again.
    std::fs::write(site.local.join("new"), b"new").expect("written");
    assert_eq!(site.read("local/new").await.expect("what was never seen is found"), b"new");
    site.cluster.assert_digests_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_of_three_masters_down_writes_are_refused_and_cached_reads_go_on() {
    if !fuse_works("with_two_of_three_masters_down_writes_are_refused_and_cached_reads_go_on") {
        return;
    }
    let site = start(3, |_| {}).await;
    let readers = Readers::start(cached_files(&site, 2).await);
    let masters = site.cluster.names();
    for master in &masters[..2] {
        site.cluster.dev.kill(master).expect("killed");
    }
    let hasty = site.cluster.client_waiting(Duration::from_secs(2));
    let began = Instant::now();
    hasty.create(create_request("/refused")).await.expect_err("no quorum");
    assert!(began.elapsed() < Duration::from_secs(5));
    readers.wait(4).await;
    site.cluster.dev.launch(&masters[0]).expect("launched");
    let client = site.cluster.client();
    client.create(create_request("/accepted")).await.expect("one restart heals");
    client.lookup(at_path("/accepted")).await.expect("there");
    readers.wait(4).await;
    readers.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_are_replaced_by_others_and_by_the_under_storage() {
    if !fuse_works("killed_workers_are_replaced_by_others_and_by_the_under_storage") {
        return;
    }
    let site = start(1, |_| {}).await;
    let readers = Readers::start(cached_files(&site, 4).await);
    readers.wait(4).await;
    for round in 0..4 {
        let worker = format!("worker-{}", round % 2);
        site.cluster.dev.kill(&worker).expect("killed");
        readers.wait(8).await;
        site.cluster.dev.restart(&worker).expect("restarted");
    }
    site.cluster.dev.kill("worker-0").expect("killed");
    site.cluster.dev.kill("worker-1").expect("killed");
    readers.wait(8).await;
    println!("{} reads", readers.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_on_the_disk_of_a_worker_is_never_read() {
    let site = start(1, |options| {
        options.mounts.clear();
        options.workers = 1;
    })
    .await;
    let bytes = content(BLOCK + 5000, 3);
    site.put("f", &bytes).await;
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f"]) == bytes);
    site.cluster.dev.kill("worker-0").expect("killed");
    let mut flipped = 0;
    for place in [site.cluster.dev.dir().join("worker-0/cache"), memory_of(&site)] {
        flipped += flip(&place);
    }
    assert_eq!(flipped, 1, "the cached file is found");
    site.cluster.dev.restart("worker-0").expect("restarted");
    let gets = site.s3.control.gets();
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f"]) == bytes);
    assert_eq!(site.s3.control.gets(), gets + 1, "only the damaged block is fetched again");
    assert!(site.cluster.log_of("worker-0").contains("checksum does not match"));
}

fn memory_of(site: &Site) -> PathBuf {
    let config = std::fs::read_to_string(site.cluster.dev.dir().join("worker-0.toml")).expect("a config");
    let line = config.lines().find(|line| line.contains("storage.ram.cache.dir")).expect("a memory level");
    PathBuf::from(line.rsplit('"').nth(1).expect("quoted"))
}

/// Flips one bit in the middle of every cached file below a directory.
fn flip(place: &std::path::Path) -> u32 {
    let Ok(items) = std::fs::read_dir(place) else { return 0 };
    let mut flipped = 0;
    for item in items {
        let path = item.expect("an entry").path();
        if path.is_dir() {
            flipped += flip(&path);
        } else if path.extension().is_none() && path.file_name().is_some_and(|name| name != "LOCK") {
            let mut bytes = std::fs::read(&path).expect("read");
            bytes[1_000_000] ^= 1;
            std::fs::write(&path, bytes).expect("written");
            flipped += 1;
        }
    }
    flipped
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_disk_is_pulled_passes_bytes_on_and_recovers() {
    let site = start(1, |options| {
        options.mounts.clear();
        options.workers = 1;
        options.env.insert("worker-0".into(), [("JINDOFS_FAILPOINTS".into(), "worker.fill=1+error".into())].into());
    })
    .await;
    let bytes = content(2 * BLOCK, 3);
    site.put("f", &bytes).await;
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f"]) == bytes, "every write to the cache fails");
    site.cluster.dev.kill("worker-0").expect("killed");
    site.cluster.dev.set_env("worker-0", "JINDOFS_FAILPOINTS", None).expect("set");
    site.cluster.dev.restart("worker-0").expect("restarted");
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f"]) == bytes);
    let gets = site.s3.control.gets();
    assert!(site.ctl_ok(&["fs", "cat", "/s3/f"]) == bytes);
    assert_eq!(site.s3.control.gets(), gets, "cached by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_503_is_waited_out_with_pauses_and_readers_see_no_error() {
    let site = start(1, |options| options.mounts.clear()).await;
    let bytes = content(BLOCK + 1, 9);
    site.put("f", &bytes).await;
    for storm in 1..=3 {
        site.s3.control.fail_next(storm);
        if storm == 1 {
            site.ctl_ok(&["fs", "ls", "/s3"]);
        }
        assert!(site.ctl_ok(&["fs", "cat", "/s3/f"]) == bytes);
        // What is cached needs no request: the rest of the storm would meet us.
        site.s3.control.fail_next(0);
        site.put("f", &bytes).await;
    }
    site.s3.control.fail_next(1_000_000);
    let read = site.ctl(&["fs", "ls", "/s3/never-listed"]);
    assert!(!read.status.success(), "a storm that does not end is told");
    site.s3.control.fail_next(0);
    wait_for("and it heals by itself", PATIENCE, || (site.ctl(&["fs", "cat", "/s3/f"]).stdout == bytes).then_some(()));
}
