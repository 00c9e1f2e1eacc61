//! A worker as commands print it.

use jindofs_proto::v1::{WorkerInfo, WorkerState};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Worker {
    pub(super) id: String,
    pub(super) address: String,
    pub(super) state: &'static str,
    pub(super) capacity_bytes: u64,
    pub(super) used_bytes: u64,
}

impl From<&WorkerInfo> for Worker {
    fn from(one: &WorkerInfo) -> Worker {
        let state = match one.state() {
            WorkerState::Live => "live",
            WorkerState::Lost => "lost",
            WorkerState::Unspecified => "unknown",
        };
        Worker {
            id: one.id.clone(),
            address: one.address.clone(),
            state,
            capacity_bytes: one.capacity_bytes,
            used_bytes: one.used_bytes,
        }
    }
}
