//! Expires the sessions of clients that are gone, by a replicated command: every master forgets them at the same index.

use jindofs_proto::store::v1::command::Command as Kind;
use jindofs_proto::store::v1::{Command, ExpireSessions};

use crate::error::Result;
use crate::master::service::Parts;
use crate::master::state::query;
use crate::runtime::Shutdown;
use crate::types::BATCH_MAX;

/// Looks per time to live.
const POLLS_PER_TTL: u32 = 4;

pub(super) async fn run(parts: Parts, stop: Shutdown) {
    let pause = parts.sessions.ttl() / POLLS_PER_TTL;
    while !stop.is_cancelled() {
        if let Err(error) = once(&parts).await {
            tracing::info!(%error, "expiry of sessions put off");
        }
        tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(pause) => {} }
    }
}

async fn once(parts: &Parts) -> Result<()> {
    let leads_in = *parts.handle.leadership().borrow();
    let (Some(term), Some(store)) = (leads_in, parts.handle.store()) else { return Ok(()) };
    // Without a quorum no renewal can be answered, and an expiry that is proposed now would be carried out when the
    // quorum is back, whatever the clients have said by then.
    if !parts.handle.has_quorum() {
        parts.sessions.grant_all();
        return Ok(());
    }
    let live: Vec<[u8; 16]> = query::sessions(&store.view())?.into_iter().map(|(id, _)| id).collect();
    for gone in parts.sessions.expired(term, &live).chunks(BATCH_MAX) {
        tracing::info!(sessions = gone.len(), "clients have not been heard of: their sessions expire");
        let client_ids = gone.iter().map(|id| id.to_vec().into()).collect();
        let command = Kind::ExpireSessions(ExpireSessions { client_ids });
        parts.handle.propose(Command { command: Some(command), ..Command::default() }).await?;
    }
    Ok(())
}
