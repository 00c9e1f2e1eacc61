//! A bound on the bytes that wait for the log: at its writer, and before it at Raft. With a disk that hangs, a leader's own
//! proposals are bounded elsewhere, but a follower would take in whatever its leader sends, again with each retry.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes of entries in one queue.
const QUEUE_BYTES_MAX: u64 = 64 << 20;

/// Shared by all users of one queue.
#[derive(Debug, Clone)]
pub(super) struct QueueBound(Arc<Semaphore>);

/// Room in the queue, given back when it is dropped. `None` once the queue is closed, which none is.
pub(super) type QueueRoom = Option<OwnedSemaphorePermit>;

impl QueueBound {
    pub(super) fn new() -> QueueBound {
        QueueBound(Arc::new(Semaphore::new(usize::try_from(QUEUE_BYTES_MAX).unwrap_or(usize::MAX))))
    }

    /// Waits for room for `bytes`. openraft stops meanwhile, elections and heartbeats included: a member whose disk hangs
    /// for so long must neither lead nor vote.
    pub(super) async fn take(&self, bytes: u64) -> QueueRoom {
        // What is larger than the whole queue waits until it is empty.
        let count = u32::try_from(bytes.min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        self.0.clone().acquire_many_owned(count).await.ok()
    }

    /// As [`QueueBound::take`], for a request that its sender repeats: `None` when there is no room within `limit`.
    pub(super) async fn take_within(&self, bytes: u64, limit: Duration) -> QueueRoom {
        tokio::time::timeout(limit, self.take(bytes)).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_takes_no_more_than_its_bound_until_something_is_written() {
        let bound = QueueBound::new();
        let first = bound.take(QUEUE_BYTES_MAX / 2).await;
        let second = bound.take(QUEUE_BYTES_MAX / 2).await;
        let wait = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(wait, bound.take(1)).await.is_err(), "it is full");
        drop(second);
        let huge = bound.take(QUEUE_BYTES_MAX * 2);
        tokio::pin!(huge);
        assert!(tokio::time::timeout(wait, &mut huge).await.is_err(), "it needs all of it");
        drop(first);
        assert!(huge.await.is_some());
    }
}
