//! Exactly-once mutations: every mutation carries (client id, seq), and the cluster answers a repetition with the
//! stored outcome of the first one.
//!
//! A session is opened by the first mutation and renewed in the background. When it expires, mutations in flight fail
//! with an unknown outcome, and later ones use a new session. Clients that only read open none.
//!
//! Outcomes of one session are dropped in order, so a mutation that waits for a slow under-storage blocks all mutations
//! that are more than a window behind it. Mutations that may wait, such as renames, therefore use blocking sessions of
//! their own, separate from the session in which files are created and stored. While one blocking session is stuck, the
//! next one is used.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use jindofs_proto::v1::{CloseSessionRequest, OpId, OpenSessionRequest, RenewSessionRequest};
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::{MasterChannel, namespace};
use crate::runtime::{lock, random_id};

/// Most mutations of one session without a received outcome, which is how many the cluster must remember.
pub const WINDOW: u64 = 64;
/// Most blocking sessions. The next one is opened when the window of each one before is full.
const ASIDE: usize = 8;
/// Shortest interval of renewals, whatever the cluster says.
const RENEW_MIN: Duration = Duration::from_millis(100);

/// A session that is opened when it is first needed.
type Slot = tokio::sync::Mutex<Option<Arc<Open>>>;

/// The sessions of one client.
#[derive(Debug)]
pub struct Session {
    channel: MasterChannel,
    description: String,
    open: Slot,
    blocking: [Slot; ASIDE],
}

/// One opened session, until it expires.
#[derive(Debug)]
struct Open {
    client_id: Bytes,
    /// How long the session lasts without a renewal.
    lasts: Duration,
    window: Mutex<Window>,
    freed: Notify,
    expired: AtomicBool,
}

/// The window of sequence numbers in use.
#[derive(Debug)]
struct Window {
    next: u64,
    in_flight: BTreeSet<u64>,
}

impl Window {
    fn new() -> Window {
        Window { next: 1, in_flight: BTreeSet::new() }
    }

    /// The next sequence number, and the number below which every outcome is received; `None` while the window is full.
    fn take(&mut self) -> Option<(u64, u64)> {
        let oldest = self.in_flight.first().copied().unwrap_or(self.next);
        if self.next - oldest >= WINDOW {
            return None;
        }
        let seq = self.next;
        self.next += 1;
        self.in_flight.insert(seq);
        Some((seq, oldest))
    }

    fn done(&mut self, seq: u64) {
        self.in_flight.remove(&seq);
    }
}

/// The id of one mutation. Dropping it acknowledges the outcome: the mutation is never sent again.
#[derive(Debug)]
pub struct OpGuard {
    open: Arc<Open>,
    op: OpId,
}

impl Open {
    /// An id for one mutation, if the window is not full.
    fn take(self: &Arc<Self>) -> Option<OpGuard> {
        let (seq, acked_below) = lock(&self.window).take()?;
        let op = OpId { client_id: self.client_id.clone(), seq, acked_below };
        Some(OpGuard { open: self.clone(), op })
    }
}

impl OpGuard {
    /// The id for the request; every retry must carry the same.
    pub fn op(&self) -> OpId {
        self.op.clone()
    }
}

impl Drop for OpGuard {
    fn drop(&mut self) {
        lock(&self.open.window).done(self.op.seq);
        self.open.freed.notify_waiters();
    }
}

impl Session {
    /// Creates a session that is opened when it is first needed. `description` is shown to operators.
    pub fn new(channel: MasterChannel, description: impl Into<String>) -> Session {
        Session { channel, description: description.into(), open: Slot::default(), blocking: Default::default() }
    }

    /// An id for one mutation. Opens the session if necessary, and waits while [`WINDOW`] mutations are in flight.
    ///
    /// *Errors*: those of opening a session.
    pub async fn begin(&self) -> Result<OpGuard> {
        loop {
            let open = self.opened(&self.open).await?;
            // Registered before the check, so that no release in between is missed.
            let freed = open.freed.notified();
            if let Some(guard) = open.take() {
                return Ok(guard);
            }
            freed.await;
        }
    }

    /// As [`Session::begin`], for a mutation that may wait for an under-storage and creates nothing that is removed
    /// with its session.
    ///
    /// *Errors*: those of opening a session.
    pub async fn begin_blocking_op(&self) -> Result<OpGuard> {
        let [first, rest @ ..] = &self.blocking;
        loop {
            let open = self.opened(first).await?;
            let freed = open.freed.notified();
            if let Some(guard) = open.take() {
                return Ok(guard);
            }
            for slot in rest {
                if let Some(guard) = self.opened(slot).await?.take() {
                    return Ok(guard);
                }
            }
            freed.await;
        }
    }

    /// How long the session in which files are created lasts after a renewal, if one is open. Does not block.
    pub fn lasts_now(&self) -> Option<Duration> {
        open_in(&*self.open.try_lock().ok()?).map(|open| open.lasts)
    }

    /// The id of the session in which files are created, if one is open.
    pub async fn id(&self) -> Option<Bytes> {
        id_in(&*self.open.lock().await)
    }

    /// As [`Session::id`], without waiting while one is being opened.
    pub fn id_now(&self) -> Option<Bytes> {
        id_in(&*self.open.try_lock().ok()?)
    }

    /// To be called with every error of a mutation: detects that the session has expired.
    pub fn note(&self, guard: &OpGuard, error: &Error) {
        if error.kind == ErrorKind::SessionExpired {
            guard.open.expire();
        }
    }

    /// Closes the sessions, so that the cluster need not wait until they expire. Errors are ignored, since the sessions
    /// expire anyway.
    pub async fn close(&self) {
        for slot in std::iter::once(&self.open).chain(&self.blocking) {
            let Some(open) = slot.lock().await.take() else { continue };
            open.expire();
            let request = CloseSessionRequest { client_id: open.client_id.clone() };
            let close = |to| {
                let request = request.clone();
                async move { namespace(to).close_session(request).await }
            };
            let channel = self.channel.with_timeout(Duration::from_secs(1));
            if let Err(error) = channel.call_leader("close session", close).await {
                tracing::debug!(%error, "session not closed, it will expire");
            }
        }
    }

    async fn opened(&self, slot: &Slot) -> Result<Arc<Open>> {
        let mut slot = slot.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.expired.load(Ordering::Acquire)) {
            return Ok(open.clone());
        }
        let client_id = Bytes::copy_from_slice(&random_id());
        let request = OpenSessionRequest { client_id: client_id.clone(), description: self.description.clone() };
        let call = |to| {
            let request = request.clone();
            async move { namespace(to).open_session(request).await }
        };
        let answer = self.channel.call_leader("open session", call).await?;
        let lasts = Duration::from_millis(answer.ttl_ms);
        let open = Arc::new(Open {
            client_id,
            lasts,
            window: Mutex::new(Window::new()),
            freed: Notify::new(),
            expired: AtomicBool::new(false),
        });
        let interval = (lasts / 3).max(RENEW_MIN);
        tokio::spawn(renew(Arc::downgrade(&open), self.channel.with_timeout(interval), interval));
        *slot = Some(open.clone());
        Ok(open)
    }
}

fn id_in(slot: &Option<Arc<Open>>) -> Option<Bytes> {
    open_in(slot).map(|open| open.client_id.clone())
}

fn open_in(slot: &Option<Arc<Open>>) -> Option<&Arc<Open>> {
    slot.as_ref().filter(|open| !open.expired.load(Ordering::Acquire))
}

impl Open {
    fn expire(&self) {
        self.expired.store(true, Ordering::Release);
        // Callers that wait for the window of an expired session move on to the next one.
        self.freed.notify_waiters();
    }
}

/// Renews a session until it is dropped or expired. After a failed renewal the next one follows at once: the call
/// itself takes up to the interval.
async fn renew(open: Weak<Open>, channel: MasterChannel, interval: Duration) {
    let mut pause = interval;
    loop {
        tokio::time::sleep(pause).await;
        let Some(open) = open.upgrade() else { return };
        if open.expired.load(Ordering::Acquire) {
            return;
        }
        let request = RenewSessionRequest { client_id: open.client_id.clone() };
        let call = |to| {
            let request = request.clone();
            async move { namespace(to).renew_session(request).await }
        };
        match channel.call_leader("renew session", call).await {
            Ok(_) => pause = interval,
            Err(error) if error.kind == ErrorKind::SessionExpired => {
                tracing::warn!("session expired");
                open.expire();
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "session not renewed");
                pause = RENEW_MIN;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_gives_no_number_until_its_oldest_is_done() {
        let mut window = Window::new();
        for expected in 1..=WINDOW {
            assert_eq!(window.take(), Some((expected, 1)));
        }
        assert_eq!(window.take(), None);
        window.done(2);
        assert_eq!(window.take(), None, "the oldest is still unanswered");
        window.done(1);
        assert_eq!(window.take(), Some((WINDOW + 1, 3)));
    }

    #[test]
    fn everything_below_the_oldest_in_flight_is_acknowledged() {
        let mut window = Window::new();
        let (first, _) = window.take().expect("room");
        let (second, _) = window.take().expect("room");
        window.done(first);
        window.done(second);
        assert_eq!(window.take(), Some((3, 3)));
    }
}
