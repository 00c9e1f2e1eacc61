//! `jindoctl worker drain`: ask the leader, then wait until others hold what these workers held.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use jindofs_proto::v1::{DrainState, WorkerInfo, WorkerState};

use super::{BY_HAND, ids};
use crate::cli::PARTIAL;
use crate::cli::output::size;
use crate::client::admin;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::channel::MasterChannel;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(300);

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
    let deadline = Instant::now() + Duration::from_secs(arguments.patience);
    loop {
        let mut workers = admin::workers(channel).await?;
        workers.retain(|worker| ids.contains(&worker.id));
        if let Some(lost) = workers.iter().find(|worker| worker.state() == WorkerState::Lost) {
            let message = format!("worker {} at {} is lost: nothing can be moved from it", lost.id, lost.address);
            return Err(Error::unavailable(message));
        }
        let state = |worker: &WorkerInfo| worker.drain.as_ref().map(|drain| drain.state());
        if workers.iter().all(|worker| matches!(state(worker), Some(DrainState::Done) | None)) {
            return Ok(told(&workers));
        }
        if Instant::now() >= deadline {
            let message = format!("after {} s not everything has moved: the leader goes on", arguments.patience);
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Says how it ended for each.
fn told(workers: &[WorkerInfo]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for worker in workers {
        match &worker.drain {
            None => {
                println!("worker {}: its drain was called off", worker.id);
                code = ExitCode::from(PARTIAL);
            }
            Some(drain) if drain.left_bytes > 0 => {
                println!("worker {}: {} could not move: {}", worker.id, size(drain.left_bytes), drain.message);
                code = ExitCode::from(PARTIAL);
            }
            Some(drain) => println!("worker {} is drained: {}", worker.id, drain.message),
        }
    }
    code
}
