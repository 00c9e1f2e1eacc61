//! The events of one stream: changes, and heartbeats, each behind the changes that it speaks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::confirmation::Confirmation;
use super::wire::EncodedEvent;
use crate::error::Result;
use crate::master::invalidations::{Batch, Invalidations, Subscription, encode_position};

/// What a stream has to send, or to look at.
#[derive(Debug)]
pub(super) enum Next {
    /// An event for the client.
    Event(EncodedEvent),
    /// A quorum has confirmed this replica: [`Feed::owe_heartbeat`] is to be called unless that is of no use any more.
    Confirmed,
}

/// A heartbeat that is still to be sent.
#[derive(Debug, Clone, Copy)]
struct Owed {
    /// The changes before this one were applied when this replica was confirmed: they have to be told first.
    behind: u64,
    since: Instant,
}

/// One subscriber's changes and heartbeats.
pub(super) struct Feed {
    source: Arc<Invalidations>,
    subscription: Subscription,
    confirmation: Confirmation,
    /// When the next batch may be taken: a subscriber of a busy master takes many changes at once.
    not_before: Instant,
    owed: Option<Owed>,
    /// How long a heartbeat waits for changes. Then they are given up, and the client is told that changes were lost.
    backlog_timeout: Duration,
}

impl Feed {
    pub(super) fn new(
        source: Arc<Invalidations>,
        subscription: Subscription,
        confirmation: Confirmation,
        backlog_timeout: Duration,
    ) -> Feed {
        Feed { source, subscription, confirmation, not_before: Instant::now(), owed: None, backlog_timeout }
    }

    /// Waits for what comes next. The future may be dropped without a loss.
    ///
    /// *Errors*: no quorum has confirmed this replica for too long.
    pub(super) async fn next(&mut self) -> Result<Next> {
        loop {
            if let Some(heartbeat) = self.due_heartbeat() {
                return Ok(Next::Event(heartbeat));
            }
            let gives_up = self.owed.map(|owed| owed.since + self.backlog_timeout);
            tokio::select! {
                biased;
                confirmed = self.confirmation.next() => {
                    confirmed?;
                    return Ok(Next::Confirmed);
                }
                () = at(gives_up) => {
                    tracing::debug!("a subscriber is told that changes were lost, as they come faster than it is told");
                    self.subscription.skip();
                    (self.owed, self.not_before) = (None, Instant::now());
                }
                batch = next_batch(&mut self.subscription, self.not_before) => {
                    self.not_before = Instant::now() + self.source.batch_interval(batch.bytes());
                    return Ok(Next::Event(EncodedEvent(batch.events)));
                }
            }
        }
    }

    /// Has a heartbeat sent once everything is told that was applied until now.
    pub(super) fn owe_heartbeat(&mut self) {
        // The older one comes first: otherwise a backlog that is never empty would put every one off.
        self.owed.get_or_insert_with(|| Owed { behind: self.subscription.published(), since: Instant::now() });
    }

    fn due_heartbeat(&mut self) -> Option<EncodedEvent> {
        let told = self.subscription.told()?;
        self.owed.take_if(|owed| told >= owed.behind)?;
        Some(EncodedEvent(vec![encode_position(told)]))
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn next_batch(subscription: &mut Subscription, not_before: Instant) -> Batch {
    sleep_until(not_before).await;
    subscription.next().await
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::ready;
    use jindofs_proto::v1::InvalidationEvent;
    use prost::Message;

    use super::super::confirmation::Timing;
    use super::*;
    use crate::master::state::changes::{ChangeSet, Changes};

    const LONG: Duration = Duration::from_secs(60);

    /// A stream of a master that is confirmed all the time, which has told its client that changes were lost.
    async fn feed(backlog_timeout: Duration) -> (Arc<Invalidations>, Feed) {
        let all = Arc::<Invalidations>::default();
        let short = Duration::from_millis(1);
        let timing = Timing { interval: short, retry_delay: short, unconfirmed_max: LONG };
        let confirmation = Confirmation::new(Box::new(|| ready(Ok(())).boxed()), timing);
        let mut feed = Feed::new(all.clone(), all.subscribe().expect("taken"), confirmation, backlog_timeout);
        assert!(event(&mut feed).await.lost);
        feed.owed = None;
        (all, feed)
    }

    /// The next event, as a client gets it.
    async fn event(feed: &mut Feed) -> InvalidationEvent {
        loop {
            match feed.next().await.expect("confirmed") {
                Next::Event(event) => return InvalidationEvent::decode(&event.0.concat()[..]).expect("a message"),
                Next::Confirmed => feed.owe_heartbeat(),
            }
        }
    }

    fn publish(all: &Invalidations, inodes: std::ops::Range<u64>) {
        let set = |inode| ChangeSet { inodes: vec![inode], ..ChangeSet::default() };
        all.publish(Changes::Sets(inodes.map(set).collect()));
    }

    #[tokio::test]
    async fn a_heartbeat_comes_behind_every_change_that_was_applied_before_it() {
        let (all, mut feed) = feed(LONG).await;
        let (mut published, mut told, mut heartbeats) = (0, 0, 0);
        for _ in 0..5 {
            // More than one batch: the confirmations come faster than the batches.
            publish(&all, published..published + 600);
            published += 600;
            loop {
                let event = event(&mut feed).await;
                assert!(!event.lost);
                if event.inodes.is_empty() {
                    heartbeats += 1;
                    assert_eq!(event.position, feed.subscription.told());
                    break;
                }
                assert_eq!(event.inodes[0], told, "in order");
                told += event.inodes.len() as u64;
            }
            assert_eq!(told, published, "nothing is left to be told when the heartbeat comes");
        }
        assert_eq!(heartbeats, 5);
    }

    #[tokio::test]
    async fn a_client_that_is_told_more_slowly_than_changes_come_is_told_of_a_loss_instead_of_a_heartbeat() {
        let (all, mut feed) = feed(Duration::from_millis(50)).await;
        feed.not_before = Instant::now() + LONG;
        publish(&all, 0..3);
        let began = Instant::now();
        let lost = event(&mut feed).await;
        assert!(lost.lost && lost.inodes.is_empty() && began.elapsed() < LONG);
        feed.not_before = Instant::now();
        let heartbeat = event(&mut feed).await;
        assert_eq!(heartbeat, InvalidationEvent { position: lost.position, ..InvalidationEvent::default() });
    }

    #[tokio::test]
    async fn a_heartbeat_that_waits_is_not_put_off_by_the_changes_after_it() {
        let (all, mut feed) = feed(LONG).await;
        publish(&all, 0..1);
        feed.owe_heartbeat();
        let behind = feed.owed.expect("it waits").behind;
        publish(&all, 1..2);
        feed.owe_heartbeat();
        assert_eq!(feed.owed.expect("it waits").behind, behind);
    }
}
