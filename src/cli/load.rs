//! `jindoctl load`: caches what lies below a path.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jindofs_proto::v1::{JobInfo, JobState};
use serde::Serialize;

use super::output::{print, size};
use super::{Common, PARTIAL};
use crate::error::Result;

const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Absolute path of a file or directory.
    path: OsString,
    /// Return once the job is recorded; it goes on without us.
    #[arg(long)]
    detach: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    state: &'static str,
    files_total: u64,
    files_done: u64,
    files_failed: u64,
    bytes_total: u64,
    bytes_done: u64,
    message: String,
}

fn row(job: &JobInfo) -> Row {
    let state = match job.state() {
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Unspecified => "unknown",
    };
    Row {
        id: job.id.to_string(),
        state,
        files_total: job.files_total,
        files_done: job.files_done,
        files_failed: job.files_failed,
        bytes_total: job.bytes_total,
        bytes_done: job.bytes_done,
        message: job.message.clone(),
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    // Shown to people only: a log file wants the result.
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}") {
        bar.set_style(style);
    }
    bar
}

pub(super) async fn run(common: &Common, arguments: Arguments) -> Result<ExitCode> {
    let namespace = common.namespace()?;
    let shown = arguments.path.to_string_lossy().into_owned();
    let submitted = namespace.submit_load(&arguments.path.into_vec()).await;
    namespace.session().close().await;
    let mut job = submitted.map_err(|error| error.context(shown))?;
    let bar = bar();
    if !arguments.detach {
        let show = |job: &JobInfo| {
            bar.set_length(job.bytes_total);
            bar.set_position(job.bytes_done);
            bar.set_message(format!("{} of {} files", job.files_done, job.files_total));
        };
        job = namespace.follow_job(job, LOOK, show).await?;
    }
    bar.finish_and_clear();
    let row = row(&job);
    print(common.output, &row, &["JOB", "STATE", "FILES", "FAILED", "BYTES", "MESSAGE"], |_| {
        let files = format!("{}/{}", row.files_done, row.files_total);
        let bytes = format!("{}/{}", size(row.bytes_done), size(row.bytes_total));
        vec![vec![
            row.id.clone(),
            row.state.to_owned(),
            files,
            row.files_failed.to_string(),
            bytes,
            row.message.clone(),
        ]]
    })?;
    Ok(match job.state() {
        JobState::Failed => ExitCode::from(PARTIAL),
        JobState::Cancelled => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}
