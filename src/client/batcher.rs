//! Group commit on the client: mutations of many callers are sent as few log entries. Mutations that arrive while a
//! batch is in flight are queued for the next one.
//!
//! A mutation without a waiter, such as a deferred create or a deferred commit, stays queued for a short delay: usually
//! a mutation with a waiter arrives meanwhile and takes it along.
//!
//! Only one batch is in flight at a time, so that the directory attributes that creates return arrive in order.
//! Concurrent batches would also be more log entries, each of which costs every master about the same whatever its
//! size. The exception are begins and ends of writes, which never wait for an under-storage: they bypass a batch that
//! does.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{Attr, BatchOp, MutationResponse};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::namespace::Namespace;
use crate::error::{Error, Result};
use crate::runtime::{failpoint_io, lock};

/// Most operations in a batch: far fewer than a log entry can hold, and a delay that a caller does not notice.
const OPS_MAX: usize = 256;
/// How long a begin or end of a write waits behind a batch in flight before it is sent by itself.
const BYPASS_TIMEOUT: Duration = Duration::from_millis(20);
/// How long an operation without a waiter stays queued.
const FLUSH_DELAY: Duration = Duration::from_millis(5);
/// Inode numbers reserved at a time, and how few may be left before more are reserved.
const RESERVE_COUNT: u32 = 8192;
const RESERVE_BELOW: u64 = 4096;

/// Called for every directory that a batch has changed, with its new attributes and the time when the batch was sent,
/// before the waiters of the batch are woken.
pub type Observer = Box<dyn Fn(Attr, Instant) + Send + Sync>;

/// Called with the outcome of an operation, on a runtime thread: it must not block.
type Completion = Box<dyn FnOnce(Result<MutationResponse>) + Send>;

struct Item {
    op: Op,
    completion: Completion,
}

/// The operations that wait for the next batch.
#[derive(Default)]
struct Queue {
    creates: VecDeque<Item>,
    contents: VecDeque<Item>,
    /// A batch is in flight.
    running: bool,
    /// An operation in the queue has a waiter.
    flush_requested: bool,
    /// A task will flush the queue after the delay.
    flush_scheduled: bool,
    /// Number of batches sent so far.
    batches_sent: u64,
    /// A task watches for writes that wait too long behind a batch.
    bypass_watched: bool,
}

impl Queue {
    /// Takes the next batch from the queue; with `alone` only begins and ends of writes.
    fn next(&mut self, alone: bool) -> Vec<Item> {
        let creates = if alone { 0 } else { self.creates.len().min(OPS_MAX) };
        let contents = self.contents.len().min(OPS_MAX - creates);
        let items = self.creates.drain(..creates).chain(self.contents.drain(..contents)).collect();
        self.flush_requested &= !self.is_empty();
        items
    }

    fn is_empty(&self) -> bool {
        self.creates.is_empty() && self.contents.is_empty()
    }
}

/// Reserved inode numbers of one session that are not used yet.
#[derive(Default)]
struct InodeRange {
    session: Bytes,
    next: u64,
    end: u64,
    /// A reservation is in flight.
    reserving_now: bool,
}

/// Batches the small mutations of one client process.
pub struct Batcher {
    namespace: Arc<Namespace>,
    queue: Mutex<Queue>,
    inodes: Mutex<InodeRange>,
    /// Held by the caller that reserves numbers while others wait for them.
    reserving: tokio::sync::Mutex<()>,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Batcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

impl Batcher {
    /// Creates a batcher with an empty queue.
    pub fn new(namespace: Arc<Namespace>, observer: Option<Observer>) -> Arc<Batcher> {
        Arc::new(Batcher {
            namespace,
            queue: Mutex::default(),
            inodes: Mutex::default(),
            reserving: tokio::sync::Mutex::default(),
            observer,
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Queues an operation that has a waiter, and flushes the queue. Returns a future of the outcome; if it is dropped,
    /// the operation is executed all the same.
    ///
    /// *Errors*: those of the operation, and of the batch. A retryable error means that nothing was executed.
    pub fn submit(
        self: &Arc<Self>,
        op: Op,
        on: &Handle,
    ) -> impl Future<Output = Result<MutationResponse>> + Send + use<> {
        let (done, outcome) = oneshot::channel();
        let completion = move |result| {
            // A receiver that was dropped does not need the outcome.
            let _ = done.send(result);
        };
        self.enqueue(op, on, completion);
        self.flush(on);
        outcome.map(|done| done.unwrap_or_else(|_| Err(Error::internal("a batch has ended without an answer"))))
    }

    /// Queues an operation that can wait for the flush delay. `completion` is called with the outcome in the task of
    /// the batch; it must not block.
    pub fn enqueue(
        self: &Arc<Self>,
        op: Op,
        on: &Handle,
        completion: impl FnOnce(Result<MutationResponse>) + Send + 'static,
    ) {
        let stores = matches!(op, Op::BeginWrite(_) | Op::EndWrite(_));
        let mut queue = self.queue();
        let items = if stores { &mut queue.contents } else { &mut queue.creates };
        items.push_back(Item { op, completion: Box::new(completion) });
        queue.flush_requested |= queue.creates.len() >= OPS_MAX;
        if stores && queue.running && !std::mem::replace(&mut queue.bypass_watched, true) {
            let this = self.clone();
            on.spawn(async move { this.bypass_slow_batch().await });
        }
        self.schedule(&mut queue, on);
    }

    /// Sends everything that is queued: a caller waits for it.
    pub fn flush(self: &Arc<Self>, on: &Handle) {
        let mut queue = self.queue();
        queue.flush_requested = !queue.is_empty();
        self.schedule(&mut queue, on);
    }

    /// Starts a batch if a flush was requested, and otherwise schedules a flush after the delay.
    fn schedule(self: &Arc<Self>, queue: &mut Queue, on: &Handle) {
        if queue.running || queue.is_empty() {
            return;
        }
        let this = self.clone();
        if queue.flush_requested {
            queue.running = true;
            on.spawn(async move { this.run().await });
        } else if !std::mem::replace(&mut queue.flush_scheduled, true) {
            on.spawn(async move {
                tokio::time::sleep(FLUSH_DELAY).await;
                this.queue().flush_scheduled = false;
                this.flush(&Handle::current());
            });
        }
    }

    /// Adds a write intent to the queued create of `inode`, if it was not sent yet: the masters then record in one
    /// mutation that the file exists and that its content is about to be stored. `end_behind`: the commit will follow
    /// after the writer is answered.
    pub fn attach_write(self: &Arc<Self>, inode: u64, end_behind: bool, on: &Handle) {
        let creates = |item: &mut Item| match &mut item.op {
            Op::Create(request) if request.inode == inode => {
                (request.begin_write, request.end_behind) = (true, end_behind);
                true
            }
            _ => false,
        };
        // The create that the caller waits for was queued recently.
        self.queue().creates.iter_mut().rev().any(creates);
        self.flush(on);
    }

    /// Number of creates in the queue.
    pub fn pending_creates(&self) -> usize {
        self.queue().creates.len()
    }

    async fn run(self: &Arc<Self>) {
        loop {
            let items = {
                let mut queue = self.queue();
                queue.batches_sent += 1;
                queue.running = queue.flush_requested;
                if !queue.flush_requested {
                    self.schedule(&mut queue, &Handle::current());
                    return;
                }
                queue.next(false)
            };
            self.send_batch(items).await;
        }
    }

    /// Sends begins and ends of writes by themselves while the batch in flight takes too long.
    async fn bypass_slow_batch(&self) {
        let mut sent = self.queue().batches_sent;
        loop {
            tokio::time::sleep(BYPASS_TIMEOUT).await;
            let items = {
                let mut queue = self.queue();
                if queue.contents.is_empty() || !queue.running {
                    queue.bypass_watched = false;
                    return;
                }
                if std::mem::replace(&mut sent, queue.batches_sent) == sent { queue.next(true) } else { Vec::new() }
            };
            if !items.is_empty() {
                self.send_batch(items).await;
            }
        }
    }

    async fn send_batch(&self, items: Vec<Item>) {
        let asked = Instant::now();
        let ops = items.iter().map(|item| BatchOp { op: Some(item.op.clone()) }).collect();
        let sent = match failpoint_io("batch.send") {
            Ok(_) => self.namespace.batch_in_full(ops).await,
            Err(error) => Err(error.into()),
        };
        match sent {
            Ok((results, directories)) => {
                if let Some(observer) = &self.observer {
                    directories.into_iter().for_each(|directory| observer(directory, asked));
                }
                for (item, result) in items.into_iter().zip(results) {
                    (item.completion)(result);
                }
            }
            Err(error) => {
                for item in items {
                    (item.completion)(Err(error.clone()));
                }
            }
        }
    }

    /// Returns an unused inode number if one is reserved, and reserves more before they run out.
    pub fn next_inode(self: &Arc<Self>, on: &Handle) -> Option<u64> {
        let session = self.namespace.session().id_now()?;
        let mut inodes = lock(&self.inodes);
        if inodes.session != session {
            *inodes = InodeRange { reserving_now: inodes.reserving_now, session, ..InodeRange::default() };
        }
        let number = (inodes.next < inodes.end).then_some(inodes.next);
        inodes.next += u64::from(number.is_some());
        if inodes.end - inodes.next < RESERVE_BELOW && !std::mem::replace(&mut inodes.reserving_now, true) {
            let this = self.clone();
            on.spawn(async move { this.reserve().await });
        }
        number
    }

    /// Waits until inode numbers are reserved. Returns false if they cannot be.
    pub async fn ensure_inodes(&self) -> bool {
        if self.has_inodes() {
            return true;
        }
        match self.reserving.try_lock() {
            Ok(_one) => self.reserve().await,
            // Another caller is reserving; one attempt is enough, also if it is slow and fails.
            Err(_) => drop(self.reserving.lock().await),
        }
        self.has_inodes()
    }

    fn has_inodes(&self) -> bool {
        let inodes = lock(&self.inodes);
        inodes.next < inodes.end && self.namespace.session().id_now().is_some_and(|session| session == inodes.session)
    }

    async fn reserve(&self) {
        let reserved = self.namespace.reserve_inodes(RESERVE_COUNT).await;
        let mut inodes = lock(&self.inodes);
        inodes.reserving_now = false;
        match reserved {
            // The rest of the previous range is dropped.
            Ok((session, first)) => {
                *inodes =
                    InodeRange { session, next: first, end: first + u64::from(RESERVE_COUNT), reserving_now: false };
            }
            Err(error) => tracing::debug!(%error, "no inode numbers are reserved, files are made one by one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use jindofs_proto::v1::{CreateRequest, EndWriteRequest};

    use super::*;

    fn item(op: Op) -> Item {
        Item { op, completion: Box::new(|_| ()) }
    }

    fn stores(items: &[Item]) -> Vec<bool> {
        items.iter().map(|item| matches!(item.op, Op::EndWrite(_))).collect()
    }

    #[test]
    fn a_batch_takes_creations_first_and_content_that_goes_by_itself_takes_none() {
        let mut queue = Queue::default();
        for _ in 0..2 {
            queue.creates.push_back(item(Op::Create(CreateRequest::default())));
            queue.contents.push_back(item(Op::EndWrite(EndWriteRequest::default())));
        }
        assert_eq!(stores(&queue.next(true)), [true, true]);
        queue.contents.push_back(item(Op::EndWrite(EndWriteRequest::default())));
        assert_eq!(stores(&queue.next(false)), [false, false, true]);
        assert!(queue.next(false).is_empty());
        queue.creates.extend((0..OPS_MAX).map(|_| item(Op::Create(CreateRequest::default()))));
        queue.contents.push_back(item(Op::EndWrite(EndWriteRequest::default())));
        assert_eq!(queue.next(false).len(), OPS_MAX);
        assert_eq!(stores(&queue.next(false)), [true]);
    }
}
