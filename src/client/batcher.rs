//! Mutations of many callers as few log entries: what is asked for while a batch is under way makes the next one.
//!
//! What nobody waits for yet, a creation or the end of a write that was answered already, lingers for a moment: mostly somebody
//! comes who waits, and takes it along.
//!
//! One batch is under way at a time, so that what creations say of their directories comes in order: several would be more
//! entries of the log, each of which costs every master about the same however much it holds. Only what stores content, which
//! never waits for an under-storage, does not wait long for a batch that does. Group commit, as databases do it, one step
//! further out.

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

/// Most operations of a batch: what a log entry can hold many times over, and a caller waits for gladly.
const OPS_MAX: usize = 256;
/// How long content waits for a batch that is under way before it goes by itself.
const BYPASS_TIMEOUT: Duration = Duration::from_millis(20);
/// How long what nobody waits for stays for a batch of others.
const FLUSH_DELAY: Duration = Duration::from_millis(5);
/// Inode numbers reserved at a time, and how few may be left before the next are.
const RESERVE_COUNT: u32 = 8192;
const RESERVE_BELOW: u64 = 4096;

/// To be told of every directory that a batch has changed, as it is after that, and when the batch was sent; before those who wait
/// for the batch are told.
pub type Observer = Box<dyn Fn(Attr, Instant) + Send + Sync>;

/// Is told what came of an operation, on a thread that serves: it must not block.
type Completion = Box<dyn FnOnce(Result<MutationResponse>) + Send>;

struct Item {
    op: Op,
    completion: Completion,
}

/// What waits for the next batch.
#[derive(Default)]
struct Queue {
    creates: VecDeque<Item>,
    contents: VecDeque<Item>,
    /// A batch is under way.
    running: bool,
    /// Somebody waits for what is here.
    flush_requested: bool,
    /// Somebody looks after what lingers.
    flush_scheduled: bool,
    /// How many have been.
    batches_sent: u64,
    /// Somebody looks after content that waits too long.
    bypass_watched: bool,
}

impl Queue {
    /// The next batch; content only, if that goes by itself.
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

/// Inode numbers of one session, not given to anything yet.
#[derive(Default)]
struct InodeRange {
    session: Bytes,
    next: u64,
    end: u64,
    /// More are asked for.
    reserving_now: bool,
}

/// The way of small mutations out of one client process.
pub struct Batcher {
    namespace: Arc<Namespace>,
    queue: Mutex<Queue>,
    inodes: Mutex<InodeRange>,
    /// Held by who asks for numbers that others wait for.
    reserving: tokio::sync::Mutex<()>,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Batcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

impl Batcher {
    /// Nothing is under way yet.
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

    /// Adds an operation to the next batch, for which somebody waits. Returns its outcome to come; dropped, the operation is done
    /// all the same.
    ///
    /// *Errors*: the operation's own; those of the batch. One that is retryable says that nothing was done.
    pub fn submit(
        self: &Arc<Self>,
        op: Op,
        on: &Handle,
    ) -> impl Future<Output = Result<MutationResponse>> + Send + use<> {
        let (done, outcome) = oneshot::channel();
        let completion = move |result| {
            // Who does not wait does not want to know.
            let _ = done.send(result);
        };
        self.enqueue(op, on, completion);
        self.flush(on);
        outcome.map(|done| done.unwrap_or_else(|_| Err(Error::internal("a batch has ended without an answer"))))
    }

    /// As [`Batcher::submit`], for what can wait a little until somebody is in a hurry. `completion` hears the outcome in a task of the
    /// batch; it must not block.
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

    /// Somebody waits for what was asked for before.
    pub fn flush(self: &Arc<Self>, on: &Handle) {
        let mut queue = self.queue();
        queue.flush_requested = !queue.is_empty();
        self.schedule(&mut queue, on);
    }

    /// Has sent what is in a hurry, and looked after what is not.
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

    /// Has the creation of `inode` announce at once that its content is going to be stored, if it was not sent yet, and that its
    /// writer is to be answered before the end.
    pub fn attach_write(self: &Arc<Self>, inode: u64, end_behind: bool, on: &Handle) {
        let creates = |item: &mut Item| match &mut item.op {
            Op::Create(request) if request.inode == inode => {
                (request.begin_write, request.end_behind) = (true, end_behind);
                true
            }
            _ => false,
        };
        // What is waited for now was asked for lately.
        self.queue().creates.iter_mut().rev().any(creates);
        self.flush(on);
    }

    /// Number of creations that wait for the next batch.
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

    /// Sends content by itself while the batch under way takes too long.
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

    /// A number for a new inode, if one is left; has more of them reserved in time.
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

    /// Waits until there are numbers for new inodes. False if they are not to be had.
    pub async fn ensure_inodes(&self) -> bool {
        if self.has_inodes() {
            return true;
        }
        match self.reserving.try_lock() {
            Ok(_one) => self.reserve().await,
            // Somebody has asked, and one answer is enough, also if it takes long and is an error.
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
            // What is left of the range before is given up.
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
