//! Checks under-storages of which a request has failed until they answer: the metric tells when they serve again, also while no
//! client uses them. An under-storage whose last request was answered is not checked, as each check is a request.

use std::time::Duration;

use futures::future::join_all;

use crate::error::Result;
use crate::master::service::Parts;
use crate::master::state::query;
use crate::runtime::Shutdown;

/// Pause between two looks.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for one of them: it must not keep the others from being looked at.
const CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks until `stop`.
pub(super) async fn run(parts: Parts, stop: Shutdown) {
    loop {
        tokio::select! { () = stop.cancelled() => return, () = tokio::time::sleep(CHECK_INTERVAL) => {} }
        let checked = tokio::select! { () = stop.cancelled() => return, checked = once(&parts) => checked };
        if let Err(error) = checked {
            tracing::info!(%error, "under-storages in doubt are not looked at");
        }
    }
}

/// Every master looks at those that it has found to fail itself, and forgets those that are not mounted any more.
async fn once(parts: &Parts) -> Result<()> {
    let Some(store) = parts.handle.store() else { return Ok(()) };
    let mounts = query::mounts(&store.view())?.0;
    drop(store);
    parts.storage.retain(mounts.iter().map(|mount| (mount.ufs_uri.as_str(), &mount.options)));
    let in_doubt = mounts.iter().filter(|mount| parts.storage.is_in_doubt(&mount.ufs_uri, &mount.options));
    join_all(in_doubt.map(async |mount| {
        if let Err(error) = parts.storage.check(&mount.ufs_uri, &mount.options, CHECK_TIMEOUT).await {
            tracing::debug!(ufs = mount.ufs_uri, %error, "an under-storage does not serve yet");
        }
    }))
    .await;
    Ok(())
}
