//! `jindoctl worker drain`: ask the leader, then wait until others hold what these workers held.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use jindofs_proto::v1::{DrainState, WorkerInfo, WorkerState};

use super::{BY_HAND, ids};
use crate::cli::output::size;
use crate::cli::{INTERRUPTED, PARTIAL, interrupted};
use crate::client::admin;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;
use crate::runtime::stdio;

/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// Ids, or host:port.
    #[arg(required = true)]
    workers: Vec<String>,
    /// Return once it is recorded; it goes on without us.
    #[arg(long)]
    detach: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 3600)]
    patience: u64,
}

pub(super) async fn run(channel: &MasterChannel, arguments: Arguments) -> Result<ExitCode> {
    let ids = ids(&admin::workers(channel).await?, &arguments.workers)?;
    admin::drain_workers(channel, &ids, false, BY_HAND).await?;
    if arguments.detach {
        return Ok(ExitCode::SUCCESS);
    }
    tokio::select! {
        drained = wait_drained(channel, &ids, arguments.patience) => drained,
        interrupted = interrupted() => {
            interrupted?;
            let names = ids.join(" ");
            stdio::complain(format_args!(
                "the drain goes on: `jindoctl worker list` shows how far it is, `jindoctl worker undrain {names}` calls it off"
            ));
            Ok(ExitCode::from(INTERRUPTED))
        }
    }
}

/// Waits until nothing is left on these workers that could move, and says how it ended.
async fn wait_drained(channel: &MasterChannel, ids: &[String], patience: u64) -> Result<ExitCode> {
    let deadline = Instant::now() + Duration::from_secs(patience);
    loop {
        let mut workers = admin::workers(channel).await?;
        workers.retain(|worker| ids.contains(&worker.id));
        if let Some(lost) = workers.iter().find(|worker| worker.state() == WorkerState::Lost) {
            let message = format!("worker {} at {} is lost: nothing can be moved from it", lost.id, lost.address);
            return Err(Error::unavailable(message));
        }
        let state = |worker: &WorkerInfo| worker.drain.as_ref().map(|drain| drain.state());
        if workers.iter().all(|worker| matches!(state(worker), Some(DrainState::Done) | None)) {
            return report(&workers);
        }
        if Instant::now() >= deadline {
            let message = format!("after {patience} s not everything has moved: the leader goes on");
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Says how it ended for each.
fn report(workers: &[WorkerInfo]) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for worker in workers {
        match &worker.drain {
            None => {
                stdio::write_line(format_args!("worker {}: its drain was called off", worker.id))?;
                code = ExitCode::from(PARTIAL);
            }
            Some(drain) if drain.left_bytes > 0 => {
                let left = size(drain.left_bytes);
                stdio::write_line(format_args!("worker {}: {left} could not move: {}", worker.id, drain.message))?;
                code = ExitCode::from(PARTIAL);
            }
            Some(drain) => {
                stdio::write_line(format_args!("worker {} is drained: {}", worker.id, drain.message))?;
            }
        }
    }
    Ok(code)
}
