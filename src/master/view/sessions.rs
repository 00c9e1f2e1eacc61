//! When each session was last heard of, as the leader remembers it. A new leader, a leader that stood still and one that
//! had no quorum grant every session its full time to live: time that was not watched expires no session.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use crate::runtime::attended::{AttendedClock, Moment};
use crate::runtime::lock;

/// Most renewals remembered. More than there can be sessions; client ids that were made up must not fill the memory.
const RENEWED_MAX: usize = 400_000;

/// Renewals heard by this master since it leads.
#[derive(Debug)]
pub struct Sessions {
    ttl: Duration,
    clock: AttendedClock,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The term this master leads in, and since when it watches.
    term: u64,
    since: Moment,
    renewed: HashMap<[u8; 16], Moment>,
}

impl Sessions {
    /// Sessions that expire `ttl` after they were last heard of.
    pub fn new(ttl: Duration, clock: AttendedClock) -> Sessions {
        let inner = Mutex::new(Inner { term: 0, since: clock.now(), renewed: HashMap::new() });
        Sessions { ttl, clock, inner }
    }

    /// Time a session lives without renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// A client was heard of.
    pub fn renew(&self, client: &[u8]) {
        let Ok(id) = <[u8; 16]>::try_from(client) else { return };
        let now = self.clock.now();
        let mut inner = self.inner();
        if inner.renewed.len() >= RENEWED_MAX && !inner.renewed.contains_key(&id) {
            // Renewals that are forgotten must not end sessions: every session is granted its full time instead.
            inner.renewed = HashMap::new();
            inner.since = now;
        }
        inner.renewed.insert(id, now);
    }

    /// Grants every session its full time to live from now on: this leader could not serve its clients until now.
    pub fn grant_all(&self) {
        let now = self.clock.now();
        self.inner().since = now;
    }

    /// Of the sessions there are, those not heard of for the whole time to live while this master led in `term` and ran.
    pub fn expired(&self, term: u64, live: &[[u8; 16]]) -> Vec<[u8; 16]> {
        let now = self.clock.now();
        let mut inner = self.inner();
        if inner.term != term {
            *inner = Inner { term, since: now, renewed: HashMap::new() };
        }
        let since = inner.since;
        let renewed = std::mem::take(&mut inner.renewed);
        inner.renewed = live.iter().filter_map(|id| renewed.get(id).map(|at| (*id, *at))).collect();
        let heard = |id: &[u8; 16]| inner.renewed.get(id).copied().unwrap_or(since).max(since);
        live.iter().filter(|id| self.clock.silence_since(heard(id)) >= self.ttl).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LIVE: [[u8; 16]; 2] = [[1; 16], [2; 16]];

    /// Sessions of 30 s, and their clock.
    struct Watched {
        sessions: Sessions,
        clock: AttendedClock,
        half_seconds: Arc<AtomicU64>,
    }

    impl Watched {
        fn new() -> Watched {
            let half_seconds = Arc::new(AtomicU64::new(0));
            let source = half_seconds.clone();
            let clock = AttendedClock::over(move || Duration::from_millis(source.load(Ordering::SeqCst) * 500));
            Watched { sessions: Sessions::new(Duration::from_secs(30), clock.clone()), clock, half_seconds }
        }

        /// Lets time pass in which the master runs.
        fn run(&self, seconds: u64) {
            for _ in 0..seconds * 2 {
                self.half_seconds.fetch_add(1, Ordering::SeqCst);
                self.clock.now();
            }
        }

        /// Lets time pass in which the master stands still.
        fn stand_still(&self, seconds: u64) {
            self.half_seconds.fetch_add(seconds * 2, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_new_term_grants_everybody_the_full_time() {
        let watched = Watched::new();
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
        watched.run(20);
        watched.sessions.renew(&LIVE[0]);
        watched.run(11);
        assert_eq!(watched.sessions.expired(5, &LIVE), [LIVE[1]]);
        assert!(watched.sessions.expired(6, &LIVE).is_empty(), "the new leader has not waited yet");
    }

    #[test]
    fn a_master_that_stood_still_grants_everybody_the_full_time_when_it_wakes() {
        let watched = Watched::new();
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
        watched.run(29);
        watched.stand_still(3_600);
        assert!(watched.sessions.expired(5, &LIVE).is_empty(), "an hour that was not watched");
        watched.run(29);
        watched.sessions.renew(&LIVE[0]);
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
        watched.run(2);
        assert_eq!(watched.sessions.expired(5, &LIVE), [LIVE[1]], "a client that is gone is still noticed");
    }

    #[test]
    fn a_leader_without_a_quorum_grants_everybody_the_full_time() {
        let watched = Watched::new();
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
        watched.run(40);
        watched.sessions.grant_all();
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
        watched.run(30);
        assert_eq!(watched.sessions.expired(5, &LIVE), LIVE);
    }

    #[test]
    fn made_up_client_ids_fill_no_memory_and_end_no_session() {
        let watched = Watched::new();
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
        watched.run(29);
        for number in 0..RENEWED_MAX as u128 + 1 {
            watched.sessions.renew(&(number << 64).to_be_bytes());
        }
        assert!(watched.sessions.inner().renewed.len() <= RENEWED_MAX);
        watched.run(2);
        assert!(watched.sessions.expired(5, &LIVE).is_empty());
    }
}
