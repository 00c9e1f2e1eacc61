//! A subscription to the changes that the masters apply, for a client that caches the tree. There is one stream, from
//! any master, and it is renewed when it ends.
//!
//! *Promises.* Between the first event of a stream and its end, the client is told every change that the master
//! applies. The first event of each stream says that changes were lost, whatever the master says. A stream without a
//! heartbeat for `HEARTBEAT_TIMEOUT` is given up, also if changes come: a master that is alive, up to date, and not behind
//! in telling what it has applied, sends one every few seconds. A heartbeat that speaks for changes which did not come says that
//! changes were lost.
//! The client is not told the changes between two streams: the age of what is cached then is bounded by its time to
//! live.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jindofs_proto::v1::{InvalidationEvent, SubscribeRequest};
use tonic::Streaming;

use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::{MasterChannel, invalidation, judge};
use crate::runtime::host_name;

/// Longest wait for a master to accept a subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest time between two heartbeats: a master sends one every three seconds.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before the next master is tried; doubled after each stream that did not last.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
/// Age of a stream whose end resets the pause.
const STABLE_AGE: Duration = Duration::from_secs(10);
/// Longest pause after such a stream. The clients of a master that has ended spread over this time, so that they do not
/// ask the next master, and read everything again, all at once.
const RETRY_SPREAD: Duration = Duration::from_secs(2);
/// How long a master of an older release, which does not know the request, is not asked again.
const UNSUPPORTED_PAUSE: Duration = Duration::from_secs(60);

/// The subscription of one client process.
#[derive(Debug)]
pub struct Subscriber {
    channel: MasterChannel,
    candidates: Candidates,
}

impl Subscriber {
    /// A subscription that begins with [`Subscriber::run`].
    pub fn new(channel: MasterChannel) -> Subscriber {
        Subscriber { channel, candidates: Candidates::new(usize::from(crate::runtime::random_id()[0])) }
    }

    /// Calls `on_event` with every event, until the future is dropped.
    pub async fn run(mut self, mut on_event: impl FnMut(InvalidationEvent)) {
        let mut delay = RETRY_DELAY;
        loop {
            let started = Instant::now();
            let Err(error) = self.follow(&mut on_event).await;
            tracing::debug!(%error, "the subscription has ended: names and attributes expire by their age");
            tokio::time::sleep(pause_after(started.elapsed(), &mut delay, rand::random())).await;
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self, on_event: &mut impl FnMut(InvalidationEvent)) -> Result<std::convert::Infallible> {
        let masters = self.channel.masters();
        let Some(address) = self.candidates.next(&masters, Instant::now()) else {
            return Err(Error::new(ErrorKind::Unsupported, "no master of this release is known"));
        };
        let mut stream = match self.subscribe(&address).await {
            Ok(stream) => stream,
            Err(error) => {
                if error.kind == ErrorKind::Unsupported {
                    self.candidates.set_unsupported(&address, Instant::now());
                }
                return Err(error);
            }
        };
        let mut progress = Progress::new(Instant::now());
        loop {
            let event = next_event(&mut stream, progress.deadline()).await.map_err(|error| error.context(&address))?;
            on_event(progress.checked(event, Instant::now()));
        }
    }

    async fn subscribe(&self, address: &str) -> Result<Streaming<InvalidationEvent>> {
        let description = format!("{} process {}", host_name(), std::process::id());
        let send = |to| {
            let request = SubscribeRequest { description: description.clone() };
            async move { invalidation(to).subscribe(request).await }
        };
        self.channel.call_one(address, SUBSCRIBE_TIMEOUT, send).await
    }
}

/// The pause after a stream that has lasted for `age`. `delay` is the pause without jitter after a stream that did not
/// last, and grows. `random` is between 0 and 1.
fn pause_after(age: Duration, delay: &mut Duration, random: f64) -> Duration {
    if age >= STABLE_AGE {
        *delay = RETRY_DELAY;
        return RETRY_SPREAD.mul_f64(random);
    }
    let pause = delay.mul_f64(0.5 + random);
    *delay = (*delay * 2).min(RETRY_DELAY_MAX);
    pause
}

/// True for an event that names no change.
pub fn is_heartbeat(event: &InvalidationEvent) -> bool {
    let InvalidationEvent { lost, inodes, names, directories, position: _ } = event;
    !lost && inodes.is_empty() && names.is_empty() && directories.is_empty()
}

/// How far a stream has come.
#[derive(Debug)]
struct Progress {
    /// When the client last knew that it has been told everything.
    current: Instant,
    is_first: bool,
    /// Position of the last event; `None` with a master of an older release.
    position: Option<u64>,
}

impl Progress {
    /// Of a stream that begins.
    fn new(now: Instant) -> Progress {
        Progress { current: now, is_first: true, position: None }
    }

    /// When the stream is given up.
    fn deadline(&self) -> Instant {
        self.current + HEARTBEAT_TIMEOUT
    }

    /// The event, which says that changes were lost also where the client finds that.
    fn checked(&mut self, mut event: InvalidationEvent, now: Instant) -> InvalidationEvent {
        let is_heartbeat = is_heartbeat(&event);
        let has_gap = is_heartbeat && event.position != self.position;
        event.lost |= std::mem::take(&mut self.is_first) || has_gap;
        if is_heartbeat || event.lost {
            self.current = now;
        }
        self.position = event.position;
        event
    }
}

/// The next event of a stream.
///
/// *Errors*: the stream has ended, or nothing came until `deadline`.
async fn next_event(stream: &mut Streaming<InvalidationEvent>, deadline: Instant) -> Result<InvalidationEvent> {
    match tokio::time::timeout_at(deadline.into(), stream.message()).await {
        Ok(Ok(Some(event))) => Ok(event),
        Ok(Ok(None)) => Err(Error::unavailable("the stream has ended")),
        Ok(Err(status)) => Err(judge(&status).0),
        Err(_) => {
            let message = format!("no heartbeat has come for {} s", HEARTBEAT_TIMEOUT.as_secs());
            Err(Error::new(ErrorKind::Timeout, message))
        }
    }
}

/// The masters in turn, without those that do not know the request.
#[derive(Debug)]
struct Candidates {
    turn: usize,
    /// Address, and when the master has refused.
    unsupported: HashMap<String, Instant>,
}

impl Candidates {
    fn new(turn: usize) -> Candidates {
        Candidates { turn, unsupported: HashMap::new() }
    }

    fn next(&mut self, masters: &[String], now: Instant) -> Option<String> {
        self.unsupported.retain(|_, since| now.saturating_duration_since(*since) < UNSUPPORTED_PAUSE);
        let ring = (0..masters.len()).map(|step| (self.turn + step) % masters.len());
        let at = ring.into_iter().find(|at| !self.unsupported.contains_key(&masters[*at]))?;
        self.turn = at + 1;
        Some(masters[at].clone())
    }

    fn set_unsupported(&mut self, address: &str, now: Instant) {
        self.unsupported.insert(address.to_owned(), now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(position: Option<u64>) -> InvalidationEvent {
        InvalidationEvent { position, ..InvalidationEvent::default() }
    }

    fn change(position: Option<u64>) -> InvalidationEvent {
        InvalidationEvent { inodes: vec![5], position, ..InvalidationEvent::default() }
    }

    #[test]
    fn changes_without_a_heartbeat_do_not_keep_a_stream() {
        let began = Instant::now();
        let mut progress = Progress::new(began);
        assert!(progress.checked(change(Some(4)), began).lost, "the first event of a stream");
        let later = began + HEARTBEAT_TIMEOUT / 2;
        assert!(!progress.checked(change(Some(5)), later).lost);
        assert_eq!(progress.deadline(), began + HEARTBEAT_TIMEOUT, "it may be far behind");
        assert!(!progress.checked(heartbeat(Some(5)), later).lost);
        assert_eq!(progress.deadline(), later + HEARTBEAT_TIMEOUT);
        // A master that is behind gives up what it has not told.
        let last = later + HEARTBEAT_TIMEOUT / 2;
        progress.checked(InvalidationEvent { lost: true, ..heartbeat(Some(9)) }, last);
        assert_eq!(progress.deadline(), last + HEARTBEAT_TIMEOUT);
    }

    #[test]
    fn a_heartbeat_that_speaks_for_changes_which_did_not_come_is_a_loss() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        progress.checked(heartbeat(Some(4)), now);
        assert!(!progress.checked(heartbeat(Some(4)), now).lost);
        assert!(!progress.checked(change(Some(6)), now).lost);
        assert!(progress.checked(heartbeat(Some(7)), now).lost);
        assert!(!progress.checked(heartbeat(Some(7)), now).lost, "told once");
    }

    #[test]
    fn heartbeats_of_an_older_release_have_no_position_and_are_believed() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        progress.checked(heartbeat(None), now);
        assert!(!progress.checked(change(None), now).lost);
        let later = now + HEARTBEAT_TIMEOUT / 2;
        assert!(!progress.checked(heartbeat(None), later).lost);
        assert_eq!(progress.deadline(), later + HEARTBEAT_TIMEOUT);
    }

    #[test]
    fn masters_are_asked_in_turn_and_one_of_an_older_release_not_for_a_minute() {
        let masters: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let mut candidates = Candidates::new(200);
        let now = Instant::now();
        let mut next = |now| candidates.next(&masters, now).expect("a master");
        let first: Vec<_> = (0..4).map(|_| next(now)).collect();
        assert_eq!(first, ["c", "a", "b", "c"]);
        candidates.set_unsupported("a", now);
        let mut next = |now| candidates.next(&masters, now).expect("a master");
        assert_eq!((0..3).map(|_| next(now)).collect::<Vec<_>>(), ["b", "c", "b"]);
        let later = now + UNSUPPORTED_PAUSE;
        assert_eq!((0..2).map(|_| next(later)).collect::<Vec<_>>(), ["c", "a"]);
    }

    #[test]
    fn the_pause_grows_with_streams_that_do_not_last_and_is_spread_after_one_that_did() {
        let mut delay = RETRY_DELAY;
        assert_eq!(pause_after(Duration::ZERO, &mut delay, 0.5), RETRY_DELAY);
        assert_eq!(pause_after(Duration::ZERO, &mut delay, 0.0), RETRY_DELAY);
        for _ in 0..20 {
            pause_after(Duration::ZERO, &mut delay, 0.5);
        }
        assert_eq!(delay, RETRY_DELAY_MAX);
        assert_eq!(pause_after(STABLE_AGE, &mut delay, 0.75), RETRY_SPREAD * 3 / 4);
        assert_eq!(pause_after(STABLE_AGE, &mut delay, 0.0), Duration::ZERO);
        assert_eq!(delay, RETRY_DELAY);
    }

    #[test]
    fn where_all_masters_are_of_an_older_release_none_is_asked() {
        let masters = ["a".to_owned()];
        let mut candidates = Candidates::new(0);
        let now = Instant::now();
        candidates.set_unsupported("a", now);
        assert_eq!(candidates.next(&masters, now), None);
        assert_eq!(candidates.next(&masters, now + UNSUPPORTED_PAUSE).as_deref(), Some("a"));
        assert_eq!(candidates.next(&[], now), None);
    }
}
