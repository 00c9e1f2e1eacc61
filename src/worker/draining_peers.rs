//! Workers that are drained before they leave, as the masters say. A block that is missing here is asked of them before the
//! under-storage is; this worker keeps nothing new once it is one of them.

use std::collections::HashMap;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jindofs_proto::v1::{FileSource, WorkerInfo};
use metrics::counter;

use crate::error::ErrorKind;
use crate::rpc::remote::Remotes;
use crate::runtime::{lock, read_lock, write_lock};

/// How long a worker that did not answer is not asked again.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The list, and the way to those on it.
#[derive(Debug)]
pub(super) struct DrainingPeers {
    own: String,
    remotes: Remotes,
    /// Version and content.
    list: RwLock<(u64, Vec<WorkerInfo>)>,
    suspended_until: Mutex<HashMap<String, Instant>>,
}

impl DrainingPeers {
    /// Nobody yet; `own` is the id of this worker.
    pub(super) fn new(own: String) -> DrainingPeers {
        DrainingPeers { own, remotes: Remotes::default(), list: RwLock::default(), suspended_until: Mutex::default() }
    }

    /// Takes over a list; older ones come from masters that lag.
    pub(super) fn learn(&self, version: u64, workers: Vec<WorkerInfo>) {
        let mut list = write_lock(&self.list);
        if version >= list.0 {
            *list = (version, workers);
        }
    }

    /// Ids of everyone on the list.
    pub(super) fn ids(&self) -> Vec<String> {
        let list = read_lock(&self.list);
        list.1.iter().map(|worker| worker.id.clone()).collect()
    }

    /// True if this worker has to leave.
    pub(super) fn is_own(&self) -> bool {
        read_lock(&self.list).1.iter().any(|worker| worker.id == self.own)
    }

    /// Bytes that one of them holds. Whatever keeps it from giving them is no trouble: the under-storage has them too.
    pub(super) async fn pull(&self, source: &FileSource, offset: u64, length: u64) -> Option<Bytes> {
        for worker in self.others() {
            match self.remotes.pull(&worker, source, offset, length).await {
                Ok(data) => {
                    counter!("jindofs_worker_pulled_bytes_total").increment(length);
                    return Some(data);
                }
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::info!(worker = worker.id, %error, "a worker that leaves did not give a block");
                    let mut suspended = lock(&self.suspended_until);
                    suspended.insert(worker.id, Instant::now() + RETRY_DELAY);
                }
            }
        }
        None
    }

    fn others(&self) -> Vec<WorkerInfo> {
        let list = read_lock(&self.list);
        if list.1.is_empty() {
            return Vec::new();
        }
        let mut suspended = lock(&self.suspended_until);
        suspended.retain(|_, until| *until > Instant::now());
        let asked = |worker: &&WorkerInfo| worker.id != self.own && !suspended.contains_key(&worker.id);
        list.1.iter().filter(asked).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_a_master_that_lags_brings_no_drain_back() {
        let draining = DrainingPeers::new("w".into());
        let own = || vec![WorkerInfo { id: "w".into(), ..WorkerInfo::default() }];
        draining.learn(4, own());
        assert!(draining.is_own() && draining.others().is_empty());
        draining.learn(5, Vec::new());
        draining.learn(4, own());
        assert!(!draining.is_own());
    }
}
