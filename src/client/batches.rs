//! Mutations of many callers as few log entries: what is asked for while a batch is under way makes the next one.
//!
//! Of creations one batch is under way at a time, so that what they say of their directories comes in order, and beside it one of
//! what stores content, which never waits for an under-storage. Several at a time would be more entries of the log, each of
//! which costs every master about the same however much it holds. Group commit, as databases do it, one step further out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures::FutureExt;
use jindofs_proto::v1::batch_op::Op;
use jindofs_proto::v1::{Attr, BatchOp, MutationResponse};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::namespace::Namespace;
use crate::error::{Error, Result};

/// Most operations of a batch: what a log entry can hold many times over, and a caller waits for gladly.
const OPS_MAX: usize = 256;
/// Inode numbers reserved at a time, and how few may be left before the next are.
const RESERVE: u32 = 8192;
const RESERVE_BELOW: u64 = 4096;

/// A directory in which a batch has created something.
#[derive(Debug)]
pub struct Grown {
    /// As it is after the batch.
    pub directory: Attr,
    /// How many names came by the batch.
    pub came: u64,
    /// When the batch was sent.
    pub asked: Instant,
}

/// To be told of every directory that has grown, before those who wait for the batch are.
pub type Observer = Box<dyn Fn(Grown) + Send + Sync>;

struct Item {
    op: Op,
    done: oneshot::Sender<Result<MutationResponse>>,
}

/// What waits for the next batch of its kind.
#[derive(Default)]
struct Lane {
    items: VecDeque<Item>,
    /// A batch is under way.
    running: bool,
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Inode numbers of one session, not given to anything yet.
#[derive(Default)]
struct Numbers {
    session: Bytes,
    next: u64,
    end: u64,
    /// More are asked for.
    asking: bool,
}

/// The way of small mutations out of one client process.
pub struct Batches {
    namespace: Arc<Namespace>,
    creates: Mutex<Lane>,
    contents: Mutex<Lane>,
    numbers: Mutex<Numbers>,
    /// Held by who asks for numbers that others wait for.
    reserving: tokio::sync::Mutex<()>,
    observer: Option<Observer>,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

impl Batches {
    /// Nothing is under way yet.
    pub fn new(namespace: Arc<Namespace>, observer: Option<Observer>) -> Arc<Batches> {
        Arc::new(Batches {
            namespace,
            creates: Mutex::default(),
            contents: Mutex::default(),
            numbers: Mutex::default(),
            reserving: tokio::sync::Mutex::default(),
            observer,
        })
    }

    fn lane(&self, stores: bool) -> &Mutex<Lane> {
        if stores { &self.contents } else { &self.creates }
    }

    /// Adds an operation to the next batch. Returns its outcome to come; dropped, the operation is done all the same.
    ///
    /// *Errors*: the operation's own; those of the batch. One that is retryable says that nothing was done.
    pub fn submit(
        self: &Arc<Self>,
        op: Op,
        on: &Handle,
    ) -> impl Future<Output = Result<MutationResponse>> + Send + use<> {
        let (done, outcome) = oneshot::channel();
        let stores = matches!(op, Op::BeginWrite(_) | Op::EndWrite(_));
        let mut lane = lock(self.lane(stores));
        lane.items.push_back(Item { op, done });
        if !std::mem::replace(&mut lane.running, true) {
            let this = self.clone();
            on.spawn(async move { this.send(stores).await });
        }
        outcome.map(|done| done.unwrap_or_else(|_| Err(Error::internal("a batch has ended without an answer"))))
    }

    /// Has the creation of `inode` announce at once that its content is going to be stored, if it was not sent yet.
    pub fn begin_with(&self, inode: u64) {
        let creates = |item: &mut Item| match &mut item.op {
            Op::Create(request) if request.inode == inode => {
                request.begin_write = true;
                true
            }
            _ => false,
        };
        // What is waited for now was asked for lately.
        lock(&self.creates).items.iter_mut().rev().any(creates);
    }

    /// Number of creations that wait for the next batch.
    pub fn waiting(&self) -> usize {
        lock(&self.creates).items.len()
    }

    async fn send(self: Arc<Self>, stores: bool) {
        loop {
            let items: Vec<Item> = {
                let mut lane = lock(self.lane(stores));
                let count = lane.items.len().min(OPS_MAX);
                if count == 0 {
                    lane.running = false;
                    return;
                }
                lane.items.drain(..count).collect()
            };
            self.send_one(items).await;
        }
    }

    async fn send_one(&self, items: Vec<Item>) {
        let asked = Instant::now();
        let ops = items.iter().map(|item| BatchOp { op: Some(item.op.clone()) }).collect();
        match self.namespace.batch_in_full(ops).await {
            Ok((results, directories)) => {
                self.observe(&items, &results, directories, asked);
                for (item, result) in items.into_iter().zip(results) {
                    // Who does not wait does not want to know.
                    let _ = item.done.send(result);
                }
            }
            Err(error) => {
                for item in items {
                    let _ = item.done.send(Err(error.clone()));
                }
            }
        }
    }

    fn observe(&self, items: &[Item], results: &[Result<MutationResponse>], directories: Vec<Attr>, asked: Instant) {
        let Some(observer) = &self.observer else { return };
        let mut came: HashMap<u64, u64> = HashMap::new();
        for (item, result) in items.iter().zip(results) {
            if let (Op::Create(request), Ok(MutationResponse { attr: Some(attr), .. })) = (&item.op, result)
                && attr.inode == request.inode
            {
                *came.entry(attr.parent).or_default() += 1;
            }
        }
        for directory in directories {
            let came = came.get(&directory.inode).copied().unwrap_or(0);
            observer(Grown { directory, came, asked });
        }
    }

    /// A number for a new inode, if one is left; has more of them reserved in time.
    pub fn number(self: &Arc<Self>, on: &Handle) -> Option<u64> {
        let session = self.namespace.session().id_now()?;
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        if numbers.session != session {
            *numbers = Numbers { asking: numbers.asking, session, ..Numbers::default() };
        }
        let number = (numbers.next < numbers.end).then_some(numbers.next);
        numbers.next += u64::from(number.is_some());
        if numbers.end - numbers.next < RESERVE_BELOW && !std::mem::replace(&mut numbers.asking, true) {
            let this = self.clone();
            on.spawn(async move { this.reserve().await });
        }
        number
    }

    /// Waits until there are numbers for new inodes. False if they are not to be had.
    pub async fn have_numbers(&self) -> bool {
        if self.are_left() {
            return true;
        }
        match self.reserving.try_lock() {
            Ok(_one) => self.reserve().await,
            // Somebody has asked, and one answer is enough, also if it takes long and is an error.
            Err(_) => drop(self.reserving.lock().await),
        }
        self.are_left()
    }

    fn are_left(&self) -> bool {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.next < numbers.end
            && self.namespace.session().id_now().is_some_and(|session| session == numbers.session)
    }

    async fn reserve(&self) {
        let reserved = self.namespace.reserve_inodes(RESERVE).await;
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.asking = false;
        match reserved {
            // What is left of the range before is given up.
            Ok((session, first)) => {
                *numbers = Numbers { session, next: first, end: first + u64::from(RESERVE), asking: false };
            }
            Err(error) => tracing::debug!(%error, "no inode numbers are reserved, files are made one by one"),
        }
    }
}
