//! How far the jobs under way are, as the leader that runs them counts.

use std::collections::HashMap;
use std::sync::Mutex;

use jindofs_proto::v1::JobInfo;

use crate::runtime::lock;

/// Counters of running jobs, by id.
#[derive(Debug, Default)]
pub struct Progress {
    jobs: Mutex<HashMap<u64, JobInfo>>,
}

impl Progress {
    /// The job with the counters it has reached here.
    pub fn of(&self, job: JobInfo) -> JobInfo {
        let jobs = lock(&self.jobs);
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
        change(lock(&self.jobs).entry(id).or_default());
    }

    /// Forgets a job that has ended or is run by another master.
    pub fn forget(&self, id: u64) {
        lock(&self.jobs).remove(&id);
    }
}
