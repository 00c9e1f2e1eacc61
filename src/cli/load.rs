//! `jindoctl load`: caches what lies below a path.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jindofs_proto::v1::JobInfo;

use super::{Common, INTERRUPTED, interrupted, job};
use crate::client::refresh;
use crate::error::Result;
use crate::runtime::stdio;

/// Pause between two looks at the job.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Absolute path of a file or directory.
    path: OsString,
    /// Reads the metadata of everything below again first, so that what others have stored is loaded too.
    #[arg(long)]
    metadata: bool,
    /// Return once the job is recorded; it goes on without us.
    #[arg(long)]
    detach: bool,
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
    let path = arguments.path.into_vec();
    if arguments.metadata {
        let read = refresh::refresh(&namespace, &path, true).await;
        read.map_err(|error| error.context(format!("{shown}: its metadata is not read again")))?;
    }
    let submitted = namespace.submit_load(&path).await;
    namespace.session().close().await;
    let submitted = submitted.map_err(|error| error.context(shown))?;
    let id = submitted.id;
    if arguments.detach {
        stdio::complain(job::advice(id));
        job::show(common, &submitted)?;
        return Ok(ExitCode::SUCCESS);
    }
    let bar = bar();
    let show = |job: &JobInfo| {
        bar.set_length(job.bytes_total);
        bar.set_position(job.bytes_done);
        bar.set_message(format!("{} of {} files", job.files_done, job.files_total));
        Ok(())
    };
    let ended = tokio::select! {
        ended = namespace.follow_job(submitted, POLL_INTERVAL, show) => Some(ended),
        interrupted = interrupted() => interrupted.map(|()| None)?,
    };
    bar.finish_and_clear();
    let Some(ended) = ended else {
        stdio::complain(job::advice(id));
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let ended = ended.map_err(|error| error.context(job::advice(id)))?;
    job::show(common, &ended)?;
    Ok(job::exit_code(&ended))
}
