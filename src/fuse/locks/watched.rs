//! Directories in which files were locked a moment ago. A process that gets a lock is to see the names beside the file as those
//! who had it before have left them, such as the journal of a database.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::runtime::lock;

/// How long names are watched after a lock: a lock after that has them expire once more.
const WATCHED: Duration = Duration::from_secs(10);
/// How long after the first lock each one has names expire.
const EXPIRING: Duration = Duration::from_secs(1);
/// Most directories that are watched: of more the names expire with each lock.
const DIRECTORIES_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct WatchedNames(Mutex<HashMap<u64, (Instant, Instant)>>);

impl WatchedNames {
    /// A file of a directory was locked; false if names that were given out before have to expire. From now on none is kept.
    pub(super) fn goes_on(&self, directory: u64) -> bool {
        let mut watched = lock(&self.0);
        let now = Instant::now();
        if watched.len() >= DIRECTORIES_MAX {
            watched.retain(|_, (_, until)| *until > now);
        }
        let was = watched.get(&directory).copied().filter(|(_, until)| *until > now);
        if was.is_some() || watched.len() < DIRECTORIES_MAX {
            let since = was.map_or(now, |(since, _)| since);
            watched.insert(directory, (since, now + WATCHED));
        }
        // A lock that comes while names still expire has them expire itself, and waits for it.
        was.is_some_and(|(since, _)| since.elapsed() >= EXPIRING)
    }

    pub(super) fn contains(&self, directory: u64) -> bool {
        let watched = lock(&self.0);
        watched.get(&directory).is_some_and(|(_, until)| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_given_out_before_a_lock_expire_and_those_given_out_while_they_are_watched_need_not() {
        let watched = WatchedNames::default();
        assert!(!watched.contains(1));
        assert!(!watched.goes_on(1) && watched.contains(1) && !watched.contains(2));
        assert!(!watched.goes_on(1), "they may still expire");
        let long_ago = Instant::now().checked_sub(2 * EXPIRING).expect("an earlier time");
        watched.0.lock().expect("lock").insert(1, (long_ago, Instant::now() + WATCHED));
        assert!(watched.goes_on(1));
        for directory in 0..2 * DIRECTORIES_MAX as u64 {
            watched.goes_on(directory);
        }
        assert!(!watched.goes_on(2 * DIRECTORIES_MAX as u64 - 1), "one too many expires each time");
    }
}
