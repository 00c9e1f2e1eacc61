//! The workers that are being drained before they leave, as reported by the masters. A block that is missing here is
//! requested from them before the under-storage is read. This worker stores nothing new once it is one of them.

use std::collections::HashMap;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jindofs_proto::v1::{FileSource, WorkerInfo};
use metrics::counter;

use crate::error::ErrorKind;
use crate::rpc::remote::Remotes;
use crate::runtime::{lock, read_lock, write_lock};

/// How long a worker that did not answer is skipped.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// The list of draining workers and the connections to them.
#[derive(Debug)]
pub(super) struct DrainingPeers {
    own: String,
    remotes: Remotes,
    /// Version of the list, and its workers.
    list: RwLock<(u64, Vec<WorkerInfo>)>,
    suspended_until: Mutex<HashMap<String, Instant>>,
}

impl DrainingPeers {
    /// Starts with an empty list; `own` is the id of this worker.
    pub(super) fn new(own: String) -> DrainingPeers {
        DrainingPeers { own, remotes: Remotes::default(), list: RwLock::default(), suspended_until: Mutex::default() }
    }

    /// Stores a list unless it is older than the current one: masters may lag.
    pub(super) fn learn(&self, version: u64, workers: Vec<WorkerInfo>) {
        let mut list = write_lock(&self.list);
        if version >= list.0 {
            *list = (version, workers);
        }
    }

    /// Ids of all workers on the list.
    pub(super) fn ids(&self) -> Vec<String> {
        let list = read_lock(&self.list);
        list.1.iter().map(|worker| worker.id.clone()).collect()
    }

    /// True if this worker is being drained.
    pub(super) fn is_own(&self) -> bool {
        read_lock(&self.list).1.iter().any(|worker| worker.id == self.own)
    }

    /// Reads bytes from a draining worker that holds them. Errors are not reported: the under-storage has the bytes
    /// too.
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
