//! The workers as this client knows them: a list refreshed in the background, kept while no master answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jindofs_proto::v1::{WorkerInfo, WorkerState};

use crate::error::Result;
use crate::rpc::channel::{MasterChannel, block};
use crate::rpc::remote::takes_new;
use crate::runtime::{lock, read_lock, write_lock};
use crate::types::placement;
use jindofs_proto::v1::WorkersRequest;

/// Interval of refreshes once somebody asked.
const REFRESH: Duration = Duration::from_secs(3);
/// How long a worker that failed is asked only after the others.
const BREAKER: Duration = Duration::from_secs(5);

/// The list of workers. Cheap to read; shared by all readers of a process.
#[derive(Debug)]
pub struct Workers {
    channel: MasterChannel,
    list: RwLock<Option<Arc<Vec<WorkerInfo>>>>,
    broken_until: Mutex<HashMap<String, Instant>>,
    refreshing: AtomicBool,
}

impl Workers {
    /// An empty list; the first question fills it.
    pub fn new(channel: MasterChannel) -> Arc<Workers> {
        Arc::new(Workers {
            channel,
            list: RwLock::new(None),
            broken_until: Mutex::new(HashMap::new()),
            refreshing: AtomicBool::new(false),
        })
    }

    /// The last known list. Waits for a master only if there never was one.
    ///
    /// *Errors*: those of the channel, for the first list.
    pub async fn all(self: &Arc<Self>) -> Result<Arc<Vec<WorkerInfo>>> {
        if let Some(list) = self.known() {
            return Ok(list);
        }
        self.refresh(&self.channel).await
    }

    /// The last known list, without asking.
    pub fn known(&self) -> Option<Arc<Vec<WorkerInfo>>> {
        read_lock(&self.list).clone()
    }

    /// Takes a list that came with another answer.
    pub fn learn(&self, workers: Vec<WorkerInfo>) {
        if !workers.is_empty() {
            *write_lock(&self.list) = Some(Arc::new(workers));
        }
    }

    /// Workers that should hold the piece, best first: live ones, then live ones that just failed, then those that are
    /// drained, then lost ones, whose process may well be there while masters do not hear it.
    pub fn candidates(list: &[WorkerInfo], broken: &[String], file_id: u64, piece: u64) -> Vec<WorkerInfo> {
        let mut ranked = placement::rank(list, |worker| &worker.id, file_id, piece);
        ranked.sort_by_key(|worker| {
            let live = worker.state() == WorkerState::Live;
            (!live, !takes_new(worker), broken.contains(&worker.id))
        });
        ranked.into_iter().cloned().collect()
    }

    /// Notes that a worker failed: for a while it is asked only after the others.
    pub fn failed(&self, id: &str) {
        let mut broken = lock(&self.broken_until);
        broken.insert(id.to_owned(), Instant::now() + BREAKER);
    }

    /// Ids of workers that failed a moment ago.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = lock(&self.broken_until);
        let now = Instant::now();
        broken.retain(|_, until| *until > now);
        broken.keys().cloned().collect()
    }

    async fn refresh(self: &Arc<Self>, channel: &MasterChannel) -> Result<Arc<Vec<WorkerInfo>>> {
        let send = |to| async move { block(to).workers(WorkersRequest::default()).await };
        let workers = Arc::new(channel.call_any("workers", send).await?.workers);
        *write_lock(&self.list) = Some(workers.clone());
        if !self.refreshing.swap(true, Ordering::Relaxed) {
            tokio::spawn(keep_fresh(Arc::downgrade(self), channel.with_timeout(REFRESH)));
        }
        Ok(workers)
    }
}

/// Boxed, as it calls what starts it.
fn keep_fresh(workers: Weak<Workers>, channel: MasterChannel) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        loop {
            tokio::time::sleep(REFRESH).await;
            let Some(workers) = workers.upgrade() else { return };
            if let Err(error) = workers.refresh(&channel).await {
                tracing::debug!(%error, "workers not refreshed, the last list is kept");
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, state: WorkerState) -> WorkerInfo {
        WorkerInfo { id: id.into(), state: state.into(), ..Default::default() }
    }

    #[test]
    fn a_worker_that_is_drained_is_asked_only_after_the_others_once_they_know() {
        use jindofs_proto::v1::{Drain, DrainState};
        let mut list = ["a", "b", "c"].map(|id| worker(id, WorkerState::Live));
        let order = |list: &[WorkerInfo]| -> Vec<String> {
            Workers::candidates(list, &[], 5, 0).into_iter().map(|worker| worker.id).collect()
        };
        let before = order(&list);
        let best = list.iter().position(|worker| worker.id == before[0]).expect("there");
        list[best].drain = Some(Drain { state: DrainState::Announced.into(), ..Drain::default() });
        assert_eq!(order(&list), before, "nobody else can have its blocks yet");
        list[best].drain = Some(Drain { state: DrainState::Moving.into(), ..Drain::default() });
        assert_eq!(order(&list), [before[1].clone(), before[2].clone(), before[0].clone()]);
    }

    #[test]
    fn a_worker_that_failed_comes_after_the_healthy_and_before_the_lost() {
        let list = [worker("a", WorkerState::Live), worker("b", WorkerState::Live), worker("c", WorkerState::Lost)];
        let order = Workers::candidates(&list, &["a".into()], 5, 0);
        assert_eq!(order.iter().map(|worker| worker.id.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
    }
}
