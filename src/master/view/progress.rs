//! How far the jobs under way are, as the leader that runs them counts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jindofs_proto::v1::JobInfo;

/// Counters of running jobs, by id.
#[derive(Debug, Default)]
pub struct Progress {
    jobs: Mutex<HashMap<u64, JobInfo>>,
}

impl Progress {
    /// The job with the counters it has reached here.
    pub fn of(&self, job: JobInfo) -> JobInfo {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reached) = jobs.get(&job.id) else { return job };
        JobInfo {
            files_total: reached.files_total,
            files_done: reached.files_done,
            bytes_total: reached.bytes_total,
            bytes_done: reached.bytes_done,
            files_failed: reached.files_failed,
            message: reached.message.clone(),
            ..job
        }
    }

    /// Changes the counters of a job, from zero if it is new here.
    pub fn update(&self, id: u64, change: impl FnOnce(&mut JobInfo)) {
        change(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default());
    }

    /// Forgets a job that has ended or is run by another master.
    pub fn forget(&self, id: u64) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}
