//! One bound for all that the storing of one file takes: its attempts, the pauses between them, and the looks at what came of
//! them.
//!
//! It bounds the time without progress. Bytes that the store takes and had not taken before in the same attempt begin it anew, so
//! that a file of any length can be stored. An attempt that fails after some progress leaves the whole time to the next one, which
//! sends all of it again; how many attempts there are is bounded elsewhere. A store that answers nothing is given up in time.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::error::Error;
use crate::runtime::{Fail, failpoint, lock};

/// Longest time without progress, as long as a client waits for the masters. The parts under way at the end of a file, 40 MiB,
/// come through within one attempt at 420 KiB/s.
const STORE_TIMEOUT: Duration = Duration::from_secs(120);
/// The same in tests, which set a failpoint.
const TESTED_TIMEOUT: Duration = Duration::from_secs(6);
/// An attempt takes at most this share of the time that is left: the rest is for a look at what came of it, and for one more.
const ATTEMPT_SHARE: (u32, u32) = (5, 6);
/// What was begun before the store is waited for at most for this share.
const EARLIER_SHARE: (u32, u32) = (1, 4);

/// When the storing of one file is given up. Clones share it.
#[derive(Debug, Clone)]
pub struct Deadline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ends: Instant,
    /// Bytes that the store has taken in this attempt.
    taken: u64,
}

impl Deadline {
    /// Of a store that begins now.
    pub fn for_store() -> Deadline {
        Deadline::within(if failpoint("ufs.store-timeout") == Fail::Skip { TESTED_TIMEOUT } else { STORE_TIMEOUT })
    }

    /// Of a store that begins now, and may take so long without progress.
    pub fn within(limit: Duration) -> Deadline {
        let state = State { ends: Instant::now() + limit, taken: 0 };
        Deadline(Arc::new(Inner { limit, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    fn remaining(&self) -> Duration {
        self.state().ends.saturating_duration_since(Instant::now())
    }

    /// The store has ended what it was at: the whole time is left again. Not for what is tried again after a failure.
    pub fn extend(&self) {
        self.state().ends = Instant::now() + self.0.limit;
    }

    /// The store has taken so many bytes in this attempt. The whole time is left again if they are more than before.
    pub(super) fn has_taken(&self, bytes: u64) {
        let mut state = self.state();
        if bytes > state.taken {
            *state = State { ends: Instant::now() + self.0.limit, taken: bytes };
        }
    }

    /// An attempt has failed, and the next one begins from the start. If this one has made progress, the whole time is left again.
    pub(super) fn attempt_failed(&self) {
        let mut state = self.state();
        if state.taken > 0 {
            *state = State { ends: Instant::now() + self.0.limit, taken: 0 };
        }
    }

    /// True if there is time for a pause, and for something after it.
    pub(super) fn has_room_for(&self, pause: Duration) -> bool {
        self.remaining() > pause
    }

    /// What `work` comes to; `None` if the time is over before.
    pub async fn bound<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let ends = self.state().ends;
        timeout_at(ends, work).await.ok()
    }

    /// As [`Deadline::bound`], for work that leaves time for a look at what came of it.
    pub async fn bound_attempt<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.bound_share(ATTEMPT_SHARE, work).await
    }

    /// As [`Deadline::bound`], for work that was begun before, and can be done again if it hangs.
    pub async fn bound_earlier<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.bound_share(EARLIER_SHARE, work).await
    }

    async fn bound_share<T>(&self, (share, whole): (u32, u32), work: impl Future<Output = T>) -> Option<T> {
        timeout(self.remaining() * share / whole, work).await.ok()
    }

    /// Why something was given up of which nothing was done.
    pub(super) fn passed(&self) -> Error {
        Error::unavailable(format!(
            "no answer within {:?}, which is how long storing a file may make no progress",
            self.0.limit
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn a_store_that_makes_no_progress_ends_after_the_limit_however_much_is_tried_within_it() {
        let (began, deadline) = (Instant::now(), Deadline::within(LIMIT));
        assert_eq!(deadline.bound(pending::<()>()).await, None);
        assert!(began.elapsed() >= LIMIT);
        assert_eq!(deadline.bound_attempt(pending::<()>()).await, None, "no time is left");
        assert!(!deadline.has_room_for(Duration::ZERO));
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_leaves_time_to_look_and_to_try_again() {
        let deadline = Deadline::within(LIMIT);
        assert_eq!(deadline.bound_attempt(pending::<()>()).await, None);
        assert!(deadline.has_room_for(Duration::ZERO));
        assert_eq!(deadline.bound(ready(7)).await, Some(7));
    }

    #[tokio::test]
    async fn progress_gives_the_whole_time_again_for_all_who_share_it() {
        let (began, deadline) = (Instant::now(), Deadline::within(LIMIT));
        let shared = deadline.clone();
        for parts in 1..=2 {
            deadline.has_taken(parts);
            assert!(shared.has_room_for(Duration::ZERO));
            assert_eq!(shared.bound(pending::<()>()).await, None);
        }
        assert!(began.elapsed() >= LIMIT * 2);
        deadline.has_taken(2);
        deadline.has_taken(1);
        assert!(
            !shared.has_room_for(Duration::ZERO),
            "an attempt that comes no farther than one before is no progress"
        );
        deadline.extend();
        assert!(shared.has_room_for(Duration::ZERO));
    }

    #[tokio::test]
    async fn an_attempt_that_failed_after_progress_leaves_the_whole_time_to_the_next_one() {
        let deadline = Deadline::within(LIMIT);
        deadline.has_taken(7);
        assert_eq!(deadline.bound(pending::<()>()).await, None);
        deadline.attempt_failed();
        assert!(deadline.has_room_for(LIMIT / 2), "it sends all of it again");
        deadline.has_taken(1);
        assert_eq!(deadline.bound(pending::<()>()).await, None);
        deadline.attempt_failed();
        assert_eq!(deadline.bound(pending::<()>()).await, None);
        deadline.attempt_failed();
        assert!(!deadline.has_room_for(Duration::ZERO), "it has made none");
    }
}
