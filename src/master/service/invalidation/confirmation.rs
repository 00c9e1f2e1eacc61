//! Confirms again and again that a quorum knows this replica: a replica that is cut off would not learn of changes.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::error::{Error, Result};

/// Asks a quorum once.
type Ask = Box<dyn Fn() -> BoxFuture<'static, Result<()>> + Send>;

/// How often a quorum is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Time between two confirmations.
    pub(super) interval: Duration,
    /// Pause after a quorum was not reached.
    pub(super) retry_delay: Duration,
    /// Longest time without a confirmation.
    pub(super) unconfirmed_max: Duration,
}

/// The confirmations of one stream.
pub(super) struct Confirmation {
    ask: Ask,
    timing: Timing,
    /// The request under way, and when it has begun. It survives a dropped [`Confirmation::next`].
    asking: Option<(Instant, BoxFuture<'static, Result<()>>)>,
    /// When the last request has begun that was confirmed.
    confirmed: Instant,
    /// When the next request begins.
    due: Instant,
}

impl Confirmation {
    /// For a replica that was just confirmed.
    pub(super) fn new(ask: Ask, timing: Timing) -> Confirmation {
        let now = Instant::now();
        Confirmation { ask, timing, asking: None, confirmed: now, due: now + timing.interval }
    }

    /// Waits for the next confirmation. The future may be dropped without a loss.
    ///
    /// *Errors*: no quorum has confirmed this replica for too long.
    pub(super) async fn next(&mut self) -> Result<()> {
        loop {
            let deadline = self.confirmed + self.timing.unconfirmed_max;
            let Some((begun, asking)) = &mut self.asking else {
                tokio::time::sleep_until(self.due).await;
                self.asking = Some((Instant::now(), (self.ask)()));
                continue;
            };
            let begun = *begun;
            let Ok(answer) = tokio::time::timeout_at(deadline, asking).await else {
                return Err(Error::unavailable("no quorum confirms this master"));
            };
            self.asking = None;
            match answer {
                Ok(()) => {
                    self.confirmed = begun;
                    self.due = Instant::now() + self.timing.interval;
                    return Ok(());
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => self.due = deadline.min(Instant::now() + self.timing.retry_delay),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use futures::future::{pending, ready};

    use super::*;

    const TIMING: Timing = Timing {
        interval: Duration::from_millis(1),
        retry_delay: Duration::from_millis(1),
        unconfirmed_max: Duration::from_millis(200),
    };

    #[tokio::test]
    async fn a_quorum_that_is_lost_for_a_moment_confirms_once_it_is_back() {
        let asked = AtomicUsize::new(0);
        let ask = move || match asked.fetch_add(1, Ordering::Relaxed) {
            0..3 => ready(Err(Error::unavailable("an election"))).boxed(),
            _ => ready(Ok(())).boxed(),
        };
        let mut confirmation = Confirmation::new(Box::new(ask), TIMING);
        confirmation.next().await.expect("confirmed");
        confirmation.next().await.expect("confirmed");
    }

    #[tokio::test]
    async fn a_replica_that_no_quorum_confirms_or_answers_ends_in_time() {
        let refuses = || ready(Err::<(), _>(Error::unavailable("cut off"))).boxed();
        let silent = || pending::<Result<()>>().boxed();
        for ask in [Box::new(refuses) as Ask, Box::new(silent)] {
            let mut confirmation = Confirmation::new(ask, TIMING);
            confirmation.next().await.expect_err("unconfirmed");
            assert!(confirmation.confirmed.elapsed() >= TIMING.unconfirmed_max);
        }
    }

    #[tokio::test]
    async fn a_request_survives_that_nobody_waits_for_it_meanwhile() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let ask = move || {
            count.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(30)).map(Ok).boxed()
        };
        let timing = Timing { unconfirmed_max: Duration::from_secs(60), ..TIMING };
        let mut confirmation = Confirmation::new(Box::new(ask), timing);
        while tokio::time::timeout(Duration::from_millis(5), confirmation.next()).await.is_err() {}
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
