//! A worker as commands print it.

use jindofs_proto::v1::{DrainState, WorkerInfo, WorkerState};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Worker {
    pub(in crate::cli) id: String,
    pub(in crate::cli) address: String,
    pub(in crate::cli) state: &'static str,
    pub(in crate::cli) capacity_bytes: u64,
    pub(in crate::cli) used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) drain: Option<Drain>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Drain {
    pub(in crate::cli) state: &'static str,
    pub(in crate::cli) reason: String,
    pub(in crate::cli) left_bytes: u64,
    pub(in crate::cli) stuck_bytes: u64,
    pub(in crate::cli) message: String,
}

impl From<&WorkerInfo> for Worker {
    fn from(one: &WorkerInfo) -> Worker {
        let state = match one.state() {
            WorkerState::Live => "live",
            WorkerState::Lost => "lost",
            WorkerState::Unspecified => "unknown",
        };
        let drain = one.drain.as_ref().map(|drain| Drain {
            state: match drain.state() {
                DrainState::Announced => "announced",
                DrainState::Moving => "moving",
                DrainState::Done => "done",
                DrainState::Unspecified => "unknown",
            },
            reason: drain.reason.clone(),
            left_bytes: drain.left_bytes,
            stuck_bytes: drain.stuck_bytes,
            message: drain.message.clone(),
        });
        Worker {
            id: one.id.clone(),
            address: one.address.clone(),
            state,
            capacity_bytes: one.capacity_bytes,
            used_bytes: one.used_bytes,
            drain,
        }
    }
}
