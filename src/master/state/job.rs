//! Jobs: what was asked for and how it ended. Progress in between is the leader's own.

use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{FinishJob, JobRow, SubmitJob};
use jindofs_proto::v1::{JobInfo, JobState};

use super::context::Ctx;
use super::fault::{Step, refuse};
use super::{Refusal, StoreError, Table, View, keys, rows};
use crate::types::NsPath;

/// Most jobs on record; the oldest finished one makes room.
pub(super) const JOBS_MAX: usize = 1000;
/// Longest message of a job, bytes; the rest is cut. It comes with the log entry and is the same on all replicas: what
/// workers and under-storages said, in the words of the leader that ran the job.
const MESSAGE_MAX: usize = 4096;

/// Records a new job.
pub(super) fn submit(ctx: &mut Ctx<'_>, request: &SubmitJob) -> Step<Answer> {
    let path = NsPath::parse(&request.path)?;
    make_room(ctx)?;
    let id = ctx.counters.next_job;
    ctx.counters.next_job += 1;
    let job = JobInfo {
        id,
        path: bytes::Bytes::copy_from_slice(path.as_bytes()),
        state: JobState::Running.into(),
        created_ns: ctx.now,
        ..JobInfo::default()
    };
    put(ctx, &job);
    Ok(Answer::Job(job))
}

fn make_room(ctx: &mut Ctx<'_>) -> Step {
    let jobs = all(ctx.view())?;
    if jobs.len() < JOBS_MAX {
        return Ok(());
    }
    match jobs.iter().find(|job| job.state() != JobState::Running) {
        Some(old) => {
            ctx.txn.delete(Table::Job, &keys::id(old.id));
            Ok(())
        }
        None => refuse(Refusal::TooManyJobs { most: JOBS_MAX as u64 }),
    }
}

/// Records how a job ended. A job that has ended stays as it is.
pub(super) fn finish(ctx: &mut Ctx<'_>, request: &FinishJob) -> Step<Answer> {
    if !matches!(request.state(), JobState::Done | JobState::Failed | JobState::Cancelled) {
        return refuse(Refusal::BadJobEnd);
    }
    let Some(row) = get(ctx.view(), request.id)? else {
        return refuse(Refusal::NoSuchJob { job: request.id });
    };
    if row.state() != JobState::Running {
        return Ok(Answer::Job(row));
    }
    let job = JobInfo {
        state: request.state,
        files_total: request.files_done.saturating_add(request.files_failed),
        files_done: request.files_done,
        bytes_total: request.bytes_done,
        bytes_done: request.bytes_done,
        files_failed: request.files_failed,
        message: request.message[..request.message.floor_char_boundary(MESSAGE_MAX)].to_owned(),
        ..row
    };
    put(ctx, &job);
    Ok(Answer::Job(job))
}

fn put(ctx: &mut Ctx<'_>, job: &JobInfo) {
    rows::write(ctx.txn, Table::Job, &keys::id(job.id), &JobRow { job: Some(job.clone()) });
}

/// The job with this id.
pub(super) fn get(view: &dyn View, id: u64) -> Result<Option<JobInfo>, StoreError> {
    Ok(rows::read::<JobRow>(view, Table::Job, &keys::id(id))?.and_then(|row| row.job))
}

/// Every job on record, oldest first.
pub(super) fn all(view: &dyn View) -> Result<Vec<JobInfo>, StoreError> {
    Ok(rows::scan::<JobRow>(view, Table::Job, &[], JOBS_MAX)?.into_iter().filter_map(|(_, row)| row.job).collect())
}
