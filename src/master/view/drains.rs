//! How far the drains under way are, as the leader that moves the blocks counts.

use std::collections::HashMap;
use std::sync::Mutex;

use jindofs_proto::v1::{Drain, WorkerInfo};

use crate::runtime::lock;

/// Drains by worker.
#[derive(Debug, Default)]
pub struct Drains {
    reached: Mutex<HashMap<String, Drain>>,
}

impl Drains {
    /// Notes how far a drain is.
    pub fn note(&self, worker: &str, drain: Drain) {
        lock(&self.reached).insert(worker.to_owned(), drain);
    }

    /// Forgets a drain that is over or run by another master.
    pub fn forget(&self, worker: &str) {
        lock(&self.reached).remove(worker);
    }

    /// Adds what is known here to workers that are drained.
    pub fn tell(&self, workers: &mut [WorkerInfo]) {
        let reached = lock(&self.reached);
        for worker in workers.iter_mut().filter(|worker| worker.drain.is_some()) {
            if let Some(drain) = reached.get(&worker.id) {
                worker.drain = Some(drain.clone());
            }
        }
    }
}
