//! When a replica counts as current.
//!
//! The number of entries that it is behind says little: in a busy cluster hundreds are on their way at any moment. A
//! replica is **current** if it holds everything that the leader's log held [`CURRENT_WITHIN`] ago, or if less than
//! [`CURRENT_BYTES`] of log are missing there. Either way it has caught up within moments once it is sent the rest.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::membership::Shape;
use super::node::Running;

/// A replica that holds what the log held this long ago is current.
pub(super) const CURRENT_WITHIN: Duration = Duration::from_secs(1);

/// A replica that lacks fewer bytes of log is current, however long ago they were written.
pub(super) const CURRENT_BYTES: u64 = 1 << 20;

/// How often the end of the log is recorded.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// The end of this member's log over the last [`CURRENT_WITHIN`], oldest sample first. Bounded by its age.
#[derive(Debug, Default)]
pub(super) struct LogHistory(Mutex<VecDeque<(Instant, u64)>>);

impl LogHistory {
    fn record(&self, now: Instant, last: u64) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while samples.front().is_some_and(|(at, _)| now.duration_since(*at) > CURRENT_WITHIN) {
            samples.pop_front();
        }
        samples.push_back((now, last));
    }

    /// The end of the log as it was [`CURRENT_WITHIN`] before `now`, or a little later; `None` if nothing was recorded
    /// since then.
    fn past_end(&self, now: Instant) -> Option<u64> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Never an older sample: after a pause of this process it would call a replica current that is not.
        samples.iter().find(|(at, _)| now.duration_since(*at) <= CURRENT_WITHIN).map(|(_, last)| *last)
    }
}

impl Running {
    /// Records the end of the log for as long as it is polled. Followers do it too, so that one which becomes the leader
    /// can judge the others at once.
    pub(super) async fn keep_history(&self) {
        loop {
            let last = self.look(|m| m.last_log_index.unwrap_or(0));
            self.history.record(Instant::now(), last);
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }

    /// True if a replica whose log matches the leader's up to `matched` is current.
    pub(super) fn is_current(&self, shape: &Shape, matched: u64) -> bool {
        let past_end = self.history.past_end(Instant::now()).unwrap_or(shape.last);
        // The log counts bytes only of entries that it still holds.
        matched >= past_end.min(shape.last)
            || (matched >= shape.purged && self.log.bytes_after(matched) < CURRENT_BYTES)
    }

    /// How long a member may be silent before it counts as gone.
    pub(super) fn silence(&self) -> Duration {
        self.lease * 2
    }

    /// True if the member was heard from within [`Running::silence`], or is this one.
    pub(super) fn is_heard(&self, id: u64) -> bool {
        id == self.net.me.id || self.net.peers.heard(id).is_some_and(|at| at.elapsed() < self.silence())
    }

    /// True if the member has been silent for so long, while this leader listened, that its disk may be replaced.
    pub(super) fn has_been_silent(&self, id: u64) -> bool {
        self.leading().is_some_and(|term| self.net.peers.silence(id, term) >= self.silence())
    }

    /// How many of these members are heard and current, the leader included.
    pub(super) fn count_sound(&self, shape: &Shape, ids: impl Iterator<Item = u64>) -> usize {
        let current = |id: u64| shape.matched.get(&id).is_some_and(|matched| self.is_current(shape, *matched));
        ids.filter(|id| *id == self.net.me.id || (self.is_heard(*id) && current(*id))).count()
    }
}

/// How many more living voters can be lost while a majority of each voter set lives. A voter that is in two sets is
/// missing in both.
pub(super) fn tolerated_losses(voter_sets: &[BTreeSet<u64>], lives: impl Fn(u64) -> bool) -> usize {
    let spare = |set: &BTreeSet<u64>| {
        let living = set.iter().filter(|id| lives(**id)).count();
        living.saturating_sub(set.len() / 2 + 1)
    };
    voter_sets.iter().map(spare).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_end_is_never_older_than_the_window_and_the_history_is_bounded() {
        let history = LogHistory::default();
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        assert_eq!(history.past_end(start), None);
        for step in 0..100 {
            history.record(at(step * 100), step);
        }
        assert_eq!(history.past_end(at(9_900)), Some(89));
        assert_eq!(history.past_end(at(9_950)), Some(90));
        assert!(history.0.lock().expect("lock").len() <= 12);
        assert_eq!(history.past_end(at(60_000)), None, "this process was paused");
        history.record(at(60_000), 500);
        assert_eq!(history.past_end(at(60_050)), Some(500));
    }

    #[test]
    fn losses_are_counted_for_each_voter_set_and_the_smaller_number_holds() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let count = |sets: &[&[u64]], living: &[u64]| {
            let sets: Vec<BTreeSet<u64>> = sets.iter().map(|ids| set(ids)).collect();
            tolerated_losses(&sets, |id| living.contains(&id))
        };
        assert_eq!(count(&[&[1]], &[1]), 0);
        assert_eq!(count(&[&[1, 2, 3]], &[1, 2, 3]), 1);
        assert_eq!(count(&[&[1, 2, 3]], &[1, 2]), 0);
        assert_eq!(count(&[&[1, 2, 3]], &[1]), 0, "the quorum is lost already");
        assert_eq!(count(&[&[1, 2, 3, 4, 5]], &[1, 2, 3, 4]), 1);
        assert_eq!(count(&[&[1, 2, 3, 4, 5], &[1, 2, 6]], &[1, 2, 3, 4, 5]), 0, "the set to come has two of three");
        assert_eq!(count(&[], &[]), 0);
    }
}
