//! How long an empty disk has listened to members that announce themselves.
//!
//! A living cluster that misses the disk of this master announces itself here, but only now and then. A founding that did
//! not wait for that would make a second cluster beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::runtime::attended::{AttendedClock, Moment};

use super::announce::{ANNOUNCE_INTERVAL, ANNOUNCE_TIMEOUT};

/// How long an empty disk listens before a cluster is founded with it. A member that sends to others which do not answer
/// announces itself once within an interval and a timeout: one such round is certain, and half of another one.
const LISTENING_MIN: Duration = ANNOUNCE_INTERVAL.saturating_mul(3);
const _: () = assert!(LISTENING_MIN.as_millis() > ANNOUNCE_INTERVAL.as_millis() + ANNOUNCE_TIMEOUT.as_millis());

/// Election timeouts that a cluster gets to elect a leader, if its last one was on the disk that was here: the silence of that
/// one, and elections without a winner.
const ELECTION_TIMEOUTS: u32 = 4;

/// Longest wait beyond what is needed. A process that stands still again and again does not listen.
pub(super) const LISTENING_EXTENSION_MAX: Duration = LISTENING_MIN.saturating_mul(3);

/// Since when this disk has listened.
#[derive(Debug)]
pub(crate) struct Listening {
    clock: AttendedClock,
    since: Mutex<Option<Moment>>,
    has_heard: AtomicBool,
}

impl Listening {
    pub(super) fn new(clock: AttendedClock) -> Listening {
        Listening { clock, since: Mutex::default(), has_heard: AtomicBool::new(false) }
    }

    /// How long this disk has listened, since the first call. After a pause of the process it begins anew: whatever was
    /// announced meanwhile is lost.
    pub(super) fn time(&self) -> Duration {
        let now = self.clock.now();
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
        self.clock.silence_since(since)
    }

    /// Notes that some member has announced itself.
    pub(super) fn note_announcement(&self) {
        self.has_heard.store(true, Ordering::Relaxed);
    }

    /// How long this disk has to listen before a cluster is founded with it. A member without a leader offers no place, so one
    /// that was heard gets the time to elect another.
    pub(super) fn needed(&self, election_max: Duration) -> Duration {
        if self.has_heard.load(Ordering::Relaxed) {
            return LISTENING_MIN + election_max * ELECTION_TIMEOUTS;
        }
        LISTENING_MIN
    }

    /// Begins anew: a member judges announcements and does not remember them.
    pub(super) fn restart(&self) {
        self.has_heard.store(false, Ordering::Relaxed);
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn a_disk_listens_from_the_first_call_on_and_anew_after_a_pause_or_after_it_was_a_member() {
        let elapsed = Arc::new(AtomicU64::new(0));
        let source = elapsed.clone();
        let clock = AttendedClock::over(move || Duration::from_millis(source.load(Ordering::SeqCst)));
        let listening = Listening::new(clock.clone());
        let run = |seconds: u64| {
            for _ in 0..seconds * 2 {
                elapsed.fetch_add(500, Ordering::SeqCst);
                clock.now();
            }
        };
        run(100);
        assert_eq!(listening.time(), Duration::ZERO, "nobody was there to hear anything");
        run(2);
        assert_eq!(listening.time(), Duration::from_secs(2));
        elapsed.fetch_add(3_600_000, Ordering::SeqCst);
        assert!(listening.time() < LISTENING_MIN, "this process stood still");
        run(3);
        assert!(listening.time() >= LISTENING_MIN);
        listening.restart();
        assert_eq!(listening.time(), Duration::ZERO);
    }

    #[test]
    fn a_cluster_that_has_announced_itself_gets_the_time_to_elect_a_leader() {
        let listening = Listening::new(AttendedClock::over(|| Duration::ZERO));
        let election_max = Duration::from_millis(1_200);
        assert_eq!(listening.needed(election_max), LISTENING_MIN, "nobody was heard");
        listening.note_announcement();
        assert_eq!(listening.needed(election_max), LISTENING_MIN + Duration::from_millis(4_800));
        listening.restart();
        assert_eq!(listening.needed(election_max), LISTENING_MIN);
    }
}
