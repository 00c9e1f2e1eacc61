//! What every role needs to run and to stop: a shutdown token, a clock, locks, durable file replacement, failpoints.

pub mod attended;
pub(crate) mod planted;
#[cfg(test)]
pub(crate) mod simulated;
pub mod stdio;
mod sync;

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
pub use tokio_util::sync::CancellationToken as Shutdown;

pub use sync::{lock, read_lock, write_lock};

use planted::{PlantedFault, is_planted};

/// Nanoseconds since the Unix epoch. The only wall clock of the program: the state machine takes the time from
/// commands.
///
/// Tests shift this clock: `JINDOFS_CLOCK_OFFSET_FILE` names a file with the seconds to add, which is read at each
/// call. Without the variable a call costs one more load.
pub fn now_ns() -> i64 {
    static OFFSET_FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let now = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    let Some(path) = OFFSET_FILE.get_or_init(|| std::env::var_os("JINDOFS_CLOCK_OFFSET_FILE").map(Into::into)) else {
        return now;
    };
    let offset_s = fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok()).unwrap_or(0);
    now.saturating_add(offset_s.saturating_mul(1_000_000_000))
}

/// Sixteen random bytes.
pub fn random_id() -> [u8; 16] {
    *uuid::Uuid::new_v4().as_bytes()
}

/// Host name of this machine, for people and for finding the worker on the same host; `localhost` if it has none.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() || name == "(none)" { "localhost".to_owned() } else { name.to_owned() }
}

/// Raises the limit of open files of this process to the hard limit.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// Bytes of memory this process may use: the smallest limit of its control groups, or what the machine has.
pub fn memory_bytes() -> u64 {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut limits = vec![number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
    for line in own.lines() {
        let group = line.rsplit(':').next().unwrap_or_default();
        limits.push(number(&format!("/sys/fs/cgroup{group}/memory.max")));
        limits.push(number(&format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes")));
    }
    let machine = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = machine.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map(|kib| kib << 10);
    limits.into_iter().flatten().chain(total).min().unwrap_or(1 << 30)
}

/// A token that is cancelled by SIGTERM or SIGINT.
///
/// *Errors*: when the signal handlers cannot be installed.
pub fn shutdown_on_signal() -> io::Result<Shutdown> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = Shutdown::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        stop.cancel();
    });
    Ok(token)
}

thread_local! {
    static MAY_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// True on a dedicated thread, which serves no other task and may block on disks.
pub fn may_block() -> bool {
    MAY_BLOCK.get()
}

/// Runs `work` on a dedicated thread that may block. Work that mostly waits for disks then is not moved from thread to
/// thread, which would cost more than the work itself. The caller bounds the number of such threads.
pub fn spawn_dedicated(on: &Handle, work: impl Future<Output = ()> + Send + 'static) {
    let handle = on.clone();
    on.spawn_blocking(move || {
        let before = MAY_BLOCK.replace(true);
        handle.block_on(work);
        MAY_BLOCK.set(before);
    });
}

/// Runs blocking work on a thread of the blocking pool.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if simulated::is_active() {
        return tokio::spawn(async move { work() });
    }
    tokio::task::spawn_blocking(work)
}

/// Runs `step` on a thread of its own, now and after each `pause`, until it returns true.
///
/// *Errors*: no thread can be started.
pub(crate) fn spawn_poller(
    name: &str,
    pause: Duration,
    mut step: impl FnMut() -> bool + Send + 'static,
) -> io::Result<()> {
    #[cfg(test)]
    if simulated::is_active() {
        tokio::spawn(async move {
            while !step() {
                tokio::time::sleep(pause).await;
            }
        });
        return Ok(());
    }
    let work = move || {
        while !step() {
            std::thread::sleep(pause);
        }
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(|_| ())
}

/// Replaces `path` by `content` atomically: after a crash the file has the old or the new content, never a part.
///
/// *Durability*: the content, the name and the directory are synced on return.
pub fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::other(format!("{} has no directory", path.display())))?;
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = parent.join(name);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    if !is_planted(PlantedFault::ReplaceNotSynced) {
        file.sync_all()?;
    }
    fs::rename(&temporary, path)?;
    if is_planted(PlantedFault::NameNotSynced) {
        return Ok(());
    }
    sync_dir(parent)
}

/// Makes the names in a directory durable (fsync of the directory).
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Ends the process at once after a fatal disk error: nothing may be acknowledged any more.
pub fn die(reason: &str) -> ! {
    #[cfg(test)]
    simulated::die(reason);
    tracing::error!(reason, "fatal: the process ends now, nothing more is acknowledged");
    // The log line may be buffered; operators look at stderr when a pod restarts.
    let _ = writeln!(io::stderr(), "fatal: {reason}");
    std::process::exit(70);
}

/// The action that a failpoint requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fail {
    /// Continue.
    Nothing,
    /// Return an error (EIO).
    Error,
    /// Skip what the failpoint guards (an fsync, a reply).
    Skip,
}

/// A point where tests make a process die, stall or fail: `JINDOFS_FAILPOINTS="name=action;..."`.
///
/// Actions: `kill` (SIGKILL to the process itself), `error`, `skip`, `sleep(ms)`; `N*action` acts on the Nth visit
/// only, `N+action` from the Nth visit on, and `N%action` on every Nth visit. Without the variable a visit costs one
/// load. Failpoints are part of the product because there is one build profile, and because the tested binary should be
/// the shipped one.
pub fn failpoint(name: &str) -> Fail {
    static POINTS: OnceLock<Option<Mutex<HashMap<String, Point>>>> = OnceLock::new();
    let Some(points) = POINTS.get_or_init(|| std::env::var("JINDOFS_FAILPOINTS").ok().map(|s| Mutex::new(parse(&s))))
    else {
        return Fail::Nothing;
    };
    let action = {
        let mut points = lock(points);
        let Some(point) = points.get_mut(name) else { return Fail::Nothing };
        point.visits += 1;
        let due = match point.when {
            When::At => point.visits == point.nth,
            When::From => point.visits >= point.nth,
            When::Every => point.visits % point.nth.max(1) == 0,
        };
        if !due {
            return Fail::Nothing;
        }
        point.action
    };
    match action {
        Action::Kill => {
            let _ = writeln!(io::stderr(), "failpoint {name}: kill");
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        Action::Error => Fail::Error,
        Action::Skip => Fail::Skip,
        Action::Sleep(time) => {
            std::thread::sleep(time);
            Fail::Nothing
        }
    }
}

/// [`failpoint`] for code that returns `io::Result`: `Error` becomes EIO.
pub fn failpoint_io(name: &str) -> io::Result<Fail> {
    match failpoint(name) {
        Fail::Error => Err(io::Error::from_raw_os_error(libc::EIO)),
        other => Ok(other),
    }
}

struct Point {
    action: Action,
    nth: u64,
    when: When,
    visits: u64,
}

/// On which visits a failpoint acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    At,
    From,
    Every,
}

#[derive(Clone, Copy)]
enum Action {
    Kill,
    Error,
    Skip,
    Sleep(Duration),
}

fn parse(text: &str) -> HashMap<String, Point> {
    text.split(';').filter(|part| !part.is_empty()).filter_map(parse_point).collect()
}

fn parse_point(text: &str) -> Option<(String, Point)> {
    let (name, rest) = text.split_once('=')?;
    let (nth, when, action) = match rest.split_once(['*', '+', '%']) {
        Some((count, action)) => {
            let when = match rest.as_bytes()[count.len()] {
                b'*' => When::At,
                b'+' => When::From,
                _ => When::Every,
            };
            (count.parse().ok()?, when, action)
        }
        None => (1, When::From, rest),
    };
    let action = match action {
        "kill" => Action::Kill,
        "error" => Action::Error,
        "skip" => Action::Skip,
        _ => {
            let ms = action.strip_prefix("sleep(")?.strip_suffix(')')?;
            Action::Sleep(Duration::from_millis(ms.parse().ok()?))
        }
    };
    Some((name.to_owned(), Point { action, nth, when, visits: 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failpoints_parse_counts_and_actions() {
        let points = parse("a=kill;b=3*error;c=2+skip;d=sleep(5);nonsense;e=what;f=4%skip");
        assert_eq!(points.len(), 5);
        assert_eq!((points["b"].nth, points["b"].when), (3, When::At));
        assert_eq!((points["c"].nth, points["c"].when), (2, When::From));
        assert_eq!((points["f"].nth, points["f"].when), (4, When::Every));
        assert!(matches!(points["d"].action, Action::Sleep(time) if time == Duration::from_millis(5)));
    }

    #[test]
    fn a_replaced_file_holds_the_new_content() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x");
        write_durably(&path, b"one").expect("write");
        write_durably(&path, b"two").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
