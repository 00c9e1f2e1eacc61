//! `jindoctl job`: what the cluster does by itself, such as loads.

use std::process::ExitCode;

use clap::Subcommand;
use jindofs_proto::v1::{JobInfo, JobState};
use serde::Serialize;

use super::output::{name, print, size, time};
use super::{Common, PARTIAL};
use crate::error::Result;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists the jobs on record, oldest first.
    List,
    /// Shows one job, and how far it is.
    Get {
        /// Id of the job.
        id: u64,
    },
    /// Ends a job. What it has cached stays cached.
    Cancel {
        /// Id of the job.
        id: u64,
    },
}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    path: String,
    state: &'static str,
    files_total: u64,
    files_done: u64,
    files_failed: u64,
    bytes_total: u64,
    bytes_done: u64,
    /// Nanoseconds since the epoch.
    created: i64,
    message: String,
}

const HEADER: [&str; 8] = ["JOB", "PATH", "STATE", "FILES", "FAILED", "BYTES", "CREATED (UTC)", "MESSAGE"];

impl From<&JobInfo> for Row {
    fn from(job: &JobInfo) -> Row {
        let state = match job.state() {
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
            JobState::Unspecified => "unknown",
        };
        Row {
            id: job.id.to_string(),
            path: name(&job.path),
            state,
            files_total: job.files_total,
            files_done: job.files_done,
            files_failed: job.files_failed,
            bytes_total: job.bytes_total,
            bytes_done: job.bytes_done,
            created: job.created_ns,
            message: job.message.clone(),
        }
    }
}

fn cells(row: &Row) -> Vec<String> {
    vec![
        row.id.clone(),
        row.path.clone(),
        row.state.to_owned(),
        format!("{}/{}", row.files_done, row.files_total),
        row.files_failed.to_string(),
        format!("{}/{}", size(row.bytes_done), size(row.bytes_total)),
        time(row.created),
        row.message.clone(),
    ]
}

/// Prints one job.
pub(super) fn show(common: &Common, job: &JobInfo) -> Result<()> {
    let row = Row::from(job);
    print(common.output, &row, &HEADER, |_| vec![cells(&row)])
}

/// What to do about a job that goes on without this command, for people.
pub(super) fn advice(id: u64) -> String {
    format!("job {id} goes on: `jindoctl job get {id}` shows how far it is, `jindoctl job cancel {id}` ends it")
}

/// Exit code of a command that is about one job.
pub(super) fn exit_code(job: &JobInfo) -> ExitCode {
    match job.state() {
        JobState::Failed => ExitCode::from(PARTIAL),
        JobState::Cancelled => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

pub(super) async fn run(common: &Common, command: Command) -> Result<ExitCode> {
    let namespace = common.namespace()?;
    let found = match command {
        Command::List => {
            let rows: Vec<Row> = namespace.jobs().await?.iter().map(Row::from).collect();
            return print(common.output, &rows, &HEADER, |_| rows.iter().map(cells).collect())
                .map(|()| ExitCode::SUCCESS);
        }
        Command::Get { id } => namespace.job(id).await,
        Command::Cancel { id } => namespace.cancel_job(id).await,
    };
    namespace.session().close().await;
    show(common, &found?)?;
    Ok(ExitCode::SUCCESS)
}
