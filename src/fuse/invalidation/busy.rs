//! Directories whose lock the kernel holds until requests are answered.
//!
//! The kernel takes the lock of a directory to expire a name in it, and holds that lock while it waits for the answer to
//! a lookup or a listing. A notification for a directory with a slow request would therefore block its thread in the
//! kernel, where not even a signal ends it. Such notifications are deferred: the marks keep new answers right meanwhile.
//!
//! A request may still begin between the check and the notification. The kernel then blocks the thread until that one
//! request is answered.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::runtime::lock;

/// After this time a directory that is never idle is notified between its requests, if all of them are young: then they
/// are likely to be answered soon.
const DEFER_MAX: Duration = Duration::from_millis(100);
const REQUEST_AGE_MAX: Duration = Duration::from_millis(20);

/// A directory with requests under way.
#[derive(Debug, Default)]
struct Busy {
    /// When each request has begun, by its number: the first one is the oldest.
    requests: BTreeMap<u64, Instant>,
    /// Since when a notification waits for the directory.
    awaited_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct BusyTable {
    directories: HashMap<u64, Busy>,
    next_request: u64,
}

/// The directories with requests under way.
#[derive(Debug, Default)]
pub(crate) struct BusyDirectories {
    inner: Mutex<BusyTable>,
    idle: Notify,
}

/// One request under way. To be dropped once it is answered.
#[derive(Debug)]
pub(crate) struct DirectoryRequest {
    busy: Arc<BusyDirectories>,
    directory: u64,
    number: u64,
}

impl BusyDirectories {
    fn inner(&self) -> MutexGuard<'_, BusyTable> {
        lock(&self.inner)
    }

    /// Counts a request that holds the lock of `directory`.
    pub(super) fn begin(self: &Arc<Self>, directory: u64, now: Instant) -> DirectoryRequest {
        let mut inner = self.inner();
        let number = inner.next_request;
        inner.next_request += 1;
        inner.directories.entry(directory).or_default().requests.insert(number, now);
        DirectoryRequest { busy: self.clone(), directory, number }
    }

    /// True if a notification for `directory` has to wait. It is then due again after [`BusyDirectories::wait_idle`].
    pub(super) fn is_busy(&self, directory: u64, now: Instant) -> bool {
        let mut inner = self.inner();
        let Some(busy) = inner.directories.get_mut(&directory) else { return false };
        let awaited_since = *busy.awaited_since.get_or_insert(now);
        let oldest = busy.requests.values().next().copied().unwrap_or(now);
        now.saturating_duration_since(awaited_since) < DEFER_MAX
            || now.saturating_duration_since(oldest) > REQUEST_AGE_MAX
    }

    /// Waits until a directory is idle for which a notification waits.
    pub(super) async fn wait_idle(&self) {
        self.idle.notified().await;
    }
}

impl Drop for DirectoryRequest {
    fn drop(&mut self) {
        let mut inner = self.busy.inner();
        let Some(busy) = inner.directories.get_mut(&self.directory) else { return };
        busy.requests.remove(&self.number);
        if !busy.requests.is_empty() {
            return;
        }
        let is_awaited = busy.awaited_since.is_some();
        inner.directories.remove(&self.directory);
        drop(inner);
        if is_awaited {
            self.busy.idle.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_directory_is_busy_until_its_last_request_is_answered() {
        let all = Arc::<BusyDirectories>::default();
        let now = Instant::now();
        assert!(!all.is_busy(1, now));
        let (one, other) = (all.begin(1, now), all.begin(1, now));
        assert!(all.is_busy(1, now) && !all.is_busy(2, now));
        drop(one);
        assert!(all.is_busy(1, now) && all.wait_idle().now_or_never().is_none());
        drop(other);
        assert!(!all.is_busy(1, now) && all.wait_idle().now_or_never().is_some());
        assert!(all.inner().directories.is_empty());
    }

    #[test]
    fn requests_for_which_nothing_waits_wake_nobody() {
        let all = Arc::<BusyDirectories>::default();
        drop(all.begin(1, Instant::now()));
        assert!(all.wait_idle().now_or_never().is_none());
    }

    #[test]
    fn a_directory_that_is_never_idle_is_notified_while_its_requests_are_young() {
        let all = Arc::<BusyDirectories>::default();
        let begun = Instant::now();
        let first = all.begin(1, begun);
        assert!(all.is_busy(1, begun));
        let later = begun + DEFER_MAX;
        let second = all.begin(1, later);
        assert!(all.is_busy(1, later), "the first request takes long");
        drop(first);
        assert!(!all.is_busy(1, later + REQUEST_AGE_MAX / 2));
        assert!(all.is_busy(1, later + REQUEST_AGE_MAX * 2), "the second request takes long, too");
        drop(second);
    }
}
