//! How an object store is to misbehave: answers held back until they are let go, requests that take their time, and somebody
//! else who stores an object right before a request of ours is carried out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// What is asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Put,
    Part,
    Complete,
    Copy,
    Delete,
    Head,
    /// Of a whole directory: a look whether there is anything is none.
    List,
}

/// Requests that are to be met, by what they ask and the key or prefix they name.
type Places<T> = Mutex<HashMap<(Kind, String), T>>;

/// What is to happen.
#[derive(Debug, Default)]
pub struct Troubles {
    delays: Mutex<HashMap<Kind, Duration>>,
    foreign: Places<Vec<u8>>,
    held: Places<Arc<Gate>>,
    denied: Mutex<HashSet<(Kind, String)>>,
    silent: watch::Sender<bool>,
}

#[derive(Debug)]
struct Gate {
    open: watch::Sender<bool>,
    waiting: AtomicU64,
}

/// Requests of one kind that are held back, those that read with what they saw, until this is dropped.
#[derive(Debug)]
pub struct Held {
    troubles: Arc<Troubles>,
    place: (Kind, String),
    gate: Arc<Gate>,
}

impl Held {
    /// Requests that have been held so far.
    pub fn count(&self) -> u64 {
        self.gate.waiting.load(Ordering::SeqCst)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.troubles.held).remove(&self.place);
        self.gate.open.send_replace(true);
    }
}

fn lock<T>(inner: &Mutex<T>) -> MutexGuard<'_, T> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Troubles {
    /// Every request of this kind takes so long from now on, none for zero.
    pub fn delay(&self, kind: Kind, time: Duration) {
        lock(&self.delays).insert(kind, time);
    }

    /// Right before the next request of this kind for `key` is carried out, somebody else stores `content` there.
    pub fn interfere(&self, kind: Kind, key: &str, content: &[u8]) {
        lock(&self.foreign).insert((kind, key.to_owned()), content.to_vec());
    }

    /// From now on requests of this kind for `key` are answered with 403, or are not any more.
    pub fn deny(&self, kind: Kind, key: &str, denied: bool) {
        let place = (kind, key.to_owned());
        let mut places = lock(&self.denied);
        if denied {
            places.insert(place)
        } else {
            places.remove(&place)
        };
    }

    /// From now on connections are accepted and nothing is answered, or everything is again.
    pub fn silence(&self, is_silent: bool) {
        self.silent.send_replace(is_silent);
    }

    /// Waits while nothing is answered; true if that was so.
    pub(super) async fn outlasted_silence(&self) -> bool {
        let mut silent = self.silent.subscribe();
        let was_silent = *silent.borrow();
        // The sender lives as long as this.
        let _ = silent.wait_for(|silent| !silent).await;
        was_silent
    }

    /// True if a request is to be answered with 403.
    pub(super) fn is_denied(&self, kind: Kind, key: &str) -> bool {
        lock(&self.denied).contains(&(kind, key.to_owned()))
    }

    /// True while somebody else has still not stored what [`Troubles::interfere`] was told.
    pub fn is_pending(&self) -> bool {
        !lock(&self.foreign).is_empty()
    }

    /// Holds back requests of this kind for `key`.
    pub fn hold(self: &Arc<Self>, kind: Kind, key: &str) -> Held {
        let gate = Arc::new(Gate { open: watch::Sender::new(false), waiting: AtomicU64::new(0) });
        let place = (kind, key.to_owned());
        lock(&self.held).insert(place.clone(), gate.clone());
        Held { troubles: self.clone(), place, gate }
    }

    /// To be called before a change is carried out: what somebody else stores there first.
    pub(super) async fn before(&self, kind: Kind, key: &str) -> Option<Vec<u8>> {
        self.take_time(kind).await;
        lock(&self.foreign).remove(&(kind, key.to_owned()))
    }

    /// To be called where a request waits while it is held: one that reads with its answer, one that removes before it does.
    pub(super) async fn held(&self, kind: Kind, key: &str) {
        if matches!(kind, Kind::List | Kind::Head) {
            self.take_time(kind).await;
        }
        let gate = lock(&self.held).get(&(kind, key.to_owned())).cloned();
        if let Some(gate) = gate {
            gate.waiting.fetch_add(1, Ordering::SeqCst);
            let _ = gate.open.subscribe().wait_for(|open| *open).await;
        }
    }

    async fn take_time(&self, kind: Kind) {
        let delay = lock(&self.delays).get(&kind).copied().unwrap_or_default();
        if !delay.is_zero() {
            let _ = tokio::time::timeout(delay, std::future::pending::<()>()).await;
        }
    }
}
