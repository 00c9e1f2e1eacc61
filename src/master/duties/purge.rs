//! Frees the inodes of removed trees, a bounded number at a time.

use std::time::Duration;

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Command, Purge};

use crate::error::Result;
use crate::master::raft::Handle;
use crate::master::state::query;
use crate::runtime::Shutdown;

/// Inodes freed by one command: small enough that it never delays what clients wait for.
const PURGE_INODES: u32 = 500;
/// Pause between two looks while there is nothing to free.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Purges until `stop`.
pub(super) async fn run(handle: Handle, stop: Shutdown) {
    while !stop.is_cancelled() {
        let busy = match once(&handle).await {
            Ok(busy) => busy,
            Err(error) => {
                tracing::info!(%error, "purge put off");
                false
            }
        };
        if !busy {
            tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(POLL_INTERVAL) => {} }
        }
    }
}

async fn once(handle: &Handle) -> Result<bool> {
    let Some(store) = handle.store().filter(|_| handle.is_leader()) else { return Ok(false) };
    if !query::gc_pending(&store.view())? {
        return Ok(false);
    }
    let command = Command { command: Some(Kind::Purge(Purge { limit: PURGE_INODES })), ..Command::default() };
    handle.propose(command).await?;
    Ok(true)
}
