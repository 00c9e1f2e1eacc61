//! The changes that this replica applies, for clients that cache the tree.
//!
//! One ring holds the newest changes, and each subscriber has a position in it. Memory is therefore bounded however
//! slow a subscriber is: one that falls behind the oldest change in the ring is told that changes were lost. While
//! there are no subscribers, changes are neither derived nor kept. Changes are encoded once, for all subscribers.
//!
//! *Order.* Changes are published after their transaction is committed. Reads of metadata are linearizable, so a client
//! that reads after an event sees the change, whichever master answers. An answer to a request that the client has sent
//! before the event may be older than the change.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use jindofs_proto::v1::{DirEntry, InvalidationEvent};
use metrics::{counter, gauge};
use prost::Message;
use tokio::sync::watch;

use crate::runtime::lock;

use super::state::changes::{ChangeSet, Changes};

/// Most bytes of changes that are kept for subscribers that are behind.
const RING_BYTES_MAX: usize = 8 << 20;
/// Bytes of changes after which a batch takes no more; the last set may exceed it.
const BATCH_BYTES: usize = 128 << 10;
/// Most sets of a batch, which are cloned while the ring is locked.
const BATCH_SETS_MAX: usize = 256;
/// Most subscribers of one master.
const SUBSCRIBERS_MAX: usize = 4096;
/// Memory of a set besides its encoding.
const SET_BYTES: usize = 128;
/// Shortest pause between two batches of a subscriber.
const BATCH_INTERVAL_MIN: Duration = Duration::from_millis(5);
/// Bytes that a master sends each microsecond, to all subscribers together.
const BYTES_PER_MICROSECOND: usize = 256;
/// Cost of a batch besides its bytes.
const BATCH_COST: usize = 12 << 10;

/// The newest changes and their subscribers.
#[derive(Debug)]
pub struct Invalidations {
    ring: Mutex<Ring>,
    /// Number of the next set.
    published: watch::Sender<u64>,
    subscribers: AtomicUsize,
}

#[derive(Debug, Default)]
struct Ring {
    /// Encoded events.
    sets: VecDeque<Bytes>,
    bytes: usize,
    /// Number of the first set that is kept, or of the next one.
    first: u64,
}

impl Ring {
    fn next(&self) -> u64 {
        self.first + self.sets.len() as u64
    }

    fn push(&mut self, set: Bytes, bytes_max: usize) {
        self.bytes += cost_of(&set);
        self.sets.push_back(set);
        while self.bytes > bytes_max
            && let Some(oldest) = self.sets.pop_front()
        {
            self.bytes -= cost_of(&oldest);
            self.first += 1;
        }
    }

    /// Drops all sets. With `lost` one number is skipped, so that a subscriber that has seen every set has a gap too.
    fn clear(&mut self, lost: bool) {
        self.first = self.next() + u64::from(lost);
        self.sets = VecDeque::new();
        self.bytes = 0;
    }
}

/// Memory of an encoded set.
fn cost_of(set: &Bytes) -> usize {
    set.len() + SET_BYTES
}

fn encode(set: ChangeSet) -> Bytes {
    let ChangeSet { inodes, names, directories } = set;
    let names = names.into_iter().map(|(parent, name)| DirEntry { parent, name }).collect();
    InvalidationEvent { inodes, names, directories, ..InvalidationEvent::default() }.encode_to_vec().into()
}

/// The part of an event that says how far it goes; alone it is a heartbeat.
pub fn encode_position(position: u64) -> Bytes {
    InvalidationEvent { position: Some(position), ..InvalidationEvent::default() }.encode_to_vec().into()
}

impl Default for Invalidations {
    fn default() -> Invalidations {
        // The metrics exist from the first scrape on.
        gauge!("jindofs_master_invalidation_subscribers").increment(0.0);
        counter!("jindofs_master_invalidations_lost_total").increment(0);
        Invalidations { ring: Mutex::default(), published: watch::Sender::new(0), subscribers: AtomicUsize::new(0) }
    }
}

impl Invalidations {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        lock(&self.ring)
    }

    /// True if there are subscribers. Without them changes need not be derived.
    pub fn has_subscribers(&self) -> bool {
        self.subscribers.load(Ordering::Acquire) > 0
    }

    /// How long a subscriber waits after a batch of `bytes` before it asks for the next one. The interval grows with the
    /// number of subscribers, so that all of them together are sent a bounded number of bytes and batches each second.
    pub fn batch_interval(&self, bytes: usize) -> Duration {
        let subscribers = self.subscribers.load(Ordering::Acquire);
        let microseconds = (bytes + BATCH_COST).saturating_mul(subscribers) / BYTES_PER_MICROSECOND;
        BATCH_INTERVAL_MIN.max(Duration::from_micros(u64::try_from(microseconds).unwrap_or(u64::MAX)))
    }

    /// Publishes the changes of a transaction that was committed.
    pub fn publish(&self, changes: Changes) {
        match changes {
            Changes::All => self.reset(),
            Changes::Sets(sets) if sets.is_empty() => {}
            Changes::Sets(sets) => {
                let sets: Vec<Bytes> = sets.into_iter().map(encode).collect();
                self.change(|ring| sets.into_iter().for_each(|set| ring.push(set, RING_BYTES_MAX)));
            }
        }
    }

    /// Tells every subscriber that changes were lost, as the state was replaced by another one.
    pub fn reset(&self) {
        self.change(|ring| ring.clear(true));
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) {
        let next = {
            let mut ring = self.ring();
            change(&mut ring);
            ring.next()
        };
        self.published.send_replace(next);
    }

    /// Subscribes to the changes that are applied from now on; `None` if there are `SUBSCRIBERS_MAX` subscribers.
    pub fn subscribe(self: &Arc<Self>) -> Option<Subscription> {
        let count = |count: usize| (count < SUBSCRIBERS_MAX).then_some(count + 1);
        self.subscribers.fetch_update(Ordering::AcqRel, Ordering::Acquire, count).ok()?;
        gauge!("jindofs_master_invalidation_subscribers").increment(1.0);
        Some(Subscription { published: self.published.subscribe(), invalidations: self.clone(), position: None })
    }

    fn unsubscribe(&self) {
        let left = self.subscribers.fetch_sub(1, Ordering::AcqRel) - 1;
        gauge!("jindofs_master_invalidation_subscribers").decrement(1.0);
        if left == 0 {
            self.ring().clear(false);
        }
    }

    /// The next batch for a subscriber at `position`, and its position afterwards; `None` if there are no new changes.
    fn batch_at(&self, position: Option<u64>) -> Option<(Batch, u64)> {
        let ring = self.ring();
        let next = ring.next();
        let Some(position) = position.filter(|position| *position >= ring.first) else {
            let lost = InvalidationEvent { lost: true, ..InvalidationEvent::default() };
            return Some((
                Batch { lost: true, events: vec![lost.encode_to_vec().into(), encode_position(next)] },
                next,
            ));
        };
        let skipped = usize::try_from(position - ring.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let has_room = |set: &&Bytes| {
            let fits = bytes < BATCH_BYTES;
            bytes += cost_of(set);
            fits
        };
        let left = ring.sets.range(skipped.min(ring.sets.len())..);
        let mut events: Vec<_> = left.take(BATCH_SETS_MAX).take_while(has_room).cloned().collect();
        if events.is_empty() {
            return None;
        }
        let next = position + events.len() as u64;
        events.push(encode_position(next));
        Some((Batch { lost: false, events }, next))
    }
}

/// The changes that a subscriber takes at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Changes were lost, or the subscription has just begun.
    pub lost: bool,
    /// Encoded events, in the order in which their changes were applied.
    pub events: Vec<Bytes>,
}

impl Batch {
    /// Bytes on the wire.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(Bytes::len).sum()
    }
}

/// One subscriber.
#[derive(Debug)]
pub struct Subscription {
    invalidations: Arc<Invalidations>,
    published: watch::Receiver<u64>,
    /// Number of the next set; `None` before the first batch.
    position: Option<u64>,
}

impl Subscription {
    /// Waits for the next changes. The first batch says that changes were lost. The future may be dropped without a
    /// loss.
    pub async fn next(&mut self) -> Batch {
        loop {
            // Marked as seen before the look at the ring: a change that is published after the look ends the wait.
            self.published.mark_unchanged();
            if let Some(batch) = self.take() {
                return batch;
            }
            if self.published.changed().await.is_err() {
                // Unreachable: the sender lives as long as this subscription.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Number of the next set that will be published.
    pub fn published(&self) -> u64 {
        self.invalidations.ring().next()
    }

    /// Number of the next set that will be told; `None` before the batch that says that changes were lost.
    pub fn told(&self) -> Option<u64> {
        self.position
    }

    /// Gives up what was published and not told: the next batch says that changes were lost.
    pub fn skip(&mut self) {
        if self.position.take().is_some() {
            counter!("jindofs_master_invalidations_lost_total").increment(1);
        }
    }

    fn take(&mut self) -> Option<Batch> {
        let (batch, next) = self.invalidations.batch_at(self.position)?;
        if batch.lost && self.position.is_some() {
            counter!("jindofs_master_invalidations_lost_total").increment(1);
        }
        self.position = Some(next);
        Some(batch)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.invalidations.unsubscribe();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn inode(id: u64) -> Changes {
        Changes::Sets(vec![ChangeSet { inodes: vec![id], ..ChangeSet::default() }])
    }

    /// What a subscriber is told without waiting: whether changes were lost, and inodes.
    fn told(subscription: &mut Subscription) -> Option<(bool, Vec<u64>)> {
        let batch = subscription.next().now_or_never()?;
        let event = InvalidationEvent::decode(batch.events.concat().as_slice()).expect("parts are a message");
        assert_eq!((event.lost, event.position), (batch.lost, subscription.told()));
        Some((event.lost, event.inodes))
    }

    #[test]
    fn a_subscription_begins_with_a_loss_and_tells_every_change_once_and_in_order() {
        let all = Arc::<Invalidations>::default();
        assert!(!all.has_subscribers());
        let (mut one, mut other) = (all.subscribe().expect("taken"), all.subscribe().expect("taken"));
        assert_eq!(told(&mut one), Some((true, vec![])));
        assert_eq!(told(&mut one), None);
        all.publish(inode(5));
        all.publish(inode(6));
        assert_eq!(told(&mut one), Some((false, vec![5, 6])));
        all.publish(inode(7));
        assert_eq!(told(&mut one), Some((false, vec![7])));
        assert_eq!(
            (told(&mut other), told(&mut other)),
            (Some((true, vec![])), None),
            "it begins where it first looks"
        );
        drop((one, other));
        assert!(!all.has_subscribers() && all.ring().sets.is_empty());
    }

    #[test]
    fn a_subscriber_that_the_ring_overtakes_is_told_of_a_loss_and_goes_on_with_new_changes() {
        let all = Arc::<Invalidations>::default();
        let (mut slow, mut fast) = (all.subscribe().expect("taken"), all.subscribe().expect("taken"));
        assert_eq!((told(&mut slow), told(&mut fast)), (Some((true, vec![])), Some((true, vec![]))));
        let large = || ChangeSet { names: vec![(1, vec![b'n'; 255].into()); 1000], ..ChangeSet::default() };
        let count = RING_BYTES_MAX / encode(large()).len() + 2;
        for _ in 0..count {
            all.publish(Changes::Sets(vec![large()]));
            assert_eq!(told(&mut fast), Some((false, vec![])));
        }
        assert!(all.ring().bytes <= RING_BYTES_MAX && all.ring().sets.len() < count);
        assert_eq!(told(&mut slow), Some((true, vec![])));
        all.publish(inode(9));
        assert_eq!(told(&mut slow), Some((false, vec![9])));
    }

    #[test]
    fn a_batch_is_bounded_and_the_rest_comes_with_the_next_one() {
        let all = Arc::<Invalidations>::default();
        let mut subscription = all.subscribe().expect("taken");
        assert_eq!(told(&mut subscription), Some((true, vec![])));
        // Each of these numbers takes ten bytes.
        let number = |at: u64| u64::MAX - at;
        let set = |at: u64| ChangeSet { inodes: vec![number(at); 8000], ..ChangeSet::default() };
        all.publish(Changes::Sets((0..10).map(set).collect()));
        let mut seen = Vec::new();
        while let Some((lost, inodes)) = told(&mut subscription) {
            assert!(!lost && inodes.len() * 10 <= BATCH_BYTES + encode(set(0)).len());
            seen.extend(inodes);
        }
        assert_eq!(seen, (0..10).flat_map(|at| vec![number(at); 8000]).collect::<Vec<_>>());
    }

    #[test]
    fn a_batch_of_small_sets_is_bounded_in_their_number() {
        let all = Arc::<Invalidations>::default();
        let mut subscription = all.subscribe().expect("taken");
        assert_eq!(told(&mut subscription), Some((true, vec![])));
        (0..1000).for_each(|at| all.publish(inode(at)));
        let mut sizes = Vec::new();
        while let Some((_, inodes)) = told(&mut subscription) {
            sizes.push(inodes.len());
        }
        assert_eq!(sizes, [256, 256, 256, 232]);
    }

    #[test]
    fn a_set_is_encoded_with_everything_in_it() {
        let set = ChangeSet { inodes: vec![5, 6], names: vec![(1, Bytes::from_static(b"a"))], directories: vec![7] };
        let event = InvalidationEvent::decode(encode(set)).expect("a message");
        let names = vec![DirEntry { parent: 1, name: "a".into() }];
        let expected =
            InvalidationEvent { inodes: vec![5, 6], names, directories: vec![7], ..InvalidationEvent::default() };
        assert_eq!(event, expected);
    }

    #[test]
    fn another_state_is_a_loss_also_for_a_subscriber_that_has_seen_every_change() {
        let all = Arc::<Invalidations>::default();
        let mut subscription = all.subscribe().expect("taken");
        assert_eq!(told(&mut subscription), Some((true, vec![])));
        all.publish(inode(5));
        all.reset();
        assert_eq!(told(&mut subscription), Some((true, vec![])));
        all.publish(Changes::All);
        assert_eq!((told(&mut subscription), told(&mut subscription)), (Some((true, vec![])), None));
    }

    #[test]
    fn what_is_given_up_is_told_as_a_loss_and_the_changes_after_it_one_by_one() {
        let all = Arc::<Invalidations>::default();
        let mut subscription = all.subscribe().expect("taken");
        assert_eq!(told(&mut subscription), Some((true, vec![])));
        all.publish(inode(5));
        assert!(subscription.told().is_some_and(|told| told < subscription.published()));
        subscription.skip();
        assert_eq!(told(&mut subscription), Some((true, vec![])));
        assert_eq!(subscription.told(), Some(subscription.published()));
        all.publish(inode(6));
        assert_eq!(told(&mut subscription), Some((false, vec![6])));
    }

    #[test]
    fn the_number_of_subscribers_is_bounded() {
        let all = Arc::<Invalidations>::default();
        let mut taken: Vec<_> = std::iter::from_fn(|| all.subscribe()).collect();
        assert_eq!(taken.len(), SUBSCRIBERS_MAX);
        assert!(all.batch_interval(0) > BATCH_INTERVAL_MIN);
        assert!(all.batch_interval(BATCH_BYTES) > all.batch_interval(0) * 10);
        taken.pop();
        assert!(all.subscribe().is_some());
    }
}
