//! When each session was last heard of, as the leader remembers it. A new leader has heard of all of them just now: an
//! outage of every master expires no session.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Renewals heard by this master since it leads.
#[derive(Debug)]
pub struct Sessions {
    ttl: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The term this master leads in, and since when.
    term: u64,
    since: Instant,
    renewed: HashMap<[u8; 16], Instant>,
}

impl Sessions {
    /// Sessions that expire `ttl` after they were last heard of.
    pub fn new(ttl: Duration) -> Sessions {
        Sessions { ttl, inner: Mutex::new(Inner { term: 0, since: Instant::now(), renewed: HashMap::new() }) }
    }

    /// Time a session lives without renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// A client was heard of.
    pub fn renew(&self, client: &[u8]) {
        if let Ok(id) = <[u8; 16]>::try_from(client) {
            self.inner.lock().unwrap_or_else(PoisonError::into_inner).renewed.insert(id, Instant::now());
        }
    }

    /// Of the sessions there are, those not heard of for the whole time to live while this master led in `term`.
    pub fn expired(&self, term: u64, live: &[[u8; 16]]) -> Vec<[u8; 16]> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.term != term {
            *inner = Inner { term, since: Instant::now(), renewed: HashMap::new() };
        }
        let since = inner.since;
        let renewed = std::mem::take(&mut inner.renewed);
        inner.renewed = live.iter().filter_map(|id| renewed.get(id).map(|at| (*id, *at))).collect();
        let silent = |id: &&[u8; 16]| inner.renewed.get(*id).copied().unwrap_or(since).elapsed() >= self.ttl;
        live.iter().filter(silent).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_term_grants_everybody_the_full_time() {
        let sessions = Sessions::new(Duration::from_millis(30));
        let live = [[1; 16], [2; 16]];
        assert!(sessions.expired(5, &live).is_empty());
        std::thread::sleep(Duration::from_millis(40));
        sessions.renew(&[1; 16]);
        assert_eq!(sessions.expired(5, &live), [[2; 16]]);
        assert!(sessions.expired(6, &live).is_empty(), "the new leader has not waited yet");
    }
}
