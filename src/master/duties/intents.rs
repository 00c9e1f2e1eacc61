//! Changes of under-storage that nobody works at: those of the leader before, and those of clients that are gone.

use std::time::Duration;

use crate::error::Result;
use crate::master::service::Parts;
use crate::runtime::Shutdown;

/// Pause between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

pub(super) async fn run(parts: Parts, stop: Shutdown) {
    let mut leadership = parts.handle.leadership();
    let mut ready = None;
    while !stop.is_cancelled() {
        let leads_in = *leadership.borrow_and_update();
        if let Err(error) = once(&parts, leads_in, &mut ready).await {
            tracing::info!(%error, "changes of under-storage put off");
        }
        tokio::select! {
            () = stop.cancelled() => {}
            _ = leadership.changed() => {}
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

async fn once(parts: &Parts, leads_in: Option<u64>, ready: &mut Option<u64>) -> Result<()> {
    let Some(term) = leads_in else {
        *ready = None;
        return Ok(());
    };
    if *ready != Some(term) {
        parts.intents.take_over(term).await?;
        *ready = Some(term);
    }
    parts.intents.look_after()
}
