//! Room on the disk of the metadata directory: how much is left, when new writes are refused, and how work that found no
//! room waits for it instead of ending the process.
//!
//! Three marks, from above: below twice the reserve the log is compacted early; below the *reserve* the disk counts as
//! full and commands that grow the state are refused; with next to nothing left the ballast is spent. Everything is
//! undone by itself when there is room again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::counter;
use tokio::sync::watch;

use super::ballast::{Ballast, Spend};
use crate::error::{Error, ErrorKind};
use crate::runtime::spawn_poller;

/// How often the free room is measured.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Pause before work that found no room is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How often work that waits for room says so in the log.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// How long work may find no room on a disk that has some, and how much that is at least.
const STUCK_TIMEOUT: Duration = Duration::from_secs(60);
const STUCK_ROOM: u64 = 64 << 20;
/// With less than this left the running process spends its part of the ballast.
const SPEND_BELOW: u64 = 1 << 20;
/// With less than this left a start spends what it needs of the ballast before it writes anything.
const START_ROOM: u64 = 8 << 20;
/// A reserve and a ballast take no more than such a part of the disk.
const RESERVE_SHARE: u64 = 10;
const BALLAST_SHARE: u64 = 20;
/// A reserve of this size is allowed on every disk: two segments of the log and a flush of the state.
const RESERVE_ALWAYS: u64 = 40 << 20;

/// What is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskLimits {
    /// Free bytes below which commands that grow the state are refused; 0 for none.
    pub(crate) reserve: u64,
    /// Bytes of the ballast; 0 for none.
    pub(crate) ballast: u64,
}

/// What the file system said last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DiskUsage {
    /// Bytes of the whole file system; 0 when it does not say.
    pub(crate) total: u64,
    /// Bytes this process may still use.
    pub(crate) free: u64,
    /// Free bytes below which the disk counts as full.
    pub(crate) reserve: u64,
    /// Set below the reserve; cleared a quarter of the reserve above it, so that it does not flap.
    pub(crate) full: bool,
}

impl DiskUsage {
    fn next(self, limits: DiskLimits, total: u64, free: u64) -> DiskUsage {
        let reserve = if total == 0 { 0 } else { limits.reserve.min((total / RESERVE_SHARE).max(RESERVE_ALWAYS)) };
        let mark = if self.full { reserve + reserve / 4 } else { reserve };
        DiskUsage { total, free, reserve, full: free < mark }
    }

    /// True while the log should be compacted although little of it has come since the last snapshot.
    pub(crate) fn is_low(self) -> bool {
        self.free < self.reserve * 2
    }
}

/// Shared by everything that writes below one metadata directory.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    dir: PathBuf,
    limits: DiskLimits,
    ballast: Mutex<Ballast>,
    usage: watch::Sender<DiskUsage>,
    waiting: AtomicU64,
}

impl DiskSpace {
    /// Measures the disk of `dir`, and spends what a start needs of the ballast if there is too little room.
    pub(crate) fn open(dir: &Path, limits: DiskLimits) -> Arc<DiskSpace> {
        let (total, free) = measure(dir);
        let target = limits.ballast.min(total / BALLAST_SHARE);
        let mut ballast = Ballast::open(dir, target);
        if total > 0 && free < START_ROOM && ballast.bytes() > 0 {
            let spent = ballast.spend(Spend::Start);
            tracing::warn!(free, spent, path = %dir.display(), "the disk is full: the start spends the ballast");
        }
        let space = DiskSpace {
            dir: dir.to_path_buf(),
            limits,
            ballast: Mutex::new(ballast),
            usage: watch::Sender::new(DiskUsage::default()),
            waiting: AtomicU64::new(0),
        };
        space.refresh();
        Arc::new(space)
    }

    /// For tests of what lies on the disk, not of its room.
    #[cfg(test)]
    pub(crate) fn unlimited(dir: &Path) -> Arc<DiskSpace> {
        DiskSpace::open(dir, DiskLimits { reserve: 0, ballast: 0 })
    }

    /// Measures from now on, until the last handle is gone. A thread, because a disk that hangs may hang the call.
    ///
    /// *Errors*: when no thread can be started.
    pub(crate) fn watch(self: &Arc<Self>) -> io::Result<()> {
        let weak = Arc::downgrade(self);
        spawn_poller("disk-space", POLL_INTERVAL, move || {
            let Some(space) = weak.upgrade() else { return true };
            space.refresh();
            space.tend_ballast();
            false
        })
    }

    /// What was measured last, at most a moment ago.
    pub(crate) fn usage(&self) -> DiskUsage {
        *self.usage.borrow()
    }

    /// Bytes of the ballast that are left.
    pub(crate) fn ballast_bytes(&self) -> u64 {
        self.ballast().bytes()
    }

    /// Bytes that a running process gets back from a whole ballast; `None` without one.
    pub(crate) fn spare_bytes(&self) -> Option<u64> {
        Some(self.ballast().spare()).filter(|_| self.limits.ballast > 0)
    }

    /// Steps that wait for room now.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits until the disk becomes full, or is no longer.
    pub(crate) async fn changed(&self) {
        let mut usage = self.usage.subscribe();
        let before = usage.borrow_and_update().full;
        // The sender lives as long as `self`.
        let _ = usage.wait_for(|now| now.full != before).await;
    }

    /// Refuses work that needs `bytes` of room and can wait, before it fails half-way.
    ///
    /// *Errors*: `NoSpace`.
    pub(crate) fn check_room(&self, what: &str, bytes: u64) -> Result<(), Error> {
        let usage = self.refresh();
        if usage.total == 0 || usage.free >= bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoSpace,
            format!(
                "{what} needs {} on the disk of namespace.meta-dir {}, where {} is left: it is tried again later",
                size(bytes),
                self.dir.display(),
                size(usage.free)
            ),
        ))
    }

    /// Runs a step of a start, and once more with the ballast spent if it found no room.
    pub(crate) fn at_start<T>(&self, step: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        match step() {
            Err(error) if is_out_of_space(&error) && self.spend(Spend::Start) > 0 => step(),
            done => done,
        }
    }

    /// Runs `step`, which must be repeatable, until it finds room. Blocks the thread. A hung process is worse than a
    /// waiting one only for its own replica: reads and the other members go on meanwhile.
    ///
    /// *Errors*: every error but the lack of room; that too, once the disk has had room for a minute and `step` still
    /// finds none: then a restart is the better try.
    pub(crate) fn wait_for_room<T, E: std::fmt::Display>(
        &self,
        what: &str,
        mut step: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut wait: Option<Wait<'_>> = None;
        loop {
            match step() {
                Err(error) if is_out_of_space(&error) => {
                    if self.spend(Spend::Running) == 0 {
                        let wait = wait.get_or_insert_with(|| Wait::begin(self));
                        if wait.is_stuck() {
                            return Err(error);
                        }
                        wait.warn(what, &error);
                        std::thread::sleep(RETRY_DELAY);
                    }
                }
                done => return done,
            }
        }
    }

    fn ballast(&self) -> MutexGuard<'_, Ballast> {
        self.ballast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spend(&self, who: Spend) -> u64 {
        let spent = self.ballast().spend(who);
        if spent > 0 {
            counter!("jindofs_master_ballast_spent_total").increment(1);
            tracing::warn!(spent, path = %self.dir.display(), "the disk is full: the ballast is spent");
        }
        spent
    }

    fn refresh(&self) -> DiskUsage {
        let (total, free) = measure(&self.dir);
        let mut now = DiskUsage::default();
        self.usage.send_if_modified(|usage| {
            let before = *usage;
            *usage = before.next(self.limits, total, free);
            now = *usage;
            if before.full != now.full {
                let (free, reserve) = (size(now.free), size(now.reserve));
                match now.full {
                    true => tracing::warn!(free, reserve, path = %self.dir.display(), "the disk is full"),
                    false => tracing::info!(free, reserve, path = %self.dir.display(), "the disk has room again"),
                }
            }
            before.full != now.full
        });
        now
    }

    /// Spends the ballast when nothing else is left, and makes it again when that leaves more than the reserve.
    fn tend_ballast(&self) {
        let usage = self.usage();
        if usage.total > 0 && usage.free < SPEND_BELOW {
            self.spend(Spend::Running);
            return;
        }
        // What waits for room gets it first.
        let missing = if self.waiting() > 0 { 0 } else { self.ballast().missing() };
        if missing == 0 || usage.full || usage.free < usage.reserve + usage.reserve / 4 + missing {
            return;
        }
        if let Err(error) = self.ballast().grow() {
            tracing::info!(%error, path = %self.dir.display(), "the ballast is made later");
        }
    }
}

/// A step that waits for room.
struct Wait<'a> {
    space: &'a DiskSpace,
    since: Instant,
    warned: Option<Instant>,
    /// Since when the disk has had room.
    roomy: Option<Instant>,
}

impl<'a> Wait<'a> {
    fn begin(space: &'a DiskSpace) -> Wait<'a> {
        space.waiting.fetch_add(1, Ordering::Relaxed);
        Wait { space, since: Instant::now(), warned: None, roomy: None }
    }

    /// True once there has been room for so long that the lack of it is no explanation any more.
    fn is_stuck(&mut self) -> bool {
        let usage = self.space.usage();
        if usage.total == 0 || usage.full || usage.free < STUCK_ROOM {
            self.roomy = None;
            return false;
        }
        self.roomy.get_or_insert_with(Instant::now).elapsed() > STUCK_TIMEOUT
    }

    fn warn(&mut self, what: &str, error: &dyn std::fmt::Display) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
            self.warned = Some(Instant::now());
            let path = self.space.dir.display();
            tracing::error!(what, %error, %path, waited = ?self.since.elapsed(), "work waits for room on the disk");
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.space.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// True for an error that says that a disk or a quota is full. RocksDB passes the system's text on and nothing else.
pub(crate) fn is_out_of_space(error: &impl std::fmt::Display) -> bool {
    let text = error.to_string();
    text.contains("No space left on device") || text.contains("Disk quota exceeded")
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..=1023 => format!("{bytes} B"),
        1024..=1_048_575 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Total and free bytes; zeros where the file system does not say.
fn measure(dir: &Path) -> (u64, u64) {
    #[cfg(test)]
    if let Some(room) = crate::runtime::simulated::disk_room() {
        return room;
    }
    match rustix::fs::statvfs(dir) {
        Ok(stat) => (stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)),
        Err(error) => {
            tracing::debug!(%error, path = %dir.display(), "the free room is not known");
            (0, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_disk_is_full_below_its_reserve_until_a_quarter_more_is_free() {
        let limits = DiskLimits { reserve: 256 * MIB, ballast: 0 };
        let large = |usage: DiskUsage, free| usage.next(limits, 30 << 30, free);
        let roomy = large(DiskUsage::default(), 256 * MIB);
        assert!(!roomy.full && roomy.is_low());
        let full = large(roomy, 256 * MIB - 1);
        assert!(full.full);
        assert!(large(full, 319 * MIB).full, "it does not flap around the mark");
        assert!(!large(full, 320 * MIB).full);
    }

    #[test]
    fn the_reserve_of_a_small_disk_is_smaller_and_a_silent_file_system_is_never_full() {
        let limits = DiskLimits { reserve: 256 * MIB, ballast: 0 };
        let small = DiskUsage::default().next(limits, 140 * MIB, 50 * MIB);
        assert_eq!((small.reserve, small.full), (40 * MIB, false));
        let medium = DiskUsage::default().next(limits, 1000 * MIB, 99 * MIB);
        assert_eq!((medium.reserve, medium.full), (100 * MIB, true));
        assert!(!DiskUsage::default().next(limits, 0, 0).full);
        let off = DiskLimits { reserve: 0, ballast: 0 };
        assert!(!DiskUsage::default().next(off, 140 * MIB, 0).full);
    }

    #[test]
    fn a_step_without_room_is_repeated_until_it_has_some_and_other_errors_pass() {
        let temp = tempfile::tempdir().expect("tempdir");
        let space = DiskSpace::unlimited(temp.path());
        let mut left = 3;
        let done = space.wait_for_room("a test", || {
            left -= 1;
            if left > 0 { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(left) }
        });
        assert_eq!((done.expect("done"), space.waiting()), (0, 0));
        let failed = space.wait_for_room("a test", || Err::<(), _>(io::Error::from_raw_os_error(libc::EIO)));
        assert_eq!(failed.expect_err("passed on").raw_os_error(), Some(libc::EIO));
    }
}
