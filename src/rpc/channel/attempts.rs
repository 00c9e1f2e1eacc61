//! The bookkeeping of one call: deadline, what was tried in this round, pauses, and the message if all was in vain.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};
use crate::rpc::status::from_status;

use super::node::{Node, innermost};

/// Time one attempt may take at first; doubled after each that was not answered.
const ATTEMPT_FIRST: Duration = Duration::from_secs(2);
const ATTEMPT_MAX: Duration = Duration::from_secs(16);
/// First pause between two rounds: a failover must be noticed quickly.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// Longest pause while the trouble may be an election, and after that.
const PAUSE_ELECTION: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
const ELECTION: Duration = Duration::from_secs(5);
/// Hints followed without a pause; masters that point at each other must not make a busy loop.
const HOPS_MAX: u32 = 4;

/// Why one attempt failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Error,
    /// The connection is of no use any more.
    pub(super) broken: bool,
    /// What answered is no master of this release: another service at a wrong address, or an older master.
    pub(super) foreign: bool,
    /// The request may have been executed.
    sent: bool,
}

impl Failure {
    pub(super) fn not_sent(error: Error) -> Failure {
        Failure { error, broken: true, foreign: false, sent: false }
    }

    pub(super) fn no_answer(budget: Duration) -> Failure {
        let message = format!("no answer within {:.1} s", budget.as_secs_f64());
        Failure { error: Error::new(ErrorKind::Timeout, message), broken: true, foreign: false, sent: true }
    }

    pub(super) fn from_status(status: &Status) -> Failure {
        let (error, broken) = judge(status);
        let sent = broken || matches!(error.kind, ErrorKind::OutcomeUnknown | ErrorKind::Timeout);
        // Masters put details into every answer of theirs.
        let unknown = matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Internal);
        let foreign = status.details().is_empty() && !broken && unknown;
        let error = if foreign { error.context("no master of this release answers there") } else { error };
        Failure { error, broken, foreign, sent }
    }
}

/// The error behind a status, and whether the connection that brought it is of no use any more.
pub(crate) fn judge(status: &Status) -> (Error, bool) {
    // A server's own answer carries details or at least no cause; the transport's errors carry their cause.
    if status.details().is_empty() && status.source().is_some() {
        let reason = status.source().map(innermost).unwrap_or_default();
        return (Error::unavailable(format!("connection lost: {reason}")), true);
    }
    if status.details().is_empty() && status.code() == Code::OutOfRange {
        // Too large for the limits of either side: it will not shrink by being sent again.
        return (Error::invalid(status.message()), false);
    }
    (from_status(status), false)
}

/// One call in progress.
pub(super) struct Attempts<'a> {
    what: &'a str,
    started: Instant,
    deadline: Option<Instant>,
    timeout: Option<Duration>,
    attempt: Duration,
    pause: Duration,
    hops: u32,
    /// Tried since the last pause.
    round: Vec<String>,
    /// What each master said last.
    said: BTreeMap<String, String>,
    /// A master has failed in this round; otherwise whatever answered was none.
    met_master: bool,
    maybe_done: bool,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(what: &'a str, timeout: Option<Duration>) -> Attempts<'a> {
        let started = Instant::now();
        Attempts {
            what,
            started,
            deadline: timeout.map(|timeout| started + timeout),
            timeout,
            attempt: ATTEMPT_FIRST,
            pause: PAUSE_FIRST,
            hops: 0,
            round: Vec::new(),
            said: BTreeMap::new(),
            met_master: false,
            maybe_done: false,
        }
    }

    fn remaining(&self) -> Duration {
        self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()))
    }

    pub(super) fn expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Time the next attempt may take.
    pub(super) fn budget(&self) -> Duration {
        self.attempt.min(self.remaining())
    }

    pub(super) async fn until_deadline(&self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn tried(&self, address: &str) -> bool {
        self.round.iter().any(|known| known == address)
    }

    /// True if a hint may be followed at once: not in circles, and not to a master that just failed.
    pub(super) fn may_follow(&mut self, hint: &str) -> bool {
        self.hops += 1;
        self.hops <= HOPS_MAX && !self.tried(hint)
    }

    /// Notes `address` as tried; true while one of `masters` is left for this round.
    pub(super) fn round_goes_on(&mut self, address: &str, masters: usize) -> bool {
        if !self.tried(address) {
            self.round.push(address.to_owned());
        }
        self.round.len() < masters
    }

    pub(super) fn record(&mut self, address: &str, failure: Failure) {
        if failure.error.kind == ErrorKind::Timeout {
            self.attempt = (self.attempt * 2).min(ATTEMPT_MAX);
        }
        self.maybe_done |= failure.sent;
        self.met_master |= !failure.foreign;
        self.said.insert(address.to_owned(), failure.error.message);
    }

    /// Waits before the next round, less long if a call for the leader need not wait because another call found it.
    /// False when the deadline comes first, or when nothing that was tried is a master.
    pub(super) async fn pause(&mut self, leader: &watch::Sender<Option<Arc<Node>>>, for_leader: bool) -> bool {
        if !self.met_master {
            // Waiting makes no master of another service.
            return false;
        }
        self.round.clear();
        self.hops = 0;
        self.met_master = false;
        // Half to one and a half times the pause, so that clients do not come in step.
        let jittered = self.pause.mul_f64(0.5 + rand::random::<f64>());
        let longest = if self.started.elapsed() < ELECTION { PAUSE_ELECTION } else { PAUSE_MAX };
        self.pause = self.pause.mul_f64(1.5).min(longest);
        let mut found = leader.subscribe();
        found.mark_unchanged();
        let wait = jittered.min(self.remaining());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = found.changed(), if for_leader => {}
        }
        !self.expired()
    }

    /// The error of a call whose deadline passed: which masters were tried and what each said.
    pub(super) fn give_up(&self, masters: &[String]) -> Error {
        let time = self.timeout.unwrap_or_default().as_secs_f64();
        let said: Vec<_> = self.said.iter().map(|(address, said)| format!("{address}: {said}")).collect();
        let list = if masters.is_empty() {
            "no master is configured".to_owned()
        } else if said.is_empty() {
            format!("no leader was found among {}", masters.join(", "))
        } else {
            said.join("; ")
        };
        if !self.round.is_empty() && !self.met_master {
            return Error::new(ErrorKind::Unsupported, format!("{}: {list}: check the addresses", self.what));
        }
        let (kind, doubt) = if self.maybe_done {
            (ErrorKind::Timeout, "; a change may have been made")
        } else {
            (ErrorKind::Unavailable, "")
        };
        Error::new(kind, format!("{}: no answer from the cluster within {time:.1} s ({list}){doubt}", self.what))
    }
}
