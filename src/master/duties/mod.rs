//! Work the leader does by itself, as tasks that run on every master and act only while it leads.

mod drain;
mod intents;
mod jobs;
mod purge;
mod sessions;
mod sizes;
mod storages;

use crate::master::service::Parts;
use crate::runtime::Shutdown;

/// Runs every duty until `stop`.
pub async fn run(parts: Parts, stop: Shutdown) {
    tokio::join!(
        purge::run(parts.handle.clone(), stop.clone()),
        intents::run(parts.clone(), stop.clone()),
        sessions::run(parts.clone(), stop.clone()),
        jobs::run(parts.clone(), stop.clone()),
        drain::run(parts.clone(), stop.clone()),
        sizes::run(parts.clone(), stop.clone()),
        storages::run(parts, stop),
    );
}
