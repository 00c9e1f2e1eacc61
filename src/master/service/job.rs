//! `jindofs.v1.Job`: work the cluster does by itself.

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::outcome::Outcome as Answer;
use jindofs_proto::store::v1::{FinishJob, SubmitJob};
use jindofs_proto::v1::job_server::Job;
use jindofs_proto::v1::{
    CancelJobRequest, GetJobRequest, JobInfo, JobResponse, JobState, ListJobsRequest, ListJobsResponse,
    SubmitLoadRequest, Target, target,
};
use tonic::{Request, Response, Status};

use super::{Parts, answer, check_op, propose};
use crate::error::{Error, ErrorKind, Result};
use crate::master::state::query;
use crate::master::wording::shown_job;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct JobService(pub(super) Parts);

impl JobService {
    async fn submit(&self, request: SubmitLoadRequest) -> Result<JobResponse> {
        check_op(request.op.as_ref())?;
        // A path that does not exist is told now, not by a job that fails later.
        let target = Target { target: Some(target::Target::Path(request.path.clone())) };
        self.0.metadata.lookup(&target).await?;
        job_of(propose(&self.0.handle, request.op, Kind::SubmitJob(SubmitJob { path: request.path })).await?)
    }

    async fn get(&self, id: u64) -> Result<JobInfo> {
        let store = self.0.handle.read().await?;
        let job = query::job(&store.view(), id)?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("job {id} does not exist")))?;
        self.with_progress(job)
    }

    /// Progress of what runs is known to the leader only.
    fn with_progress(&self, job: JobInfo) -> Result<JobInfo> {
        if job.state() != JobState::Running {
            return Ok(shown_job(job));
        }
        if !self.0.handle.is_leader() {
            return Err(self.0.handle.not_leader());
        }
        Ok(self.0.progress.of(job))
    }

    async fn list(&self) -> Result<ListJobsResponse> {
        let store = self.0.handle.read().await?;
        let jobs = query::jobs(&store.view())?;
        Ok(ListJobsResponse { jobs: jobs.into_iter().map(|job| self.with_progress(job)).collect::<Result<_>>()? })
    }

    async fn cancel(&self, request: CancelJobRequest) -> Result<JobResponse> {
        check_op(request.op.as_ref())?;
        let reached = self.0.progress.of(JobInfo { id: request.id, ..JobInfo::default() });
        let finish = FinishJob {
            id: request.id,
            state: JobState::Cancelled.into(),
            message: String::new(),
            files_done: reached.files_done,
            bytes_done: reached.bytes_done,
            files_failed: reached.files_failed,
        };
        job_of(propose(&self.0.handle, request.op, Kind::FinishJob(finish)).await?)
    }
}

fn job_of(outcome: Answer) -> Result<JobResponse> {
    match outcome {
        Answer::Job(job) => Ok(JobResponse { job: Some(shown_job(job)) }),
        other => Err(Error::internal(format!("a job was answered with {other:?}"))),
    }
}

#[tonic::async_trait]
impl Job for JobService {
    async fn submit_load(&self, request: Request<SubmitLoadRequest>) -> Result<Response<JobResponse>, Status> {
        answer(self.submit(request.into_inner()).await)
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<JobResponse>, Status> {
        answer(self.get(request.into_inner().id).await.map(|job| JobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, _request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        answer(self.list().await)
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<JobResponse>, Status> {
        answer(self.cancel(request.into_inner()).await)
    }
}
